//! Webhook bodies found in public, and the JSON test suite, through the parser and out again.
//!
//! Expectations come from the index's `kind` column and from counts made here with `serde_json::Value`.

use std::path::PathBuf;

use serde_json::Value;
use whatsapp_webhook::config::App;
use whatsapp_webhook::event::{Item, Kind, Recipient, hash64};
use whatsapp_webhook::secret::Secret;
use whatsapp_webhook::webhook::parse::{NotUnderstood, Outcome, parse};
use whatsapp_webhook::webhook::signature::{Rejected, Verifier};
use whatsapp_webhook::webhook::unpack;

/// The folder with the corpus; `None`, loudly, where it is absent (with CI=true that is a failure).
fn shared() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("WEBHOOK_SHARED").map_or(beside, PathBuf::from);
    if folder.join("corpus/INDEX.tsv").exists() {
        return Some(folder);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no corpus in {}", folder.display());
    eprintln!("NOT RUN: no corpus in {} (set WEBHOOK_SHARED)", folder.display());
    None
}

/// (file, kind column, bytes)
fn payloads() -> Vec<(String, String, Vec<u8>)> {
    let Some(folder) = shared() else { return Vec::new() };
    let index = std::fs::read_to_string(folder.join("corpus/INDEX.tsv")).expect("index");
    let row = |line: &str| {
        let mut columns = line.split('\t');
        let (file, kind) = (columns.next().expect("file"), columns.next().expect("kind"));
        let body = std::fs::read(folder.join("corpus/payloads").join(file)).expect("payload");
        (file.to_owned(), kind.to_owned(), body)
    };
    index.lines().skip(1).filter(|line| !line.is_empty()).map(row).collect()
}

fn items(body: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    parse(body, &mut items);
    items
}

fn one(file: &str) -> Option<(Vec<u8>, Vec<Item>)> {
    let body = std::fs::read(shared()?.join("corpus/payloads").join(file)).expect("payload");
    let items = items(&body);
    Some((body, items))
}

/// How many items of which kind a body has, counted here.
fn counted(body: &[u8]) -> Vec<(&'static str, usize)> {
    let body: Value = serde_json::from_slice(body).expect("JSON");
    let mut counts = [("message", 0), ("status", 0), ("error", 0), ("change", 0)];
    for entry in body["entry"].as_array().into_iter().flatten() {
        for change in entry["changes"].as_array().into_iter().flatten() {
            let len = |name: &str| change["value"][name].as_array().map_or(0, Vec::len);
            if change["field"] == "messages" {
                for (nth, name) in ["messages", "statuses", "errors"].into_iter().enumerate() {
                    counts[nth].1 += len(name);
                }
            } else {
                counts[3].1 += 1;
            }
        }
    }
    counts.to_vec()
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Status => "status",
        Kind::Error => "error",
        Kind::OtherField | Kind::Unparsed => "change",
        _ => "message",
    }
}

/// What the kind column says of a body's messages or changes.
fn expected(file: &str, kind: &str) -> Option<Kind> {
    let answered = [
        "text",
        "image",
        "video",
        "audio",
        "voice",
        "document",
        "sticker",
        "location",
        "contacts",
        "interactive",
        "button",
        "order",
        "group_text",
    ];
    Some(match kind {
        _ if file == "text_008.json" => Kind::UnknownType, // nobody is named in it
        "interactive_without_body_plus_errors" => Kind::Unsupported,
        "errors" => Kind::Error,
        "no_entry" => Kind::Unparsed,
        kind if kind.starts_with("multi_") => return None,
        kind if kind.starts_with("status_") => Kind::Status,
        kind if kind.starts_with("reaction") => Kind::Reaction,
        kind if kind.starts_with("system_") => Kind::System,
        kind if kind.starts_with("unsupported") => Kind::Unsupported,
        "edit" => Kind::Edit,
        "revoke" => Kind::Revoke,
        kind if answered.iter().any(|name| kind == *name || kind.starts_with(&format!("{name}_"))) => {
            Kind::Message
        }
        _ => Kind::OtherField,
    })
}

