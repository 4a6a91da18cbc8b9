//! Whether the store can be reached, who may ask it now, and when those come again who may not.
//!
//! - Away is a store that failed and has answered nothing for [`ANSWERED_WITHIN`]: one late answer among many is not
//!   an outage. While it is away one question at a time goes through, after [`RETRY_AFTER`] without a failure.
//! - At most [`WAITING_MAX`] wait for it at once and at most [`ASKING_MAX`] ask; failures halve the number that ask,
//!   answers raise it again, so that a slow store is asked as much as it can answer.
//! - Who is sent away gets a time to come again that spreads all of them evenly, at most [`RETURN_WITHIN`] ahead.
//!
//! No I/O and no clock: time is an argument.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::lookup::{CONNECTED, STALE_MAX, STORE_FAILED};
use super::store::StoreError;
use crate::ops::metrics::Counter;

/// A store that answered something so lately is not away.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// How long a store that failed is left alone.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The same by those who have a stale answer: longer, so that others find out, as long as there are others.
pub const STALE_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Lookups that wait for the store at once, at most; and never more than a third of the turns that can run, so that
/// who is in the cache finds a free one.
pub const WAITING_MAX: usize = 128;
/// Questions to the store at once, at most: enough to keep its threads busy.
pub const ASKING_MAX: usize = 64;
/// Questions to the store at once, however slow it is.
pub const ASKING_MIN: usize = 4;
/// The number of questions is not halved more often than this.
const NARROW_EVERY: Duration = Duration::from_secs(1);
/// The soonest return of one who found too many waiting.
pub const CROWDED_PAUSE: Duration = Duration::from_millis(250);
/// The soonest return of one whose question failed, or who found the store away.
pub const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// The latest return: so long after it is back everybody has asked again.
pub const RETURN_WITHIN: Duration = Duration::from_secs(5);
/// Between the returns of two: what hundreds of returns a second cost is not felt. Beyond [`RETURN_WITHIN`] divided by
/// it there are several in a step.
const RETURN_STEP: Duration = Duration::from_millis(2);

pub(super) static CROWDED: Counter = Counter::new(
    "directory_crowded_total",
    "Lookups put off because as many as may wait for the business store did.",
);
pub(super) static PUT_OFF: Counter =
    Counter::new("directory_put_off_total", "Lookups put off at once because the business store was away.");

const NEVER_ASKED: u8 = 0;
const CONNECTED_NOW: u8 = 1;
const AWAY: u8 = 2;

/// Why one may not ask now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOff {
    /// The store is away, and another question is the probe, or it was asked just now.
    Away,
    /// Too many wait or ask.
    Crowded,
}

/// See the file's head.
#[derive(Debug)]
pub struct Reach {
    connection: AtomicU8,
    /// Milliseconds of the monotonic clock, as all times here; 0: never.
    answered_at: AtomicU64,
    /// 0: it has answered since.
    failed_at: AtomicU64,
    narrowed_at: AtomicU64,
    is_probed: AtomicBool,
    waiting: AtomicUsize,
    waiting_max: usize,
    asking: AtomicUsize,
    asking_max: AtomicUsize,
    /// Microseconds of the monotonic clock.
    next_return: AtomicU64,
}

/// The right to wait for the store, until it is dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    reach: &'a Reach,
    is_probe: bool,
}

/// The right to ask it.
pub struct Question<'a>(Option<&'a Reach>);

impl Reach {
    /// `is_open`: it is known to be there.
    pub fn new(is_open: bool) -> Self {
        CONNECTED.set(i64::from(is_open));
        Self {
            connection: AtomicU8::new(if is_open { CONNECTED_NOW } else { NEVER_ASKED }),
            answered_at: AtomicU64::new(0),
            failed_at: AtomicU64::new(0),
            narrowed_at: AtomicU64::new(0),
            is_probed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            waiting_max: WAITING_MAX,
            asking: AtomicUsize::new(0),
            asking_max: AtomicUsize::new(ASKING_MAX),
            next_return: AtomicU64::new(0),
        }
    }

    /// Lets no more wait than a part of the turns that can run.
    pub fn limit_to(&mut self, max_turns: usize) {
        self.waiting_max = (max_turns / 3).clamp(1, WAITING_MAX);
    }

    /// Whether the store answered last.
    pub fn is_connected(&self) -> bool {
        self.connection.load(Relaxed) == CONNECTED_NOW
    }

