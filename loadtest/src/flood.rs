//! A flood of one business, and what the others notice of it.
//!
//! Beside the users' load, [`FLOODS`] times evenly over the run, so many messages come in at once for business 0, each of
//! another customer. The time from message to answer of all other businesses is kept apart by whether a flood was under
//! way: from its first post to its last answer. What met a stall of the machine is left out
//! of the comparison, but told beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use whatsapp_webhook::clock;

use crate::client::{Client, Watch};
use crate::compose::{Composer, Said};
use crate::drive::{ANSWER_TIMEOUT, Load};
use crate::sys::now_us;
use crate::timing::{Quantiles, Recorder};

/// How often.
pub const FLOODS: u32 = 3;
/// Messages in one of its requests.
const BATCH: u32 = 100;
/// Who is flooded.
pub const BUSINESS: u32 = 0;
/// How often it is looked whether the time has come.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A flood that is not answered after this is given up; its messages are lost then.
const ANSWERED_MAX: Duration = Duration::from_secs(120);

/// Counts while it runs.
pub struct Flood {
    /// Messages of each; 0: there is none.
    pub messages: u32,
    /// The first of its conversations; each of them has one message of each flood.
    pub first: u32,
    /// From the begin of the load to the first, and from then on from begin to begin at least.
    every: Duration,
    /// Not answered yet.
    open: AtomicU64,
    /// When the last one was over; 0 before.
    ended_us: AtomicU64,
    beside: Recorder,
    without: Recorder,
    /// With those that met a stall of the machine.
    beside_all: Recorder,
    without_all: Recorder,
    took_us: Mutex<Vec<u64>>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flooded {
    /// Messages of each flood.
    pub messages: u32,
    /// From the first post of each to its last answer, in microseconds.
    pub took_us: Vec<u64>,
    /// Message to answer of the other businesses while one was under way.
    pub beside: Quantiles,
    /// The same at all other times.
    pub without: Quantiles,
    /// Both with those that met a stall of the machine: while one was under way ..
    pub beside_all: Quantiles,
    /// .. and at all other times.
    pub without_all: Quantiles,
}

impl Flood {
    /// `messages` each, in conversations from `first` on, `every` so long.
    pub fn new(messages: u32, first: u32, every: Duration) -> Self {
        Self {
            messages,
            first,
            every,
            open: AtomicU64::new(0),
            ended_us: AtomicU64::new(0),
            beside: Recorder::new(),
            without: Recorder::new(),
            beside_all: Recorder::new(),
            without_all: Recorder::new(),
            took_us: Mutex::default(),
        }
    }

    /// No flood.
    pub fn none() -> Self {
        Self::new(0, 0, Duration::ZERO)
    }

    fn is_of(&self, conversation: u32) -> bool {
        self.messages > 0 && conversation >= self.first
    }

    /// A first answer, at `at_us`, after `us`; `is_quiet`: it met no stall of the machine, which would be taken for the
    /// flood's.
    pub fn answered(&self, business: u32, conversation: u32, at_us: u64, us: u64, is_quiet: bool) {
        if self.messages == 0 {
            return;
        }
        if self.is_of(conversation) {
            // never below 0: a flood that was given up may still be answered
            let open = self.open.fetch_update(Relaxed, Relaxed, |open| open.checked_sub(1));
            if open == Ok(1) {
                self.ended_us.store(now_us(), Relaxed);
            }
        } else if business != BUSINESS {
            let sent_us = at_us.saturating_sub(us);
            let is_beside = self.open.load(Relaxed) > 0 || sent_us < self.ended_us.load(Relaxed);
            let (quiet, all) =
                if is_beside { (&self.beside, &self.beside_all) } else { (&self.without, &self.without_all) };
            all.record(at_us as usize, us);
            if is_quiet {
                quiet.record(at_us as usize, us);
            }
        }
    }

