//! Coroutines that wait for a place, fair between phone numbers: whose calls go to Graph now, whose turns use the cores.
//!
//! PURE: `places` (who gets one). Here: waiting for one and giving it back.
//!
//! A worker of `may` looks at its sockets only when no coroutine is ready to run. A place that goes from hand to hand keeps
//! some ready for as long as a flood lasts, and nothing that arrives meanwhile would be read. So now and then places stay
//! free until a worker has looked: see [`Breath`].

mod breath;
pub mod places;

use std::sync::Arc;
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::{Mutex, MutexGuard};

use crate::clock;
use breath::{Breath, Next};
use places::{Places, Rule};

type Shared = Mutex<Places<Arc<Blocker>>>;

/// Places, and who waits for one.
#[derive(Debug)]
pub struct Turnstile {
    places: Arc<Shared>,
    breath: Option<Breath>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    turnstile: &'a Turnstile,
    number: u64,
    is_held: bool,
    since: Duration,
    /// It was not free at once.
    pub waited: bool,
}

impl Turnstile {
    /// All places free; for calls that end with an answer from a socket.
    pub fn new(rule: Rule) -> Self {
        Self { places: Arc::new(Mutex::new(Places::new(rule))), breath: None }
    }

    /// The same for work on the workers' cores. Fails where there are no descriptors left: it takes two a worker.
    pub fn of_cores(rule: Rule, workers: usize) -> std::io::Result<Self> {
        let mut turnstile = Self::new(rule);
        let places = Arc::clone(&turnstile.places);
        turnstile.breath = Some(Breath::new(workers, move || hand_out(places.lock()))?);
        Ok(turnstile)
    }

    /// Takes a place for this number, when there is one. A coroutine that ends soon after needs [`clock::linger`].
    pub fn enter(&self, number: u64) -> Place<'_> {
        let waited = self.take(number, false);
        Place { turnstile: self, number, is_held: true, since: clock::monotonic(), waited }
    }

    /// The same, but gives up after `within` (and 50 ms at least).
    pub fn enter_within(&self, number: u64, within: Duration) -> Option<Place<'_>> {
        let waiter = self.line_up(number, false);
        if let Some(waiter) = &waiter
            && waiter.park(Some(within.max(clock::TIMER_MIN))).is_err()
        {
            clock::back_to_worker();
            if self.places.lock().leave(number, |other| Arc::ptr_eq(other, waiter)) {
                return None;
            }
            // it was given one in the same instant
        }
        let since = clock::monotonic();
        Some(Place { turnstile: self, number, is_held: true, since, waited: waiter.is_some() })
    }

    /// The same if there is one free now and nobody waits before it.
    pub fn try_enter(&self, number: u64) -> Option<Place<'_>> {
        let now = clock::monotonic();
        let is_held = self.places.lock().take(number, false, now);
        is_held.then_some(Place { turnstile: self, number, is_held, since: now, waited: false })
    }

    /// Whether it had to wait.
    fn take(&self, number: u64, returns: bool) -> bool {
        let Some(waiter) = self.line_up(number, returns) else { return false };
        // no timeout, and cancelling is ignored: it returns because it has its place
        let _ = waiter.park(None);
        true
    }

    /// Takes a place if there is one; else returns what wakes it once it has one.
    fn line_up(&self, number: u64, returns: bool) -> Option<Arc<Blocker>> {
        let now = clock::monotonic();
        let mut places = self.places.lock();
        if places.take(number, returns, now) {
            return None;
        }
        let waiter = Arc::new(Blocker::new(true));
        places.wait(number, returns, waiter.clone(), now);
        self.go_on(places, now);
        Some(waiter)
    }

    /// How long something took for which a place is needed, and which ended well: the fastest says how many places are
    /// needed.
    pub fn saw(&self, took: Duration) {
        self.places.lock().saw(took, clock::monotonic());
    }

    fn give(&self, number: u64) {
        let now = clock::monotonic();
        let mut places = self.places.lock();
        places.give(number, now);
        self.go_on(places, now);
    }

    /// Free places go to those who wait, now or after a breath.
    fn go_on(&self, places: MutexGuard<'_, Places<Arc<Blocker>>>, now: Duration) {
        if !places.has_next() {
            return;
        }
        let Some(breath) = &self.breath else { return hand_out(places) };
        match breath.next(now) {
            Next::Go => hand_out(places),
            Next::Wait => {}
            Next::Ask => {
                // who has no place will not ask again
                let all = places.taken() == 0;
                // not with the lock: a ring is a system call
                drop(places);
                if !breath.ask(all) {
                    hand_out(self.places.lock());
                }
            }
        }
    }
}

fn hand_out(mut places: MutexGuard<'_, Places<Arc<Blocker>>>) {
    let next = places.hand_out(clock::monotonic());
    drop(places);
    next.iter().for_each(|waiter| waiter.unpark());
}

