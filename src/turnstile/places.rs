//! Who gets a place. Pure: time is an argument, and what waits is the caller's.
//!
//! Places are few, numbers are many, and a number that is flooded or hangs must not take them from the others:
//! - What a number has at once is bounded by its window: [`WINDOW_MIN`], or what `per_second` uses need where each takes
//!   long. So a window binds where a flood of one number would fill our own queues, and not where it waits for a disk or
//!   a network.
//! - An eighth of the places is kept free for numbers that have less than their share, `total / (active numbers + 1)`.
//! - A place that is given back goes to the numbers that wait in turn, and within a number first to who has begun already
//!   and comes back, then to who waited longest. Else a flood would begin all it has before it ends any.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What a number may have at least, if places are free. With 16 others feel a flood half as much, but a number alone is
/// answered at a third of the speed: its turns wait for commits, and more of them share one.
pub const WINDOW_MIN: usize = 64;
/// How long a use takes is that of the fastest in the last one to two times this.
pub const MEMORY: Duration = Duration::from_secs(60);
/// Kept free for numbers below their share, at most (an eighth of all if that is less).
const RESERVE_MAX: usize = 256;
/// Numbers that are looked at for a place that came back, at most.
const LOOKS_MAX: usize = 32;

/// All places; `W` is what wakes a call that waits.
#[derive(Debug)]
pub struct Places<W> {
    total: usize,
    /// Uses a second that a number's window is made for.
    per_second: usize,
    free: usize,
    /// Places that were taken though there were none.
    debt: usize,
    numbers: HashMap<u64, Number<W>>,
    /// Numbers that wait and are not at their window, in turn.
    ring: VecDeque<u64>,
    fastest: Fastest,
}

#[derive(Debug)]
struct Number<W> {
    taken: usize,
    /// Those who come back.
    returning: VecDeque<W>,
    waiting: VecDeque<W>,
    /// In the ring.
    is_queued: bool,
}

impl<W> Default for Number<W> {
    fn default() -> Self {
        Self { taken: 0, returning: VecDeque::new(), waiting: VecDeque::new(), is_queued: false }
    }
}

impl<W> Number<W> {
    fn has_waiting(&self) -> bool {
        !self.returning.is_empty() || !self.waiting.is_empty()
    }
}

impl<W> Places<W> {
    /// `total` counts as 1 at least.
    pub fn new(total: usize, per_second: usize) -> Self {
        let total = total.max(1);
        Self {
            total,
            per_second,
            free: total,
            debt: 0,
            numbers: HashMap::new(),
            ring: VecDeque::new(),
            fastest: Fastest::default(),
        }
    }

    /// Takes a place if there is one for this number and nobody of it waits who comes first; else the call is to
    /// [`Places::wait`]. `returns`: it has begun already, see above.
    pub fn take(&mut self, number: u64, returns: bool) -> bool {
        let is_known = self.numbers.contains_key(&number);
        let (free, taken_max) = (self.free, self.taken_max(self.numbers.len() + usize::from(!is_known)));
        let entry = self.numbers.get(&number);
        let is_first = entry.is_none_or(|e| e.returning.is_empty() && (returns || e.waiting.is_empty()));
        if free == 0 || !is_first || entry.map_or(0, |entry| entry.taken) >= taken_max {
            return false;
        }
        self.numbers.entry(number).or_default().taken += 1;
        self.free -= 1;
        true
    }

    /// Lines up behind the number's other calls of its kind. A later [`Places::give`] hands `waiter` out: then it has its
    /// place.
    pub fn wait(&mut self, number: u64, returns: bool, waiter: W) {
        let entry = self.numbers.entry(number).or_default();
        if returns { &mut entry.returning } else { &mut entry.waiting }.push_back(waiter);
        self.queue(number);
    }

    /// How long something took for which a place is needed, and which ended well.
    pub fn saw(&mut self, took: Duration, now: Duration) {
        self.fastest.saw(took, now);
    }

    /// Gives a place back and hands out those that get one now.
    pub fn give(&mut self, number: u64) -> Vec<W> {
        if let Some(entry) = self.numbers.get_mut(&number).filter(|entry| entry.taken > 0) {
            entry.taken -= 1;
            if self.debt > 0 {
                self.debt -= 1;
            } else {
                self.free += 1;
            }
            if entry.taken == 0 && !entry.has_waiting() {
                self.numbers.remove(&number);
            } else {
                self.queue(number);
            }
        }
        self.hand_out()
    }

