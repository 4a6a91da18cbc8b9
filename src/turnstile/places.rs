//! Who gets a place. Pure: time is an argument, and what waits is the caller's.
//!
//! Places are few, numbers are many, and a number that is flooded or hangs must not take them from the others:
//! - What a number has at once is bounded by its window: [`WINDOW_MIN`], or what [`CALLS_PER_SECOND`] need where the other
//!   side is far away. So a window binds where a flood of one number would fill our own queues, and not where it waits
//!   for a network.
//! - An eighth of the places is kept free for numbers that have less than their share, `total / (active numbers + 1)`.
//! - A place that is given back goes to the numbers that wait in turn, and within a number to who waited longest.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What a number may have at least, if places are free.
pub const WINDOW_MIN: usize = 16;
/// What one number's window is made for, at the fastest answer: four times the 1,000 messages a second that Meta allows
/// at most (<https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput>), each with its read receipt.
pub const CALLS_PER_SECOND: usize = 4_000;
/// The fastest answer is that of the last one to two times this.
pub const MEMORY: Duration = Duration::from_secs(60);
/// Kept free for numbers below their share, at most (an eighth of all if that is less).
const RESERVE_MAX: usize = 256;
/// Numbers that are looked at for a place that came back, at most.
const LOOKS_MAX: usize = 32;

/// All places; `W` is what wakes a call that waits.
#[derive(Debug)]
pub struct Places<W> {
    total: usize,
    free: usize,
    numbers: HashMap<u64, Number<W>>,
    /// Numbers that wait and are not at their window, in turn.
    ring: VecDeque<u64>,
    fastest: Fastest,
}

#[derive(Debug)]
struct Number<W> {
    taken: usize,
    waiting: VecDeque<W>,
    /// In the ring.
    is_queued: bool,
}

impl<W> Default for Number<W> {
    fn default() -> Self {
        Self { taken: 0, waiting: VecDeque::new(), is_queued: false }
    }
}

impl<W> Places<W> {
    /// `total` counts as 1 at least.
    pub fn new(total: usize) -> Self {
        let total = total.max(1);
        Self {
            total,
            free: total,
            numbers: HashMap::new(),
            ring: VecDeque::new(),
            fastest: Fastest::default(),
        }
    }

    /// Takes a place if there is one for this number and nobody of it waits; else the call is to [`Places::wait`].
    pub fn take(&mut self, number: u64) -> bool {
        let is_known = self.numbers.contains_key(&number);
        let (free, taken_max) = (self.free, self.taken_max(self.numbers.len() + usize::from(!is_known)));
        let entry = self.numbers.get(&number);
        let is_first = entry.is_none_or(|entry| entry.waiting.is_empty());
        if free == 0 || !is_first || entry.map_or(0, |entry| entry.taken) >= taken_max {
            return false;
        }
        self.numbers.entry(number).or_default().taken += 1;
        self.free -= 1;
        true
    }

    /// Lines up behind the number's other calls. A later [`Places::give`] hands `waiter` out: then it has its place.
    pub fn wait(&mut self, number: u64, waiter: W) {
        self.numbers.entry(number).or_default().waiting.push_back(waiter);
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
            self.free += 1;
            if entry.taken == 0 && entry.waiting.is_empty() {
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
        self.free = self.free.saturating_sub(1);
    }

    /// Nobody has or wants anything.
    pub fn is_idle(&self) -> bool {
        self.numbers.is_empty() && self.free == self.total
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
                && let Some(waiter) = entry.waiting.pop_front()
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
        if !entry.is_queued && !entry.waiting.is_empty() && entry.taken < window {
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
        let calls = fastest.as_micros().saturating_mul(CALLS_PER_SECOND as u128) / 1_000_000;
        usize::try_from(calls).unwrap_or(usize::MAX).max(WINDOW_MIN).min(self.total)
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

    const NOW: Duration = Duration::from_secs(1);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Asks `count` times; how many got a place at once. The others wait.
    fn ask(places: &mut Places<u64>, number: u64, count: usize) -> usize {
        let mut got = 0;
        for _ in 0..count {
            if places.take(number) {
                got += 1;
            } else {
                places.wait(number, number);
            }
        }
        got
    }

    #[test]
    fn who_hangs_leaves_places_to_the_others() {
        let mut places = Places::new(200);
        places.saw(ms(300), NOW);
        assert_eq!(ask(&mut places, 1, 1000), 175, "an eighth is kept free");
        for number in 2..12 {
            assert_eq!(ask(&mut places, number, 2), 2, "number {number}");
        }
        assert_eq!(places.free, 5);
    }

    #[test]
    fn a_number_has_as_many_as_graphs_distance_needs() {
        for (fastest, most) in [(0, 16), (1, 16), (5, 20), (30, 120), (100, 175), (30_000, 175)] {
            let mut places = Places::new(200);
            places.saw(ms(fastest), NOW);
            assert_eq!(ask(&mut places, 1, 300), most, "{fastest} ms");
        }
        assert_eq!(ask(&mut Places::new(1), 1, 3), 1);
    }

    #[test]
    fn places_that_come_back_go_round() {
        let mut places = Places::new(4);
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

    proptest! {
        /// However calls come and end: never more places than there are, never above a window, within a number in order,
        /// nobody waits while nothing is under way, and in the end everybody had one.
        #[test]
        fn nobody_waits_for_ever(
            total in 1usize..90,
            steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..40, any::<prop::sample::Index>()), 1..600),
        ) {
            let mut places = Places::new(total);
            let mut under_way: Vec<u64> = Vec::new();
            let mut waiting: HashMap<u64, VecDeque<u64>> = HashMap::new();
            let mut asked = 0;
            let mut now = NOW;
            let mut give = |places: &mut Places<(u64, u64)>, under_way: &mut Vec<u64>,
                            waiting: &mut HashMap<u64, VecDeque<u64>>, nth: usize, took| {
                now += ms(took * 100);
                let number = under_way.swap_remove(nth);
                if took > 0 {
                    places.saw(ms(took), now);
                }
                for (number, call) in places.give(number) {
                    let first = waiting.get_mut(&number).and_then(VecDeque::pop_front);
                    prop_assert_eq!(first, Some(call), "of the number, who waited longest");
                    under_way.push(number);
                }
                Ok(())
            };
            for (is_new, number, took, which) in steps {
                // half of all calls are of one number
                let number = if number < 30 { 0 } else { number };
                if is_new || under_way.is_empty() {
                    asked += 1;
                    if places.take(number) {
                        prop_assert!(waiting.get(&number).is_none_or(VecDeque::is_empty));
                        under_way.push(number);
                    } else {
                        places.wait(number, (number, asked));
                        waiting.entry(number).or_default().push_back(asked);
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
