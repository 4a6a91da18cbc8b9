//! Who gets a place. Pure: time is an argument, and what waits is the caller's.
//!
//! Places are few, numbers are many, and a number that is flooded or hangs must not take them from the others:
//! - There are [`Rule::least`], or more where each use takes long: what waits for a slow disk or a distant network does
//!   not keep the others from the cores.
//! - While other numbers are active too, what a number has at once is bounded by its window. It grows in the same
//!   way: it binds where a flood of one number would fill our own queues, and not where it waits. Where many numbers are
//!   active the cores are full anyway, and more turns at once share a commit: it is up to three times as wide. A number
//!   that is alone may have all, one eighth aside.
//! - That eighth is for numbers that have less than their share, `places / (active numbers + 1)`.
//! - A place that is given back goes to the numbers that wait in turn, and within a number first to who has begun already
//!   and comes back, then to who waited longest. Else a flood would begin all it has before it ends any.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How long a use takes is that of the fastest in the last one to two times this: when everything becomes slower, more
/// may wait soon.
pub const MEMORY: Duration = Duration::from_secs(5);
/// A number is alone if no other one asked for so long.
pub const ALONE_AFTER: Duration = Duration::from_secs(10);
/// Kept free for numbers below their share, at most (an eighth of all if that is less).
const RESERVE_MAX: usize = 256;
/// For so many active numbers the windows are once more as wide ..
const WIDER_EVERY: usize = 4;
/// .. up to so many times.
const WIDER_MAX: usize = 3;
/// Numbers that are looked at for a place that came back, at most.
const LOOKS_MAX: usize = 32;

/// How many places there are. Each count is 1 at least.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Over all, at least.
    pub least: usize,
    /// Over all, at most.
    pub most: usize,
    /// In between as many as so many uses a second need.
    pub per_second: usize,
    /// A number's window, at least.
    pub window: usize,
    /// Beyond that as many as so many uses a second need.
    pub window_per_second: usize,
}

/// All places; `W` is what wakes a call that waits.
#[derive(Debug)]
pub struct Places<W> {
    rule: Rule,
    /// By all numbers.
    taken: usize,
    numbers: HashMap<u64, Number<W>>,
    /// Numbers that wait and are not at their window, in turn.
    ring: VecDeque<u64>,
    fastest: Fastest,
    recent: Recent,
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
    /// All free.
    pub fn new(rule: Rule) -> Self {
        Self {
            rule,
            taken: 0,
            numbers: HashMap::new(),
            ring: VecDeque::new(),
            fastest: Fastest::default(),
            recent: Recent::default(),
        }
    }

    /// Takes a place if there is one for this number and nobody of it waits who comes first; else the call is to
    /// [`Places::wait`]. `returns`: it has begun already, see above.
    pub fn take(&mut self, number: u64, returns: bool, now: Duration) -> bool {
        self.recent.saw(number, now);
        let entry = self.numbers.get(&number);
        let active = self.numbers.len() + usize::from(entry.is_none());
        let is_first = entry.is_none_or(|e| e.returning.is_empty() && (returns || e.waiting.is_empty()));
        if !is_first || entry.map_or(0, |entry| entry.taken) >= self.taken_max(number, active, now) {
            return false;
        }
        self.numbers.entry(number).or_default().taken += 1;
        self.taken += 1;
        true
    }

    /// Lines up behind the number's other calls of its kind. A [`Places::hand_out`] returns `waiter`: then it has its place.
    /// (That may be due at once, where the number's window has grown since a place was given back.)
    pub fn wait(&mut self, number: u64, returns: bool, waiter: W, now: Duration) {
        let entry = self.numbers.entry(number).or_default();
        if returns { &mut entry.returning } else { &mut entry.waiting }.push_back(waiter);
        self.queue(number, now);
    }

    /// A call that has not begun gives up; false: it has its place already.
    pub fn leave(&mut self, number: u64, is_it: impl Fn(&W) -> bool) -> bool {
        let Some(entry) = self.numbers.get_mut(&number) else { return false };
        let Some(nth) = entry.waiting.iter().position(is_it) else { return false };
        entry.waiting.remove(nth);
        if !entry.has_waiting() {
            entry.is_queued = false;
            if entry.taken == 0 {
                self.numbers.remove(&number);
            }
            self.ring.retain(|queued| *queued != number);
        }
        true
    }

