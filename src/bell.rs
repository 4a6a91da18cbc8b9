//! A coroutine that runs whenever a certain worker has looked at its sockets after a ring.
//!
//! `may` polls descriptor `fd` on worker `fd % workers`, and an unparked coroutine goes to any worker; so the one that must
//! run on a certain worker, or not before it has polled, waits for a pipe whose descriptor is polled there.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use may::io::CoIo;

use crate::clock;

/// Dropped, it ends its coroutine.
#[derive(Debug)]
pub struct Bell {
    writer: PipeWriter,
    /// Rung and not heard yet: a pipe that nobody reads would be full one day, and a ring would block.
    is_rung: Arc<AtomicBool>,
}

impl Bell {
    /// Its coroutine runs `heard` once after one or more rings, on `worker` of `workers`; and once more when it ends. Fails
    /// where there are no descriptors left: it takes two.
    pub fn hang(
        name: &'static str,
        (worker, workers): (usize, usize),
        mut heard: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let mut end = CoIo::new(polled_by(reader, worker, workers)?)
            .map_err(|e| std::io::Error::other(e.to_string()))?;
        let is_rung = Arc::new(AtomicBool::new(false));
        let is_heard = Arc::clone(&is_rung);
        let body = move || {
            let mut rings = [0; 16];
            loop {
                match end.read(&mut rings) {
                    Ok(1..) => {
                        is_heard.store(false, SeqCst);
                        heard();
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    // the bell is gone, or the pipe failed: from now on a ring fails too
                    _ => break,
                }
            }
            clock::linger();
            // its registration goes first: once the descriptor is closed its number may be another's
            drop(end.into_inner());
            is_heard.store(false, SeqCst);
            heard();
        };
        let _detached = may::go!(may::coroutine::Builder::new().name(name.to_owned()), body);
        Ok(Self { writer, is_rung })
    }

    /// Never blocks. False: its coroutine has ended, and hears no ring any more.
    pub fn ring(&self) -> bool {
        if self.is_rung.swap(true, SeqCst) {
            return true;
        }
        let is_heard = (&self.writer).write_all(&[1]).is_ok();
        if !is_heard {
            self.is_rung.store(false, SeqCst);
        }
        is_heard
    }

    /// One whose coroutine has ended.
    #[cfg(test)]
    pub fn broken() -> Self {
        Self { writer: std::io::pipe().expect("a pipe").1, is_rung: Arc::default() }
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
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::time::Duration;

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

    #[test]
    fn a_ring_does_not_block_where_nobody_listens() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let bell = Bell { writer, is_rung: Arc::default() };
        assert!((0..100_000).all(|_| bell.ring()), "more than a pipe holds");
        drop(reader);
    }

    #[test]
    fn a_ring_is_heard_and_so_is_the_end() {
        let (tell, told) = mpsc::channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let heard = move || _ = tell.send(counted.fetch_add(1, SeqCst));
        let bell = Bell::hang("test", (0, may::config().get_workers()), heard).expect("hangs");
        for n in 0..3 {
            assert!(bell.ring());
            assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(n));
        }
        drop(bell);
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(3));
        let broken = Bell::broken();
        assert!(!broken.ring() && !broken.ring(), "each time");
    }
}
