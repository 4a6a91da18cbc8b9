//! How fast may be sent, so that Meta's limits are met rarely. Pure: time is an argument.
//!
//! Two limits (<https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput> and
//! `about-the-platform`):
//! - A phone number may send `rate` messages a second. GCRA: each message takes `1/rate`, and a number that
//!   was quiet may be ahead by a quarter of a second.
//! - A pair (number, user) gets one message every 6 s, of which up to 45 may be borrowed: a bucket of 45 that is
//!   refilled one in 6 s. (Read to the letter, who borrowed must be silent until all is paid back; that would silence
//!   every lively chat for minutes, and Meta says 131056 where it means it.) Groups are not pairs.
//!
//! The number's share is taken when a place is reserved, also where the pair makes it wait: a pair that has
//! to wait for minutes must not hold the number. Limits that are met all the same come back as errors 130429
//! and 131056.

use std::collections::HashMap;
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
/// How far a number may be ahead of its rate.
const AHEAD: Duration = Duration::from_millis(250);
/// A table is looked through for what expired from this size on.
const SWEEP_MIN: usize = 1024;
/// A full table is looked through at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The state of both limits. Its clock must not go back.
#[derive(Debug)]
pub struct Pacing {
    every: Duration,
    numbers: Table<Number>,
    pairs: Table<Pair>,
}

/// A place that was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// How long to wait.
    pub wait: Duration,
    /// A table was full: not paced in full.
    pub full: bool,
}

impl Pacing {
    /// `rate`: messages a second and number; 0 counts as 1.
    pub fn new(rate: u32) -> Self {
        Self {
            every: Duration::from_secs(1) / rate.max(1),
            numbers: Table::new(NUMBERS_MAX),
            pairs: Table::new(PAIRS_MAX),
        }
    }

    /// Takes the next place for a message from `phone_number_id` to `to`.
    pub fn reserve(&mut self, phone_number_id: &str, to: &Recipient, now: Duration) -> Place {
        let mut place = Place { wait: Duration::ZERO, full: false };
        let number = hash64(&[phone_number_id.as_bytes()]);
        match self.numbers.entry(number, now) {
            Some(number) => place.wait = number.reserve(now, self.every) - now,
            None => place.full = true,
        }
        if matches!(to, Recipient::Group(_)) {
            return place;
        }
        let pair = hash64(&[phone_number_id.as_bytes(), to.id().as_bytes()]);
        match self.pairs.entry(pair, now) {
            Some(pair) => place.wait = place.wait.max(pair.reserve(now) - now),
            None => place.full = true,
        }
        place
    }
}

/// Something that is forgotten once it makes nobody wait.
trait Expires: Default {
    fn is_over(&self, now: Duration) -> bool;
}

/// GCRA: when the next message would be due if all came evenly.
#[derive(Debug, Default)]
struct Number {
    due: Duration,
}

impl Number {
    fn reserve(&mut self, now: Duration, every: Duration) -> Duration {
        let due = self.due.max(now);
        self.due = due + every;
        due.saturating_sub(AHEAD).max(now)
    }
}

impl Expires for Number {
    fn is_over(&self, now: Duration) -> bool {
        self.due <= now
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
        for _ in 0..45 {
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
        /// In any window of a second at most the rate and what a number may be ahead by, plus the one at the
        /// edge.
        #[test]
        fn a_number_keeps_its_rate(rate in 1u32..200, gaps in proptest::collection::vec(0u64..40, 1..600)) {
            let mut pacing = Pacing::new(rate);
            let (mut now, mut sent) = (ms(0), Vec::new());
            for (n, gap) in gaps.into_iter().enumerate() {
                now += ms(gap);
                sent.push(now + pacing.reserve("1", &user(n as u32), now).wait);
            }
            prop_assert!(sent.is_sorted());
            let limit = (rate + rate / 4 + 2) as usize;
            for (n, from) in sent.iter().enumerate() {
                let within = sent[n..].iter().take_while(|at| **at < *from + ms(1000)).count();
                prop_assert!(within <= limit, "{within} > {limit}");
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
