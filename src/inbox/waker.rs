//! Waking a whole commit's waiters from the committer's thread.
//!
//! An unpark from an OS thread costs a write to a worker's eventfd each, and any worker may get the coroutine. So for
//! more than a few waiters the bodies go back to where they came from: one coroutine a worker gets those of the
//! connections whose events that worker polls, records their outcome and unparks them, which are pushes to its own
//! queue. The committer touches nothing of a connection then, and a connection's stack and buffers stay with the
//! core that will read its next request.
//!
//! `may` polls descriptor `fd` on worker `fd % workers`, and an unparked coroutine goes to any worker; so the one that
//! must run on a certain worker waits for a pipe whose descriptor is polled there.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use may::io::CoIo;
use parking_lot::Mutex;

use super::queue::Append;
use crate::clock;

/// Below this many waiters they are woken directly.
const FAN_OUT_MIN: usize = 8;
/// How often the list is looked at where the pipe can't be read.
const UNHEARD: Duration = Duration::from_millis(1);

/// The coroutines that wake others.
pub struct Waker {
    helpers: Vec<Helper>,
}

struct Helper {
    list: Arc<Mutex<Vec<Append>>>,
    bell: PipeWriter,
}

impl Waker {
    /// Starts `workers` coroutines, which live until this is dropped. Fails where there are no descriptors left: each takes
    /// two.
    pub fn start(workers: usize) -> std::io::Result<Self> {
        let workers = workers.max(1);
        let helpers = (0..workers).map(|worker| Helper::start(worker, workers));
        Ok(Self { helpers: helpers.collect::<Result<_, _>>()? })
    }

    /// Tells all that their bodies are durable, and leaves the list empty.
    pub fn tell(&self, appends: &mut Vec<Append>) {
        if appends.len() < FAN_OUT_MIN {
            for append in appends.drain(..) {
                append.durable();
            }
            return;
        }
        let mut lists: Vec<_> = self.helpers.iter().map(|helper| helper.list.lock()).collect();
        let were_empty: Vec<bool> = lists.iter().map(|list| list.is_empty()).collect();
        let count = lists.len();
        for append in appends.drain(..) {
            lists[append.home() % count].push(append);
        }
        let rings: Vec<bool> =
            lists.iter().zip(were_empty).map(|(list, was)| was && !list.is_empty()).collect();
        drop(lists);
        for (helper, ring) in self.helpers.iter().zip(rings) {
            if ring {
                (&helper.bell).write_all(&[1]).expect("its reader never ends");
            }
        }
    }
}

impl Helper {
    fn start(worker: usize, workers: usize) -> std::io::Result<Self> {
        let (reader, bell) = std::io::pipe()?;
        let mut bell_end = CoIo::new(polled_by(reader, worker, workers)?)
            .map_err(|e| std::io::Error::other(e.to_string()))?;
        let list = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&list);
        let body = move || {
            let mut mine: Vec<Append> = Vec::new();
            let mut rings = [0; 16];
            loop {
                match bell_end.read(&mut rings) {
                    // the committer has ended
                    Ok(0) => return,
                    Ok(_) => {}
                    // a pipe has no reason to fail; if it does nobody must wait for ever
                    Err(_) => clock::sleep(UNHEARD),
                }
                std::mem::swap(&mut *shared.lock(), &mut mine);
                for append in mine.drain(..) {
                    append.durable();
                }
            }
        };
        let _detached = may::go!(may::coroutine::Builder::new().name("waker".to_owned()), body);
        Ok(Self { list, bell })
    }
}

/// The same pipe under a descriptor that `worker` polls.
fn polled_by(reader: PipeReader, worker: usize, workers: usize) -> std::io::Result<PipeReader> {
    let mut others = Vec::new();
    let mut reader = reader;
    while reader.as_raw_fd() as usize % workers != worker {
        let next = reader.try_clone()?;
        others.push(std::mem::replace(&mut reader, next));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_can_be_polled_by_any_worker() {
        for workers in [1, 2, 3, 8] {
            for worker in 0..workers {
                let (reader, mut bell) = std::io::pipe().expect("a pipe");
                let mut reader = polled_by(reader, worker, workers).expect("another descriptor");
                assert_eq!(reader.as_raw_fd() as usize % workers, worker);
                bell.write_all(&[7]).expect("rings");
                let mut heard = [0];
                reader.read_exact(&mut heard).expect("is heard");
                assert_eq!(heard, [7]);
                drop(bell);
                assert_eq!(reader.read(&mut heard).expect("the end"), 0);
            }
        }
    }
}
