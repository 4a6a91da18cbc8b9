//! `business import|export`, `indexes`, `key rotate` over MongoDB; what they wrote is read back by Python.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use whatsapp_webhook::directory::tokens::Keys;
use whatsapp_webhook::secret::Secret;

use super::ferretdb::Ferretdb;
use super::original::Original;
use super::peer::{Peer, Reaction};
use super::proxy::{Mode, Proxy};
use super::{directory, run, world};
use crate::harness::{self, ENCRYPTION_SECRET, SOON, message, now, until};

fn over(uri: &str, folder: &tempfile::TempDir) -> HashMap<String, String> {
    harness::settings(folder.path(), &[("MONGODB_URI", uri)])
}

#[test]
fn a_directory_moves_both_ways_and_its_tokens_still_decrypt() {
    let (first, second) = (Ferretdb::start(), Ferretdb::start());
    let original = Original::new(&first.uri());
    original.many(30, 100);
    original.write(&[
        json!({"subDomain": "plain", "whatsappPhoneNumberIds": ["7"], "whatsappAccessToken": "EAAG-plain"}),
    ]);
    let before = original.dump();
    let (here, there) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mongo = over(&first.uri(), &here);
    let (code, lines, said) = run(&mongo, &["business", "export"], "");
    assert_eq!((code, lines.lines().count()), (0, 31), "{said}");
    assert!(!lines.contains("token-1"), "tokens go out as they are stored");

    let embedded = harness::settings(there.path(), &[]);
    let (code, text, said) = run(&embedded, &["business", "import"], &lines);
    assert_eq!((code, &*text), (0, "imported 31 businesses, 31 of them enabled and active\n"), "{said}");
    let (_, listed, _) = run(&embedded, &["business", "list"], "");
    assert_eq!(listed.matches(" encrypted ").count(), 30, "{listed}");

    let (_, lines, _) = run(&embedded, &["business", "export"], "");
    let (code, _, said) = run(&over(&second.uri(), &here), &["business", "import"], &lines);
    assert_eq!(code, 0, "{said}");
    let mut expected: BTreeMap<String, Option<String>> =
        (0..30).map(|n| (format!("biz{n}"), Some(format!("token-{n}")))).collect();
    expected.insert("plain".to_owned(), None);
    assert_eq!(Original::new(&second.uri()).tokens(), expected);
    let moved = Original::new(&second.uri()).dump();
    for (one, other) in before.iter().zip(&moved) {
        for field in
            ["_id", "subDomain", "whatsappPhoneNumberIds", "whatsappAccessToken", "wabaId", "isActive"]
        {
            assert_eq!(one[field], other[field], "{field}");
        }
        assert!(
            other["whatsappTokenExpiresAt"]["$date"].is_number()
                || other["whatsappTokenExpiresAt"]["$date"].is_string()
        );
    }

    // the same once more changes nothing, fields of others included
    let (code, _, _) = run(&mongo, &["business", "import"], &lines);
    assert_eq!((code, original.dump()), (0, before));
}

#[test]
fn whatever_is_answered_for_moves_both_ways() {
    let (first, second) = (Ferretdb::start(), Ferretdb::start());
    let original = Original::new(&first.uri());
    let names = ["default", "café shop", "a:b", " 日本 ", &*"x".repeat(300)];
    let documents: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| json!({"subDomain": name, "name": "", "whatsappPhoneNumberIds": [format!("n {n}"), ""], "token": format!("t{n}")}))
        .collect();
    original.write(&documents);
    let (here, there) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (mongo, embedded) = (over(&first.uri(), &here), harness::settings(there.path(), &[]));
    let (code, lines, said) = run(&mongo, &["business", "export"], "");
    assert_eq!((code, lines.lines().count()), (0, 5), "{said}");
    let (code, _, said) = run(&embedded, &["business", "import"], &lines);
    assert_eq!(code, 0, "{said}");
    let (_, lines, _) = run(&embedded, &["business", "export"], "");
    let (code, _, said) = run(&over(&second.uri(), &here), &["business", "import"], &lines);
    assert_eq!(code, 0, "{said}");
    assert_eq!(Original::new(&second.uri()).tokens(), original.tokens());

    original.write(&[json!({"subDomain": "a\nb", "whatsappPhoneNumberIds": ["7"], "token": "t", "_id": {"$oid": "65f000000000000000000001"}})]);
    let (code, lines, said) = run(&mongo, &["business", "export"], "");
    assert_eq!((code, lines.lines().count()), (1, 5), "what can't be imported is not written: {said}");
    assert!(said.contains("65f000000000000000000001: subDomain") && !said.contains("a\nb"), "{said}");
    assert_eq!(run(&embedded, &["business", "import"], &lines).0, 0);
}