#[test]
fn every_body_gives_what_the_index_says() {
    let payloads = payloads();
    assert!(payloads.len() == 200 || shared().is_none(), "{} bodies", payloads.len());
    for (file, kind, body) in payloads {
        let items = items(&body);
        if kind == "no_entry" {
            assert_eq!(items.iter().map(|item| item.kind).collect::<Vec<_>>(), [Kind::Unparsed], "{file}");
            continue;
        }
        for (name, count) in counted(&body) {
            let found = items.iter().filter(|item| class(item.kind) == name).count();
            assert_eq!(found, count, "{file}: {name}");
        }
        if let Some(expected) = expected(&file, &kind) {
            let of_kind = items.iter().filter(|item| item.kind == expected).count();
            let errors = items.iter().filter(|item| item.kind == Kind::Error).count();
            let (least, rest) = if expected == Kind::Error { (1, 0) } else { (1, errors) };
            assert!(of_kind >= least && of_kind + rest == items.len(), "{file}: {items:?}");
        }
    }
}

#[test]
fn mixed_bodies_give_each_thing_its_kind() {
    for (file, kinds) in [
        ("multi_status_001.json", vec![Kind::Status; 3]),
        ("multi_change_001.json", vec![Kind::Message, Kind::OtherField]),
        (
            "multi_change_002.json", // the second message has no type: a location
            vec![Kind::Message, Kind::Message, Kind::Reaction, Kind::Message, Kind::OtherField],
        ),
        ("multi_message_001.json", vec![Kind::Message; 2]),
        ("multi_message_002.json", vec![Kind::Message, Kind::Reaction]),
        ("multi_mixed_001.json", vec![Kind::Message, Kind::Message, Kind::Message, Kind::Status]),
        ("multi_change_004.json", vec![Kind::OtherField; 2]),
        ("errors_002.json", vec![Kind::Error]),
        ("interactive_without_body_plus_errors_001.json", vec![Kind::Unsupported, Kind::Error]),
        ("history_001.json", vec![Kind::OtherField]),
        ("smb_message_echoes_text_001.json", vec![Kind::OtherField]),
    ] {
        let Some((_, items)) = one(file) else { return };
        assert_eq!(items.iter().map(|item| item.kind).collect::<Vec<_>>(), kinds, "{file}");
    }
}

