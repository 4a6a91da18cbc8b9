//! What a turn pays for its business, by one thread and by two at once: a cache hit, a miss with a store that
//! answers at once, a look for what is absent, an insert that evicts, each beside a plain `HashMap` that does
//! the same without expiry and without sharing (by two threads: one each). Then a token's decryption and its
//! memo. 1,000 businesses, tokens of 200 characters.

use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use whatsapp_webhook::config;
use whatsapp_webhook::directory::Directory;
use whatsapp_webhook::directory::cache::{Cache, Found};
use whatsapp_webhook::directory::lookup::Lookup;
use whatsapp_webhook::directory::store::{Page, Record, Store, StoreError, Swap};
use whatsapp_webhook::directory::tokens::{Keys, MEMO_MAX, Memo};
use whatsapp_webhook::secret::Secret;

use crate::judge::Band;
use crate::pair::{Case, Pairs, at_once, each};

const BUSINESSES: usize = 1_000;

/// By one thread, and by two at once.
const HIT: [Band; 2] = [Band(2.3, 3.4), Band(2.0, 4.5)];
const MISS: [Band; 2] = [Band(1.6, 4.0), Band(1.6, 4.5)];
const ABSENT: [Band; 2] = [Band(1.0, 1.3), Band(1.0, 1.9)];
/// Two that do nothing else meet at the one lock of an insert, and then wait in the kernel.
const EVICT: [Band; 2] = [Band(1.3, 2.0), Band(1.2, 15.0)];
const DECRYPT: Band = Band(4.0, 7.0);
const MEMO: Band = Band(0.5, 0.9);

/// Answers every number at once with the same record.
struct Ready(Record);