    /// Takes one even if there is none.
    pub fn take_anyway(&mut self, number: u64) {
        self.numbers.entry(number).or_default().taken += 1;
        if self.free == 0 {
            self.debt += 1;
        } else {
            self.free -= 1;
        }
    }

    /// Nobody has or wants anything.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.numbers.is_empty() && self.free == self.total && self.debt == 0
    }

    fn hand_out(&mut self) -> Vec<W> {
        let mut out = Vec::new();
        let mut passed = 0;
        while self.free > 0 && passed < self.ring.len().min(LOOKS_MAX) {
            let taken_max = self.taken_max(self.numbers.len());
            let Some(number) = self.ring.pop_front() else { break };
            let Some(entry) = self.numbers.get_mut(&number) else { continue };
            entry.is_queued = false;
            if entry.taken < taken_max
                && let Some(waiter) = entry.returning.pop_front().or_else(|| entry.waiting.pop_front())
            {
                entry.taken += 1;
                self.free -= 1;
                passed = 0;
                out.push(waiter);
            } else {
                passed += 1;
            }
            self.queue(number);
        }
        out
    }

    /// The number into the ring, if it waits and could have more. One at its window comes back when it gives a place back.
    fn queue(&mut self, number: u64) {
        let window = self.window();
        let Some(entry) = self.numbers.get_mut(&number) else { return };
        if !entry.is_queued && entry.has_waiting() && entry.taken < window {
            entry.is_queued = true;
            self.ring.push_back(number);
        }
    }

    /// What a number may have, of `active` numbers, as things are.
    fn taken_max(&self, active: usize) -> usize {
        let reserve = RESERVE_MAX.min(self.total / 8);
        let share = if self.free > reserve { self.total } else { (self.total / (active + 1)).max(1) };
        share.min(self.window())
    }

    fn window(&self) -> usize {
        let fastest = self.fastest.of_all().unwrap_or_default();
        let uses = fastest.as_micros().saturating_mul(self.per_second as u128) / 1_000_000;
        usize::try_from(uses).unwrap_or(usize::MAX).max(WINDOW_MIN).min(self.total)
    }
}

/// A minimum that forgets.
#[derive(Debug, Default)]
struct Fastest {
    since: Duration,
    this: Option<Duration>,
    before: Option<Duration>,
}

impl Fastest {
    fn saw(&mut self, took: Duration, now: Duration) {
        if now.saturating_sub(self.since) >= MEMORY {
            self.before = self.this.take();
            self.since = now;
        }
        self.this = Some(self.this.map_or(took, |this| this.min(took)));
    }

