//! Threads for work that blocks or takes long: a name lookup, a driver without coroutines, a body of megabytes.
//!
//! A [`Pool`] has a fixed number of named threads behind a bounded queue. Who waits (a coroutine or a thread)
//! gives up at its own deadline; a job that was begun runs to its end and its late result is dropped, one that
//! was not is not begun any more, so what was given up is not done later. A job that panics ends only itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use may::sync::Blocker;
use parking_lot::Mutex;

use crate::clock;
use crate::ops::metrics::{Counter, Metric};

static FULL: Counter = Counter::new("blocking_full_total", "Blocking jobs refused: queue full.");
static LATE: Counter = Counter::new("blocking_late_total", "Blocking jobs given up at a deadline.");

/// What this module counts.
pub static METRICS: &[&dyn Metric] = &[&FULL, &LATE];

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRun {
    /// The queue is full; the job never ran.
    Full,
    /// The deadline passed. A job that had begun may still run.
    Late,
    /// The job panicked.
    Panicked,
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads for blocking jobs. They end when the pool is dropped and the queue is empty.
#[derive(Debug)]
pub struct Pool {
    jobs: Sender<Job>,
}

enum Slot<T> {
    Open,
    /// Nobody waits any more.
    Left,
    Done(T),
    /// The job's side is gone without a result: it panicked.
    Lost,
}

/// Filled by the job; dropping it wakes the waiter whatever happened.
struct Reply<T> {
    slot: Arc<Mutex<Slot<T>>>,
    waiter: Arc<Blocker>,
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        let mut slot = self.slot.lock();
        if matches!(*slot, Slot::Open) {
            *slot = Slot::Lost;
        }
        drop(slot);
        self.waiter.unpark();
    }
}

impl Pool {
    /// Starts `threads` threads called `name`, with room for `queue` waiting jobs.
    pub fn new(name: &str, threads: usize, queue: usize) -> Self {
        let (jobs, waiting) = bounded::<Job>(queue);
        for _ in 0..threads.max(1) {
            let waiting = waiting.clone();
            let run = move || waiting.iter().for_each(|job| drop(catch_unwind(AssertUnwindSafe(job))));
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .expect("the system gives a few threads at the start");
        }
        Self { jobs }
    }

    /// Runs `job` on one of the threads and waits for it, at most `within` (queueing included; up to 50 ms
    /// longer, see [`clock::TIMER_MIN`]).
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        within: Duration,
    ) -> Result<T, NotRun> {
        let deadline = clock::monotonic() + within;
        let waiter = Blocker::current();
        let slot = Arc::new(Mutex::new(Slot::Open));
        let reply = Reply { slot: Arc::clone(&slot), waiter: Arc::clone(&waiter) };
        let job = move || {
            if !matches!(*reply.slot.lock(), Slot::Left) {
                let done = job();
                *reply.slot.lock() = Slot::Done(done);
            }
        };
        if self.jobs.try_send(Box::new(job)).is_err() {
            FULL.inc();
            return Err(NotRun::Full);
        }
        loop {
            let left = deadline.saturating_sub(clock::monotonic());
            let next = if left.is_zero() { Slot::Left } else { Slot::Open };
            match std::mem::replace(&mut *slot.lock(), next) {
                Slot::Done(done) => return Ok(done),
                Slot::Lost => return Err(NotRun::Panicked),
                Slot::Open | Slot::Left => {}
            }
            if left.is_zero() {
                LATE.inc();
                return Err(NotRun::Late);
            }
            if waiter.park(Some(left.max(clock::TIMER_MIN))).is_err() {
                clock::back_to_worker();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn coroutine<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
        may::go!(f).join().expect("no panic")
    }

    #[test]
    fn a_result_reaches_a_thread_and_a_coroutine() {
        let pool = Arc::new(Pool::new("test", 1, 4));
        assert_eq!(pool.run(|| 7, LONG), Ok(7));
        let name = pool.run(|| std::thread::current().name().map(str::to_owned), LONG);
        assert_eq!(name, Ok(Some("test".to_owned())));
        assert_eq!(coroutine(move || pool.run(|| 8, LONG)), Ok(8));
    }

    #[test]
    fn a_panic_ends_only_its_job() {
        let pool = Pool::new("test", 1, 4);
        assert_eq!(pool.run(|| panic!("on purpose"), LONG), Err::<(), _>(NotRun::Panicked));
        assert_eq!(pool.run(|| 1, LONG), Ok(1));
    }

    #[test]
    fn a_job_that_was_given_up_is_not_begun() {
        let pool = Pool::new("test", 1, 4);
        let (open, gate) = bounded::<()>(0);
        let first = pool.run(move || gate.recv(), Duration::from_millis(1));
        assert_eq!(first, Err(NotRun::Late));
        let done = Arc::new(Mutex::new(false));
        let given_up = Arc::clone(&done);
        assert_eq!(pool.run(move || *given_up.lock() = true, Duration::from_millis(1)), Err(NotRun::Late));
        open.send(()).expect("the first job waits");
        assert_eq!(pool.run(|| (), LONG), Ok(()));
        assert!(!*done.lock());
    }

    #[test]
    fn a_late_job_is_given_up_and_a_full_queue_refuses() {
        let pool = Arc::new(Pool::new("test", 1, 1));
        let (open, gate) = bounded::<()>(0);
        let (began, begun) = bounded::<()>(1);
        let held = Arc::clone(&pool);
        let first = may::go!(move || {
            let job = move || {
                let _ = began.send(());
                let _ = gate.recv();
            };
            held.run(job, Duration::from_millis(50))
        });
        begun.recv().expect("the job began");
        assert_eq!(first.join().expect("no panic"), Err(NotRun::Late));
        // the thread is still busy: one job waits, the next finds no room
        assert_eq!(pool.run(|| (), Duration::from_millis(20)), Err(NotRun::Late));
        assert_eq!(pool.run(|| (), LONG), Err(NotRun::Full));
        open.send(()).expect("the job waits");
        // the queue drains and the pool works again
        while pool.run(|| (), LONG) == Err(NotRun::Full) {
            std::thread::yield_now();
        }
    }
}
