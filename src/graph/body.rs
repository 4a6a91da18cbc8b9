//! The request bodies: a message body of an agent with our addressing around it, and the read receipt. Pure.
//!
//! Fields are written one by one, no tree is built, and every value of the agent's is copied as it is. Our
//! addressing always wins, and no key is ever written twice.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::Send;
use crate::event::Recipient;

/// More fields than this no message body has.
const FIELDS_MAX: usize = 32;

/// Keys that an agent can't set: whom it goes to and what names it.
const RESERVED: [&str; 5] =
    ["messaging_product", "recipient_type", "to", "recipient", "biz_opaque_callback_data"];

/// The body is not an object of at most 32 fields.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAMessage;

/// The whole body of `POST /{phone_number_id}/messages`.
pub fn message(send: &Send<'_>) -> Result<Vec<u8>, NotAMessage> {
    let Fields(fields) = Fields::of(send.body)?;
    let mut json = serde_json::Serializer::new(Vec::with_capacity(send.body.get().len() + 256));
    let write = |json: &mut serde_json::Serializer<Vec<u8>>| {
        let mut map = json.serialize_map(None)?;
        map.serialize_entry("messaging_product", "whatsapp")?;
        match send.to {
            Recipient::Phone(id) => {
                map.serialize_entry("recipient_type", "individual")?;
                map.serialize_entry("to", id)?;
            }
            Recipient::User(id) => {
                map.serialize_entry("recipient_type", "individual")?;
                map.serialize_entry("recipient", id)?;
            }
            Recipient::Group(id) => {
                map.serialize_entry("recipient_type", "group")?;
                map.serialize_entry("to", id)?;
            }
        }
        for (key, value) in &fields {
            let ours = RESERVED.contains(&key.as_str()) || (key == "context" && send.in_reply_to.is_some());
            if !ours {
                map.serialize_entry(key, value)?;
            }
        }
        if let Some(message_id) = send.in_reply_to {
            map.serialize_entry("context", &Context { message_id })?;
        }
        map.serialize_entry("biz_opaque_callback_data", send.reply_id)?;
        map.end()
    };
    write(&mut json).map_err(|_| NotAMessage)?;
    Ok(json.into_inner())
}

/// The body that marks a message read and, with `typing`, shows the indicator.
pub fn read(wamid: &str, typing: bool) -> Vec<u8> {
    let typing_indicator = typing.then_some(TypingIndicator { r#type: "text" });
    let read = Read { messaging_product: "whatsapp", status: "read", message_id: wamid, typing_indicator };
    serde_json::to_vec(&read).expect("plain strings can be written")
}

#[derive(serde::Serialize)]
struct Context<'a> {
    message_id: &'a str,
}

#[derive(serde::Serialize)]
struct Read<'a> {
    messaging_product: &'a str,
    status: &'a str,
    message_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    typing_indicator: Option<TypingIndicator>,
}

#[derive(serde::Serialize)]
struct TypingIndicator {
    r#type: &'static str,
}