impl Place<'_> {
    /// Does something meanwhile for which no place is needed, with the place given away. It comes back before those of the
    /// number who have not begun.
    pub fn aside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.leave();
        let done = work();
        self.turnstile.take(self.number, true);
        self.is_held = true;
        done
    }

    /// Since it was taken.
    pub fn age(&self) -> Duration {
        clock::monotonic().saturating_sub(self.since)
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.turnstile.give(self.number);
        }
    }
}

/// After a panic in [`Place::aside`] it is given back already.
impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
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
                let mut place = turnstile.enter(n % 4);
                let stay = |inside: &AtomicUsize| {
                    most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    inside.fetch_sub(1, SeqCst);
                };
                stay(&inside);
                place.aside(|| std::thread::sleep(Duration::from_millis(1)));
                stay(&inside);
            })
        };
        let visits: Vec<_> = (0..60).map(visit).collect();
        for visit in visits {
            visit.join().expect("no panic");
        }
        assert_eq!((inside.load(SeqCst), most.load(SeqCst)), (0, 3));
        assert!(turnstile.places.lock().is_idle());
    }

    #[test]
    fn who_does_not_want_to_wait_gets_a_place_only_if_one_is_free_and_nobody_waits_for_it() {
        let turnstile = Arc::new(Turnstile::new(FEW));
        let places: Vec<_> = (0..2).map(|_| turnstile.try_enter(1).expect("free")).collect();
        let of_another = turnstile.try_enter(2).expect("free");
        assert!(turnstile.try_enter(1).is_none() && turnstile.try_enter(3).is_none());
        drop(places);
        assert!(turnstile.try_enter(1).is_some_and(|place| !place.waited));
        drop(of_another);
        assert!(turnstile.places.lock().is_idle());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test's threads are no coroutines")]
    fn who_gives_up_leaves_no_trace_and_is_given_nothing() {
        let turnstile = Turnstile::new(Rule { least: 1, most: 1, ..FEW });
        let held = turnstile.enter(1);
        for number in [1, 2] {
            assert!(turnstile.enter_within(number, Duration::ZERO).is_none());
            assert_eq!(turnstile.places.lock().waiting(number), 0);
        }
        assert!(!turnstile.places.lock().has_next());
        std::thread::scope(|scope| {
            let late =
                || turnstile.enter_within(2, Duration::from_secs(20)).is_some_and(|place| place.waited);
            let waits = scope.spawn(late);
            while turnstile.places.lock().waiting(2) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(turnstile.enter_within(2, Duration::ZERO).is_none(), "the other one goes on waiting");
            drop(held);
            assert!(waits.join().expect("no panic"));
        });
        assert!(turnstile.enter_within(3, Duration::ZERO).is_some_and(|place| !place.waited));
        assert!(turnstile.places.lock().is_idle());
    }

    #[test]
    fn a_panic_gives_the_place_back_once() {
        let turnstile = Turnstile::new(FEW);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            turnstile.enter(1).aside(|| panic!("on purpose"));
        }));
        assert!(panicked.is_err() && turnstile.places.lock().is_idle());
    }

    /// Places that go from hand to hand for a second, and beside it a byte that comes in at a socket every millisecond.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test's thread is no coroutine")]
    fn sockets_are_read_while_places_go_from_hand_to_hand() {
        use std::io::{Read, Write};
        use std::sync::atomic::AtomicBool;

        let workers = may::config().get_workers();
        let count = 64 * workers;
        let rule = Rule { least: count, most: count, window: count, ..FEW };
        let turnstile = Arc::new(Turnstile::of_cores(rule, workers).expect("descriptors"));
        let is_over = Arc::new(AtomicBool::new(false));
        // an eighth is kept for other numbers
        let held: Vec<_> = (0..count - count / 8).map(|_| turnstile.enter(1)).collect();
        let chain = || {
            let (turnstile, is_over) = (turnstile.clone(), is_over.clone());
            may::go!(move || {
                while !is_over.load(SeqCst) {
                    let _place = turnstile.enter(1);
                    let until = clock::monotonic() + Duration::from_micros(50);
                    while clock::monotonic() < until {}
                }
            })
        };
        let chains: Vec<_> = (0..4 * count).map(|_| chain()).collect();
        let listener = may::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let mut near = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        near.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let echo = may::go!(move || {
            let (mut far, _) = listener.accept().expect("accepts");
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
        });
        // all of them wait for a place before the first one gets one
        while turnstile.places.lock().waiting(1) < chains.len() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(held);
        let mut late = 0;
        for _ in 0..200 {
            let asked = clock::monotonic();
            near.write_all(&[1]).and_then(|()| near.read_exact(&mut [0])).expect("an echo");
            late += u32::from(clock::monotonic() - asked > Duration::from_millis(100));
            std::thread::sleep(Duration::from_millis(1));
        }
        is_over.store(true, SeqCst);
        drop(near);
        for ended in chains.into_iter().chain([echo]) {
            ended.join().expect("no panic");
        }
        assert!(late < 20, "{late} of 200 echoes took more than 100 ms");
    }
}
