//! PURE. Webhook bodies as Meta writes them: compact JSON, all ASCII, `/` escaped.

use std::fmt::Write;
use std::sync::Arc;

use super::rules::{self, By};
use super::{Number, Sent};
use crate::clock::{self, UnixMillis};

/// A message that somebody wrote, ready to be put into a body. Every field may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its id.
    pub wamid: String,
    /// The number that it was written to.
    pub phone_number_id: String,
    /// Who wrote: a wa_id, or a BSUID (`US.1349..`).
    pub from: String,
    /// The profile's name.
    pub name: String,
    /// Seconds since the epoch.
    pub timestamp: u64,
    /// `type` and the content's key, as members of the message object without braces. ASCII.
    pub content: String,
}

impl Incoming {
    /// A text of now.
    pub fn text(wamid: String, phone_number_id: &str, from: &str, name: &str, text: &str) -> Self {
        Self {
            wamid,
            phone_number_id: phone_number_id.to_owned(),
            from: from.to_owned(),
            name: name.to_owned(),
            timestamp: clock::now() / 1000,
            content: format!(r#""text":{{"body":{}}},"type":"text""#, quoted(text)),
        }
    }

    /// The same message with another content: members of the message object, such as
    /// `"type":"image","image":{"id":"1"}`.
    pub fn with_content(self, members: &str) -> Self {
        Self { content: members.to_owned(), ..self }
    }

    fn is_user_id(&self) -> bool {
        self.from.contains('.')
    }
}

/// What became of something that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// At Meta's.
    Sent,
    /// On the phone.
    Delivered,
    /// Seen.
    Read,
    /// Not delivered, with the code of the error.
    Failed(i64),
}

/// A JSON string as Meta writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' | '/' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
    out
}