impl Store for Ready {
    fn by_number(&self, _: &str) -> Result<Vec<Record>, StoreError> {
        Ok(vec![self.0.clone()])
    }
    fn by_subdomain(&self, _: &str) -> Result<Vec<Record>, StoreError> {
        Ok(vec![self.0.clone()])
    }
    fn page(&self, _: Option<&str>, _: usize) -> Result<Page, StoreError> {
        Ok(Page::default())
    }
    fn upsert(&self, _: Vec<Record>) -> Result<(), StoreError> {
        Ok(())
    }
    fn remove(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
    fn swap_tokens(&self, _: Vec<Swap>) -> Result<usize, StoreError> {
        Ok(0)
    }
    fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn settings() -> config::Directory {
    config::Directory {
        data_dir: PathBuf::new(),
        encryption_secret: Some(Secret::new("a secret")),
        encryption_secret_old: None,
        cache_ttl: Duration::from_secs(3600),
        cache_size: BUSINESSES,
        warmup: false,
        fallback: None,
        pool: (0, 0),
        mongodb: None,
    }
}

fn record(stored: &Secret) -> Record {
    Record {
        id: "65f000000000000000000001".to_owned(),
        name: "Cafe".to_owned(),
        waba_id: "102290129340398".to_owned(),
        phone_number_ids: vec!["106540352242922".to_owned()],
        access_token: Some(stored.clone()),
        ..Record::new("cafe")
    }
}

/// The least that forgets the oldest: a map and a queue.
struct Plain<V> {
    map: HashMap<String, V>,
    order: VecDeque<String>,
}

impl<V> Plain<V> {
    fn new() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }

    fn put(&mut self, key: String, value: V) {
        self.map.insert(key.clone(), value);
        self.order.push_back(key);
        if self.order.len() > BUSINESSES {
            let oldest = self.order.pop_front();
            oldest.and_then(|oldest| self.map.remove(&oldest));
        }
    }
}

/// What no call has had yet.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// One thread, then two at once; `ours` and `floor` are told the thread and how many numbers to go through.
fn both(
    pairs: &mut Pairs,
    (name, floor_name, bands): (&str, &'static str, [Band; 2]),
    ours: impl Fn(usize, std::ops::Range<u64>) + Sync,
    floor: impl Fn(usize, std::ops::Range<u64>) + Sync,
) {
    let case = |name, band| Case { group: "directory", name, per: 1, floor: floor_name, band };
    let take = |calls| {
        let first = NEXT.fetch_add(calls, Relaxed);
        first..first + calls
    };
    let once = |work: &dyn Fn(usize, std::ops::Range<u64>), calls| each(|| work(0, take(calls)))(1);
    pairs.timed(case(name, bands[0]), |calls| once(&ours, calls), |calls| once(&floor, calls));
    let two = format!("{name}, by 2 threads at once");
    pairs.timed(
        case(&two, bands[1]),
        |calls| at_once(calls, |thread, calls| ours(thread, take(calls))),
        |calls| at_once(calls, |thread, calls| floor(thread, take(calls))),
    );
}

/// All benches of the directory.
pub fn bench(pairs: &mut Pairs) {
    let keys = Keys::new(Some(&Secret::new("a secret")), None);
    let stored = keys.encrypt(&Secret::new("E".repeat(200))).expect("there is a key");
    hits(pairs, &stored);
    misses(pairs, &stored);
    evictions(pairs);
    tokens(pairs, &keys, &stored);
}

fn hits(pairs: &mut Pairs, stored: &Secret) {
    let lookup = Lookup::new(&settings(), Arc::new(Ready(record(stored))));
    let numbers: Vec<String> = (0..BUSINESSES).map(|n| format!("1065403522{n:05}")).collect();
    let all = || numbers.iter().map(|n| (n.clone(), lookup.by_number(n).expect("ready")));
    let plain: [HashMap<_, _>; 2] = [all().collect(), all().collect()];
    let number = |n: u64| &numbers[n as usize % BUSINESSES];
    both(
        pairs,
        ("hit", "HashMap, get", HIT),
        |_, all| all.for_each(|n| drop(black_box(lookup.by_number(number(n))))),
        |thread, all| all.for_each(|n| drop(black_box(plain[thread].get(number(n)).cloned()))),
    );
    let cache: Cache<u64> = Cache::new(BUSINESSES, Duration::from_secs(1), Duration::ZERO);
    for n in &numbers {
        cache.put(&n[1..], 1, Duration::ZERO, cache.epoch());
    }
    both(
        pairs,
        ("absent", "HashMap, get", ABSENT),
        |_, all| all.for_each(|n| assert!(cache.get(number(n), Duration::ZERO) == Found::Absent)),
        |thread, all| all.for_each(|n| assert!(!plain[thread].contains_key(&number(n)[1..]))),
    );
}

fn misses(pairs: &mut Pairs, stored: &Secret) {
    let record = record(stored);
    let lookup = Lookup::new(&settings(), Arc::new(Ready(record.clone())));
    let plain = [Mutex::new(Plain::new()), Mutex::new(Plain::new())];
    both(
        pairs,
        ("miss", "copy of the record, HashMap", MISS),
        |_, all| all.for_each(|n| drop(black_box(lookup.by_number(&n.to_string())))),
        |thread, all| {
            let mut plain = plain[thread].lock();
            all.for_each(|n| plain.put(n.to_string(), Arc::new(black_box(&record).clone())));
        },
    );
}

fn evictions(pairs: &mut Pairs) {
    let cache: Cache<u64> = Cache::new(BUSINESSES, Duration::from_secs(1), Duration::ZERO);
    let plain = [Mutex::new(Plain::new()), Mutex::new(Plain::new())];
    both(
        pairs,
        ("insert that evicts", "HashMap and VecDeque", EVICT),
        |_, all| {
            for n in all {
                black_box(cache.put(&n.to_string(), n, Duration::ZERO, cache.epoch()));
            }
        },
        |thread, all| {
            let mut plain = plain[thread].lock();
            all.for_each(|n| plain.put(n.to_string(), n));
        },
    );
}

fn tokens(pairs: &mut Pairs, keys: &Keys, stored: &Secret) {
    let case = |name, floor, band| Case { group: "directory/token", name, per: 1, floor, band };
    let plain_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"a secret");
    pairs.calls(
        case("decrypt", "plain HMAC", DECRYPT),
        || keys.read(black_box(stored.reveal())),
        || ring::hmac::sign(&plain_key, black_box(stored.reveal().as_bytes())),
    );
    let token = keys.read(stored.reveal()).expect("readable");
    let mut memo = Memo::new(MEMO_MAX);
    let mut plain = HashMap::new();
    for n in 1..MEMO_MAX {
        memo.put(&n.to_string(), token.clone());
        plain.insert(n.to_string(), token.clone());
    }
    memo.put(stored.reveal(), token.clone());
    plain.insert(stored.reveal().to_owned(), token);
    pairs.calls(
        case("memo hit", "HashMap, get", MEMO),
        || memo.find(black_box(stored.reveal())),
        || plain.get(black_box(stored.reveal())).cloned(),
    );
}