    /// What came of it; `None` without one.
    pub fn flooded(&self) -> Option<Flooded> {
        (self.messages > 0).then(|| Flooded {
            messages: self.messages,
            took_us: self.took_us.lock().clone(),
            beside: Quantiles::of(&self.beside.all()),
            without: Quantiles::of(&self.without.all()),
            beside_all: Quantiles::of(&self.beside_all.all()),
            without_all: Quantiles::of(&self.without_all.all()),
        })
    }
}

/// Posts the floods of a load, on a coroutine of its own.
pub struct Flooder {
    load: Arc<Load>,
    client: Client,
    composer: Composer,
    said: Vec<Said>,
}

impl Flooder {
    /// Connects to nothing yet; `None` if the load has no flood.
    pub fn new(load: &Arc<Load>, composer: Composer) -> Option<Self> {
        let client = Client::new(load.plan.server, ANSWER_TIMEOUT);
        (load.flood.messages > 0).then(|| Self { load: Arc::clone(load), client, composer, said: Vec::new() })
    }

    /// For the watchdog.
    pub fn watch(&self) -> &Arc<Watch> {
        self.client.watch()
    }

    /// All floods, until the load is stopped.
    pub fn run(mut self) {
        let load = Arc::clone(&self.load);
        while !load.is_begun() && !load.is_stopped() {
            clock::sleep(LOOK_EVERY);
        }
        let begun = clock::monotonic();
        for nth in 1..=FLOODS {
            while clock::monotonic() < begun + load.flood.every * nth && !load.is_stopped() {
                clock::sleep(LOOK_EVERY);
            }
            if load.is_stopped() || !self.pour() {
                return;
            }
        }
    }

    /// One flood, until it is answered; false: it was given up.
    fn pour(&mut self) -> bool {
        let load = Arc::clone(&self.load);
        let flood = &load.flood;
        let begun = now_us();
        flood.open.store(u64::from(flood.messages), Relaxed);
        let (mut next, end) = (flood.first, flood.first + flood.messages);
        while next < end {
            let last = end.min(next + BATCH);
            if !self.post(next..last) {
                return false;
            }
            next = last;
        }
        let patience = begun + ANSWERED_MAX.as_micros() as u64;
        while flood.open.load(Relaxed) > 0 {
            if load.is_abandoned() || now_us() > patience {
                return false;
            }
            clock::sleep(Duration::from_millis(1));
        }
        flood.took_us.lock().push(now_us() - begun);
        true
    }

    /// The next message of each of these, in one request, until it has its 200.
    fn post(&mut self, conversations: std::ops::Range<u32>) -> bool {
        let (load, now) = (&self.load, now_us());
        let say = |conversation| Said {
            conversation,
            nth: load.ledger.sent(conversation, now),
            business: BUSINESS,
        };
        self.said.clear();
        self.said.extend(conversations.map(say));
        let request = self.composer.messages(&self.said, load.seconds(now));
        if load.insist(&mut self.client, request, now).is_none() {
            return false;
        }
        for said in &self.said {
            load.ledger.acknowledged(said.conversation, said.nth);
        }
        true
    }
}

impl Flooded {
    /// The others' p99 beside a flood, in times of their p99 without one; `None` if either is not known.
    pub fn ratio(&self) -> Option<f64> {
        let is_known = self.beside.count > 0 && self.without.count > 0;
        is_known.then(|| self.beside.p99 as f64 / self.without.p99.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_are_told_apart_by_whether_a_flood_was_under_way() {
        let flood = Flood::new(2, 100, Duration::ZERO);
        let answered =
            |business, conversation, at_us, us| flood.answered(business, conversation, at_us, us, true);
        answered(1, 1, 1_000, 500);
        flood.open.store(2, Relaxed);
        answered(1, 1, 2_000, 700);
        flood.answered(1, 1, 2_000, 900, false);
        answered(0, 100, 2_500, 600);
        answered(0, 20, 2_500, 600);
        answered(0, 101, 3_000, 600);
        flood.ended_us.store(3_000, Relaxed);
        answered(1, 1, 4_000, 1_500);
        answered(1, 1, 5_000, 500);
        let flooded = flood.flooded().expect("there is one");
        assert_eq!((flooded.beside.count, flooded.without.count), (2, 2));
        assert_eq!((flooded.beside_all.count, flooded.without_all.count), (3, 2));
        assert_eq!((flooded.beside.max, flooded.without.max), (1_500, 500));
        assert_eq!(flooded.ratio(), Some(3.0));
    }

    #[test]
    fn without_a_flood_nothing_is_told() {
        let flood = Flood::new(0, 100, Duration::ZERO);
        flood.answered(1, 100, 1_000, 500, true);
        assert_eq!(flood.flooded(), None);
    }
}
