//! A flood of one business, and what the others notice of it.
//!
//! Beside the users' load, [`FLOODS`] times evenly over the run, so many messages come in at once for business 0, each of
//! another customer. The time from message to answer of all other businesses is kept apart by whether a flood was under
//! way: from its first post to its last answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use whatsapp_webhook::clock;

use crate::apart::{Apart, Times};
use crate::client::{Client, Watch};
use crate::compose::{Composer, Said};
use crate::drive::{ANSWER_TIMEOUT, Load};
use crate::sys::now_us;

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
    /// Message to answer; under way: what is not answered yet.
    apart: Apart,
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
    /// Message to answer of the other businesses.
    #[serde(flatten)]
    pub times: Times,
}

impl Flood {
    /// `messages` each, in conversations from `first` on, `every` so long.
    pub fn new(messages: u32, first: u32, every: Duration) -> Self {
        Self { messages, first, every, apart: Apart::new(), took_us: Mutex::default() }
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
            self.apart.done();
        } else if business != BUSINESS {
            self.apart.record(at_us, us, is_quiet);
        }
    }

    /// What came of it; `None` without one.
    pub fn flooded(&self) -> Option<Flooded> {
        (self.messages > 0).then(|| Flooded {
            messages: self.messages,
            took_us: self.took_us.lock().clone(),
            times: self.apart.times(),
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
        flood.apart.begin(u64::from(flood.messages));
        let (mut next, end) = (flood.first, flood.first + flood.messages);
        while next < end {
            let last = end.min(next + BATCH);
            if !self.post(next..last) {
                return false;
            }
            next = last;
        }
        let patience = begun + ANSWERED_MAX.as_micros() as u64;
        while flood.apart.is_open() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flood_is_under_way_until_it_is_answered_and_its_business_is_no_other() {
        let flood = Flood::new(2, 100, Duration::ZERO);
        let answered =
            |business, conversation, us| flood.answered(business, conversation, now_us(), us, true);
        flood.apart.begin(2);
        answered(0, 100, 600);
        answered(0, 20, 600);
        answered(1, 1, 700);
        assert!(flood.apart.is_open());
        answered(0, 101, 600);
        assert!(!flood.apart.is_open());
        let times = flood.flooded().expect("there is one").times;
        assert_eq!((times.beside.count, times.beside.max, times.without.count), (1, 700, 0));
    }

    #[test]
    fn without_a_flood_nothing_is_told() {
        let flood = Flood::new(0, 100, Duration::ZERO);
        flood.answered(1, 100, 1_000, 500, true);
        assert_eq!(flood.flooded(), None);
    }
}