/// The fields of an object in order; of a key that comes twice the last value, as most parsers see it.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    fn of(object: &'a RawValue) -> Result<Self, NotAMessage> {
        let mut json = serde_json::Deserializer::from_str(object.get());
        json.deserialize_map(Collect).map_err(|_| NotAMessage)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut fields: Vec<(String, &RawValue)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
            match fields.iter().position(|(known, _)| *known == key) {
                Some(known) => fields[known].1 = value,
                None if fields.len() == FIELDS_MAX => {
                    return Err(serde::de::Error::custom("too many fields"));
                }
                None => fields.push((key, value)),
            }
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::event::Business;
    use crate::secret::Secret;

    fn written(body: &str, to: &Recipient, in_reply_to: Option<&str>) -> Result<String, NotAMessage> {
        let business = Business {
            id: "1".into(),
            name: "n".into(),
            sub_domain: "s".into(),
            waba_id: String::new(),
            phone_number_ids: vec![],
            meta_app: None,
            token: Secret::new("t"),
        };
        let body = RawValue::from_string(body.to_owned()).expect("JSON");
        let send =
            Send { business: &business, phone_number_id: "1", to, body: &body, reply_id: "r-1", in_reply_to };
        message(&send).map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
    }

    #[test]
    fn a_text_is_addressed_in_each_of_the_three_ways() {
        let text = r#"{"type":"text","text":{"body":"h\u00e9 \"x\""}}"#;
        let rest = r#""type":"text","text":{"body":"h\u00e9 \"x\""},"biz_opaque_callback_data":"r-1"}"#;
        for (to, addressed) in [
            (Recipient::Phone("1650".into()), r#""recipient_type":"individual","to":"1650","#),
            (Recipient::User("US.1".into()), r#""recipient_type":"individual","recipient":"US.1","#),
            (Recipient::Group("g\"1".into()), r#""recipient_type":"group","to":"g\"1","#),
        ] {
            assert_eq!(
                written(text, &to, None),
                Ok(format!("{{\"messaging_product\":\"whatsapp\",{addressed}{rest}"))
            );
        }
    }

    #[test]
    fn a_quote_is_ours_where_given_else_the_agents() {
        let body = r#"{"type":"text","context":{"message_id":"theirs"}}"#;
        let to = Recipient::Phone("1".into());
        let ours = written(body, &to, Some("wamid.1")).expect("a message");
        assert!(ours.contains(r#""context":{"message_id":"wamid.1"}"#) && !ours.contains("theirs"), "{ours}");
        assert!(written(body, &to, None).expect("a message").contains("theirs"));
    }

    #[test]
    fn an_agent_cannot_readdress_its_message() {
        let body = r#"{"to":"666","\u0074o":"667","recipient":"668","recipient_type":"group",
            "messaging_product":"x","biz_opaque_callback_data":"669","type":"text","type":"image"}"#;
        assert_eq!(
            written(body, &Recipient::Phone("1".into()), None).as_deref(),
            Ok(concat!(
                r#"{"messaging_product":"whatsapp","recipient_type":"individual","to":"1","type":"image","#,
                r#""biz_opaque_callback_data":"r-1"}"#
            ))
        );
    }

    #[test]
    fn what_is_no_object_or_too_wide_is_refused() {
        let to = Recipient::Phone("1".into());
        for body in ["[]", "1", "\"{}\"", "null"] {
            assert_eq!(written(body, &to, None), Err(NotAMessage));
        }
        let wide: Vec<_> = (0..=FIELDS_MAX).map(|n| format!("\"{n}\":0")).collect();
        assert_eq!(written(&format!("{{{}}}", wide.join(",")), &to, None), Err(NotAMessage));
    }

    #[test]
    fn a_receipt_has_the_indicator_only_if_asked() {
        let plain = r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.1""#;
        assert_eq!(read("wamid.1", false), format!("{plain}}}").into_bytes());
        assert_eq!(
            read("wamid.1", true),
            format!("{plain},\"typing_indicator\":{{\"type\":\"text\"}}}}").into_bytes()
        );
    }

    proptest! {
        #[test]
        fn no_key_comes_twice(
            keys in proptest::collection::vec("to|type|recipient|context|[a-c]", 0..20),
            quote: bool,
        ) {
            let body: Vec<_> = keys.iter().map(|key| format!("\"{key}\":1")).collect();
            let to = Recipient::Phone("1".into());
            let body = format!("{{{}}}", body.join(","));
            let json = written(&body, &to, quote.then_some("w")).expect("a message");
            let seen: HashMap<String, Box<RawValue>> = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(seen["to"].get(), "\"1\"");
            for key in seen.keys() {
                prop_assert_eq!(json.matches(&format!("\"{key}\":")).count(), 1);
            }
        }
    }
}
