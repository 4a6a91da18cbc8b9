//! Bodies as Meta writes them, for the benches.

use serde_json::{Value, json};

/// A body of `count` items of a kind: `message`, `reaction`, `status`, `error`, `other_field`; `odd_text` is
/// messages one of which holds half a surrogate pair, `unparsed` messages whose last byte is lost. About 750
/// bytes with one message.
pub fn body(kind: &str, count: usize) -> Vec<u8> {
    let all = |of: &dyn Fn(usize) -> Value| (0..count).map(of).collect::<Vec<_>>();
    let changes = match kind {
        "status" => vec![change(json!({"statuses": all(&status)}))],
        "error" => vec![change(json!({"errors": all(&error)}))],
        "reaction" => vec![change(json!({"contacts": all(&contact), "messages": all(&reaction)}))],
        "other_field" => all(&|nth| {
            let mut echo = change(json!({"message_echoes": [message(nth)]}));
            echo["field"] = json!("smb_message_echoes");
            echo
        }),
        _ => vec![change(json!({"contacts": all(&contact), "messages": all(&message)}))],
    };
    let entry = json!({"id": "419561257915477", "time": 1_749_416_383, "changes": changes});
    let mut body = json!({"object": "whatsapp_business_account", "entry": [entry]}).to_string();
    match kind {
        // simd-json refuses it
        "odd_text" => body = body.replacen("colour? D", r"colour? \ud83d D", 1),
        "unparsed" => drop(body.pop()),
        _ => {}
    }
    body.into_bytes()
}

fn change(mut value: Value) -> Value {
    value["messaging_product"] = json!("whatsapp");
    value["metadata"] = json!({"display_phone_number": "15550783881", "phone_number_id": "106540352242922"});
    json!({"field": "messages", "value": value})
}

fn wamid(nth: usize) -> String {
    format!("wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ{nth:05}=")
}

fn from(nth: usize) -> String {
    format!("1650555{nth:04}")
}

fn user_id(nth: usize) -> String {
    format!("US.13491208655302{nth:06}")
}

fn contact(nth: usize) -> Value {
    json!({"profile": {"name": "Sheena Nelson"}, "wa_id": from(nth), "user_id": user_id(nth)})
}

fn message(nth: usize) -> Value {
    json!({"from": from(nth), "from_user_id": user_id(nth), "id": wamid(nth), "timestamp": "1749416383",
        "type": "text", "text": {"body": "Does it come in another colour? ".repeat(5)}})
}

fn reaction(nth: usize) -> Value {
    json!({"from": from(nth), "from_user_id": user_id(nth), "id": wamid(nth), "timestamp": "1749416383",
        "type": "reaction", "reaction": {"message_id": wamid(nth + 1), "emoji": "\u{1f44d}"}})
}

fn status(nth: usize) -> Value {
    json!({"id": wamid(nth), "status": "delivered", "timestamp": "1749416383", "recipient_id": from(nth),
        "biz_opaque_callback_data": format!("r{nth:020}"),
        "pricing": {"billable": true, "pricing_model": "PMP", "category": "service", "type": "regular"}})
}

fn error(nth: usize) -> Value {
    json!({"code": 130_429, "title": "Rate limit hit", "message": "Rate limit hit",
        "error_data": {"details": format!("Message {nth} failed: too many from this number.")}})
}