    /// How long something took for which a place is needed, and which ended well.
    pub fn saw(&mut self, took: Duration, now: Duration) {
        self.fastest.saw(took, now);
    }

    /// Gives a place back.
    pub fn give(&mut self, number: u64, now: Duration) {
        if let Some(entry) = self.numbers.get_mut(&number).filter(|entry| entry.taken > 0) {
            entry.taken -= 1;
            self.taken -= 1;
            if entry.taken == 0 && !entry.has_waiting() {
                self.numbers.remove(&number);
            } else {
                self.queue(number, now);
            }
        }
    }

    /// Whether somebody might get a place: [`Places::hand_out`] is to be called soon.
    pub fn has_next(&self) -> bool {
        !self.ring.is_empty() && self.free() > 0
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// How many of this number wait.
    #[cfg(test)]
    pub fn waiting(&self, number: u64) -> usize {
        self.numbers.get(&number).map_or(0, |entry| entry.returning.len() + entry.waiting.len())
    }

    /// Nobody has or wants anything.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.numbers.is_empty() && self.taken == 0
    }

    /// Those that get a place now.
    pub fn hand_out(&mut self, now: Duration) -> Vec<W> {
        let mut out = Vec::new();
        // looked at since the last place went, and back in the ring
        let mut passed = 0;
        while passed < self.ring.len().min(LOOKS_MAX) && self.free() > 0 {
            let Some(number) = self.ring.pop_front() else { break };
            let taken_max = self.taken_max(number, self.numbers.len(), now);
            let Some(entry) = self.numbers.get_mut(&number) else { continue };
            entry.is_queued = false;
            if entry.taken < taken_max
                && let Some(waiter) = entry.returning.pop_front().or_else(|| entry.waiting.pop_front())
            {
                entry.taken += 1;
                self.taken += 1;
                passed = 0;
                out.push(waiter);
                self.queue(number, now);
            } else if self.queue(number, now) {
                passed += 1;
            }
        }
        out
    }

    /// The number into the ring, if it waits and could have more; whether it went there. One at its window comes back when
    /// it gives a place back.
    fn queue(&mut self, number: u64, now: Duration) -> bool {
        let window = self.window(number, now);
        let Some(entry) = self.numbers.get_mut(&number) else { return false };
        let goes = !entry.is_queued && entry.has_waiting() && entry.taken < window;
        if goes {
            entry.is_queued = true;
            self.ring.push_back(number);
        }
        goes
    }

    fn free(&self) -> usize {
        self.total().saturating_sub(self.taken)
    }

    /// Places over all.
    fn total(&self) -> usize {
        let most = self.rule.most.max(1);
        self.needed(self.rule.per_second).max(self.rule.least).clamp(1, most)
    }

    /// What a number may have, of `active` numbers, as things are.
    fn taken_max(&self, number: u64, active: usize, now: Duration) -> usize {
        let (total, free) = (self.total(), self.free());
        let share = match free {
            0 => 0,
            _ if free > RESERVE_MAX.min(total / 8) => total,
            _ => (total / (active + 1)).max(1),
        };
        share.min(self.window(number, now))
    }

    /// What a number may have at most, as others were active lately.
    fn window(&self, number: u64, now: Duration) -> usize {
        let total = self.total();
        if self.recent.is_alone(number, now) {
            return total;
        }
        let least = self.rule.window * (self.numbers.len() / WIDER_EVERY).clamp(1, WIDER_MAX);
        self.needed(self.rule.window_per_second).max(least).clamp(1, total)
    }