/// One body for all messages, in their order: an entry for each run of one WABA, a change for each run of one number.
/// A number that `number` does not know is written as it is, in a WABA `0`.
pub fn messages(
    incoming: &[Incoming],
    number: impl Fn(&str) -> Option<Arc<Number>>,
    now: UnixMillis,
) -> Vec<u8> {
    let waba = |id: &str| number(id).map_or_else(|| "0".to_owned(), |n| n.waba_id.clone());
    let mut out = String::from(r#"{"object":"whatsapp_business_account","entry":["#);
    let wabas: Vec<String> = incoming.iter().map(|m| waba(&m.phone_number_id)).collect();
    let mut from = 0;
    while from < incoming.len() {
        let end = run(&wabas, from);
        comma(&mut out, from > 0);
        let _ = write!(out, r#"{{"id":{},"time":{},"changes":["#, quoted(&wabas[from]), now / 1000);
        let mut at = from;
        while at < end {
            let numbers: Vec<&str> = incoming[..end].iter().map(|m| m.phone_number_id.as_str()).collect();
            let stop = run(&numbers, at);
            comma(&mut out, at > from);
            change(&mut out, &incoming[at..stop], number(&incoming[at].phone_number_id).as_deref());
            at = stop;
        }
        out.push_str("]}");
        from = end;
    }
    out.push_str("]}");
    out.into_bytes()
}

/// The end of the run of equal keys that begins at `from`.
fn run<K: PartialEq>(keys: &[K], from: usize) -> usize {
    keys[from..].iter().position(|key| *key != keys[from]).map_or(keys.len(), |more| from + more)
}

fn comma(out: &mut String, needed: bool) {
    if needed {
        out.push(',');
    }
}

fn change(out: &mut String, incoming: &[Incoming], number: Option<&Number>) {
    let display = number.map_or("15550000000", |n| n.display_phone_number.as_str());
    metadata(out, display, &incoming[0].phone_number_id);
    out.push_str(r#","contacts":["#);
    for (index, message) in incoming.iter().enumerate() {
        // one contact a person
        if incoming[..index].iter().any(|earlier| earlier.from == message.from) {
            continue;
        }
        comma(out, index > 0);
        let key = if message.is_user_id() { "user_id" } else { "wa_id" };
        let _ = write!(
            out,
            r#"{{"profile":{{"name":{}}},"{key}":{}}}"#,
            quoted(&message.name),
            quoted(&message.from)
        );
    }
    out.push_str(r#"],"messages":["#);
    for (index, message) in incoming.iter().enumerate() {
        comma(out, index > 0);
        let key = if message.is_user_id() { "from_user_id" } else { "from" };
        let _ = write!(
            out,
            r#"{{"{key}":{},"id":{},"timestamp":"{}",{}}}"#,
            quoted(&message.from),
            quoted(&message.wamid),
            message.timestamp,
            message.content
        );
    }
    out.push_str(r#"]},"field":"messages"}"#);
}

fn metadata(out: &mut String, display: &str, phone_number_id: &str) {
    let _ = write!(
        out,
        r#"{{"value":{{"messaging_product":"whatsapp","metadata":{{"display_phone_number":{},"phone_number_id":{}}}"#,
        quoted(display),
        quoted(phone_number_id)
    );
}

/// A status of an accepted message.
pub fn status(number: &Number, sent: &Sent, by: By, status: Status, now: UnixMillis) -> Vec<u8> {
    let word = match status {
        Status::Sent => "sent",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Failed(_) => "failed",
    };
    let waba = quoted(&number.waba_id);
    let mut out = format!(r#"{{"object":"whatsapp_business_account","entry":[{{"id":{waba},"changes":["#);
    metadata(&mut out, &number.display_phone_number, &number.phone_number_id);
    let _ = write!(
        out,
        r#","statuses":[{{"id":{},"status":"{word}","timestamp":"{}""#,
        quoted(&sent.wamid),
        now / 1000
    );
    let to = quoted(&sent.to);
    let _ = match by {
        By::Phone => write!(out, r#","recipient_id":{to}"#),
        By::User => write!(out, r#","recipient_user_id":{to}"#),
        By::Group => write!(out, r#","recipient_id":{to},"recipient_type":"group""#),
    };
    if let Some(id) = &sent.biz_opaque_callback_data {
        let _ = write!(out, r#","biz_opaque_callback_data":{}"#, quoted(id));
    }
    if let Status::Failed(code) = status {
        let title = quoted(rules::title(code));
        let _ = write!(
            out,
            concat!(
                r#","errors":[{{"code":{code},"title":{title},"message":{title},"error_data":{{"details":{title}}},"#,
                r#""href":"https:\/\/developers.facebook.com\/docs\/whatsapp\/cloud-api\/support\/error-codes\/"}}]"#
            ),
            code = code,
            title = title
        );
    } else {
        let _ = write!(
            out,
            concat!(
                r#","conversation":{{"id":"{:032x}","origin":{{"type":"service"}}}},"#,
                r#""pricing":{{"billable":false,"pricing_model":"PMP","category":"service","type":"free_customer_service"}}"#
            ),
            crate::event::hash64(&[number.phone_number_id.as_bytes(), sent.to.as_bytes()])
        );
    }
    out.push_str(r#"}]},"field":"messages"}]}]}"#);
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind;
    use crate::secret::Secret;
    use crate::webhook::{parse, unpack};

    fn number(id: &str, waba: &str) -> Number {
        Number {
            phone_number_id: id.to_owned(),
            waba_id: waba.to_owned(),
            display_phone_number: "15550001111".to_owned(),
            token: Secret::new("t"),
        }
    }

    fn incoming(number: &str, from: &str, text: &str) -> Incoming {
        Incoming::text(format!("wamid.{number}{from}{text}"), number, from, "Zoë/", text)
    }

    #[test]
    fn a_batch_keeps_its_order_and_names_every_number() {
        let known = |id: &str| Some(Arc::new(number(id, if id == "3" { "w2" } else { "w1" })));
        let all = [
            incoming("1", "49", "a"),
            incoming("1", "US.7", "b"),
            incoming("2", "49", "c"),
            incoming("3", "49", "d"),
        ];
        let body = messages(&all, known, 1_700_000_000_000);
        assert!(body.is_ascii());
        let mut items = Vec::new();
        parse::parse(&body, &mut items);
        let paths: Vec<_> = items.iter().map(|i| i.path).collect();
        let read = unpack::messages(&body, &paths).expect("readable");
        let shown: Vec<_> =
            read.iter().map(|m| (m.phone_number_id.as_str(), m.reply_to.id(), m.text.as_deref())).collect();
        assert_eq!(
            shown,
            [
                ("1", "49", Some("a")),
                ("1", "US.7", Some("b")),
                ("2", "49", Some("c")),
                ("3", "49", Some("d"))
            ]
        );
        assert_eq!(read[1].customer.name.as_deref(), Some("Zoë/"));
        let places: Vec<_> = paths.iter().map(|p| (p.entry, p.change, p.index)).collect();
        assert_eq!(places, [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]);
    }

    #[test]
    fn a_status_says_what_the_server_needs() {
        let sent = Sent {
            nth: 1,
            phone_number_id: "1".to_owned(),
            to: "49".to_owned(),
            body: serde_json::value::RawValue::from_string("{}".to_owned()).expect("JSON"),
            biz_opaque_callback_data: Some("r/1".to_owned()),
            wamid: "wamid.X/==".to_owned(),
            at: 0,
        };
        for (what, failed) in [(Status::Delivered, None), (Status::Failed(131_026), Some(131_026))] {
            let body = status(&number("1", "w"), &sent, By::Phone, what, 1_700_000_000_000);
            let mut items = Vec::new();
            parse::parse(&body, &mut items);
            assert_eq!(items.iter().map(|i| i.kind).collect::<Vec<_>>(), [Kind::Status]);
            let read = unpack::status(&body, items[0].path).expect("readable");
            assert_eq!((read.wamid.as_str(), read.callback_data.as_deref()), ("wamid.X/==", Some("r/1")));
            assert_eq!(read.error_code, failed);
        }
    }

    #[test]
    fn strings_are_escaped_as_meta_does() {
        assert_eq!(quoted("a/\"\\\u{e4}\u{1f44d}\u{7}\n"), r#""a\/\"\\\u00e4\ud83d\udc4d\u0007\n""#);
    }
}
