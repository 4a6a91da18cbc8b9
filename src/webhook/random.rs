//! Random, damaged, deep and large bodies: nothing panics, nothing overflows a coroutine's stack, the two
//! ways to read a body agree, and what the parser named is found again.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::json;

use super::parse::{NotUnderstood, Outcome, TAPE_NODES_MAX, nodes_max, parse};
use super::tests::{body, change, items, text};
use super::unpack;
use crate::event::Kind;

/// The stack of a coroutine in release builds, in bytes.
const STACK: usize = 128 << 10;

/// Texts as JSON, some of them odd.
fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(vec![
            r#""""#, r#""5""#, r#""US.1""#, r#""wamid.a""#, r#""1749416383""#,
            "1749416383", "0", "-0", "-1", "1.5",
            "1e3", "true", "null", r#""\u0061\/""#, r#""\ud83d\ude00""#, r#""text""#, r#""interactive""#,
            r#""reaction""#, r#""messages""#, r#""history""#, r#""\"""#, "18446744073709551615",
        ]).prop_map(str::to_owned),
        1 => select(vec![r#""\ud83d""#, "1e999", "18446744073709551616", "-9223372036854775809"])
            .prop_map(str::to_owned),
        1 => "[a-z]{0,40}".prop_map(|text| format!("\"{text}\"")),
    ]
}

/// A member's name that means something, spelt in one of two ways.
fn name(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    (select(names), any::<bool>()).prop_map(|(name, escaped)| {
        let first = name.as_bytes()[0];
        if escaped { format!("\"\\u{:04x}{}\"", first, &name[1..]) } else { format!("\"{name}\"") }
    })
}

