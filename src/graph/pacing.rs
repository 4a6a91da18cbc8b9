//! How fast may be sent, so that Meta's limits are met rarely. Pure: time is an argument.
//!
//! Two limits (<https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput> and
//! `about-the-platform`):
//! - A phone number may send `rate` messages a second. Time is cut into slots with room for a few messages
//!   each, so that no second, wherever it begins, has more than `rate`; the price is that at most 95 % of it
//!   is used.
//! - A pair (number, user) gets one message every 6 s, of which up to 45 may be borrowed: a bucket of 45 that is
//!   refilled one in 6 s. (Read to the letter, who borrowed must be silent until all is paid back; that would silence
//!   every lively chat for minutes, and Meta says 131056 where it means it.) Groups are not pairs.
//!
//! What waits for its pair takes a slot of that later time and leaves those before it to others: a pair that
//! has to wait for minutes does not hold the number. Limits that are met all the same come back as errors
//! 130429 and 131056.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::event::{Recipient, hash64};

/// One message to one user takes this long.
pub const PAIR_EVERY: Duration = Duration::from_secs(6);
/// The largest burst to one user.
pub const PAIR_BURST: u32 = 45;
/// Pairs kept at once; above it a new pair is not paced.
pub const PAIRS_MAX: usize = 200_000;
/// Numbers kept at once; above it a new number is not paced.
pub const NUMBERS_MAX: usize = 20_000;
/// How far ahead a number's slots are taken; what comes later is not counted against the number.
pub const HORIZON: Duration = Duration::from_secs(600);
/// The part of its rate that a number may use at once.
const BURST_PART: u32 = 20;
/// A table is looked through for what expired from this size on.
const SWEEP_MIN: usize = 1024;
/// A full table is looked through at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The state of both limits. Its clock must not go back.
#[derive(Debug)]
pub struct Pacing {
    slots: Slots,
    numbers: Table<Number>,
    pairs: Table<Pair>,
}

/// A place that was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// How long to wait.
    pub wait: Duration,
    /// A table was full, or it lies beyond the horizon: not paced in full.
    pub full: bool,
}

impl Pacing {
    /// `rate`: messages a second and number; 0 counts as 1. (At 1, a second may see two, a slot apart.)
    pub fn new(rate: u32) -> Self {
        Self {
            slots: Slots::new(rate.max(1)),
            numbers: Table::new(NUMBERS_MAX),
            pairs: Table::new(PAIRS_MAX),
        }
    }

    /// Takes the next place for a message from `phone_number_id` to `to`. Those of one pair come in the order
    /// of the calls.
    pub fn reserve(&mut self, phone_number_id: &str, to: &Recipient, now: Duration) -> Place {
        let (mut at, mut full) = (now, false);
        if !matches!(to, Recipient::Group(_)) {
            let pair = hash64(&[phone_number_id.as_bytes(), to.id().as_bytes()]);
            match self.pairs.entry(pair, now) {
                Some(pair) => at = pair.reserve(now),
                None => full = true,
            }
        }
        let number = hash64(&[phone_number_id.as_bytes()]);
        if let Some(number) = self.numbers.entry(number, now) {
            let slot = number.reserve(now, at, self.slots);
            full |= slot.is_none();
            // beyond the horizon, still behind all that came before
            at = slot.unwrap_or(at.max(now + HORIZON));
        } else {
            full = true;
        }
        Place { wait: at - now, full }
    }
}

/// How time is cut.
#[derive(Clone, Copy, Debug)]
struct Slots {
    /// Messages in one.
    room: u32,
    per_second: u32,
}

impl Slots {
    fn new(rate: u32) -> Self {
        let room = (rate / BURST_PART).max(1);
        // a second that begins inside a slot sees one slot more than fit into it
        Self { room, per_second: (rate / room).saturating_sub(1).max(1) }
    }

    fn of(self, at: Duration) -> u64 {
        (at.as_nanos() * u128::from(self.per_second) / 1_000_000_000) as u64
    }

