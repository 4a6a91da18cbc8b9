//! The directory over a store that counts, fails and hangs on demand, and over the embedded one; the
//! `business` commands end to end.

mod embedded;
mod fake;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use whatsapp_webhook::clock;
use whatsapp_webhook::config;
use whatsapp_webhook::directory::Directory;
use whatsapp_webhook::directory::lookup::{
    ABSENT_MAX, ABSENT_TTL, Lookup, RETRY_AFTER, STALE_MAX, STALE_RETRY_AFTER,
};
use whatsapp_webhook::directory::reach::{ASKING_MAX, RETURN_WITHIN};
use whatsapp_webhook::directory::store::{Page, Record, Store, StoreError, Swap};
use whatsapp_webhook::directory::tokens::Keys;
use whatsapp_webhook::failure::{Failure, Scope, Verdict};
use whatsapp_webhook::secret::Secret;

use fake::Fake;

pub(crate) const SECRET: &str = "an encryption secret";
const TTL: Duration = Duration::from_secs(300);

pub(crate) fn config(data_dir: &Path) -> config::Directory {
    config::Directory {
        data_dir: data_dir.to_owned(),
        encryption_secret: Some(Secret::new(SECRET)),
        encryption_secret_old: None,
        cache_ttl: TTL,
        cache_size: 1000,
        warmup: true,
        fallback: None,
        pool: (100, 10),
        mongodb: None,
    }
}

fn keys() -> Keys {
    Keys::new(Some(&Secret::new(SECRET)), None)
}

fn record(name: &str, numbers: &[&str]) -> Record {
    Record {
        id: format!("id-{name}"),
        name: name.to_owned(),
        waba_id: "1".to_owned(),
        phone_number_ids: numbers.iter().map(|n| (*n).to_owned()).collect(),
        access_token: keys().encrypt(&Secret::new(format!("EAAG-{name}"))),
        ..Record::new(name)
    }
}

fn over(records: Vec<Record>) -> (Arc<Fake>, Arc<Lookup>) {
    with(records, |_| {})
}

fn with(records: Vec<Record>, change: impl FnOnce(&mut config::Directory)) -> (Arc<Fake>, Arc<Lookup>) {
    let fake = Arc::new(Fake { records: Mutex::new(records), ..Fake::default() });
    let mut config = config(Path::new("/nowhere"));
    change(&mut config);
    let lookup = Arc::new(Lookup::new(&config, fake.clone()));
    (fake, lookup)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    result.expect_err("expected a failure").reason.to_string()
}

/// Runs `count` coroutines at once and returns what each returned; `Err` for one that panicked.
fn together<T: Send + 'static>(
    count: usize,
    each: impl Fn() -> T + Send + Sync + 'static,
) -> Vec<std::thread::Result<T>> {
    let each = Arc::new(each);
    let handles: Vec<_> = (0..count)
        .map(|_| {
            let each = each.clone();
            may::go!(may::coroutine::Builder::new().stack_size(0x10000), move || each()).expect("spawns")
        })
        .collect();
    handles.into_iter().map(may::coroutine::JoinHandle::join).collect()
}

#[test]
fn who_misses_during_a_warm_up_waits_for_it_instead_of_asking() {
    crate::coroutines();
    let (store, lookup) = over(vec![record("a", &["1"]), record("b", &["2"])]);
    *store.takes.lock() = Duration::from_millis(300);
    let warming = Arc::clone(&lookup);
    let warming = may::go!(move || warming.warm_up());
    clock::sleep(Duration::from_millis(100));
    let asking: Vec<_> = ["1", "2", "1"]
        .map(|number| {
            let lookup = Arc::clone(&lookup);
            may::go!(move || lookup.by_number(number).is_ok())
        })
        .into_iter()
        .collect();
    assert!(asking.into_iter().all(|one| one.join().expect("no panic")));
    assert_eq!(warming.join().expect("no panic").expect("warm"), 2);
    assert_eq!(store.asked(), 1, "only the warm-up");
    store.is_down.store(true, SeqCst);
    lookup.clear();
    assert!(
        lookup.warm_up().is_err() && lookup.by_number("1").is_err(),
        "a warm-up that failed holds nobody up"
    );
}