fn object(
    names: &'static [&'static str],
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    vec((name(names), value), 0..9).prop_map(|members| {
        let members: Vec<_> = members.into_iter().map(|(name, value)| format!("{name} : {value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

fn array(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    vec(value, 0..4).prop_map(|values| format!("[{}]", values.join(", ")))
}

const MESSAGE: &[&str] = &[
    "id",
    "from",
    "type",
    "timestamp",
    "from_user_id",
    "group_id",
    "text",
    "interactive",
    "contacts",
    "reaction",
    "context",
];
const STATUS: &[&str] = &[
    "id",
    "status",
    "timestamp",
    "recipient_id",
    "recipient_user_id",
    "recipient_participant_id",
    "participant_recipient_id",
    "biz_opaque_callback_data",
    "errors",
];

/// A body of the envelope's shape, with anything in any place.
fn envelope() -> impl Strategy<Value = String> {
    let leaf =
        || prop_oneof![3 => scalar(), 1 => object(&["body", "title", "id"], scalar()), 1 => array(scalar())];
    let message = prop_oneof![9 => object(MESSAGE, leaf()), 1 => leaf()];
    let status = prop_oneof![9 => object(STATUS, leaf()), 1 => leaf()];
    let contact = object(&["wa_id", "user_id", "profile"], leaf());
    let value = (array(message), array(status), array(contact), array(leaf()), leaf(), 0..32_u8).prop_map(
        |(messages, statuses, contacts, errors, number, there)| {
            let all = [
                format!(r#""messages":{messages}"#),
                format!(r#""statuses":{statuses}"#),
                format!(r#""contacts":{contacts}"#),
                format!(r#""errors":{errors}"#),
                format!(r#""metadata":{{"phone_number_id":{number}}}"#),
            ];
            let members: Vec<_> = (0..5).filter(|i| there >> i & 1 == 1).map(|i| all[i].clone()).collect();
            format!("{{{}}}", members.join(","))
        },
    );
    let field = prop_oneof![5 => Just(r#""messages""#.to_owned()), 1 => scalar()];
    let change = prop_oneof![
        9 => (field, value, any::<bool>()).prop_map(|(field, value, first)| match first {
            true => format!(r#"{{"field":{field},"value":{value}}}"#),
            false => format!(r#"{{"value":{value},"field":{field}}}"#),
        }),
        1 => leaf(),
    ];
    let entry = prop_oneof![
        9 => (array(change), scalar(), scalar()).prop_map(|(changes, id, time)| {
            format!(r#"{{"changes":{changes},"id":{id},"time":{time}}}"#)
        }),
        1 => leaf(),
    ];
    prop_oneof![9 => array(entry), 1 => leaf()]
        .prop_map(|entry| format!(r#"{{"object":"x","entry":{entry}}}"#))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_envelope_is_read_the_same_both_ways(body in envelope()) {
        items(body.as_bytes());
    }

    #[test]
    fn a_damaged_envelope_ends_nothing(
        body in envelope(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut body = body.into_bytes();
        for (at, byte) in damage {
            let at = at.index(body.len());
            match byte % 4 {
                0 => body.truncate(at.max(1)),
                1 => drop(body.remove(at.min(body.len() - 1))),
                2 => body.insert(at, byte),
                _ => body[at] = byte,
            }
            if body.is_empty() { body.push(byte); }
        }
        items(&body);
    }

    #[test]
    fn random_bytes_are_one_item(body in vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(items(&body).len(), 1);
    }
}

/// Runs `work` where a coroutine would: a thread with its stack, and a coroutine.
fn on_a_small_stack(work: fn()) {
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(work).expect("a thread");
    thread.join().expect("no panic");
    let words = STACK / std::mem::size_of::<usize>();
    let coroutine = may::coroutine::Builder::new().stack_size(words);
    // SAFETY: `work` uses no thread-local across a yield (it does not yield) and fits the stack: that is the
    // test.
    #[allow(unsafe_code, reason = "may's spawn is unsafe; this is a test")]
    let handle = unsafe { coroutine.spawn(work) }.expect("a coroutine");
    handle.join().expect("no panic");
}

#[test]
fn depth_needs_no_stack() {
    on_a_small_stack(|| {
        let plain = body(vec![change("10", json!({"messages": [text("5", "a")]}))]).to_string();
        for depth in [2_000, 100_000, 1_000_000] {
            let open = "[".repeat(depth);
            let closed = format!("{open}{}", "]".repeat(depth));
            let objects = format!("{}0{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
            let mut found = Vec::new();
            for bad in [open.as_bytes(), "{\"a\":".repeat(depth).as_bytes()] {
                assert_eq!(parse(bad, &mut found), Outcome::Unparsed(NotUnderstood::NotJson));
            }
            assert_eq!(parse(closed.as_bytes(), &mut found), Outcome::Unparsed(NotUnderstood::NoEntry));
            for deep in [&closed, &objects] {
                let body = plain.replace(r#""hi""#, deep);
                assert_eq!(parse(body.as_bytes(), &mut found), Outcome::Understood);
                assert_eq!(found[0].kind, Kind::Message);
                let message = unpack::messages(body.as_bytes(), &[found[0].path]).expect("a message");
                assert_eq!(message[0].text, None);
            }
        }
    });
}

#[test]
fn a_thousand_messages_and_three_megabytes_need_no_stack() {
    on_a_small_stack(|| {
        // the last ones with more nodes than a tape is made for
        for (size, nodes) in [(1, 1), (400, 1), (3_000, 1), (1, 600)] {
            let long = |nth: usize| {
                let mut message = text(&format!("49{nth}"), &format!("wamid.{nth}"));
                message["text"]["body"] = json!("x".repeat(size));
                message["extra"] = json!(vec![0; nodes]);
                message
            };
            let messages: Vec<_> = (0..1000).map(long).collect();
            let bytes = body(vec![change("10", json!({"messages": messages}))]).to_string();
            assert_eq!(nodes_max(bytes.as_bytes()) > TAPE_NODES_MAX, nodes == 600);
            let mut found = Vec::new();
            assert_eq!(parse(bytes.as_bytes(), &mut found), Outcome::Understood);
            assert_eq!(found.len(), 1000);
            let paths: Vec<_> = found.iter().map(|item| item.path).collect();
            let messages = unpack::messages(bytes.as_bytes(), &paths).expect("messages");
            assert_eq!(messages[999].wamid, "wamid.999");
        }
    });
}
