//! A coroutine that runs whenever a certain worker has looked at its sockets after a ring.
//!
//! `may` polls descriptor `fd` on worker `fd % workers`, and an unparked coroutine goes to any worker; so the one that must
//! run on a certain worker, or not before it has polled, waits for a pipe whose descriptor is polled there.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;

use may::io::CoIo;

use crate::clock;

/// Dropped, it ends its coroutine.
#[derive(Debug)]
pub struct Bell(PipeWriter);

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
        let body = move || {
            let mut rings = [0; 16];
            loop {
                match end.read(&mut rings) {
                    Ok(1..) => heard(),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    // the bell is gone, or the pipe failed: from now on a ring fails too
                    _ => break,
                }
            }
            clock::linger();
            // its registration goes first: once the descriptor is closed its number may be another's
            drop(end.into_inner());
            heard();
        };
        let _detached = may::go!(may::coroutine::Builder::new().name(name.to_owned()), body);
        Ok(Self(writer))
    }

    /// False: its coroutine has ended, and hears no ring any more.
    pub fn ring(&self) -> bool {
        (&self.0).write_all(&[1]).is_ok()
    }

    /// One whose coroutine has ended.
    #[cfg(test)]
    pub fn broken() -> Self {
        Self(std::io::pipe().expect("a pipe").1)
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
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::{Arc, mpsc};
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
        assert!(!Bell::broken().ring());
    }
}
