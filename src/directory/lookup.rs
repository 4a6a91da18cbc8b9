//! The directory over a store: what is cached, what is asked, what is refused and with which reason.
//!
//! Fresh in the cache: answered at once. Otherwise one coroutine asks the store and the others wait for its
//! answer. If the store fails, an expired entry is served on (and the store left alone for [`STALE_RETRY_AFTER`]);
//! without one the answer is `directory_unavailable`, to be tried again within seconds: at once while the store is
//! away, or where too many wait for it already (`reach`). Refusals are remembered for [`ABSENT_TTL`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::cache::{Cache, Epoch, Found};
use super::flight::{Flights, Lead, Seat};
use super::judge::{Answer, By, Judge, refused, unavailable};
use super::reach::{ANSWERED_WITHIN, AWAY_PAUSE, CROWDED_PAUSE, PutOff, Reach};
pub use super::reach::{RETRY_AFTER, STALE_RETRY_AFTER};
use super::store::{Record, Store, StoreError, all};
use super::{CacheStats, Directory};
use crate::event::{Business, hash64};
use crate::failure::Failure;
use crate::ops::metrics::{Counter, Gauge};
use crate::{clock, config};

/// How long past its time to live an entry is served while the store is away.
pub const STALE_MAX: Duration = Duration::from_secs(3600);
/// How long a refusal (no business, disabled, ambiguous, token invalid) is remembered.
pub const ABSENT_TTL: Duration = Duration::from_secs(10);
/// Refusals that are remembered: apart from the businesses, so that strange numbers push nobody out.
pub const ABSENT_MAX: usize = 1_000;
/// The longest id that is looked up, in bytes; Meta's ids have about 15 digits.
pub const ID_MAX: usize = 128;
/// How long one waits for another's question to the store. A little over the store's own deadline.
pub const JOIN_WITHIN: Duration = Duration::from_secs(6);
/// The same for one who could serve a stale answer instead.
pub const STALE_PATIENCE: Duration = Duration::from_millis(250);
/// How long one who misses waits for a warm-up that is under way, before asking on its own: at a start under load
/// everybody misses, and a store that is asked by everybody answers nobody, the warm-up included.
pub const WARM_UP_PATIENCE: Duration = Duration::from_secs(2);
/// Distinct numbers that a warm-up can tell apart as claimed once or twice.
const WARM_UP_NUMBERS_MAX: usize = 2_000_000;

pub(super) static HITS: Counter = Counter::new("directory_hits_total", "Lookups answered from the cache.");
pub(super) static MISSES: Counter =
    Counter::new("directory_misses_total", "Lookups not answered from the cache.");
pub(super) static JOINED: Counter =
    Counter::new("directory_joined_total", "Misses that waited for another's question to the store.");
pub(super) static EVICTED: Counter =
    Counter::new("directory_evicted_total", "Entries evicted because BUSINESS_CACHE_SIZE was reached.");
pub(super) static STALE_SERVED: Counter = Counter::new(
    "directory_stale_served_total",
    "Lookups answered with an expired entry because the store gave no answer.",
);
pub(super) static STORE_FAILED: Counter =
    Counter::new("directory_store_failures_total", "Questions that the business store did not answer.");
pub(super) static ABSENT_EVICTED: Counter = Counter::new(
    "directory_refusals_evicted_total",
    "Remembered refusals evicted because there were too many.",
);
pub(super) static IDS_REFUSED: Counter =
    Counter::new("directory_ids_refused_total", "Lookups of an id that is empty or too long to be one.");
pub(super) static CONNECTED: Gauge =
    Gauge::new("directory_connected", "1 if the business store answered last time.");

/// What is known by one kind of key.
struct Index {
    by: By,
    businesses: Cache<Arc<Business>>,
    absent: Cache<Failure>,
    flights: Flights<Answer>,
}

