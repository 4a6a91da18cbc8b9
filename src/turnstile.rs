//! Coroutines that wait for a place, fair between phone numbers: whose calls go to Graph now, whose turns use the cores.
//!
//! PURE: `places` (who gets one). Here: waiting for one and giving it back.

pub mod places;

use std::sync::Arc;
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::Mutex;

use crate::clock;
use places::{Places, Rule};

/// Places, and who waits for one.
#[derive(Debug)]
pub struct Turnstile(Mutex<Places<Arc<Blocker>>>);

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    turnstile: &'a Turnstile,
    number: u64,
    /// It was not free at once.
    pub waited: bool,
}

impl Turnstile {
    /// All places free.
    pub fn new(rule: Rule) -> Self {
        Self(Mutex::new(Places::new(rule)))
    }

    /// Takes a place for this number, when there is one. A coroutine that ends soon after needs [`clock::linger`].
    pub fn enter(&self, number: u64) -> Place<'_> {
        let waited = self.take(number, false);
        Place { turnstile: self, number, waited }
    }

    /// Does something meanwhile for which no place is needed, with the place given away: for who has one of this number. It
    /// comes back before those of the number who have not begun.
    pub fn aside<T>(&self, number: u64, work: impl FnOnce() -> T) -> T {
        let back = Back { turnstile: self, number };
        self.give(number);
        let done = work();
        std::mem::forget(back);
        self.take(number, true);
        done
    }

    /// Whether it had to wait.
    fn take(&self, number: u64, returns: bool) -> bool {
        let now = clock::monotonic();
        let mut places = self.0.lock();
        if places.take(number, returns, now) {
            return false;
        }
        let waiter = Arc::new(Blocker::new(true));
        let next = places.wait(number, returns, waiter.clone(), now);
        drop(places);
        next.iter().for_each(|waiter| waiter.unpark());
        // no timeout, and cancelling is ignored: it returns because it has its place
        let _ = waiter.park(None);
        true
    }

    /// How long something took for which a place is needed, and which ended well: the fastest says how many places are
    /// needed.
    pub fn saw(&self, took: Duration) {
        self.0.lock().saw(took, clock::monotonic());
    }

    fn give(&self, number: u64) {
        let next = self.0.lock().give(number, clock::monotonic());
        for waiter in next {
            waiter.unpark();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turnstile.give(self.number);
    }
}

/// A panic while the place is given away: it is taken back without waiting, since [`Place`] gives it back once more.
struct Back<'a> {
    turnstile: &'a Turnstile,
    number: u64,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.turnstile.0.lock().take_anyway(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    const FEW: Rule = Rule { least: 3, most: 3, per_second: 1, window: 2, window_per_second: 1 };

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test's threads are no coroutines")]
    fn no_more_than_the_places_are_inside_and_everybody_was() {
        let turnstile = Arc::new(Turnstile::new(FEW));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let visit = |n: u64| {
            let (turnstile, inside, most) = (turnstile.clone(), inside.clone(), most.clone());
            std::thread::spawn(move || {
                let _place = turnstile.enter(n % 4);
                let stay = |inside: &AtomicUsize| {
                    most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    inside.fetch_sub(1, SeqCst);
                };
                stay(&inside);
                turnstile.aside(n % 4, || std::thread::sleep(Duration::from_millis(1)));
                stay(&inside);
            })
        };
        let visits: Vec<_> = (0..60).map(visit).collect();
        for visit in visits {
            visit.join().expect("no panic");
        }
        assert_eq!((inside.load(SeqCst), most.load(SeqCst)), (0, 3));
        assert!(turnstile.0.lock().is_idle());
    }

    #[test]
    fn a_panic_gives_the_place_back_once() {
        let turnstile = Turnstile::new(FEW);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _place = turnstile.enter(1);
            turnstile.aside(1, || panic!("on purpose"));
        }));
        assert!(panicked.is_err() && turnstile.0.lock().is_idle());
    }
}
