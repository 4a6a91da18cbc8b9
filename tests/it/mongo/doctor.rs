//! `doctor` over MongoDB: with and without its indexes, frozen, away, and with documents that can't be right.

use std::time::{Duration, Instant};

use serde_json::json;
use whatsapp_webhook::sandbox::{Options, Sandbox};
use whatsapp_webhook::secret::Secret;

use super::ferretdb::Ferretdb;
use super::original::Original;
use super::peer::Peer;
use super::proxy::{Mode, Proxy};
use super::{Number, run};
use crate::doctor::doctor;
use crate::harness::{self, APP_SECRET};

fn meta(numbers: &[&str]) -> Sandbox {
    crate::coroutines();
    let numbers = numbers.iter().enumerate().map(|(n, id)| Number {
        phone_number_id: (*id).to_owned(),
        waba_id: "1001".to_owned(),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(format!("token-{n}")),
    });
    Sandbox::start(Options::new(Secret::new(APP_SECRET), numbers.collect())).expect("starts")
}

#[test]
fn indexes_and_documents_are_looked_at_and_left_as_they_are() {
    let database = Ferretdb::start();
    let original = Original::new(&database.uri());
    original.many(2, 100);
    let meta = meta(&["100", "101"]);
    let folder = tempfile::tempdir().expect("a folder");
    let graph = meta.url();
    let settings =
        harness::settings(folder.path(), &[("MONGODB_URI", &database.uri()), ("GRAPH_API_URL", &graph)]);
    let before = original.dump();
    for _ in 0..2 {
        doctor(&settings, &[])
            .ends(0)
            .has("ok", "mongodb", "answers")
            .has("warn", "mongodb", "webhook_lookup_idx is missing")
            .has("warn", "mongodb", "`whatsapp-webhook indexes` makes it")
            .has("ok", "business", "2 in all, 2 enabled and active, tokens of 2 open")
            .has("ok", "graph", "biz0 100: ")
            .has("ok", "graph", "biz1 101: ");
    }
    assert_eq!(run(&settings, &["indexes"], "").0, 0);
    doctor(&settings, &[]).ends(0).has("ok", "mongodb", "webhook_lookup_idx is there").has(
        "ok",
        "mongodb",
        "subdomain_lookup_idx is there",
    );
    assert_eq!(original.dump(), before);

    original.write(&[
        json!({"subDomain": "again", "whatsappPhoneNumberIds": ["100"], "token": "token-0"}),
        json!({"subDomain": "biz1", "whatsappPhoneNumberIds": ["102"], "whatsappAccessToken": "EAAG-wrong"}),
        json!({"subDomain": "late", "whatsappPhoneNumberIds": [], "token": "t",
               "whatsappTokenExpiresAt": {"$date": "2020-01-01T00:00:00Z"}}),
        json!({"_id": {"$oid": "65f000000000000000000001"}, "subDomain": 7, "whatsappPhoneNumberIds": ["103"]}),
    ]);
    let said = doctor(&settings, &[]);
    said.ends(1)
        .has("FAIL", "business", "number 100 is claimed by biz0 and again")
        .has("warn", "business", "2 of them share the subDomain biz1")
        .has("warn", "business", "biz1: its token is stored in the clear")
        .has("warn", "business", "late: its token expired ")
        .has("warn", "business", "late: has no number")
        .has("FAIL", "business", "document with _id 65f000000000000000000001: subDomain is ");
}

#[test]
fn a_database_that_is_frozen_away_or_refuses_is_one_line_and_ends_in_time() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).many(1, 100);
    let proxy = Proxy::start(database.address);
    let meta = meta(&["100"]);
    let folder = tempfile::tempdir().expect("a folder");
    let graph = meta.url();
    let over =
        |uri: &str| harness::settings(folder.path(), &[("MONGODB_URI", uri), ("GRAPH_API_URL", &graph)]);
    let uri = proxy.uri().replace("mongodb://", "mongodb://u:hunter2@");
    for mode in [Mode::Freeze, Mode::Refuse] {
        proxy.set(mode);
        let begun = Instant::now();
        let said = doctor(&over(&uri), &[]);
        said.ends(1).has("FAIL", "mongodb", "is it running, MONGODB_URI right").has("ok", "graph", "answers");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert_eq!(said.out.matches(" mongodb ").count(), 1, "{}", said.out);
    }
    // one that answers each question just too late for the next
    proxy.set(Mode::Delay(Duration::from_secs(2)));
    doctor(&over(&proxy.uri()), &[]);

    let peer = Peer::start();
    let said = doctor(&over(&peer.uri()), &[]);
    said.has("warn", "mongodb", "does not tell of its indexes").has("warn", "business", "`business add`");
}
