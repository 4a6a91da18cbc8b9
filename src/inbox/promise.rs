//! One value that somebody waits for: a coroutine or a thread, with a deadline or without.

use std::sync::Arc;
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::Mutex;

use crate::clock;

/// The waiting side.
pub struct Promise<T> {
    slot: Arc<Slot<T>>,
}

/// The side that keeps it. Dropped without [`Keeper::keep`], the waiter gets `None`.
pub struct Keeper<T> {
    slot: Arc<Slot<T>>,
}

struct Slot<T> {
    value: Mutex<State<T>>,
    blocker: Arc<Blocker>,
}

enum State<T> {
    Open,
    Kept(T),
    Gone,
}

/// Must be called where it is waited for: the blocker belongs to the coroutine or thread that makes it.
pub fn promise<T>() -> (Keeper<T>, Promise<T>) {
    let slot = Arc::new(Slot { value: Mutex::new(State::Open), blocker: Blocker::current() });
    (Keeper { slot: Arc::clone(&slot) }, Promise { slot })
}

impl<T> Keeper<T> {
    /// Hands the value over and wakes the waiter.
    pub fn keep(self, value: T) {
        *self.slot.value.lock() = State::Kept(value);
        // the drop wakes
    }
}

impl<T> Drop for Keeper<T> {
    fn drop(&mut self) {
        let mut value = self.slot.value.lock();
        if matches!(*value, State::Open) {
            *value = State::Gone;
        }
        drop(value);
        self.slot.blocker.unpark();
    }
}

impl<T> Promise<T> {
    /// The value; `None` if the keeper is gone.
    pub fn wait(self) -> Option<T> {
        loop {
            if let Some(ended) = self.take() {
                return ended;
            }
            let _ = self.slot.blocker.park(None);
        }
    }

    /// The value; `None` if the keeper is gone or `within` has passed.
    pub fn wait_within(self, within: Duration) -> Option<T> {
        let deadline = clock::monotonic() + within;
        loop {
            if let Some(ended) = self.take() {
                return ended;
            }
            let left = deadline.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return None;
            }
            if self.slot.blocker.park(Some(left.max(clock::TIMER_MIN))).is_err() {
                clock::back_to_worker();
            }
        }
    }

    /// `None` while it is open.
    fn take(&self) -> Option<Option<T>> {
        let mut value = self.slot.value.lock();
        match std::mem::replace(&mut *value, State::Gone) {
            State::Kept(kept) => Some(Some(kept)),
            State::Gone => Some(None),
            State::Open => {
                *value = State::Open;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_value_arrives() {
        let (keeper, promise) = promise();
        std::thread::spawn(move || keeper.keep(7));
        assert_eq!(promise.wait(), Some(7));
    }

    #[test]
    fn a_dropped_keeper_and_a_deadline_end_the_wait() {
        let (keeper, waiting) = promise::<u8>();
        drop(keeper);
        assert_eq!(waiting.wait(), None);
        let (_keeper, waiting) = promise::<u8>();
        assert_eq!(waiting.wait_within(Duration::from_millis(10)), None);
    }
}
