//! Deadlines of sockets, kept by one thread that shuts a late socket down; its coroutine then wakes by the kernel's
//! event like by any other.
//!
//! The timers that `may` offers for reads and writes are not used: when an event comes in while a coroutine goes to
//! sleep, `may` 0.3 takes the timer out of a list that belongs to another worker, and that list is not made for it.
//! They also lose a timer that fires before the coroutine has gone to sleep. Here a deadline is one atomic
//! word that is armed before an operation and disarmed after it; whoever takes it out, the owner or the thread, has
//! it alone, so a socket that went on to its next use is never shut down for its last one.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock;
use crate::ops::metrics::Counter;

/// How late the thread may notice a deadline, at most.
const TICK_MAX: Duration = Duration::from_millis(50);
/// How often it looks, at most.
const TICK_MIN: Duration = Duration::from_millis(2);

/// No deadline.
const NONE: u64 = u64::MAX;
/// The thread has taken the deadline and shuts the socket down.
const FIRED: u64 = 0;

/// Sockets shut down at their deadline.
pub(super) static FIRINGS: Counter =
    Counter::new("net_deadlines_total", "Connections of outgoing calls cut at the call's deadline.");

/// One socket's deadline.
#[derive(Debug)]
pub(super) struct Watch {
    /// Microseconds of [`clock::monotonic`], [`NONE`] or [`FIRED`].
    deadline: AtomicU64,
    socket: Arc<TcpStream>,
}

impl Watch {
    /// Watches `socket` for as long as the result lives; without a deadline at first.
    pub(super) fn new(socket: Arc<TcpStream>) -> Arc<Self> {
        let watch = Arc::new(Self { deadline: AtomicU64::new(NONE), socket });
        KEEPER.watched.lock().push(Arc::downgrade(&watch));
        watch
    }

    /// Sets the deadline of the operation that comes now.
    pub(super) fn arm(&self, deadline: Duration) {
        let deadline = u64::try_from(deadline.as_micros()).unwrap_or(NONE - 1).clamp(FIRED + 1, NONE - 1);
        self.deadline.store(deadline, Ordering::Release);
        KEEPER.wake();
    }

    /// Takes the deadline back. False if it fired: the socket is shut down and no good any more.
    pub(super) fn disarm(&self) -> bool {
        self.deadline.swap(NONE, Ordering::AcqRel) != FIRED
    }

    /// Shuts the socket down if its time has come; else the time that is left, if it has a deadline.
    fn check(&self, now: u64) -> Option<Duration> {
        let deadline = self.deadline.load(Ordering::Acquire);
        if deadline == NONE || deadline == FIRED {
            return None;
        }
        if now < deadline {
            return Some(Duration::from_micros(deadline - now));
        }
        if self.deadline.compare_exchange(deadline, FIRED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            FIRINGS.inc();
            // it also ends a connect under way; an error means that the other side was faster
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        None
    }
}

/// The thread's state: what is watched, and whether it sleeps until somebody arms a deadline.
struct Keeper {
    watched: Mutex<Vec<Weak<Watch>>>,
    asleep: AtomicBool,
    gate: Mutex<()>,
    awake: Condvar,
}

static KEEPER: LazyLock<&'static Keeper> = LazyLock::new(|| {
    let keeper: &'static Keeper = Box::leak(Box::new(Keeper {
        watched: Mutex::new(Vec::new()),
        asleep: AtomicBool::new(false),
        gate: Mutex::new(()),
        awake: Condvar::new(),
    }));
    std::thread::Builder::new()
        .name("net-deadlines".to_owned())
        .spawn(move || keeper.run())
        .expect("a thread can be started when the first client connects");
    keeper
});

impl Keeper {
    fn run(&self) {
        loop {
            // announced before looking: who arms a deadline after the look sees it and wakes the thread
            self.asleep.store(true, Ordering::SeqCst);
            match self.look() {
                Some(left) => {
                    self.asleep.store(false, Ordering::SeqCst);
                    #[allow(clippy::disallowed_methods, reason = "this is a thread of its own")]
                    std::thread::sleep(left.clamp(TICK_MIN, TICK_MAX));
                }
                None => {
                    let mut gate = self.gate.lock();
                    while self.asleep.load(Ordering::SeqCst) {
                        self.awake.wait(&mut gate);
                    }
                }
            }
        }
    }

    /// Looks at every socket; the time until the first deadline, if there is one.
    fn look(&self) -> Option<Duration> {
        let now = clock::monotonic().as_micros() as u64;
        let mut first: Option<Duration> = None;
        self.watched.lock().retain(|watch| match watch.upgrade() {
            Some(watch) => {
                if let Some(left) = watch.check(now) {
                    first = Some(first.map_or(left, |first| first.min(left)));
                }
                true
            }
            None => false,
        });
        first
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _gate = self.gate.lock();
            self.awake.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests on plain threads")]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn pair() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(near), listener.accept().unwrap().0)
    }

    #[test]
    fn a_late_socket_is_shut_down_in_time() {
        let (near, _far) = pair();
        let watch = Watch::new(Arc::clone(&near));
        for sleep_first in [0, 150] {
            // the second time the thread has gone to sleep for want of deadlines
            std::thread::sleep(Duration::from_millis(sleep_first));
            let (near, _far) = pair();
            let watch = Watch::new(Arc::clone(&near));
            let begun = Instant::now();
            watch.arm(clock::monotonic() + Duration::from_millis(100));
            assert_eq!((&*near).read(&mut [0]).unwrap(), 0);
            let took = begun.elapsed();
            assert!(took >= Duration::from_millis(99) && took < Duration::from_millis(250), "{took:?}");
            assert!(!watch.disarm());
        }
        assert!(watch.disarm());
    }

    #[test]
    fn a_disarmed_socket_stays_open() {
        let (near, far) = pair();
        let watch = Watch::new(Arc::clone(&near));
        watch.arm(clock::monotonic() + Duration::from_millis(30));
        assert!(watch.disarm());
        std::thread::sleep(Duration::from_millis(120));
        near.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!((&*near).read(&mut [0]).is_err(), "nothing to read, and not closed");
        drop(far);
        assert_eq!((&*near).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_dropped_is_forgotten() {
        let (near, _far) = pair();
        let watch = Watch::new(Arc::clone(&near));
        let weak = Arc::downgrade(&watch);
        drop(watch);
        KEEPER.look();
        assert!(!KEEPER.watched.lock().iter().any(|w| w.ptr_eq(&weak)));
        assert_eq!(Arc::strong_count(&near), 1);
    }
}