    fn of_all(&self) -> Option<Duration> {
        self.this.into_iter().chain(self.before).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PER_SECOND: usize = 4_000;
    const NOW: Duration = Duration::from_secs(1);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Asks `count` times; how many got a place at once. The others wait.
    fn ask(places: &mut Places<u64>, number: u64, count: usize) -> usize {
        let mut got = 0;
        for _ in 0..count {
            if places.take(number, false) {
                got += 1;
            } else {
                places.wait(number, false, number);
            }
        }
        got
    }

    #[test]
    fn who_hangs_leaves_places_to_the_others() {
        let mut places = Places::new(200, PER_SECOND);
        places.saw(ms(300), NOW);
        assert_eq!(ask(&mut places, 1, 1000), 175, "an eighth is kept free");
        for number in 2..12 {
            assert_eq!(ask(&mut places, number, 2), 2, "number {number}");
        }
        assert_eq!(places.free, 5);
    }

    #[test]
    fn a_number_has_as_many_as_graphs_distance_needs() {
        for (fastest, most) in [(0, 64), (1, 64), (20, 80), (30, 120), (100, 175), (30_000, 175)] {
            let mut places = Places::new(200, PER_SECOND);
            places.saw(ms(fastest), NOW);
            assert_eq!(ask(&mut places, 1, 300), most, "{fastest} ms");
        }
        assert_eq!(ask(&mut Places::new(1, PER_SECOND), 1, 3), 1);
    }

    #[test]
    fn places_that_come_back_go_round() {
        let mut places = Places::new(4, PER_SECOND);
        places.saw(ms(300), NOW);
        assert_eq!(ask(&mut places, 1, 100), 4);
        assert_eq!(ask(&mut places, 2, 3) + ask(&mut places, 3, 3), 0);
        let next: Vec<_> = (0..5).flat_map(|_| places.give(1)).collect();
        assert_eq!(next, [2, 3, 1, 2, 3]);
    }

    #[test]
    fn the_fastest_answer_is_forgotten() {
        let mut fastest = Fastest::default();
        fastest.saw(ms(1), NOW);
        fastest.saw(ms(50), NOW + MEMORY);
        assert_eq!(fastest.of_all(), Some(ms(1)));
        fastest.saw(ms(60), NOW + MEMORY * 2);
        assert_eq!(fastest.of_all(), Some(ms(50)));
    }

    #[test]
    fn who_comes_back_is_before_those_who_have_not_begun() {
        let mut places = Places::new(usize::MAX, PER_SECOND);
        assert_eq!(ask(&mut places, 1, WINDOW_MIN + 4), WINDOW_MIN);
        places.wait(1, true, 77);
        places.wait(1, true, 78);
        assert!(!places.take(1, true), "in their order too");
        let next: Vec<_> = (0..4).flat_map(|_| places.give(1)).collect();
        assert_eq!(next, [77, 78, 1, 1]);
    }

    #[test]
    fn a_place_that_was_taken_without_being_there_is_paid_back() {
        let mut places = Places::new(1, PER_SECOND);
        assert_eq!(ask(&mut places, 1, 1), 1);
        places.take_anyway(2);
        assert!(places.give(2).is_empty() && !places.take(3, false));
        assert!(places.give(1).is_empty() && places.is_idle());
    }

    proptest! {
        /// However calls come and end: never more places than there are, never above a window, within a number in order,
        /// nobody waits while nothing is under way, and in the end everybody had one.
        #[test]
        fn nobody_waits_for_ever(
            total in 1usize..90,
            steps in proptest::collection::vec(
                (any::<bool>(), 0u64..60, 0u64..40, any::<prop::sample::Index>(), any::<bool>()), 1..600),
        ) {
            let mut places = Places::new(total, PER_SECOND);
            let mut under_way: Vec<u64> = Vec::new();
            let mut waiting: HashMap<u64, VecDeque<(bool, u64)>> = HashMap::new();
            let mut asked = 0;
            let mut now = NOW;
            let mut give = |places: &mut Places<(u64, u64)>, under_way: &mut Vec<u64>,
                            waiting: &mut HashMap<u64, VecDeque<(bool, u64)>>, nth: usize, took| {
                now += ms(took * 100);
                let number = under_way.swap_remove(nth);
                if took > 0 {
                    places.saw(ms(took), now);
                }
                for (number, call) in places.give(number) {
                    let line = waiting.entry(number).or_default();
                    let first = line.iter().position(|(returns, _)| *returns).unwrap_or(0);
                    let first = line.remove(first).map(|(_, call)| call);
                    prop_assert_eq!(first, Some(call), "of the number, who comes back and waited longest");
                    under_way.push(number);
                }
                Ok(())
            };
            for (is_new, number, took, which, returns) in steps {
                // half of all calls are of one number
                let number = if number < 30 { 0 } else { number };
                if is_new || under_way.is_empty() {
                    asked += 1;
                    if places.take(number, returns) {
                        let line = waiting.get(&number);
                        prop_assert!(line.is_none_or(|line| line.iter().all(|(other, _)| returns && !other)));
                        under_way.push(number);
                    } else {
                        places.wait(number, returns, (number, asked));
                        waiting.entry(number).or_default().push_back((returns, asked));
                    }
                } else {
                    let nth = which.index(under_way.len());
                    give(&mut places, &mut under_way, &mut waiting, nth, took)?;
                }
                prop_assert!(under_way.len() <= total && places.free == total - under_way.len());
                prop_assert!(waiting.values().all(VecDeque::is_empty) || !under_way.is_empty());
            }
            while !under_way.is_empty() {
                give(&mut places, &mut under_way, &mut waiting, 0, 0)?;
            }
            prop_assert!(waiting.values().all(VecDeque::is_empty));
            prop_assert!(places.numbers.is_empty() && places.ring.is_empty() && places.free == total);
        }
    }
}
