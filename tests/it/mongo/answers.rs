//! Documents that Python wrote, through the whole way: who is answered, with which token, and who is not and why.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use whatsapp_webhook::clock;
use whatsapp_webhook::failure::Verdict;

use super::ferretdb::Ferretdb;
use super::original::Original;
use super::proxy::{Mode, Proxy};
use super::{directory, run, world};
use crate::harness::{self, SOON, until};

const SHOP: &str = "106540352242922";
const BANK: &str = "277321005464405";
const ANNA: &str = "16505551234";
const BOTH: [(&str, &str); 2] = [(SHOP, "shop-token"), (BANK, "bank-token")];

#[test]
fn businesses_that_python_wrote_are_answered_each_with_its_token() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).write(&[
        json!({"subDomain": "shop", "whatsappPhoneNumberIds": ["1", SHOP], "token": "shop-token"}),
        json!({"subDomain": "bank", "whatsappPhoneNumberIds": [BANK], "whatsappAccessToken": "bank-token"}),
    ]);
    let world = world(&database.uri(), &BOTH, &[]);
    world.database_is("healthy", SOON);
    world.meta.say(SHOP, ANNA, "Anna", "to the shop");
    world.meta.say(BANK, ANNA, "Anna", "to the bank");
    world.settles_with(&["to the bank", "to the shop"]);
    assert_eq!(world.told("stored in the clear"), 1, "{}", world.service.log());
    for secret in ["shop-token", "bank-token", harness::ENCRYPTION_SECRET] {
        assert!(!world.service.log().contains(secret));
    }
    assert!(world.service.stop().success());
}

#[test]
fn the_answers_that_scripts_read_have_the_same_keys_over_mongodb() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).many(3, 100);
    let uri = format!("{}?socketTimeoutMS=20000", database.uri());
    let world = world(&uri, &[], &[("MONGODB_MAX_POOL_SIZE", "7"), ("MONGODB_MIN_POOL_SIZE", "2")]);
    world.database_is("healthy", SOON);
    assert_eq!(world.told("sockettimeoutms is left out"), 1, "{}", world.service.log());
    let keys =
        |json: &Value| -> BTreeSet<String> { json.as_object().expect("an object").keys().cloned().collect() };
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| (*n).to_owned()).collect() };
    let get = |path: &str| -> Value {
        let (status, text) = world.service.get(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!(keys(&get("/health")), set(&["status", "timestamp", "database", "service"]));
    assert!(get("/ready")["ready"] == true && get("/ready")["timestamp"].is_number());
    let (status, text) = world.admin("warmup");
    let warmed: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, warmed), (200, json!({"status": "success", "message": "Cache warmed up"})));
    let metrics = get("/metrics");
    assert!(keys(&metrics).is_superset(&set(&["cache", "connection_pool", "inbox", "timestamp"])));
    let cache = set(&["size", "max_size", "ttl_seconds", "hits", "misses", "hit_rate"]);
    assert!(keys(&metrics["cache"]).is_superset(&cache), "{metrics}");
    assert_eq!(metrics["cache"]["size"], 3);
    assert_eq!(metrics["connection_pool"], json!({"max_pool_size": 7, "min_pool_size": 2}));
    let (status, text) = world.admin("clear");
    let cleared: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, cleared), (200, json!({"status": "success", "message": "Cache cleared"})));
    assert_eq!(get("/metrics")["cache"]["size"], 0);
    let handshake = "/whatsapp_response?hub.mode=subscribe&hub.challenge=11582&hub.verify_token=vt";
    assert_eq!(world.service.get(handshake), (200, "11582".to_owned()));
}