#[test]
fn an_update_leaves_what_it_does_not_know_as_it_is() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original.many(1, 100);
    let before = original.dump();
    let folder = tempfile::tempdir().expect("a folder");
    let settings = over(&database.uri(), &folder);
    let (code, _, said) = run(&settings, &["business", "add", "--subdomain", "biz0"], "a-new-token");
    assert_eq!(code, 0, "{said}");
    assert_eq!(original.tokens()["biz0"].as_deref(), Some("a-new-token"));
    let (mut one, mut other) = (before[0].clone(), original.dump()[0].clone());
    for document in [&mut one, &mut other] {
        document.as_object_mut().expect("a document").remove("whatsappAccessToken");
    }
    assert_eq!(one, other);
    let (code, _, said) = run(
        &settings,
        &["business", "add", "--name", "X", "--subdomain", "x", "--phone-number-id", "100", "--waba-id", "1"],
        "t",
    );
    assert!(code == 1 && said.contains("biz0"), "{said}");
    assert_eq!(run(&settings, &["business", "remove", "biz0"], "").0, 0);
    assert!(original.dump().is_empty());
}

#[test]
fn a_bad_document_is_left_out_of_an_export_and_named() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original.many(2, 100);
    original.write(&[json!({"subDomain": "bad", "whatsappPhoneNumberIds": "9", "_id": {"$oid": "65f000000000000000000001"}})]);
    let folder = tempfile::tempdir().expect("a folder");
    let (code, lines, said) = run(&over(&database.uri(), &folder), &["business", "export"], "");
    assert_eq!((code, lines.lines().count()), (1, 2));
    assert!(said.contains("65f000000000000000000001") && said.contains("whatsappPhoneNumberIds"), "{said}");
}

#[test]
fn indexes_are_made_once_and_one_that_differs_is_shown() {
    let database = Ferretdb::start();
    let folder = tempfile::tempdir().expect("a folder");
    let settings = over(&database.uri(), &folder);
    Original::new(&database.uri()).many(1, 1);
    let created = "webhook_lookup_idx: created\nsubdomain_lookup_idx: created\n";
    assert_eq!(run(&settings, &["indexes"], ""), (0, created.to_owned(), String::new()));
    let there = "webhook_lookup_idx: there\nsubdomain_lookup_idx: there\n";
    assert_eq!(run(&settings, &["indexes"], ""), (0, there.to_owned(), String::new()));

    let other = Ferretdb::start();
    Original::new(&other.uri()).index("webhook_lookup_idx", "name");
    let (code, made, said) = run(&over(&other.uri(), &folder), &["indexes"], "");
    assert_eq!((code, &*made), (1, "subdomain_lookup_idx: created\n"));
    assert!(
        said.contains("webhook_lookup_idx") && said.contains("differs") && said.contains("name"),
        "{said}"
    );
}