#[test]
fn a_hundred_coroutines_that_miss_one_number_ask_the_store_once() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    *fake.takes.lock() = Duration::from_millis(100);
    let asking = lookup.clone();
    let answers = together(100, move || asking.by_number("106"));
    for answer in answers {
        assert_eq!(answer.expect("no panic").expect("found").token.reveal(), "EAAG-cafe");
    }
    assert_eq!(fake.asked(), 1);
    let stats = lookup.stats();
    assert_eq!((stats.size, stats.hits + stats.misses), (1, 100));
}

#[test]
fn a_failure_of_the_store_is_shared_and_can_be_retried() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    *fake.takes.lock() = Duration::from_millis(100);
    fake.is_down.store(true, SeqCst);
    let asking = lookup.clone();
    for answer in together(20, move || asking.by_number("106")) {
        let failure = answer.expect("no panic").expect_err("the store is down");
        let after = Duration::from_secs(1)..RETURN_WITHIN;
        assert!(
            matches!(failure.verdict, Verdict::Retry { after: Some(wait) } if after.contains(&wait)),
            "{failure:?}"
        );
        assert_eq!(failure.reason.as_str(), "directory_unavailable");
    }
    assert_eq!(fake.asked(), 1);
    assert!(!lookup.is_connected());
    fake.is_down.store(false, SeqCst);
    lookup.check();
    assert!(lookup.by_number("106").is_ok(), "a failure is not remembered");
    assert!(lookup.is_connected());
}

#[test]
fn while_the_store_is_away_a_miss_is_put_off_at_once_and_one_probe_at_a_time_notices_its_return() {
    crate::coroutines();
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    fake.is_down.store(true, SeqCst);
    assert_eq!(reason(lookup.by_number_at("106", at(10))), "directory_unavailable");
    *fake.takes.lock() = Duration::from_millis(500);
    let begun = clock::monotonic();
    for n in 0..1000 {
        assert_eq!(reason(lookup.by_number_at(&format!("7{n}"), at(11))), "directory_unavailable");
    }
    assert!(clock::monotonic() - begun < Duration::from_millis(400));
    assert_eq!(fake.asked(), 1);
    let asking = lookup.clone();
    let next = Arc::new(AtomicUsize::new(0));
    let each = move || asking.by_number_at(&next.fetch_add(1, SeqCst).to_string(), at(16)).is_err();
    assert!(together(50, each).into_iter().all(|one| one.expect("no panic")));
    assert_eq!(fake.asked(), 2, "the probe");
    fake.is_down.store(false, SeqCst);
    assert!(lookup.by_number_at("106", at(22)).is_ok(), "the next probe");
    assert_eq!(reason(lookup.by_number_at("107", at(22))), "no_business");
    assert!(lookup.is_connected());
}

#[test]
fn a_store_that_hangs_holds_a_part_of_those_who_ask_and_the_others_come_again() {
    crate::coroutines();
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    assert!(lookup.by_number("106").is_ok());
    *fake.takes.lock() = Duration::from_secs(2);
    let asking = lookup.clone();
    let next = Arc::new(AtomicUsize::new(0));
    let each = move || {
        let (begun, n) = (clock::monotonic(), next.fetch_add(1, SeqCst));
        let answer = asking.by_number(&format!("7{n}")).expect_err("nobody has it");
        // what is cached is answered meanwhile
        assert!(asking.by_number("106").is_ok());
        (answer, clock::monotonic() - begun)
    };
    let answers: Vec<_> = together(400, each).into_iter().map(|one| one.expect("no panic")).collect();
    let put_off = answers.iter().filter(|(failure, _)| failure.reason.as_str() == "directory_unavailable");
    for (failure, took) in put_off.clone() {
        assert!(*took < Duration::from_secs(1), "{took:?}");
        let Verdict::Retry { after: Some(after) } = failure.verdict else { panic!("{failure:?}") };
        assert!(after < Duration::from_secs(1), "{after:?}");
    }
    assert_eq!(put_off.count(), 400 - ASKING_MAX);
    assert_eq!(fake.asked(), 1 + ASKING_MAX);
    assert!(lookup.is_connected());
}