#[test]
fn who_is_disabled_is_kept_with_the_reason_and_answered_after_a_replay() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original.write(&[
        json!({"subDomain": "shop", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token", "isActive": false}),
    ]);
    let world = world(&database.uri(), &BOTH, &[]);
    world.meta.say(SHOP, ANNA, "Anna", "hello");
    world.has("dead", "business_disabled");
    original.set("shop", &json!({"isActive": true}));
    world.clear_cache();
    let (code, text, _) = run(&world.settings, &["inbox", "replay", "--reason", "business_disabled"], "");
    assert!(code == 0 && text.contains("1 item"), "{text}");
    world.settles_with(&["hello"]);
}

#[test]
fn two_businesses_that_claim_one_number_are_both_refused() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).write(&[
        json!({"subDomain": "shop", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token"}),
        json!({"subDomain": "thief", "whatsappPhoneNumberIds": [SHOP], "token": "thief-token"}),
    ]);
    let world = world(&database.uri(), &BOTH, &[]);
    world.meta.say(SHOP, ANNA, "Anna", "whose am I");
    world.has("dead", "business_ambiguous");
    assert_eq!(world.meta.sent_count(), 0);
    let log = world.service.log();
    assert!(
        log.lines()
            .any(|l| l.contains("several live businesses") && l.contains("shop") && l.contains("thief"))
    );
}

#[test]
fn a_bad_document_is_one_error_with_its_id_and_field_and_the_others_go_on() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original.write(&[
        json!({"subDomain": "shop", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token"}),
        json!({"subDomain": "bad", "whatsappPhoneNumberIds": [BANK], "token": "bank-token", "wabaId": 7,
               "_id": {"$oid": "65f000000000000000000001"}}),
        json!({"subDomain": "<absent>", "whatsappPhoneNumberIds": ["3"], "token": "x", "_id": {"$oid": "65f000000000000000000002"}}),
        json!({"subDomain": "long", "whatsappPhoneNumberIds": ["4"], "whatsappAccessToken": "SECRET".repeat(3000)}),
    ]);
    let world = world(&database.uri(), &BOTH, &[]);
    for text in ["one", "two"] {
        world.meta.say(BANK, ANNA, "Anna", text);
    }
    world.meta.say(SHOP, ANNA, "Anna", "to the shop");
    assert!(world.meta.wait_sent(1, SOON));
    let line = "document with _id 65f000000000000000000001: wabaId is a number, not a string";
    until("the fault is told", SOON, || world.errors(line) == 1);
    until("so are the others", SOON, || {
        world.errors("65f000000000000000000002: subDomain is missing") == 1
            && world.errors("whatsappAccessToken has 18000 bytes") == 1
    });
    assert!(!world.service.log().contains("SECRET"));
    original.set("bad", &json!({"wabaId": "7"}));
    world.clear_cache();
    // both came while the business stood still: one turn
    assert!(world.meta.wait_sent(2, SOON), "{:?}", world.texts());
    until("nothing is pending", SOON, || world.service.is_idle());
    let answered = world.texts().join("\n");
    assert!(answered.contains("one") && answered.contains("two"), "{answered}");
    assert!(world.meta.violations().is_empty());
}

#[test]
fn a_number_that_was_stored_as_a_number_is_named_and_its_messages_wait() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    let number: u64 = BANK.parse().expect("digits");
    original.write(&[
        json!({"subDomain": "bank", "whatsappPhoneNumberIds": [number], "token": "bank-token",
               "_id": {"$oid": "65f000000000000000000001"}}),
        json!({"subDomain": "", "whatsappPhoneNumberIds": ["3"], "token": "x", "_id": {"$oid": "65f000000000000000000002"}}),
    ]);
    let world = world(&database.uri(), &BOTH, &[]);
    let line = "65f000000000000000000001: whatsappPhoneNumberIds has an entry that is a number";
    until("the warm-up tells it", SOON, || world.errors(line) == 1);
    until("and the other one", SOON, || world.errors("65f000000000000000000002: subDomain is empty") == 1);
    world.meta.say(BANK, ANNA, "Anna", "hello");
    world.has("parked", "business_invalid");
    original.set("bank", &json!({"whatsappPhoneNumberIds": [BANK]}));
    world.clear_cache();
    world.settles_with(&["hello"]);
}

#[test]
fn two_businesses_of_one_subdomain_are_told_of_and_answered_each_with_its_own_token() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).write(&[
        json!({"subDomain": "same", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token"}),
        json!({"subDomain": "same", "whatsappPhoneNumberIds": [BANK], "token": "bank-token"}),
    ]);
    let world = world(&database.uri(), &BOTH, &[]);
    until("they are told of", SOON, || world.told("several live businesses have this subDomain") == 1);
    world.meta.say(SHOP, ANNA, "Anna", "to the shop");
    world.meta.say(BANK, ANNA, "Anna", "to the bank");
    world.settles_with(&["to the bank", "to the shop"]);
}

#[test]
fn a_wrong_encryption_secret_is_one_error_and_its_messages_wait_for_the_mend() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original
        .with_secret("another")
        .write(&[json!({"subDomain": "shop", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token"})]);
    let world = world(&database.uri(), &BOTH, &[]);
    world.meta.say(SHOP, ANNA, "Anna", "hello");
    until("it is told", SOON, || world.errors("can't be decrypted with this ENCRYPTION_SECRET") == 1);
    world.meta.say(SHOP, "4915112345678", "Bert", "hello too");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(world.errors("can't be decrypted with this ENCRYPTION_SECRET"), 1, "{}", world.service.log());
    assert_eq!(world.meta.sent_count(), 0);
    original.set("shop", &json!({"token": "shop-token"}));
    world.clear_cache();
    world.settles_with(&["hello", "hello too"]);
}

#[test]
fn what_a_wrong_encryption_secret_held_up_is_answered_after_a_start_with_the_right_one() {
    let database = Ferretdb::start();
    Original::new(&database.uri())
        .write(&[json!({"subDomain": "shop", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token"})]);
    let mut world = world(&database.uri(), &BOTH, &[("ENCRYPTION_SECRET", "another")]);
    world.meta.say(SHOP, ANNA, "Anna", "hello");
    until("it is told", SOON, || world.errors("can't be decrypted with this ENCRYPTION_SECRET") == 1);
    world.settings.insert("ENCRYPTION_SECRET".to_owned(), harness::ENCRYPTION_SECRET.to_owned());
    world.restart();
    world.settles_with(&["hello"]);
}

#[test]
fn a_change_is_seen_within_the_time_to_live_or_at_once_after_a_clear() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original.write(&[
        json!({"subDomain": "shop", "whatsappPhoneNumberIds": [SHOP], "token": "shop-token"}),
        json!({"subDomain": "bank", "whatsappPhoneNumberIds": [BANK], "token": "bank-token"}),
    ]);
    let long = world(&database.uri(), &BOTH, &[]);
    long.meta.say(SHOP, ANNA, "Anna", "one");
    long.settles_with(&["one"]);
    original.set("shop", &json!({"whatsappEnabled": false}));
    long.meta.say(SHOP, ANNA, "Anna", "two");
    long.settles_with(&["one", "two"]);
    long.clear_cache();
    long.meta.say(SHOP, ANNA, "Anna", "three");
    long.has("dead", "business_disabled");

    let short = world(&database.uri(), &BOTH, &[("BUSINESS_CACHE_TTL", "1")]);
    short.meta.say(BANK, ANNA, "Anna", "one");
    short.settles_with(&["one"]);
    original.set("bank", &json!({"whatsappEnabled": false}));
    std::thread::sleep(Duration::from_millis(1100));
    short.meta.say(BANK, ANNA, "Anna", "two");
    short.has("dead", "business_disabled");
    assert_eq!(short.meta.sent_count(), 1);
}

#[test]
fn a_miss_costs_one_query_however_many_wait_for_it() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).many(1, 100);
    let proxy = Proxy::start(database.address);
    let directory = directory(&proxy.uri());
    directory.check();
    let before = proxy.commands("find");
    proxy.set(Mode::Delay(Duration::from_millis(200)));
    let asking: Vec<_> = (0..200)
        .map(|_| {
            let directory = Arc::clone(&directory);
            may::go!(move || {
                // not so many wait at once: the others are told when to come again
                loop {
                    match directory.by_number("100").map_err(|failure| failure.verdict) {
                        Ok(business) => return business.token.reveal().to_owned(),
                        Err(Verdict::Retry { after: Some(after) }) => clock::sleep(after),
                        Err(other) => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    for one in asking {
        assert_eq!(one.join().expect("no panic"), "token-0");
    }
    assert_eq!(proxy.commands("find") - before, 1);
}