#[test]
fn every_item_of_the_corpus_is_found_again_with_the_key_that_was_hashed() {
    for (file, _, body) in payloads() {
        for item in items(&body) {
            let key = unpack::key(&body, item.kind, item.path).expect(&file);
            assert_eq!(xxhash_rust::xxh3::xxh3_64(&key), item.key, "{file}: {item:?}");
            let shown = unpack::describe(&body, item.kind, item.path);
            match item.kind {
                Kind::Message => {
                    let messages = unpack::messages(&body, &[item.path]).expect(&file);
                    let [message] = &messages[..] else { panic!("{file}: {messages:?}") };
                    assert_eq!(message.wamid, shown.wamid, "{file}");
                    assert_eq!(message.timestamp, item.timestamp, "{file}");
                    assert!(message.customer.wa_id.is_some() || message.customer.user_id.is_some(), "{file}");
                    let conversation = [message.phone_number_id.as_bytes(), message.conversation.as_bytes()];
                    assert_eq!(hash64(&conversation), item.conversation, "{file}");
                    assert_eq!(hash64(&[message.phone_number_id.as_bytes()]), item.number, "{file}");
                    let text = std::str::from_utf8(&body).expect("UTF-8");
                    assert!(text.contains(message.raw.get()), "{file}: not byte for byte");
                }
                Kind::Status => {
                    let status = unpack::status(&body, item.path).expect(&file);
                    assert_eq!((&status.wamid, &status.status), (&shown.wamid, &shown.type_name), "{file}");
                    assert_eq!(status.timestamp, item.timestamp, "{file}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_body_that_comes_again_has_the_same_keys() {
    for (file, _, body) in payloads() {
        let ids = |items: Vec<Item>| items.iter().map(|i| (i.timestamp, i.key)).collect::<Vec<_>>();
        assert_eq!(ids(items(&body)), ids(items(&body.clone())), "{file}");
    }
}

#[test]
fn the_conversation_is_the_user_id_then_the_phone_number() {
    for (file, conversation, reply_to) in [
        ("text_001.json", "US.13491208655302741918", Recipient::Phone("972987654321".into())),
        ("text_003.json", "US.1234", Recipient::User("US.1234".into())),
        ("text_bsuid_nophone_001.json", "US.1234", Recipient::User("US.1234".into())),
        ("text_002.json", "5678", Recipient::Phone("5678".into())),
        ("text_006.json", "bla", Recipient::Phone("bla".into())),
    ] {
        let Some((body, items)) = one(file) else { return };
        let messages = unpack::messages(&body, &[items[0].path]).expect(file);
        assert_eq!(messages[0].conversation, conversation, "{file}");
        assert_eq!(messages[0].reply_to, reply_to, "{file}");
    }
}

#[test]
fn a_group_message_is_answered_to_the_group() {
    let Some((body, items)) = one("group_text_001.json") else { return };
    let messages = unpack::messages(&body, &[items[0].path]).expect("a message");
    let Recipient::Group(group) = &messages[0].reply_to else { panic!("{:?}", messages[0].reply_to) };
    assert_eq!(*group, messages[0].conversation);
}

#[test]
fn the_real_signature_fits_the_real_body() {
    let Some((body, _)) = one("text_signed_001.json") else { return };
    let app = App { name: Some("pywa".into()), secret: Secret::new("1222e786b144d0e85b9f365372d93676") };
    let verifier = Verifier::new(&[app], false);
    let header = b"sha256=54edfa1d7259e0eb13c677cc7d73d1b5c86cfa12433d19156e058ab9251bc441";
    assert_eq!(verifier.verify(Some(header), &body), Ok(hash64(&[b"pywa"])));
    for at in 0..body.len() {
        let mut changed = body.clone();
        changed[at] ^= 1;
        assert_eq!(verifier.verify(Some(header), &changed), Err(Rejected::Mismatch), "byte {at}");
    }
}

/// A message whose text is `value`, as it stands.
fn envelope(value: &[u8]) -> Vec<u8> {
    let head =
        br#"{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[{"field":"messages","value":
        {"metadata":{"phone_number_id":"2"},"messages":[{"from":"3","id":"wamid.4","timestamp":"1749416383",
        "type":"text","text":{"body":"#;
    [head, value, b"}}]}}]}]}"].concat()
}

#[test]
fn the_json_test_suite_neither_ends_the_process_nor_costs_a_message() {
    use base64::Engine;
    let Some(folder) = shared() else { return };
    let suite = std::fs::read_to_string(folder.join("vectors/jsontestsuite.jsonl")).expect("suite");
    let mut count = 0;
    for line in suite.lines() {
        let case: Value = serde_json::from_str(line).expect("line");
        let base64 = case["base64"].as_str().expect("base64");
        let bytes = base64::engine::general_purpose::STANDARD.decode(base64).expect("base64");
        let name = case["name"].as_str().expect("name");
        assert_eq!(items(&bytes).len(), 1, "{name} alone");
        let mut items = Vec::new();
        let outcome = parse(&envelope(&bytes), &mut items);
        match name.as_bytes()[0] {
            b'y' => assert_eq!((outcome, items[0].kind), (Outcome::Understood, Kind::Message), "{name}"),
            b'n' => assert_eq!(outcome, Outcome::Unparsed(NotUnderstood::NotJson), "{name}"),
            _ => assert_eq!(items.len(), 1, "{name}"),
        }
        count += 1;
    }
    assert_eq!(count, 318);
}
