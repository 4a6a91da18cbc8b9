//! Parser, scan and unpacking together, on composed bodies and odd shapes.

use serde_json::{Value, json};

use super::parse::{
    ITEMS_MAX, NotUnderstood, Outcome, Sink, Stop, TAPE_NODES_MAX, nodes_max, on_tape, parse,
};
use super::{scan, unpack};
use crate::event::{Item, Kind, Path, Recipient, hash64};

pub(super) fn items(body: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    parse(body, &mut items);
    check(body, &items);
    items
}

/// What holds for any body: both ways to read it agree, and what was named is found again.
fn check(body: &[u8], items: &[Item]) {
    assert!(!items.is_empty());
    let (mut by_tape, mut by_scan) = (Vec::new(), Vec::new());
    let scanned = scan::items(body, &mut Sink::new(&mut by_scan));
    match on_tape(body, &mut Sink::new(&mut by_tape)) {
        Err(Stop::Tape) => {}
        read => {
            assert_eq!(read, scanned);
            assert_eq!(by_tape, by_scan);
        }
    }
    if let Ok(tape) = simd_json::to_tape(&mut body.to_vec()) {
        assert!(tape.0.len() <= nodes_max(body));
    }
    for item in items.iter().take(50) {
        let key = unpack::key(body, item.kind, item.path).expect("a key");
        assert_eq!(xxhash_rust::xxh3::xxh3_64(&key), item.key, "{item:?}");
        unpack::describe(body, item.kind, item.path);
        if item.kind == Kind::Status {
            let status = unpack::status(body, item.path).expect("a status");
            assert_eq!(status.callback_data.map_or(0, |data| hash64(&[data.as_bytes()])), item.conversation);
        }
    }
    let answered: Vec<_> = items.iter().filter(|item| item.kind.is_answered()).collect();
    let paths: Vec<_> = answered.iter().rev().map(|item| item.path).collect();
    if paths.is_empty() {
        return;
    }
    let messages = unpack::messages(body, &paths).expect("messages");
    assert_eq!(messages.len(), paths.len());
    for (message, item) in messages.iter().zip(answered.iter().rev()) {
        let number = message.phone_number_id.as_bytes();
        assert_eq!(hash64(&[number, message.conversation.as_bytes()]), item.conversation);
        assert_eq!(message.timestamp, item.timestamp);
    }
}