#[test]
fn a_panic_in_the_store_hangs_nobody() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    *fake.takes.lock() = Duration::from_millis(100);
    fake.panics.store(true, SeqCst);
    let asking = lookup.clone();
    let answers = together(20, move || asking.by_number("106"));
    let panicked = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!(panicked, 1, "only the one that asked");
    for answer in answers.into_iter().flatten() {
        assert_eq!(reason(answer), "directory_unavailable");
    }
    fake.panics.store(false, SeqCst);
    assert!(lookup.by_number("106").is_ok());
}

#[test]
fn an_entry_lives_for_its_time_and_the_change_is_seen_after_it() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    assert!(lookup.by_number_at("106", at(1)).is_ok());
    fake.records.lock()[0].access_token = keys().encrypt(&Secret::new("EAAG-second"));
    assert_eq!(lookup.by_number_at("106", at(300)).expect("cached").token.reveal(), "EAAG-cafe");
    assert_eq!(fake.asked(), 1);
    assert_eq!(lookup.by_number_at("106", at(301)).expect("read again").token.reveal(), "EAAG-second");
    fake.records.lock()[0].enabled = false;
    assert_eq!(reason(lookup.by_number_at("106", at(700))), "business_disabled");
    fake.is_down.store(true, SeqCst);
    let later = at(700) + ABSENT_TTL;
    assert_eq!(reason(lookup.by_number_at("106", later)), "directory_unavailable", "not the old entry");
}

#[test]
fn a_clear_shows_a_change_at_once_and_forgets_refusals() {
    let (fake, lookup) = over(vec![]);
    assert_eq!(reason(lookup.by_number_at("106", at(1))), "no_business");
    fake.records.lock().push(record("cafe", &["106"]));
    assert_eq!(reason(lookup.by_number_at("106", at(1))), "no_business");
    lookup.clear();
    assert!(lookup.by_number_at("106", at(1)).is_ok());
    fake.records.lock()[0].access_token = keys().encrypt(&Secret::new("EAAG-second"));
    lookup.clear();
    assert_eq!(lookup.stats().size, 0);
    assert_eq!(lookup.by_number_at("106", at(1)).expect("found").token.reveal(), "EAAG-second");
}

#[test]
fn what_was_asked_before_a_clear_is_not_cached_after_it_and_nobody_joins_it() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    *fake.takes.lock() = Duration::from_millis(200);
    let ask = || {
        let (asking, asked) = (lookup.clone(), fake.asked());
        let handle = may::go!(move || asking.by_number("106"));
        while fake.asked() == asked {
            clock::sleep(Duration::from_millis(1));
        }
        handle
    };
    let early = ask();
    lookup.clear();
    assert!(early.join().expect("no panic").is_ok());
    assert_eq!(lookup.stats().size, 0, "the early answer is not kept");
    let early = ask();
    lookup.clear();
    let late = ask();
    assert_eq!(fake.asked(), 3, "the late one asks for itself");
    assert!(early.join().expect("no panic").is_ok() && late.join().expect("no panic").is_ok());
    assert_eq!(lookup.stats().size, 1);
}

#[test]
fn a_refusal_is_remembered_for_a_short_time_and_the_numbers_of_strangers_push_nobody_out() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    assert!(lookup.by_number_at("106", at(1)).is_ok());
    assert_eq!(reason(lookup.by_number_at("9", at(1))), "no_business");
    assert_eq!(reason(lookup.by_number_at("9", at(2))), "no_business");
    assert_eq!(fake.asked(), 2);
    assert_eq!(reason(lookup.by_number_at("9", at(1) + ABSENT_TTL)), "no_business");
    assert_eq!(fake.asked(), 3);
    for n in 0..3 * ABSENT_MAX {
        assert_eq!(reason(lookup.by_number_at(&format!("7{n}"), at(12))), "no_business");
    }
    let asked = fake.asked();
    assert!(lookup.by_number_at("106", at(12)).is_ok());
    assert_eq!(fake.asked(), asked, "still cached");
    assert_eq!(reason(lookup.by_number_at(&"1".repeat(5000), at(12))), "no_business");
    assert_eq!(fake.asked(), asked, "what can't be an id is not asked for");
}