impl Index {
    fn new(by: By, config: &config::Directory) -> Self {
        let lost = "the lookup was cut short".to_owned();
        Self {
            by,
            businesses: Cache::new(config.cache_size, config.cache_ttl, STALE_MAX),
            absent: Cache::new(ABSENT_MAX, ABSENT_TTL, Duration::ZERO),
            flights: Flights::new(Answer::Unavailable(lost)),
        }
    }

    fn fresh(&self, key: &str, now: Duration) -> Result<Option<Arc<Business>>, Failure> {
        match self.businesses.get(key, now) {
            Found::Fresh(business) => Ok(Some(business)),
            Found::Stale(_) | Found::Absent => match self.absent.get(key, now) {
                Found::Fresh(failure) => Err(failure),
                Found::Stale(_) | Found::Absent => Ok(None),
            },
        }
    }

    fn epochs(&self) -> (Epoch, Epoch) {
        (self.businesses.epoch(), self.absent.epoch())
    }

    fn keep(&self, key: &str, answer: &Answer, asked_at: Duration, epochs: (Epoch, Epoch)) {
        match answer {
            Answer::Business(business) => {
                self.absent.remove(key, epochs.1);
                let evicted = self.businesses.put(key, business.clone(), asked_at, epochs.0);
                EVICTED.add(evicted as u64);
            }
            Answer::Refused(failure) => {
                self.businesses.remove(key, epochs.0);
                let evicted = self.absent.put(key, failure.clone(), asked_at, epochs.1);
                ABSENT_EVICTED.add(evicted as u64);
            }
            Answer::Unavailable(_) => {}
        }
    }

    fn clear(&self) {
        self.flights.forget();
        self.businesses.clear();
        self.absent.clear();
    }
}

/// The one key of the warm-ups under way.
const WARM_UP: &str = "numbers";

/// See the file's head.
pub struct Lookup {
    numbers: Index,
    sub_domains: Index,
    warm_ups: Flights<()>,
    judge: Judge,
    max_size: usize,
    ttl: Duration,
    hits: AtomicU64,
    misses: AtomicU64,
    reach: Reach,
    store: Arc<dyn Store>,
}

impl Lookup {
    /// Over an open store. Nothing is read yet.
    pub fn new(config: &config::Directory, store: Arc<dyn Store>) -> Self {
        Self {
            numbers: Index::new(By::Number, config),
            sub_domains: Index::new(By::SubDomain, config),
            warm_ups: Flights::new(()),
            judge: Judge::new(config),
            max_size: config.cache_size,
            ttl: config.cache_ttl,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            // a file was opened just now; a server has not been asked yet
            reach: Reach::new(config.mongodb.is_none()),
            store,
        }
    }

    /// So that lookups that wait for the store hold no more than a part of so many turns.
    pub fn for_turns(mut self, max_turns: usize) -> Self {
        self.reach.limit_to(max_turns);
        self
    }

    /// [`Directory::by_number`] at the time `now` of the monotonic clock.
    pub fn by_number_at(&self, phone_number_id: &str, now: Duration) -> Result<Arc<Business>, Failure> {
        self.find(&self.numbers, phone_number_id, now)
    }

    /// [`Directory::by_subdomain`] at the time `now` of the monotonic clock.
    pub fn by_subdomain_at(&self, sub_domain: &str, now: Duration) -> Result<Arc<Business>, Failure> {
        self.find(&self.sub_domains, sub_domain, now)
    }

    fn find(&self, index: &Index, key: &str, now: Duration) -> Result<Arc<Business>, Failure> {
        let stale = match index.businesses.get(key, now) {
            Found::Fresh(business) => {
                self.count_hit();
                return Ok(business);
            }
            Found::Stale(business) => Some(business),
            Found::Absent => None,
        };
        if let Found::Fresh(failure) = index.absent.get(key, now) {
            self.count_hit();
            return Err(failure);
        }
        self.misses.fetch_add(1, Relaxed);
        MISSES.inc();
        if key.is_empty() || key.len() > ID_MAX {
            IDS_REFUSED.inc();
            return Err(refused("no_business", "no business has such an id".to_owned()));
        }
        match stale {
            Some(business) => self.find_with_stale(index, key, now, business),
            None => self.find_missing(index, key, now),
        }
    }

