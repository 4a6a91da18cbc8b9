//! Threads for blocking work, with the interface of `net::blocking`, until that is there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::clock;

#[derive(Debug)]
pub(super) enum NotRun {
    Full,
    Late,
    Panicked,
}

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    jobs: crossbeam_channel::Sender<Job>,
}

impl Pool {
    pub(super) fn new(name: &'static str, threads: usize, queue: usize) -> Self {
        let (jobs, waiting) = crossbeam_channel::bounded::<Job>(queue);
        for _ in 0..threads {
            let waiting = waiting.clone();
            let run = move || waiting.iter().for_each(|job| drop(catch_unwind(AssertUnwindSafe(job))));
            std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("threads can be started");
        }
        Self { jobs }
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        within: Duration,
    ) -> Result<T, NotRun> {
        let (reply, answer) = may::sync::mpsc::channel();
        let deadline = clock::monotonic() + within;
        let job = move || {
            // nobody waits for it any more: a write that was given up must not be done later
            if clock::monotonic() < deadline {
                let _ = reply.send(job());
            }
        };
        self.jobs.try_send(Box::new(job)).map_err(|_| NotRun::Full)?;
        answer.recv_timeout(within).map_err(|e| {
            clock::back_to_worker();
            match e {
                std::sync::mpsc::RecvTimeoutError::Timeout => NotRun::Late,
                std::sync::mpsc::RecvTimeoutError::Disconnected => NotRun::Panicked,
            }
        })
    }
}
