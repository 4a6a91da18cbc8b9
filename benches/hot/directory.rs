//! What a turn pays for its business: a cache hit beside a plain `HashMap` of the same content (the floor: no
//! expiry, no sharing), a miss beside that with a store that answers at once, an insert that evicts, a
//! decryption and its memo. One thread, 1,000 businesses, tokens of 200 characters.

use std::collections::HashMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use whatsapp_webhook::directory::Directory;
use whatsapp_webhook::directory::cache::{Cache, Found};
use whatsapp_webhook::directory::lookup::Lookup;
use whatsapp_webhook::directory::store::{Page, Record, Store, StoreError, Swap};
use whatsapp_webhook::directory::tokens::{Keys, MEMO_MAX, Memo};
use whatsapp_webhook::event::Business;
use whatsapp_webhook::secret::Secret;
use whatsapp_webhook::{clock, config};

const BUSINESSES: usize = 1_000;
const ROUNDS: u32 = 200_000;

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

fn time(mut each: impl FnMut(usize)) -> Duration {
    let start = clock::monotonic();
    for round in 0..ROUNDS as usize {
        each(round % BUSINESSES);
    }
    (clock::monotonic() - start) / ROUNDS
}

/// All benches of the directory.
pub fn bench(c: &mut Criterion) {
    let keys = Keys::new(Some(&Secret::new("a secret")), None);
    let stored = keys.encrypt(&Secret::new("E".repeat(200))).expect("there is a key");
    let lookup = Lookup::new(&settings(), Arc::new(Ready(record(&stored))));
    let numbers: Vec<String> = (0..BUSINESSES).map(|n| format!("1065403522{n:05}")).collect();
    let mut floor: HashMap<String, Arc<Business>> = HashMap::new();
    for number in &numbers {
        floor.insert(number.clone(), lookup.by_number(number).expect("ready"));
    }
    hits(c, &lookup, &floor, &numbers);
    misses(c, &lookup, &numbers);
    tokens(c, &keys, &stored);
}

fn hits(c: &mut Criterion, lookup: &Lookup, floor: &HashMap<String, Arc<Business>>, numbers: &[String]) {
    let mut group = c.benchmark_group("directory/hit");
    group.bench_function("directory", |b| {
        let mut next = numbers.iter().cycle();
        b.iter(|| lookup.by_number(next.next().expect("endless")));
    });
    group.bench_function("floor: HashMap", |b| {
        let mut next = numbers.iter().cycle();
        b.iter(|| floor.get(next.next().expect("endless")).cloned());
    });
    group.finish();
    let ours = time(|n| drop(black_box(lookup.by_number(&numbers[n]))));
    let least = time(|n| drop(black_box(floor.get(&numbers[n]).cloned())));
    let ratio = ours.as_secs_f64() / least.as_secs_f64().max(1e-9);
    println!("directory/hit: {ours:?}, {ratio:.1} times an uncontended HashMap ({least:?}); budget 200 ns");
}

fn misses(c: &mut Criterion, lookup: &Lookup, numbers: &[String]) {
    let mut group = c.benchmark_group("directory/miss");
    group.bench_function("flight, memo and insert, store at once", |b| {
        let mut n = 0_u64;
        b.iter(|| {
            n += 1;
            lookup.by_number(&n.to_string())
        });
    });
    let empty: Cache<u64> = Cache::new(BUSINESSES, Duration::from_secs(1), Duration::ZERO);
    group.bench_function("absent", |b| b.iter(|| empty.get(&numbers[0], Duration::ZERO) == Found::Absent));
    group.bench_function("insert that evicts", |b| {
        let mut n = 0_u64;
        b.iter(|| {
            n += 1;
            empty.put(&n.to_string(), n, Duration::ZERO, empty.epoch())
        });
    });
    group.finish();
}

fn tokens(c: &mut Criterion, keys: &Keys, stored: &Secret) {
    let mut group = c.benchmark_group("directory/token");
    group.bench_function("decrypt", |b| b.iter(|| keys.read(stored.reveal())));
    let mut memo = Memo::new(MEMO_MAX);
    for n in 0..MEMO_MAX - 1 {
        memo.put(&n.to_string(), keys.read(stored.reveal()).expect("readable"));
    }
    memo.put(stored.reveal(), keys.read(stored.reveal()).expect("readable"));
    group.bench_function("memo hit", |b| b.iter(|| memo.find(stored.reveal())));
    group.finish();
}