    /// Whether the last answer was a failure, less than `pause` ago.
    pub fn is_left_alone(&self, now: Duration, pause: Duration) -> bool {
        let failed_at = self.failed_at.load(Relaxed);
        failed_at != 0 && now < Duration::from_millis(failed_at) + pause
    }

    /// Whoever wants to ask may do so at once.
    pub fn forget_failure(&self) {
        self.failed_at.store(0, Relaxed);
    }

    /// For one who wants to wait for an answer.
    pub fn admit(&self, now: Duration) -> Result<Permit<'_>, PutOff> {
        let is_away = self.connection.load(Relaxed) == AWAY;
        if is_away && (self.is_left_alone(now, RETRY_AFTER) || self.is_probed.swap(true, Relaxed)) {
            PUT_OFF.inc();
            return Err(PutOff::Away);
        }
        let room = |waiting: usize| (is_away || waiting < self.waiting_max).then_some(waiting + 1);
        if self.waiting.fetch_update(Relaxed, Relaxed, room).is_err() {
            CROWDED.inc();
            return Err(PutOff::Crowded);
        }
        Ok(Permit { reach: self, is_probe: is_away })
    }

    /// The store answered at `at`.
    pub fn answered(&self, at: Duration) {
        self.answered_at.store(millis(at), Relaxed);
        self.failed_at.store(0, Relaxed);
        let most = self.asking_max.load(Relaxed);
        if most < ASKING_MAX {
            self.asking_max.store(most + 1, Relaxed);
        }
        if self.connection.load(Relaxed) != CONNECTED_NOW
            && self.connection.swap(CONNECTED_NOW, Relaxed) != CONNECTED_NOW
        {
            CONNECTED.set(1);
            log::info!("business store: it answers");
        }
    }

    /// A question failed at `at`. It is an outage unless the store answered something since `answered_since`.
    pub fn failed(&self, error: &StoreError, at: Duration, answered_since: Duration) {
        STORE_FAILED.inc();
        self.narrow(at);
        self.failed_at.store(millis(at), Relaxed);
        let answered_at = self.answered_at.load(Relaxed);
        if answered_at != 0 && answered_at > millis(answered_since) {
            return;
        }
        if self.connection.swap(AWAY, Relaxed) != AWAY {
            CONNECTED.set(0);
            log::error!("{error}; what is known is served for up to {} s", STALE_MAX.as_secs());
        }
    }

    fn narrow(&self, at: Duration) {
        let before = self.narrowed_at.load(Relaxed);
        let is_due = before == 0 || at >= Duration::from_millis(before) + NARROW_EVERY;
        if is_due && self.narrowed_at.compare_exchange(before, millis(at), Relaxed, Relaxed).is_ok() {
            let most = self.asking_max.load(Relaxed);
            self.asking_max.store((most / 2).max(ASKING_MIN), Relaxed);
        }
    }

    /// How long one waits who has to come again: `least` at least, each a step after the one before; beyond
    /// [`RETURN_WITHIN`] it begins anew, so that any number of them is spread over that time.
    pub fn returns_after(&self, now: Duration, least: Duration) -> Duration {
        let (now, step) = (now.as_micros() as u64, RETURN_STEP.as_micros() as u64);
        let (soonest, latest) = (now + least.as_micros() as u64, now + RETURN_WITHIN.as_micros() as u64);
        let slot = |next: u64| if (soonest..latest).contains(&next) { next } else { soonest };
        let after = |next: u64| Some(slot(next) + step);
        let next = self.next_return.fetch_update(Relaxed, Relaxed, after).unwrap_or_default();
        Duration::from_micros(slot(next) - now)
    }
}

impl<'a> Permit<'a> {
    /// The right to ask, if one more may. A probe always may.
    pub fn question(&self) -> Option<Question<'a>> {
        if self.is_probe {
            return Some(Question(None));
        }
        let reach = self.reach;
        let most = reach.asking_max.load(Relaxed);
        let room = |asking: usize| (asking < most).then_some(asking + 1);
        let is_free = reach.asking.fetch_update(Relaxed, Relaxed, room).is_ok();
        if !is_free {
            CROWDED.inc();
        }
        is_free.then(|| Question(Some(reach)))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.reach.waiting.fetch_sub(1, Relaxed);
        if self.is_probe {
            self.reach.is_probed.store(false, Relaxed);
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(reach) = self.0 {
            reach.asking.fetch_sub(1, Relaxed);
        }
    }
}