    fn count_hit(&self) {
        self.hits.fetch_add(1, Relaxed);
        HITS.inc();
    }

    fn find_missing(&self, index: &Index, key: &str, now: Duration) -> Result<Arc<Business>, Failure> {
        let entered = clock::monotonic();
        let (why, pause) = match self.question(index, key, now, false) {
            Ok(Some(Answer::Business(business))) => return Ok(business),
            Ok(Some(Answer::Refused(failure))) => return Err(failure),
            Ok(Some(Answer::Unavailable(why))) => (why, AWAY_PAUSE),
            Ok(None) => ("the business store did not answer in time".to_owned(), AWAY_PAUSE),
            Err(PutOff::Away) => ("the business store is away".to_owned(), AWAY_PAUSE),
            Err(PutOff::Crowded) => ("too many wait for the business store".to_owned(), CROWDED_PAUSE),
        };
        let after = self.reach.returns_after(since(now, entered), pause);
        Err(unavailable(&why, Some(after)))
    }

    fn find_with_stale(
        &self,
        index: &Index,
        key: &str,
        now: Duration,
        stale: Arc<Business>,
    ) -> Result<Arc<Business>, Failure> {
        let answer = if self.reach.is_left_alone(now, STALE_RETRY_AFTER) {
            None
        } else {
            self.question(index, key, now, true).ok().flatten()
        };
        match answer {
            Some(Answer::Business(business)) => Ok(business),
            Some(Answer::Refused(failure)) => Err(failure),
            Some(Answer::Unavailable(_)) | None => {
                STALE_SERVED.inc();
                Ok(stale)
            }
        }
    }

    /// The store's answer, own question or another's; `None`: the other's did not come in time.
    fn question(
        &self,
        index: &Index,
        key: &str,
        now: Duration,
        has_stale: bool,
    ) -> Result<Option<Answer>, PutOff> {
        let permit = self.reach.admit(now)?;
        if index.by == By::Number
            && !has_stale
            && let Some(warm_up) = self.warm_ups.join(WARM_UP)
        {
            let _ = warm_up.wait(WARM_UP_PATIENCE);
        }
        let flight = match permit.question() {
            Some(_asking) => match index.flights.board(key) {
                Seat::Leads(lead) => return Ok(Some(self.ask(index, key, now, lead))),
                Seat::Joins(flight) => flight,
            },
            // who joins asks nothing
            None => index.flights.join(key).ok_or(PutOff::Crowded)?,
        };
        JOINED.inc();
        Ok(flight.wait(if has_stale { STALE_PATIENCE } else { JOIN_WITHIN }))
    }

    /// Asks the store, keeps the answer, then tells those who joined.
    fn ask(&self, index: &Index, key: &str, now: Duration, lead: Lead<'_, Answer>) -> Answer {
        // between the look into the cache and the start of this flight another one may have landed
        match index.fresh(key, now) {
            Ok(Some(business)) => return land(lead, Answer::Business(business)),
            Err(failure) => return land(lead, Answer::Refused(failure)),
            Ok(None) => {}
        }
        let (epochs, entered) = (index.epochs(), clock::monotonic());
        let records = match index.by {
            By::Number => self.store.by_number(key),
            By::SubDomain => self.store.by_subdomain(key),
        };
        let ended = since(now, entered);
        self.note_store(records.as_ref().err(), ended, ended.saturating_sub(ANSWERED_WITHIN));
        let answer = match records {
            Ok(records) => self.judge.judge(index.by, key, records),
            Err(error) => Answer::Unavailable(error.to_string()),
        };
        index.keep(key, &answer, now, epochs);
        land(lead, answer)
    }

    fn note_store(&self, error: Option<&StoreError>, ended: Duration, answered_since: Duration) {
        match error {
            Some(error) => self.reach.failed(error, ended, answered_since),
            None => self.reach.answered(ended),
        }
    }

