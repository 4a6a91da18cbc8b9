//! What a replica set says during a fail-over, from a scripted primary, and answers that are lost: tried again, done
//! once, never taken for "there is no such business".

use std::time::Duration;

use mongodb::bson::{Document, doc};
use whatsapp_webhook::directory::store::{Record, StoreError};
use whatsapp_webhook::directory::tokens::Keys;
use whatsapp_webhook::failure::Verdict;
use whatsapp_webhook::secret::Secret;

use super::ferretdb::Ferretdb;
use super::original::Original;
use super::peer::{Peer, Reaction};
use super::proxy::{Mode, Proxy};
use super::wire::BROKEN;
use super::{directory, run, store};
use crate::harness::{self, ENCRYPTION_SECRET};

pub(super) fn business(n: usize) -> Document {
    let stored = Keys::new(Some(&Secret::new(ENCRYPTION_SECRET)), None)
        .encrypt(&Secret::new(format!("token-{n}")))
        .expect("a key");
    doc! {
        "_id": format!("id-{n}"), "name": "N", "subDomain": format!("biz{n}"), "wabaId": "1",
        "whatsappPhoneNumberIds": [n.to_string()], "whatsappAccessToken": stored.reveal(),
        "whatsappEnabled": true, "isActive": true,
    }
}

fn record(name: &str) -> Record {
    Record {
        name: name.to_owned(),
        waba_id: "1".to_owned(),
        phone_number_ids: vec!["77".to_owned()],
        access_token: Some(Secret::new("EAAG-x")),
        ..Record::new(name)
    }
}

const FAILOVER: [(i32, &str); 6] = [
    (10_107, "NotWritablePrimary"),
    (13_435, "NotPrimaryNoSecondaryOk"),
    (189, "PrimarySteppedDown"),
    (91, "ShutdownInProgress"),
    (11_600, "InterruptedAtShutdown"),
    (11_602, "InterruptedDueToReplStateChange"),
];

#[test]
fn a_lookup_gets_through_a_failover() {
    for (code, name) in FAILOVER {
        for times in [1, 3] {
            let peer = Peer::start();
            peer.put(business(5));
            peer.next("find", times, Reaction::Error(code, name, &["RetryableError"]));
            let found = directory(&peer.uri()).by_number("5").expect(name);
            assert_eq!(found.token.reveal(), "token-5");
            assert!(peer.commands("find") > times, "{name}");
        }
    }
}

#[test]
fn a_failover_that_lasts_is_to_be_tried_again_and_never_an_unknown_business() {
    let peer = Peer::start();
    peer.put(business(5));
    peer.always("find", Reaction::Error(10_107, "NotWritablePrimary", &[]));
    let directory = directory(&peer.uri());
    let failure = directory.by_number("5").expect_err("no primary");
    assert!(matches!(failure.verdict, Verdict::Retry { .. }), "{failure:?}");
    assert_eq!(failure.reason.as_str(), "directory_unavailable");
    assert!(!directory.is_connected());
    peer.heal();
    directory.check();
    assert!(directory.by_number("5").is_ok());
    assert!(directory.is_connected());
}

#[test]
fn a_connection_that_ends_in_the_middle_is_made_again() {
    let peer = Peer::start();
    peer.put(business(5));
    peer.next("find", 2, Reaction::Close);
    assert!(directory(&peer.uri()).by_number("5").is_ok());
}

#[test]
fn a_write_that_a_majority_did_not_confirm_is_unknown() {
    let peer = Peer::start();
    peer.always("insert", Reaction::Unconfirmed(64, "WriteConcernTimeout"));
    let unknown = store(&peer.uri()).upsert(vec![record("shop")]).expect_err("unconfirmed");
    assert!(matches!(unknown, StoreError::Unknown(_)), "{unknown}");

    let peer = Peer::start();
    peer.always("insert", Reaction::Unconfirmed(64, "WriteConcernTimeout"));
    let folder = tempfile::tempdir().expect("a folder");
    let settings = harness::settings(folder.path(), &[("MONGODB_URI", &peer.uri())]);
    let line = r#"{"subDomain":"shop","whatsappPhoneNumberIds":["1"],"whatsappAccessToken":"t","whatsappEnabled":true,"isActive":true}"#;
    let (code, _, said) = run(&settings, &["business", "import"], line);
    assert!(code == 1 && said.contains("majority") && said.contains("run the same import again"), "{said}");
}