    /// Rounded up, so that it lies in the slot.
    fn start(self, slot: u64) -> Duration {
        let nanos = (u128::from(slot) * 1_000_000_000).div_ceil(u128::from(self.per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Something that is forgotten once it makes nobody wait.
trait Expires: Default {
    fn is_over(&self, now: Duration) -> bool;
}

/// What is taken of the slots from now on.
#[derive(Debug, Default)]
struct Number {
    /// The slot of `taken[0]`.
    base: u64,
    taken: VecDeque<u32>,
    /// The end of the last one.
    end: Duration,
}

impl Number {
    /// The first time from `at` on with room for one more; `None` beyond the horizon.
    fn reserve(&mut self, now: Duration, at: Duration, slots: Slots) -> Option<Duration> {
        let current = slots.of(now);
        let past = current.saturating_sub(self.base).min(self.taken.len() as u64);
        self.taken.drain(..past as usize);
        self.base = self.base.max(current);
        let skipped = usize::try_from(slots.of(at).saturating_sub(self.base)).unwrap_or(usize::MAX);
        let full = self.taken.iter().skip(skipped).take_while(|taken| **taken >= slots.room).count();
        let nth = skipped.saturating_add(full);
        let slot = self.base.saturating_add(nth as u64);
        if slot > slots.of(now + HORIZON) {
            return None;
        }
        if self.taken.len() <= nth {
            self.taken.resize(nth + 1, 0);
            self.end = slots.start(slot + 1);
        }
        self.taken[nth] += 1;
        Some(at.max(slots.start(slot)))
    }
}

impl Expires for Number {
    fn is_over(&self, now: Duration) -> bool {
        self.end <= now
    }
}

/// GCRA too: when all is paid back.
#[derive(Debug, Default)]
struct Pair {
    free: Duration,
}

impl Pair {
    fn reserve(&mut self, now: Duration) -> Duration {
        let free = self.free.max(now);
        self.free = free + PAIR_EVERY;
        free.saturating_sub(PAIR_EVERY * (PAIR_BURST - 1)).max(now)
    }
}

impl Expires for Pair {
    fn is_over(&self, now: Duration) -> bool {
        self.free <= now
    }
}

/// Bounded: sweeps when it has doubled since the last sweep, and refuses when it is full of what is not over.
#[derive(Debug)]
struct Table<T> {
    entries: HashMap<u64, T>,
    max: usize,
    sweep_at: usize,
    swept: Option<Duration>,
}

impl<T: Expires> Table<T> {
    fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), max, sweep_at: SWEEP_MIN.min(max), swept: None }
    }

    fn entry(&mut self, key: u64, now: Duration) -> Option<&mut T> {
        if self.entries.len() >= self.sweep_at && !self.entries.contains_key(&key) {
            self.sweep(now);
            if self.entries.len() >= self.max {
                return None;
            }
        }
        Some(self.entries.entry(key).or_default())
    }

    fn sweep(&mut self, now: Duration) {
        let is_full = self.sweep_at == self.max;
        if is_full && self.swept.is_some_and(|at| now.saturating_sub(at) < SWEEP_EVERY) {
            return;
        }
        self.entries.retain(|_, entry| !entry.is_over(now));
        self.sweep_at = (self.entries.len() * 2).clamp(SWEEP_MIN.min(self.max), self.max);
        self.swept = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(n: u32) -> Recipient {
        Recipient::Phone(n.to_string())
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_backlog_goes_out_at_nearly_the_rate() {
        for (rate, seconds) in [(1, 20), (2, 40), (20, 22), (80, 22), (1000, 22)] {
            let mut pacing = Pacing::new(rate);
            let waits = (0..rate * 20).map(|n| pacing.reserve("1", &user(n), ms(333)).wait);
            assert!(waits.max().expect("some") <= Duration::from_secs(seconds), "{rate}");
        }
    }

    #[test]
    fn beyond_the_horizon_nothing_is_kept_and_the_number_is_not_held() {
        let mut pacing = Pacing::new(1);
        let places: Vec<_> = (0..700).map(|n| pacing.reserve("1", &user(n), ms(1))).collect();
        assert!(places.iter().all(|place| place.wait <= HORIZON));
        assert!(places[699].full && !places[599].full);
        let longest = pacing.numbers.entries.values().map(|number| number.taken.len()).max();
        assert!(longest <= Some(602), "{longest:?}");
        assert_eq!(pacing.reserve("1", &user(0), Duration::from_secs(1000)).wait, ms(0));
    }

    #[test]
    fn a_burst_goes_out_at_once_and_is_paid_back() {
        let mut pacing = Pacing::new(1000);
        for n in 0..20 {
            assert!(pacing.reserve("1", &user(1), ms(n * 10)).wait < ms(20));
        }
        // one came back in 6 s, so 26 are left
        for _ in 0..26 {
            assert!(pacing.reserve("1", &user(1), ms(6_000)).wait < ms(30));
        }
        assert_eq!(pacing.reserve("1", &user(1), ms(6_000)).wait, ms(6_000));
        // the other pair is not concerned
        assert_eq!(pacing.reserve("1", &user(2), ms(6_000)).wait, ms(0));
    }

    #[test]
    fn a_burst_is_at_most_45() {
        let mut pacing = Pacing::new(100_000);
        for _ in 0..PAIR_BURST {
            assert_eq!(pacing.reserve("1", &user(1), ms(0)).wait, ms(0));
        }
        assert_eq!(pacing.reserve("1", &user(1), ms(0)).wait, ms(6_000));
    }

    #[test]
    fn one_message_every_six_seconds_never_waits() {
        let mut pacing = Pacing::new(80);
        for n in 0..1000 {
            assert_eq!(pacing.reserve("1", &user(1), ms(n * 6_000)).wait, ms(0));
        }
    }

    #[test]
    fn a_waiting_pair_does_not_hold_its_number_nor_a_group_anything() {
        let mut pacing = Pacing::new(80);
        let group = Recipient::Group("g".into());
        for n in 0..100 {
            let now = ms(n * 100);
            pacing.reserve("1", &user(1), now);
            assert_eq!(pacing.reserve("1", &user(1000 + n as u32), now).wait, ms(0));
            assert_eq!(pacing.reserve("1", &group, now).wait, ms(0));
        }
    }

    #[test]
    fn a_full_table_lets_through_and_says_so_and_recovers() {
        let mut table = Table::<Pair>::new(4);
        for key in 0..4 {
            table.entry(key, ms(0)).expect("room").reserve(ms(0));
        }
        assert!(table.entry(4, ms(1)).is_none());
        assert!(table.entry(0, ms(1)).is_some());
        assert!(table.entry(4, ms(6_001)).is_some());
        assert_eq!(table.entries.len(), 1);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut pacing = Pacing::new(80);
        for n in 0..50_000 {
            pacing.reserve("1", &user(n), ms(u64::from(n) * 20));
        }
        assert!(pacing.pairs.entries.len() <= SWEEP_MIN * 2, "{}", pacing.pairs.entries.len());
    }

    proptest! {
        /// No second has more than the rate, whatever waits for its pair, and nobody waits longer than what is
        /// before him takes.
        #[test]
        fn a_number_keeps_its_rate(
            rate in 2u32..200,
            calls in proptest::collection::vec((0u64..60, 0u32..12), 1..600),
        ) {
            let mut pacing = Pacing::new(rate);
            let per_second = f64::from(pacing.slots.room * pacing.slots.per_second);
            let (mut now, mut sent) = (ms(0), Vec::new());
            let mut pairs: HashMap<u32, (Pair, Duration)> = HashMap::new();
            for (n, (gap, to)) in calls.into_iter().enumerate() {
                now += ms(gap);
                // a few users write a lot, so that they reach their limit
                let to = if to < 6 { to / 3 } else { 100 + n as u32 };
                let place = pacing.reserve("1", &user(to), now);
                let at = now + place.wait;
                let (pair, last) = pairs.entry(to).or_default();
                let due = pair.reserve(now);
                prop_assert!(at >= due && at >= *last);
                prop_assert!((at - due).as_secs_f64() <= n as f64 / per_second + 1.0 || place.full);
                *last = at;
                if !place.full {
                    sent.push(at);
                }
            }
            sent.sort();
            for (n, from) in sent.iter().enumerate() {
                let within = sent[n..].iter().take_while(|at| **at < *from + ms(1000)).count();
                prop_assert!(within <= rate as usize, "{within} > {rate}");
            }
        }

        /// A pair never has more in any window than 45 and one for each 6 s of it.
        #[test]
        fn a_pair_keeps_its_debt(gaps in proptest::collection::vec(0u64..9_000, 1..400)) {
            let mut pair = Pair::default();
            let (mut now, mut sent) = (ms(1), Vec::new());
            for gap in gaps {
                now += ms(gap);
                sent.push(pair.reserve(now));
                prop_assert!(*sent.last().expect("just pushed") >= now);
            }
            prop_assert!(sent.is_sorted());
            for (n, from) in sent.iter().enumerate() {
                for (more, at) in sent[n..].iter().enumerate() {
                    let refilled = (*at - *from).as_secs() / 6;
                    prop_assert!(more as u64 <= u64::from(PAIR_BURST) + refilled, "{more} in {:?}", *at - *from);
                }
            }
        }
    }
}