    /// Walks the whole store, so that a number that two businesses claim is not taken from the first one. Tells of
    /// every document that can't be right: one without a right number is found by no lookup.
    fn warm_up_at(&self, now: Duration) -> Result<usize, Failure> {
        let (epochs, entered) = (self.numbers.epochs(), clock::monotonic());
        let mut claimed_twice: HashMap<u64, bool> = HashMap::new();
        let mut chosen: Vec<Record> = Vec::new();
        let mut sub_domains: HashSet<u64> = HashSet::new();
        let mut room = self.max_size;
        let walked = all(&*self.store, |record| {
            self.judge.tell_fault(&record);
            if !record.is_live() {
                return true;
            }
            if record.fault.is_none() && !sub_domains.insert(hash64(&[record.sub_domain.as_bytes()])) {
                self.judge.tell_twin(&record);
            }
            for number in &record.phone_number_ids {
                claimed_twice
                    .entry(hash64(&[number.as_bytes()]))
                    .and_modify(|twice| *twice = true)
                    .or_insert(false);
            }
            if !record.phone_number_ids.is_empty() && record.phone_number_ids.len() <= room {
                room -= record.phone_number_ids.len();
                chosen.push(record);
            }
            claimed_twice.len() < WARM_UP_NUMBERS_MAX
        });
        self.note_store(walked.as_ref().err(), since(now, entered), now);
        walked.map_err(|error| unavailable(&error.to_string(), None))?;
        if claimed_twice.len() >= WARM_UP_NUMBERS_MAX {
            log::warn!("warm-up: more than {WARM_UP_NUMBERS_MAX} numbers; nothing is loaded ahead");
            return Ok(0);
        }
        let mut loaded = 0;
        for record in chosen {
            let is_sole = |number: &String| claimed_twice.get(&hash64(&[number.as_bytes()])) == Some(&false);
            let numbers: Vec<String> =
                record.phone_number_ids.iter().filter(|n| is_sole(n)).cloned().collect();
            if numbers.is_empty() {
                continue;
            }
            let answer = self.judge.open_record(record);
            loaded += usize::from(matches!(answer, Answer::Business(_)));
            for number in &numbers {
                self.numbers.keep(number, &answer, now, epochs);
            }
        }
        Ok(loaded)
    }
}

impl Directory for Lookup {
    fn by_number(&self, phone_number_id: &str) -> Result<Arc<Business>, Failure> {
        self.by_number_at(phone_number_id, clock::monotonic())
    }

    fn known(&self, phone_number_id: &str) -> Option<Result<Arc<Business>, Failure>> {
        let known = self.numbers.fresh(phone_number_id, clock::monotonic()).transpose()?;
        self.count_hit();
        Some(known)
    }

    fn by_subdomain(&self, sub_domain: &str) -> Result<Arc<Business>, Failure> {
        self.by_subdomain_at(sub_domain, clock::monotonic())
    }

    fn clear(&self) {
        self.numbers.clear();
        self.sub_domains.clear();
        self.judge.clear();
        self.reach.forget_failure();
    }

    fn warm_up(&self) -> Result<usize, Failure> {
        // lands when it goes, also where a warm-up fails; a second one at the same time reads the same
        let _under_way = self.warm_ups.board(WARM_UP);
        self.warm_up_at(clock::monotonic())
    }

    fn stats(&self) -> CacheStats {
        CacheStats {
            size: self.numbers.businesses.len(),
            max_size: self.max_size,
            ttl_seconds: self.ttl.as_secs(),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
        }
    }

    fn is_connected(&self) -> bool {
        self.reach.is_connected()
    }

    fn check(&self) {
        let begun = clock::monotonic();
        // behind many questions it may be late; what was answered meanwhile says that the store is there
        let checked = self.store.check();
        self.note_store(checked.err().as_ref(), clock::monotonic(), begun);
    }
}

/// `now` and what went by since the clock said `entered`.
fn since(now: Duration, entered: Duration) -> Duration {
    now + clock::monotonic().saturating_sub(entered)
}

fn land(lead: Lead<'_, Answer>, answer: Answer) -> Answer {
    lead.land(answer.clone());
    answer
}