#[test]
fn a_write_that_stops_in_the_middle_says_that_something_may_be_written() {
    let refused = Some(Reaction::Error(13, "Unauthorized", &[]));
    let changed = |n: usize| Record { phone_number_ids: vec![n.to_string()], ..record(&format!("biz{n}")) };
    // of two updates the second is refused; of one, the answer is lost (also to the driver's own second try)
    let lost = [Some(Reaction::Close), Some(Reaction::Close), refused];
    for (count, reactions) in [(2, &[None, refused][..]), (1, &lost)] {
        let peer = Peer::start();
        (1..=count).for_each(|n| peer.put(business(n)));
        peer.play("update", reactions);
        let error = store(&peer.uri()).upsert((1..=count).map(changed).collect()).expect_err("stopped");
        assert!(matches!(error, StoreError::Unknown(_)), "{error}");
    }
    let peer = Peer::start();
    peer.put(business(1));
    peer.play("update", &[refused]);
    let error = store(&peer.uri()).upsert(vec![changed(1)]).expect_err("refused");
    assert!(matches!(error, StoreError::Unavailable(_)), "nothing was written: {error}");
}

#[test]
fn a_write_gets_through_a_failover() {
    for (code, name) in FAILOVER {
        let peer = Peer::start();
        peer.put(business(5));
        peer.next("insert", 3, Reaction::Error(code, name, &["RetryableWriteError"]));
        peer.next("update", 3, Reaction::Error(code, name, &[]));
        let mut changed = record("biz5");
        changed.phone_number_ids = vec!["5".to_owned()];
        store(&peer.uri()).upsert(vec![record("shop"), changed]).expect(name);
        let names: Vec<String> =
            peer.documents().iter().map(|d| d.get_str("name").expect("a name").to_owned()).collect();
        assert_eq!(names, ["biz5", "shop"], "{name}");
    }
}

#[test]
fn between_two_primaries_a_secondary_answers_and_a_write_waits_for_the_next() {
    let set = Peer::pair();
    set.put(business(5));
    let (directory, writing) = (directory(&set.uri()), store(&set.uri()));
    assert!(directory.by_number("5").is_ok());
    writing.upsert(vec![record("before")]).expect("the first primary");
    set.step_down();
    directory.clear();
    let found = directory.by_number("5").expect("from a secondary");
    assert_eq!(found.token.reveal(), "token-5");
    let mut after = record("after");
    after.phone_number_ids = vec!["78".to_owned()];
    let waiting = std::thread::spawn(move || writing.upsert(vec![after]));
    std::thread::sleep(Duration::from_secs(1));
    assert!(!waiting.is_finished());
    set.elect(1);
    assert_eq!(waiting.join().expect("no panic"), Ok(()));
    assert_eq!((set.writes(0), set.writes(1), set.documents().len()), (1, 1, 3));
}

#[test]
fn an_insert_whose_answer_is_lost_is_done_once() {
    let database = Ferretdb::start();
    let proxy = Proxy::start(database.address);
    let store = store(&proxy.uri());
    proxy.set(Mode::LoseAnswer("insert"));
    let inserting = std::thread::spawn(move || store.upsert(vec![record("shop")]));
    std::thread::sleep(Duration::from_secs(1));
    assert!(proxy.commands("insert") >= 1);
    proxy.set(Mode::Pass);
    assert_eq!(inserting.join().expect("no panic"), Ok(()));
    assert_eq!(Original::new(&database.uri()).dump().len(), 1);
}