#[test]
fn a_tape_is_made_as_long_as_few_nodes_can_come_of_it_however_long_the_body() {
    let with = |extra: String| {
        let mut message = text("49151", "wamid.1");
        message["extra"] = Value::String(extra);
        body(vec![change("10", json!({"messages": [message]}))]).to_string()
    };
    let read = |body: &str| on_tape(body.as_bytes(), &mut Sink::new(&mut Vec::new()));
    assert_eq!(read(&with("x".repeat(4 * TAPE_NODES_MAX))), Ok(()));
    let dense = with(String::new())
        .replace(r#""extra":"""#, &format!(r#""extra":[0{}]"#, ",0".repeat(TAPE_NODES_MAX)));
    assert_eq!(read(&dense), Err(Stop::Tape));
    assert_eq!(items(dense.as_bytes()).len(), 1);
    // just as many, and one more
    let few = |count: usize| format!("[0{}]", ",0".repeat(count - 3));
    assert_eq!(nodes_max(few(TAPE_NODES_MAX).as_bytes()), TAPE_NODES_MAX);
    assert_eq!(read(&few(TAPE_NODES_MAX)), Ok(()));
    assert_eq!(read(&few(TAPE_NODES_MAX + 1)), Err(Stop::Tape));
}

fn kinds(body: &Value) -> Vec<Kind> {
    items(body.to_string().as_bytes()).iter().map(|item| item.kind).collect()
}

pub(super) fn change(number: &str, value: Value) -> Value {
    let mut value = value;
    value["metadata"] = json!({"display_phone_number": "1", "phone_number_id": number});
    json!({"field": "messages", "value": value})
}

pub(super) fn body(changes: Vec<Value>) -> Value {
    let entry = json!({"id": "77", "time": 1749416383, "changes": changes});
    json!({"object": "whatsapp_business_account", "entry": [entry]})
}

pub(super) fn text(from: &str, wamid: &str) -> Value {
    json!({"from": from, "id": wamid, "timestamp": "1749416383", "type": "text", "text": {"body": "hi"}})
}

fn one_message(message: Value) -> Value {
    body(vec![change("10", json!({"messages": [message]}))])
}

fn unpacked(body: &Value) -> crate::event::Message {
    let bytes = body.to_string();
    let items = items(bytes.as_bytes());
    unpack::messages(bytes.as_bytes(), &[items[0].path]).expect("a message").remove(0)
}

#[test]
fn two_businesses_in_one_body_stay_apart() {
    let one = change(
        "10",
        json!({"messages": [text("5", "wamid.a")], "contacts": [{"wa_id": "5", "user_id": "US.1"}]}),
    );
    let two = change("20", json!({"messages": [text("5", "wamid.a")]}));
    let other =
        json!({"id": "88", "changes": [change("20", json!({"statuses": [{"id": "w", "status": "sent"}]}))]});
    let mut both = body(vec![one, two]);
    both["entry"].as_array_mut().expect("array").push(other);
    let bytes = both.to_string();
    let items = items(bytes.as_bytes());
    let at = |entry, change| Path { entry, change, index: 0 };
    assert_eq!(items.iter().map(|item| item.path).collect::<Vec<_>>(), [at(0, 0), at(0, 1), at(1, 0)]);
    assert_ne!(items[0].key, items[1].key);
    assert_eq!(items[0].conversation, hash64(&[b"10", b"US.1"]));
    assert_eq!(items[1].conversation, hash64(&[b"20", b"5"]));
    assert_eq!(items[2].number, items[1].number);
}

#[test]
fn the_contact_of_each_message_is_found_in_any_order() {
    let contacts = json!([{"wa_id": "6", "user_id": "US.6", "profile": {"name": "Six"}},
        {"wa_id": "5", "user_id": "US.5", "profile": {"name": "Five"}}]);
    let messages = json!([text("5", "a"), text("6", "b"), text("7", "c")]);
    let bytes = body(vec![change("10", json!({"contacts": contacts, "messages": messages}))]).to_string();
    let paths: Vec<_> = items(bytes.as_bytes()).iter().map(|item| item.path).collect();
    let messages = unpack::messages(bytes.as_bytes(), &paths).expect("messages");
    let names: Vec<_> =
        messages.iter().map(|m| (m.conversation.as_str(), m.customer.name.as_deref())).collect();
    assert_eq!(names, [("US.5", Some("Five")), ("US.6", Some("Six")), ("7", None)]);
}

#[test]
fn empty_ids_are_omitted_ids() {
    let mut message = text("5", "a");
    message["from_user_id"] = json!("");
    message["group_id"] = json!("");
    assert_eq!(unpacked(&one_message(message.clone())).conversation, "5");
    message["from"] = json!("");
    assert_eq!(kinds(&one_message(message.clone())), [Kind::UnknownType]);
    message["from_user_id"] = json!("US.9");
    let unpacked = unpacked(&one_message(message));
    assert_eq!(unpacked.reply_to, Recipient::User("US.9".into()));
    assert_eq!(unpacked.customer.wa_id, None);
}

#[test]
fn other_fields_are_one_item_even_with_messages_in_them() {
    for field in ["history", "smb_message_echoes", "standby", "calls", "brand_new"] {
        let mut change = change("10", json!({"messages": [text("5", "a"), text("5", "b")]}));
        change["field"] = json!(field);
        assert_eq!(kinds(&body(vec![change])), [Kind::OtherField], "{field}");
    }
}

#[test]
fn types_have_their_kinds() {
    for (message, kind) in [
        (json!({"type": "image", "image": {}}), Kind::Message),
        (json!({"location": {"latitude": 1.5, "longitude": 2}}), Kind::Message),
        (json!({"type": "", "contacts": [{}]}), Kind::Message),
        (json!({"type": "interactive", "interactive": {}}), Kind::Message),
        (json!({"type": "interactive"}), Kind::Unsupported),
        (json!({"type": "interactive", "interactive": "x"}), Kind::Unsupported),
        (json!({"type": "unknown"}), Kind::Unsupported),
        (
            json!({"type": "unsupported", "errors": [{"code": 131051}], "text": {"body": "x"}}),
            Kind::Unsupported,
        ),
        (json!({"reaction": {"message_id": "x"}}), Kind::Reaction),
        (json!({"type": "edit"}), Kind::Edit),
        (json!({"type": "revoke"}), Kind::Revoke),
        (json!({"type": "system"}), Kind::System),
        (json!({"type": "request_welcome"}), Kind::Welcome),
        (json!({"type": "hologram", "text": {"body": "x"}}), Kind::UnknownType),
        (json!({"type": 7}), Kind::UnknownType),
        (json!({}), Kind::UnknownType),
    ] {
        let mut message = message;
        message["from"] = json!("5");
        message["id"] = json!("wamid.a");
        assert_eq!(kinds(&one_message(message.clone())), [kind], "{message}");
    }
}

#[test]
fn timestamps_are_strings_or_integers_and_sane_or_nothing() {
    for (written, seconds) in [
        (json!("1749416383"), 1_749_416_383),
        (json!(1_749_416_383), 1_749_416_383),
        (json!("1"), 0),
        (json!("+1749416383"), 0),
        (json!(-1_749_416_383), 0),
        (json!(1749416383.5), 0),
        (json!("1749416383000"), 0),
        (json!("99999999999999999999999999"), 0),
        (json!("asdf"), 0),
        (json!(null), 0),
        (json!([1_749_416_383]), 0),
    ] {
        let mut message = text("5", "a");
        message["timestamp"] = written.clone();
        assert_eq!(items(one_message(message).to_string().as_bytes())[0].timestamp, seconds, "{written}");
    }
}

#[test]
fn odd_shapes_are_kept_and_named() {
    let odd = [
        (json!({"entry": []}), Kind::Unparsed),
        (json!({"entry": "x"}), Kind::Unparsed),
        (json!({"entry": {"changes": []}}), Kind::Unparsed),
        (json!({}), Kind::Unparsed),
        (json!([{"entry": [{}]}]), Kind::Unparsed),
        (json!("entry"), Kind::Unparsed),
        (json!(null), Kind::Unparsed),
        (json!(-7), Kind::Unparsed),
        (json!({"entry": ["x"]}), Kind::OtherField),
        (json!({"entry": [{"id": 5}]}), Kind::OtherField),
        (json!({"entry": [{"changes": {"field": "messages"}}]}), Kind::OtherField),
        (json!({"entry": [{"changes": [null]}]}), Kind::OtherField),
        (json!({"entry": [{"changes": [{"field": "messages"}]}]}), Kind::OtherField),
        (json!({"entry": [{"changes": [{"field": 1, "value": {"messages": [{}]}}]}]}), Kind::OtherField),
        (body(vec![change("10", json!({"messages": {"0": text("5", "a")}}))]), Kind::OtherField),
        (body(vec![change("10", json!({"messages": ["x"]}))]), Kind::UnknownType),
        (body(vec![change("10", json!({"statuses": [null]}))]), Kind::Status),
        (body(vec![change("10", json!({"errors": [3]}))]), Kind::Error),
        (body(vec![json!({"field": "messages", "value": {"messages": [text("5", "a")]}})]), Kind::Message),
    ];
    for (body, kind) in odd {
        assert_eq!(kinds(&body), [kind], "{body}");
    }
}

#[test]
fn ids_written_as_integers_are_the_same_ids() {
    let number =
        json!({"metadata": {"phone_number_id": 10}, "messages": [{"from": 5, "id": 9, "type": "text"}]});
    let as_numbers = body(vec![json!({"field": "messages", "value": number})]);
    let as_texts = one_message(json!({"from": "5", "id": "9", "type": "text"}));
    assert_eq!(items(as_numbers.to_string().as_bytes()), items(as_texts.to_string().as_bytes()));
}

#[test]
fn messages_without_a_wamid_are_told_apart_by_their_bytes() {
    let mut message = text("5", "");
    let first = items(one_message(message.clone()).to_string().as_bytes())[0].key;
    assert_eq!(items(one_message(message.clone()).to_string().as_bytes())[0].key, first);
    message["text"]["body"] = json!("ho");
    assert_ne!(items(one_message(message).to_string().as_bytes())[0].key, first);
}

#[test]
fn a_status_names_our_reply() {
    let error = json!([{"code": 131_047, "title": "Re-engagement message"}, {"code": 1}]);
    let status = json!({"id": "wamid.z", "status": "failed", "timestamp": "1749416383", "recipient_id": "5",
        "biz_opaque_callback_data": "r-1", "errors": error});
    let bytes = body(vec![change("10", json!({"statuses": [status]}))]).to_string();
    let item = items(bytes.as_bytes())[0];
    assert_eq!((item.conversation, item.number), (hash64(&[b"r-1"]), hash64(&[b"10"])));
    assert_eq!(item.key, hash64(&[b"wamid.z", b"failed", b"5", b"1749416383"]));
    let status = unpack::status(bytes.as_bytes(), item.path).expect("a status");
    assert_eq!(status.callback_data.as_deref(), Some("r-1"));
    assert_eq!(
        (status.error_code, status.error_title.as_deref()),
        (Some(131_047), Some("Re-engagement message"))
    );
    assert_eq!((status.phone_number_id.as_str(), status.recipient.as_str()), ("10", "5"));
}

#[test]
fn participants_of_a_group_have_statuses_of_their_own() {
    let status = |name: &str, id: &str| {
        let mut status = json!({"id": "w", "status": "read", "timestamp": "1", "recipient_id": "g"});
        status[name] = json!(id);
        status
    };
    let statuses = json!([
        status("recipient_participant_id", "1"),
        status("participant_recipient_id", "2"),
        status("x", "3")
    ]);
    let items = items(body(vec![change("10", json!({"statuses": statuses}))]).to_string().as_bytes());
    assert!(items[0].key != items[1].key && items[1].key != items[2].key && items[0].key != items[2].key);
}

#[test]
fn what_was_said_in_words_is_found() {
    for (message, words) in [
        (json!({"type": "text", "text": {"body": "a\"ä😀"}}), Some("a\"ä😀")),
        (json!({"type": "button", "button": {"text": "Yes", "payload": "p"}}), Some("Yes")),
        (
            json!({"interactive": {"type": "button_reply", "button_reply": {"id": "1", "title": "B"}}}),
            Some("B"),
        ),
        (json!({"interactive": {"type": "list_reply", "list_reply": {"id": "1", "title": "L"}}}), Some("L")),
        (json!({"interactive": {"type": "nfm_reply", "nfm_reply": {"body": "Sent"}}}), None),
        (json!({"type": "image", "image": {"caption": "cat"}}), Some("cat")),
        (json!({"type": "image", "image": {"caption": ""}}), None),
        (json!({"type": "audio", "audio": {}}), None),
        (json!({"type": "text", "text": "odd"}), None),
    ] {
        let mut message = message;
        message["from"] = json!("5");
        message["id"] = json!("a");
        assert_eq!(unpacked(&one_message(message.clone())).text.as_deref(), words, "{message}");
    }
}

#[test]
fn escapes_are_decoded_wherever_they_stand() {
    let plain = one_message(text("5", "wamid.a/b")).to_string();
    let escaped = plain
        .replace("wamid.a/b", r"wamid.a\/\u0062")
        .replace(r#""messages":["#, r#""mess\u0061ges":["#)
        .replace(r#""hi""#, r#""\u00e4\ud83d\ude00""#);
    assert_eq!(items(plain.as_bytes()), items(escaped.as_bytes()));
    let message = unpack::messages(escaped.as_bytes(), &[Path::default()]).expect("a message").remove(0);
    assert_eq!((message.wamid.as_str(), message.text.as_deref()), ("wamid.a/b", Some("ä😀")));
    assert!(message.raw.get().contains(r"\ud83d\ude00"));
}

#[test]
fn one_odd_text_does_not_cost_a_batch_its_answers() {
    let plain = body(vec![change("10", json!({"messages": [text("5", "a"), text("6", "b")]}))]).to_string();
    for odd in [r#""x\ud83dy""#, r#""\udc00""#, "1e999", "123456789012345678901234567890"] {
        let body = plain.replacen(r#""hi""#, odd, 1);
        assert_eq!(items(body.as_bytes()), items(plain.as_bytes()), "{odd}");
    }
    let body = plain.replacen(r#""hi""#, r#""x\ud83dy""#, 1);
    let message = unpack::messages(body.as_bytes(), &[Path::default()]).expect("a message").remove(0);
    assert_eq!(message.text.as_deref(), Some("x\u{fffd}y"));
}

#[test]
fn of_a_key_that_comes_twice_the_last_counts() {
    let plain = one_message(text("5", "a")).to_string();
    let doubled = plain
        .replace(r#""id":"a""#, r#""id":"x","id":"a""#)
        .replace(r#""phone_number_id":"10""#, r#""phone_number_id":"11","phone_number_id":"10""#)
        .replace(r#""field":"messages""#, r#""field":"history","field":"messages""#);
    assert_ne!(plain, doubled);
    assert_eq!(items(plain.as_bytes()), items(doubled.as_bytes()));
}

#[test]
fn what_is_not_one_json_text_is_unparsed() {
    let plain = one_message(text("5", "a")).to_string();
    let marked = format!("\u{feff}{plain}");
    let latin = plain.replace("hi", "h\u{1}").into_bytes();
    let mut not_utf8 = plain.clone().into_bytes();
    let at = plain.find("hi").expect("hi");
    not_utf8[at] = 0xff;
    for body in
        [&b""[..], b" ", b"hello", b"{", marked.as_bytes(), format!("{plain}x").as_bytes(), &latin, &not_utf8]
    {
        let mut items = vec![];
        assert_eq!(parse(body, &mut items), Outcome::Unparsed(NotUnderstood::NotJson));
        assert_eq!((items.len(), items[0].kind, items[0].path), (1, Kind::Unparsed, Path::default()));
        check(body, &items);
    }
    assert_eq!(items(format!(" {plain}\r\n").as_bytes())[0].kind, Kind::Message);
}

#[test]
fn too_many_items_are_one_unparsed_item() {
    let many = |count: usize| format!(r#"{{"entry":[{{"changes":[{}0]}}]}}"#, "0,".repeat(count - 1));
    let mut items = Vec::new();
    assert_eq!(parse(many(ITEMS_MAX).as_bytes(), &mut items), Outcome::Understood);
    assert_eq!(items.len(), ITEMS_MAX);
    assert_eq!(parse(many(ITEMS_MAX + 1).as_bytes(), &mut items), Outcome::Unparsed(NotUnderstood::TooMany));
    assert_eq!(items.len(), 1);
}