#[test]
fn stale_entries_are_served_while_the_store_is_away_but_not_for_ever() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    assert!(lookup.by_number_at("106", at(1)).is_ok());
    fake.is_down.store(true, SeqCst);
    assert!(lookup.by_number_at("106", at(400)).is_ok());
    assert_eq!(fake.asked(), 2);
    assert!(lookup.by_number_at("106", at(401)).is_ok());
    assert_eq!(fake.asked(), 2, "the store is left alone for a while");
    assert!(lookup.by_number_at("106", at(400) + RETRY_AFTER).is_ok());
    assert_eq!(fake.asked(), 2, "others who have nothing find out");
    assert!(lookup.by_number_at("106", at(401) + STALE_RETRY_AFTER).is_ok());
    assert_eq!(fake.asked(), 3);
    assert_eq!(reason(lookup.by_number_at("107", at(500))), "directory_unavailable");
    let end = at(1) + TTL + STALE_MAX;
    assert!(lookup.by_number_at("106", end - at(1)).is_ok());
    assert_eq!(reason(lookup.by_number_at("106", end)), "directory_unavailable");
    fake.is_down.store(false, SeqCst);
    assert!(lookup.by_number_at("106", end + RETRY_AFTER).is_ok());
}

#[test]
fn who_has_a_stale_entry_does_not_wait_for_a_store_that_hangs() {
    let (fake, lookup) = over(vec![record("cafe", &["106"])]);
    assert!(lookup.by_number_at("106", at(1)).is_ok());
    *fake.takes.lock() = Duration::from_secs(2);
    let asking = lookup.clone();
    let leads = may::go!(move || asking.by_number_at("106", at(400)));
    while fake.asked() < 2 {
        clock::sleep(Duration::from_millis(1));
    }
    let before = clock::monotonic();
    assert!(lookup.by_number_at("106", at(400)).is_ok());
    assert!(clock::monotonic() - before < Duration::from_millis(1500));
    assert!(leads.join().expect("no panic").is_ok());
}

#[test]
fn the_cache_holds_no_more_than_its_size_and_lets_go_of_the_oldest() {
    let numbers: Vec<String> = (0..20).map(|n| format!("10{n}")).collect();
    let records = numbers.iter().map(|n| record(n, &[n])).collect();
    let (fake, lookup) = with(records, |config| config.cache_size = 10);
    for number in &numbers {
        assert!(lookup.by_number_at(number, at(1)).is_ok());
    }
    assert_eq!(lookup.stats().size, 10);
    for number in &numbers[10..] {
        assert!(lookup.by_number_at(number, at(1)).is_ok());
    }
    assert_eq!(fake.asked(), 20, "the younger half is there");
    assert!(lookup.by_number_at(&numbers[0], at(1)).is_ok());
    assert_eq!(fake.asked(), 21);
}

#[test]
fn two_live_businesses_with_one_number_are_both_refused() {
    let mut off = record("off", &["106", "107"]);
    off.active = false;
    let records = vec![record("a", &["106"]), record("b", &["106", "108"]), off, record("c", &["107"])];
    let (_, lookup) = over(records);
    assert_eq!(reason(lookup.by_number_at("106", at(1))), "business_ambiguous");
    assert_eq!(lookup.by_number_at("107", at(1)).expect("one is live").sub_domain, "c");
    assert_eq!(lookup.by_number_at("108", at(1)).expect("sole").sub_domain, "b");
    lookup.clear();
    assert_eq!(lookup.warm_up(), Ok(2), "b by its other number, and c");
    assert_eq!(reason(lookup.by_number("106")), "business_ambiguous", "not guessed by the warm-up");
}

#[test]
fn a_warm_up_takes_back_a_refusal() {
    let (fake, lookup) = with(vec![], |config| config.cache_ttl = Duration::from_millis(1));
    assert_eq!(reason(lookup.by_number("106")), "no_business");
    fake.records.lock().push(record("cafe", &["106"]));
    assert_eq!(lookup.warm_up(), Ok(1));
    clock::sleep(Duration::from_millis(5));
    assert!(lookup.by_number("106").is_ok(), "expired, so asked for, not refused from memory");
}

#[test]
fn a_subdomain_is_found_if_it_is_active_even_if_its_numbers_are_off() {
    let (mut off, mut gone) = (record("off", &["106"]), record("gone", &["107"]));
    (off.enabled, gone.active) = (false, false);
    let (_, lookup) = over(vec![off, gone]);
    assert!(lookup.by_subdomain_at("off", at(1)).is_ok());
    assert_eq!(reason(lookup.by_number_at("106", at(1))), "business_disabled");
    assert_eq!(reason(lookup.by_subdomain_at("gone", at(1))), "business_disabled");
}