/// Number of the business that is asked for: rank r with a probability that goes with 1 / r.
fn zipf(count: usize, state: &mut u64) -> usize {
    let harmonic = (count as f64).ln() + 0.577;
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let uniform = (*state >> 11) as f64 / (1_u64 << 53) as f64;
    ((uniform * harmonic - 0.577).exp().clamp(1.0, count as f64) as usize) - 1
}

#[test]
fn of_a_thousand_businesses_asked_by_a_zipf_law_few_questions_reach_the_database() {
    const MESSAGES: usize = 40_000;
    let peer = Peer::start();
    (0..1000).for_each(|n| peer.put(business(n)));
    let directory = directory(&peer.uri());
    let mut state = 7;
    let mut asked = std::collections::HashSet::new();
    for _ in 0..MESSAGES {
        let n = zipf(1000, &mut state);
        asked.insert(n);
        let found = directory.by_number(&n.to_string()).expect("found");
        assert_eq!(found.sub_domain, format!("biz{n}"));
    }
    assert!(asked.len() > 900, "the law reaches most of them: {}", asked.len());
    let stats = directory.stats();
    let hit_rate = stats.hits as f64 / (stats.hits + stats.misses) as f64;
    let queries = peer.commands("find") as f64 / MESSAGES as f64;
    eprintln!("cold: hit rate {:.2} %, {:.2} % queries a message", hit_rate * 100.0, queries * 100.0);
    assert!(hit_rate >= 0.97 && queries <= 0.03, "{hit_rate} {queries}");
}

#[test]
fn a_text_that_is_not_utf8_is_one_businesses_fault_and_the_others_go_on() {
    let peer = Peer::start();
    (0..4).for_each(|n| peer.put(business(n)));
    let mut broken = business(7);
    broken.insert("name", format!("Caf{BROKEN}"));
    peer.put(broken);
    let mut unread = business(8);
    unread.insert("whatsappAccessToken", format!("ab{BROKEN}"));
    unread.insert("whatsappPhoneNumberIds", ["8".to_owned(), BROKEN.to_owned()].to_vec());
    peer.put(unread);

    let directory = directory(&peer.uri());
    assert_eq!(directory.warm_up().ok(), Some(4));
    directory.clear();
    for number in ["7", "8"] {
        let failure = directory.by_number(number).expect_err("its document is broken");
        assert_eq!(failure.reason.as_str(), "business_invalid");
        assert!(failure.detail.contains(&format!("_id id-{number}: ")), "{failure}");
        assert!(failure.detail.contains(" is not UTF-8"), "{failure}");
    }
    assert!(directory.by_number("3").is_ok() && directory.is_connected());

    let folder = tempfile::tempdir().expect("a folder");
    let both = [
        ("MONGODB_URI", &*peer.uri()),
        ("ENCRYPTION_SECRET", "a new secret"),
        ("ENCRYPTION_SECRET_OLD", ENCRYPTION_SECRET),
    ];
    let settings = harness::settings(folder.path(), &both);
    let (code, listed, said) = run(&settings, &["business", "list"], "");
    assert_eq!((code, listed.matches("       invalid  ").count()), (0, 2), "{listed}{said}");
    let (code, lines, said) = run(&settings, &["business", "export"], "");
    assert_eq!((code, lines.lines().count()), (1, 4), "{said}");
    assert!(said.contains("id-7: name is not UTF-8"), "{said}");
    assert!(said.contains("id-8: ") && said.contains("whatsappAccessToken is not UTF-8"), "{said}");
    assert!(said.contains("whatsappPhoneNumberIds has an entry that is not UTF-8"), "{said}");
    // the scripted server knows no filter with a token, so this is the dry run
    let (code, text, said) = run(&settings, &["key", "rotate", "--dry-run"], "");
    assert!(code == 1 && text.contains("5 tokens to rotate"), "{text}");
    assert!(said.contains("id-8") && said.contains("whatsappAccessToken is not UTF-8"), "{said}");
    let (code, _, said) = run(&settings, &["business", "remove", "biz7"], "");
    assert!(code == 1 && !said.contains("BSON"), "{said}");
}