    /// Places that so many uses a second need.
    fn needed(&self, per_second: usize) -> usize {
        let fastest = self.fastest.of_all().unwrap_or_default();
        let uses = fastest.as_micros().saturating_mul(per_second as u128) / 1_000_000;
        usize::try_from(uses).unwrap_or(usize::MAX)
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

/// The two numbers that asked last, and when.
#[derive(Debug, Default)]
struct Recent {
    last: Option<(u64, Duration)>,
    /// The last one that was another.
    other: Option<(u64, Duration)>,
}

impl Recent {
    fn saw(&mut self, number: u64, now: Duration) {
        if self.last.is_some_and(|(last, _)| last != number) {
            self.other = self.last;
        }
        self.last = Some((number, now));
    }

    /// No other number asked lately.
    fn is_alone(&self, number: u64, now: Duration) -> bool {
        let other = self.last.filter(|(last, _)| *last != number).or(self.other);
        other.is_none_or(|(_, at)| now.saturating_sub(at) > ALONE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRAPH: Rule = Rule { least: 200, most: 200, per_second: 1, window: 4, window_per_second: 4_000 };
    const CORES: Rule =
        Rule { least: 32, most: usize::MAX, per_second: 20_000, window: 6, window_per_second: 4_000 };
    const NOW: Duration = Duration::from_secs(1);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Gives a place back; who gets one.
    fn give<W>(places: &mut Places<W>, number: u64, now: Duration) -> Vec<W> {
        places.give(number, now);
        places.hand_out(now)
    }

    /// Lines up; who gets a place.
    fn wait<W>(places: &mut Places<W>, number: u64, returns: bool, waiter: W, now: Duration) -> Vec<W> {
        places.wait(number, returns, waiter, now);
        places.hand_out(now)
    }

    /// Another number has asked just now.
    fn contended(rule: Rule, fastest_ms: u64) -> Places<u64> {
        let mut places = Places::new(rule);
        places.saw(ms(fastest_ms), NOW);
        assert!(places.take(0, false, NOW) && give(&mut places, 0, NOW).is_empty());
        places
    }

    /// Asks `count` times; how many got a place at once. The others wait.
    fn ask(places: &mut Places<u64>, number: u64, count: usize) -> usize {
        let mut got = 0;
        for _ in 0..count {
            if places.take(number, false, NOW) {
                got += 1;
            } else {
                assert!(wait(places, number, false, number, NOW).is_empty());
            }
        }
        got
    }

    #[test]
    fn who_hangs_leaves_places_to_the_others() {
        let mut places = contended(GRAPH, 300);
        assert_eq!(ask(&mut places, 1, 1000), 175, "an eighth is kept free");
        for number in 2..12 {
            assert_eq!(ask(&mut places, number, 2), 2, "number {number}");
        }
        assert_eq!(places.free(), 5);
    }

    #[test]
    fn a_window_is_as_wide_as_graphs_distance_needs() {
        for (fastest, most) in [(0, 4), (1, 4), (20, 80), (30, 120), (100, 175), (30_000, 175)] {
            assert_eq!(ask(&mut contended(GRAPH, fastest), 1, 300), most, "{fastest} ms");
        }
        let one = Rule { least: 1, most: 1, ..GRAPH };
        assert_eq!(ask(&mut contended(one, 1), 1, 3), 1);
    }

    #[test]
    fn there_are_more_places_where_all_wait_for_a_slow_disk() {
        for (fastest, window, total) in [(0, 6, 32), (1, 6, 32), (5, 20, 100), (50, 200, 1_000)] {
            let mut places = contended(CORES, fastest);
            assert_eq!(ask(&mut places, 1, 2_000), window, "{fastest} ms");
            assert_eq!(places.total(), total, "{fastest} ms");
        }
    }

    #[test]
    fn a_number_that_is_alone_has_nearly_all() {
        let mut places = contended(CORES, 0);
        let later = NOW + ALONE_AFTER + ms(1);
        assert_eq!((0..100).filter(|_| places.take(1, false, later)).count(), 28);
        // another one comes, and there are places for it; what the first one gives back is not for itself
        assert!(wait(&mut places, 1, false, 1, later).is_empty());
        assert!((0..4).all(|_| places.take(2, false, later)) && !places.take(2, false, later));
        assert!(wait(&mut places, 2, false, 2, later).is_empty());
        assert_eq!(give(&mut places, 1, later), [2]);
        assert_eq!((0..21).flat_map(|_| give(&mut places, 1, later)).count(), 0);
        assert_eq!(give(&mut places, 1, later), [1], "five are left of its window of six");
    }

    #[test]
    fn windows_are_wider_where_many_numbers_are_active() {
        let mut places = contended(GRAPH, 0);
        for (active, window) in [(1, 4), (7, 4), (8, 8), (12, 12), (40, 12)] {
            for number in 1..active {
                let _ = places.take(number, false, NOW);
            }
            assert_eq!(ask(&mut places, 1_000 + active, 20), window, "beside {active}");
            (0..20).for_each(|_| drop(give(&mut places, 1_000 + active, NOW)));
        }
    }

    #[test]
    fn who_waits_gets_the_places_that_its_window_grew_by_meanwhile() {
        let mut places = contended(GRAPH, 0);
        assert_eq!(ask(&mut places, 1, 6), 4);
        // all four hang, and the others went home
        let later = NOW + ALONE_AFTER + ms(1);
        assert!(!places.take(1, false, later), "two wait already");
        assert_eq!(wait(&mut places, 1, false, 3, later), [1, 1, 3]);
    }

    #[test]
    fn places_that_come_back_go_round() {
        let mut places = contended(Rule { least: 4, most: 4, ..GRAPH }, 300);
        assert_eq!(ask(&mut places, 1, 100), 4);
        assert_eq!(ask(&mut places, 2, 3) + ask(&mut places, 3, 3), 0);
        let next: Vec<_> = (0..5).flat_map(|_| give(&mut places, 1, NOW)).collect();
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
        let mut places = contended(CORES, 0);
        assert_eq!(ask(&mut places, 1, CORES.window + 4), CORES.window);
        assert!(
            wait(&mut places, 1, true, 77, NOW).is_empty() && wait(&mut places, 1, true, 78, NOW).is_empty()
        );
        assert!(!places.take(1, true, NOW), "in their order too");
        let next: Vec<_> = (0..4).flat_map(|_| give(&mut places, 1, NOW)).collect();
        assert_eq!(next, [77, 78, 1, 1]);
    }

    proptest! {
        /// However calls come and end: never more places than there are, within a number in order,
        /// nobody waits while nothing is under way, and in the end everybody had one.
        #[test]
        fn nobody_waits_for_ever(
            total in 1usize..90,
            steps in proptest::collection::vec(
                (any::<bool>(), 0u64..60, 0u64..40, any::<prop::sample::Index>(), any::<bool>()), 1..600),
        ) {
            let mut places = Places::new(Rule { least: total, most: total, ..GRAPH });
            let mut under_way: Vec<u64> = Vec::new();
            let mut waiting: HashMap<u64, VecDeque<(bool, u64)>> = HashMap::new();
            let mut asked = 0;
            let mut now = NOW;
            let go_on = |next: Vec<(u64, u64)>, under_way: &mut Vec<u64>,
                         waiting: &mut HashMap<u64, VecDeque<(bool, u64)>>| {
                for (number, call) in next {
                    let line = waiting.entry(number).or_default();
                    let first = line.iter().position(|(returns, _)| *returns).unwrap_or(0);
                    let first = line.remove(first).map(|(_, call)| call);
                    prop_assert_eq!(first, Some(call), "of the number, who comes back and waited longest");
                    under_way.push(number);
                }
                Ok(())
            };
            let give = |places: &mut Places<(u64, u64)>, under_way: &mut Vec<u64>,
                            waiting: &mut HashMap<u64, VecDeque<(bool, u64)>>, nth: usize, took, now| {
                let number = under_way.swap_remove(nth);
                if took > 0 {
                    places.saw(ms(took), now);
                }
                go_on(self::give(places, number, now), under_way, waiting)
            };
            for (is_new, number, took, which, returns) in steps {
                // half of all calls are of one number, and sometimes it is alone
                let number = if number < 30 { 0 } else { number };
                now += ms(took * 100);
                if is_new || under_way.is_empty() {
                    asked += 1;
                    if places.take(number, returns, now) {
                        let line = waiting.get(&number);
                        prop_assert!(line.is_none_or(|line| line.iter().all(|(other, _)| returns && !other)));
                        under_way.push(number);
                    } else {
                        waiting.entry(number).or_default().push_back((returns, asked));
                        let next = wait(&mut places, number, returns, (number, asked), now);
                        go_on(next, &mut under_way, &mut waiting)?;
                    }
                } else {
                    let nth = which.index(under_way.len());
                    give(&mut places, &mut under_way, &mut waiting, nth, took, now)?;
                }
                prop_assert!(under_way.len() <= total && places.taken == under_way.len());
                prop_assert!(waiting.values().all(VecDeque::is_empty) || !under_way.is_empty());
            }
            while !under_way.is_empty() {
                give(&mut places, &mut under_way, &mut waiting, 0, 0, now)?;
            }
            prop_assert!(waiting.values().all(VecDeque::is_empty));
            prop_assert!(places.is_idle() && places.ring.is_empty());
        }
    }
}