#[test]
fn fallback_credentials_are_used_only_where_the_directory_has_none() {
    let fallback = |number: &str| {
        let number = number.to_owned();
        move |config: &mut config::Directory| {
            let token = Secret::new("EAAG-fallback");
            config.fallback = Some(config::Fallback { phone_number_id: number, token });
        }
    };
    let (fake, lookup) = with(vec![record("cafe", &["106"])], fallback("200"));
    let business = lookup.by_number_at("200", at(1)).expect("fallback");
    assert_eq!((&*business.sub_domain, business.token.reveal()), ("default", "EAAG-fallback"));
    assert_eq!(reason(lookup.by_number_at("201", at(1))), "no_business");
    fake.is_down.store(true, SeqCst);
    lookup.clear();
    assert_eq!(reason(lookup.by_number_at("200", at(1))), "directory_unavailable", "perhaps it has one");

    let (fake, lookup) = with(vec![record("cafe", &["106"])], fallback("106"));
    assert_eq!(lookup.by_number_at("106", at(1)).expect("known").sub_domain, "cafe");
    fake.records.lock()[0].enabled = false;
    assert_eq!(reason(lookup.by_number_at("106", at(302))), "business_disabled");
}

#[test]
fn a_wrong_encryption_secret_parks_the_business_and_a_subdomain_is_no_number() {
    let mut plain = record("plain", &["107"]);
    plain.access_token = Some(Secret::new("EAAG-plain"));
    let records = vec![record("cafe", &["106"]), plain];
    let (_, lookup) = with(records, |config| config.encryption_secret = Some(Secret::new("other")));
    let failure = lookup.by_number_at("106", at(1)).expect_err("unreadable");
    assert_eq!(failure.reason.as_str(), "token_invalid");
    assert_eq!(failure.verdict, Verdict::Park { scope: Scope::Business, after: None });
    assert!(!failure.to_string().contains("EAAG"), "{failure}");
    assert_eq!(lookup.by_number_at("107", at(1)).expect("plaintext").token.reveal(), "EAAG-plain");
    assert_eq!(lookup.by_subdomain_at("plain", at(1)).expect("by name").id, "id-plain");
    assert_eq!(reason(lookup.by_number_at("plain", at(1))), "no_business");
    assert_eq!(reason(lookup.by_subdomain_at("107", at(1))), "no_business");
}

/// The popularity of the n-th business is 1/n.
#[test]
fn a_thousand_businesses_by_zipf_are_answered_from_the_cache() {
    let names: Vec<String> = (0..1000).map(|n| format!("{}", 10_000 + n)).collect();
    let (_, lookup) = over(names.iter().map(|n| record(n, &[n])).collect());
    let weights: Vec<f64> = (1..=1000).map(|rank| 1.0 / f64::from(rank)).collect();
    let total: f64 = weights.iter().sum();
    let mut seed = 42_u64;
    for _ in 0..50_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut point = (seed >> 11) as f64 / (1_u64 << 53) as f64 * total;
        let at_weight = |weight: &f64| {
            point -= weight;
            point < 0.0
        };
        let index = weights.iter().position(at_weight).unwrap_or(999);
        assert_eq!(lookup.by_number_at(&names[index], at(1)).expect("known").name, names[index]);
    }
    let stats = lookup.stats();
    let rate = stats.hits as f64 / (stats.hits + stats.misses) as f64;
    assert!(rate >= 0.97, "hit rate {rate}");
}

#[test]
fn warm_up_loads_no_more_than_fits() {
    let records: Vec<Record> = (0..1200).map(|n| record(&format!("b{n:04}"), &[&format!("{n}")])).collect();
    let (fake, lookup) = over(records);
    assert_eq!(lookup.warm_up(), Ok(1000));
    let asked = fake.asked();
    assert!(lookup.by_number("0").is_ok() && lookup.by_number("999").is_ok());
    assert_eq!((fake.asked(), lookup.stats().size), (asked, 1000));
    fake.is_down.store(true, SeqCst);
    assert_eq!(reason(lookup.warm_up()), "directory_unavailable");
}