#[test]
fn a_rotation_counts_stops_goes_on_and_leaves_nothing_for_the_old_secret() {
    let database = Ferretdb::start();
    let old = Original::new(&database.uri());
    let new = old.with_secret("a new secret");
    old.many(60, 100);
    old.write(&[
        json!({"subDomain": "plain", "whatsappPhoneNumberIds": ["7"], "whatsappAccessToken": "EAAG-plain"}),
    ]);
    let proxy = Proxy::start(database.address);
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = over(&proxy.uri(), &folder);
    let (code, _, said) = run(&settings, &["key", "rotate"], "");
    assert!(code == 64 && said.contains("ENCRYPTION_SECRET_OLD: is not set"), "{said}");
    settings.insert("ENCRYPTION_SECRET".to_owned(), "a new secret".to_owned());
    settings.insert("ENCRYPTION_SECRET_OLD".to_owned(), ENCRYPTION_SECRET.to_owned());

    let (code, text, said) = run(&settings, &["key", "rotate", "--dry-run"], "");
    assert!(
        code == 0 && text.contains("60 tokens to rotate") && text.contains("1 stored in the clear"),
        "{text}{said}"
    );
    let opened = |original: &Original| original.tokens().values().flatten().count();
    assert_eq!((opened(&old), opened(&new)), (60, 0));

    proxy.set(Mode::Delay(Duration::from_millis(5)));
    let mut stopped = harness::command(&settings)
        .args(["key", "rotate"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    until("some are rotated", SOON, || proxy.commands("update") > 10);
    stopped.kill().expect("killed");
    stopped.wait().expect("waited");
    proxy.set(Mode::Pass);
    let (left, done) = (opened(&old), opened(&new));
    assert!(left + done == 60 && left > 0 && done > 0, "{left} left, {done} done");

    let (code, text, said) = run(&settings, &["key", "rotate"], "");
    assert!(code == 0 && text.contains(&format!("{left} tokens rotated, {done} encrypted")), "{text}{said}");
    assert_eq!((opened(&old), opened(&new)), (0, 60));
    assert!((0..60).all(|n| new.tokens()[&format!("biz{n}")].as_deref() == Some(&*format!("token-{n}"))));

    // what can't be read can't be rotated: that is no success
    old.write(&[json!({"subDomain": "long", "whatsappPhoneNumberIds": ["8"], "token": "x",
                       "whatsappRefreshToken": "ab".repeat(10_000)})]);
    let (code, text, said) = run(&settings, &["key", "rotate"], "");
    assert!(code == 1 && said.contains("whatsappRefreshToken has 20000 bytes"), "{text}{said}");
}

#[test]
fn a_rotation_names_the_token_that_it_passes_over_and_a_long_refresh_token_is_none_of_them() {
    let database = Ferretdb::start();
    let old = Original::new(&database.uri());
    let stored = Keys::new(Some(&Secret::new(ENCRYPTION_SECRET)), None)
        .encrypt(&Secret::new("r".repeat(3000)))
        .expect("a key");
    old.write(&[
        json!({"subDomain": "long", "whatsappPhoneNumberIds": ["1"], "token": "t1", "whatsappRefreshToken": stored.reveal()}),
        json!({"subDomain": "huge", "whatsappPhoneNumberIds": ["2"], "token": "t2", "whatsappRefreshToken": stored.reveal().repeat(3)}),
    ]);
    assert!(directory(&database.uri()).by_number("1").is_ok(), "its refresh token is not used");
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = over(&database.uri(), &folder);
    settings.insert("ENCRYPTION_SECRET".to_owned(), "a new secret".to_owned());
    settings.insert("ENCRYPTION_SECRET_OLD".to_owned(), ENCRYPTION_SECRET.to_owned());
    let (code, text, said) = run(&settings, &["key", "rotate"], "");
    assert!(code == 1 && text.contains("3 tokens rotated") && text.contains("1 unreadable"), "{text}{said}");
    assert!(said.contains("whatsappRefreshToken has") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_rotation_under_load_loses_no_reply() {
    let database = Ferretdb::start();
    let old = Original::new(&database.uri());
    old.many(20, 100);
    let numbers: Vec<(String, String)> =
        (0..20).map(|n| ((100 + n).to_string(), format!("token-{n}"))).collect();
    let numbers: Vec<(&str, &str)> = numbers.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let both = [
        ("ENCRYPTION_SECRET", "a new secret"),
        ("ENCRYPTION_SECRET_OLD", ENCRYPTION_SECRET),
        ("BUSINESS_CACHE_TTL", "1"),
    ];
    let world = world(&database.uri(), &numbers, &both);
    let settings = world.settings.clone();
    let rotating = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        run(&settings, &["key", "rotate"], "")
    });
    for n in 0..150_u64 {
        let body = message(
            &(100 + n % 20).to_string(),
            &format!("4915{n}"),
            &format!("wamid.{n}"),
            &n.to_string(),
            now(),
        );
        assert_eq!(world.service.post(body.as_bytes()), Some(200));
        std::thread::sleep(Duration::from_millis(15));
    }
    let (code, text, said) = rotating.join().expect("no panic");
    assert!(code == 0 && text.contains("20 tokens rotated"), "{text}{said}");
    assert!(world.meta.wait_sent(150, SOON));
    until("nothing is pending", SOON, || world.service.is_idle());
    assert_eq!((world.meta.sent_count(), world.meta.doubled()), (150, 0));
    assert!(world.meta.violations().is_empty(), "{:?}", world.meta.violations());
    assert_eq!(old.tokens().values().flatten().count(), 0, "the old secret decrypts nothing");
}

#[test]
fn a_uri_that_is_malformed_unreachable_or_refused_says_which_without_the_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = |uri: &str, arguments: &[&str], code: i32| {
        let (found, out, said) = run(&over(uri, &folder), arguments, "");
        assert_eq!(found, code, "{uri}: {said}");
        assert!(!format!("{out}{said}").contains("hunter2"), "{said}");
        said
    };
    let malformed = said("mongodb://u:hunter2@h:port/db", &["check"], 64);
    assert!(malformed.starts_with("MONGODB_URI: has a host"), "{malformed}");
    let nameless = said("mongodb://u:hunter2@h", &["check"], 64);
    assert!(nameless.starts_with("MONGODB_DB_NAME: is not set"), "{nameless}");

    let closed = Ferretdb::start().uri().replace("mongodb://", "mongodb://u:hunter2@");
    let unreachable = said(&closed, &["business", "list"], 1);
    assert!(unreachable.contains("no server of MONGODB_URI can be reached"), "{unreachable}");

    let peer = Peer::start();
    peer.always("saslStart", Reaction::Error(18, "AuthenticationFailed", &[]));
    let refused = said(&peer.uri().replace("mongodb://", "mongodb://u:hunter2@"), &["business", "list"], 1);
    assert!(refused.contains("refused the user or the password"), "{refused}");
    let peer = Peer::start();
    peer.always("find", Reaction::Error(13, "Unauthorized", &[]));
    let unauthorized = said(&peer.uri(), &["business", "list"], 1);
    assert!(unauthorized.contains("has not the right"), "{unauthorized}");
}
