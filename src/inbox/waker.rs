//! Waking a whole commit's waiters from the committer's thread.
//!
//! An unpark from an OS thread costs a write to the worker's eventfd each. So for more than a few waiters the list goes
//! to one coroutine per worker, and those unpark the rest: pushes to their own worker's queue.

use std::sync::Arc;

use may::sync::Blocker;
use parking_lot::Mutex;

use super::queue::Waiter;

/// Below this many waiters they are woken directly.
const FAN_OUT_MIN: usize = 8;

/// The coroutines that wake others.
pub struct Waker {
    helpers: Vec<Arc<Helper>>,
}

struct Helper {
    list: Mutex<Vec<Arc<Waiter>>>,
    blocker: Blocker,
}

impl Waker {
    /// Starts `workers` coroutines, which live as long as the process.
    pub fn start(workers: usize) -> Self {
        let helpers = (0..workers.max(1)).map(|_| Helper::start()).collect();
        Self { helpers }
    }

    /// Wakes all and leaves the list empty.
    pub fn wake(&self, waiters: &mut Vec<Arc<Waiter>>) {
        if waiters.len() < FAN_OUT_MIN {
            for waiter in waiters.drain(..) {
                waiter.wake();
            }
            return;
        }
        let share = waiters.len().div_ceil(self.helpers.len());
        for helper in &self.helpers {
            let rest = waiters.len().saturating_sub(share);
            helper.list.lock().extend(waiters.drain(rest..));
            helper.blocker.unpark();
        }
    }
}

impl Helper {
    fn start() -> Arc<Self> {
        let (made, wait) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            // the blocker must be made on the coroutine that parks on it
            let helper = Arc::new(Self { list: Mutex::default(), blocker: Blocker::new(true) });
            let _ = made.send(Arc::clone(&helper));
            let mut list = Vec::new();
            loop {
                std::mem::swap(&mut *helper.list.lock(), &mut list);
                if list.is_empty() {
                    let _ = helper.blocker.park(None);
                }
                for waiter in list.drain(..) {
                    waiter.wake();
                }
            }
        };
        let _detached = may::go!(may::coroutine::Builder::new().name("waker".to_owned()), body);
        wait.recv().expect("the coroutine sends before anything else")
    }
}