/// Never 0.
fn millis(at: Duration) -> u64 {
    (at.as_millis() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn fails(reach: &Reach, when: Duration) {
        reach.failed(&StoreError::Unavailable("late".to_owned()), when, when.saturating_sub(ANSWERED_WITHIN));
    }

    #[test]
    fn late_answers_among_others_are_no_outage_and_silence_is() {
        let reach = Reach::new(false);
        reach.answered(at(1_000));
        for n in 0..50 {
            fails(&reach, at(1_100 + 40 * n));
            assert!(reach.is_connected());
            assert!(
                reach.is_left_alone(at(1_101 + 40 * n), STALE_RETRY_AFTER),
                "by those who have another way"
            );
            reach.answered(at(1_120 + 40 * n));
        }
        fails(&reach, at(5_100));
        assert!(!reach.is_connected());
        let never = Reach::new(false);
        fails(&never, at(10));
        assert!(!never.is_connected() && never.connection.load(Relaxed) == AWAY);
    }

    #[test]
    fn while_it_is_away_one_at_a_time_asks_and_an_answer_opens_it_to_all() {
        let reach = Reach::new(true);
        fails(&reach, at(10_000));
        let admitted = |when| reach.admit(at(when)).map(drop).err();
        assert_eq!(admitted(14_999), Some(PutOff::Away));
        let probe = reach.admit(at(15_000)).expect("the probe");
        assert!(probe.question().is_some());
        assert_eq!(admitted(15_000), Some(PutOff::Away));
        fails(&reach, at(20_000));
        drop(probe);
        assert_eq!(admitted(24_999), Some(PutOff::Away));
        assert_eq!(admitted(25_000), None);
        reach.answered(at(25_001));
        let both = (reach.admit(at(25_001)), reach.admit(at(25_001)));
        assert!(both.0.is_ok() && both.1.is_ok());
    }

    #[test]
    fn a_part_of_the_turns_may_wait_and_fewer_ask_of_a_store_that_fails() {
        let mut reach = Reach::new(true);
        reach.limit_to(30);
        let waiting: Vec<_> = (0..10).map(|_| reach.admit(at(1)).expect("room")).collect();
        assert_eq!(reach.admit(at(1)).err(), Some(PutOff::Crowded));
        drop(waiting);
        reach.limit_to(1_000_000);
        reach.answered(at(2));
        let ask = || {
            let permits: Vec<_> = (0..WAITING_MAX).map(|_| reach.admit(at(2)).expect("room")).collect();
            assert_eq!(reach.admit(at(2)).err(), Some(PutOff::Crowded));
            let questions: Vec<_> = permits.iter().filter_map(Permit::question).collect();
            questions.len()
        };
        assert_eq!(ask(), ASKING_MAX);
        (0..100).for_each(|_| fails(&reach, at(3)));
        assert_eq!(ask(), ASKING_MAX / 2, "a burst of failures counts once");
        for n in 1..10 {
            fails(&reach, at(3 + 1_000 * n));
            reach.answered(at(3 + 1_000 * n));
        }
        assert!((ASKING_MIN..=ASKING_MIN + 2).contains(&ask()), "{}", ask());
        (0..100).for_each(|_| reach.answered(at(20_000)));
        assert_eq!(ask(), ASKING_MAX);
        assert_eq!((reach.waiting.load(Relaxed), reach.asking.load(Relaxed)), (0, 0));
    }

    #[test]
    fn those_who_come_again_are_spread_and_nobody_waits_long() {
        let reach = Reach::new(true);
        let mut tenths = [0; 50];
        for _ in 0..50_000 {
            let wait = reach.returns_after(at(1_000), AWAY_PAUSE);
            assert!((AWAY_PAUSE..RETURN_WITHIN).contains(&wait), "{wait:?}");
            tenths[(wait.as_millis() / 100) as usize] += 1;
        }
        assert!(tenths[10..].iter().all(|n| (1_000..=1_500).contains(n)), "{tenths:?}");
        let few: Vec<_> = (0..50).map(|_| reach.returns_after(at(60_000), CROWDED_PAUSE)).collect();
        assert!(few.iter().all(|wait| *wait < CROWDED_PAUSE + at(100)), "few come again soon");
    }
}
