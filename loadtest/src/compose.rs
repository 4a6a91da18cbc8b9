//! Signed webhooks as Meta sends them, about 750 bytes each, no two alike: fixed pieces with ids between them, so that
//! a request costs little more than its HMAC.

use std::sync::Arc;

use ring::hmac;

use crate::digits::{self, Decimal};

/// Room for the head, which is known only after the body and stands right before it.
const HEAD_ROOM: usize = 320;
/// The header lines are those of a capture of Meta's, without the old SHA-1.
const HEAD: &[u8] =
    b"POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nAccept-Encoding: deflate, gzip\r\n\
                      User-Agent: facebookexternalua\r\nContent-Type: application/json\r\nContent-Length: ";
const SIGNATURE: &[u8] = b"\r\nX-Hub-Signature-256: sha256=";

/// Writes one request after the other into its own buffer.
pub struct Composer {
    key: Arc<hmac::Key>,
    run: Run,
    /// Room for the head, then the body.
    buffer: Vec<u8>,
    /// Where the head begins.
    start: usize,
}

/// Tells the ids of this run from those of another.
struct Run {
    upper: [u8; 8],
    lower: [u8; 8],
}

/// A message of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// In which conversation.
    pub conversation: u32,
    /// The how manyeth of it.
    pub nth: u32,
    /// With which business.
    pub business: u32,
}

/// An app secret, ready to sign with: one for all composers, so that it stays in the caches.
pub fn key(app_secret: &str) -> Arc<hmac::Key> {
    Arc::new(hmac::Key::new(hmac::HMAC_SHA256, app_secret.as_bytes()))
}

/// One piece after the other.
macro_rules! put {
    ($to:expr, $($piece:expr),+ $(,)?) => { $( $to.extend_from_slice($piece.as_ref()); )+ };
}

impl Composer {
    /// Signs with this key.
    pub fn new(key: Arc<hmac::Key>, run: u32) -> Self {
        let run = Run { upper: digits::upper(run), lower: digits::lower(run) };
        let mut buffer = Vec::with_capacity(2048);
        buffer.resize(HEAD_ROOM, 0);
        Self { key, run, buffer, start: HEAD_ROOM }
    }

    /// A whole request that carries these messages, an entry each. `timestamp`: seconds since the epoch.
    pub fn messages(&mut self, said: &[Said], timestamp: u64) -> &[u8] {
        let mut timestamp_digits = itoa::Buffer::new();
        let timestamp = timestamp_digits.format(timestamp);
        self.entries(said, |to, run, ids, display| {
            let Ids { c, n, c_upper, n_upper, .. } = ids;
            let (user, plain) = (c.padded(), c.at_least(1));
            put!(
                to,
                r#""contacts":[{"profile":{"name":"J\u00f6rg \u0141oad "#,
                plain,
                r#""},"wa_id":"44"#,
                user,
                r#"","user_id":"GB.1349120865530274"#,
                user,
                r#"","parent_user_id":"GB.ENT.11815"#,
                user,
                r#""}],"messages":[{"context":{"from":"1555"#,
                display,
                r#"","id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSQzdE"#,
                run.upper,
                c_upper,
                r#"AA=="},"from":"44"#,
                user,
                r#"","from_user_id":"GB.1349120865530274"#,
                user,
                r#"","from_parent_user_id":"GB.ENT.11815"#,
                user,
                r#"","id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAEhgUM0E"#,
                run.upper,
                c_upper,
                n_upper,
                r#"AA==","timestamp":""#,
                timestamp,
                r#"","text":{"body":"m"#,
                plain,
                ".",
                n.at_least(1),
                r#""},"type":"text"}]"#,
            );
        })
    }

    /// A whole request that carries a delivery status each, of something that was never sent.
    pub fn statuses(&mut self, said: &[Said], timestamp: u64) -> &[u8] {
        let mut timestamp_digits = itoa::Buffer::new();
        let timestamp = timestamp_digits.format(timestamp);
        self.entries(said, |to, run, ids, _| {
            let Ids { conversation, nth, c, n, c_upper, n_upper } = ids;
            let user = c.padded();
            put!(
                to,
                r#""statuses":[{"id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSQzdE"#,
                run.upper,
                c_upper,
                n_upper,
                r#"AA==","status":"delivered","timestamp":""#,
                timestamp,
                r#"","recipient_id":"44"#,
                user,
                r#"","recipient_user_id":"GB.1349120865530274"#,
                user,
                r#"","conversation":{"id":"5d9b1c7a0e4f"#,
                digits::lower(*conversation),
                "0000",
                digits::lower(*nth),
                r#"","origin":{"type":"service"}},"#,
                r#""pricing":{"billable":false,"pricing_model":"PMP","category":"service","#,
                r#""type":"free_customer_service"},"biz_opaque_callback_data":"load-"#,
                run.lower,
                "-",
                c.at_least(1),
                "-",
                n.at_least(1),
                r#""}]"#,
            );
        })
    }

    fn entries(&mut self, said: &[Said], value: impl Fn(&mut Vec<u8>, &Run, &Ids, &[u8])) -> &[u8] {
        let to = &mut self.buffer;
        to.truncate(HEAD_ROOM);
        put!(to, r#"{"object":"whatsapp_business_account","entry":["#);
        for (index, said) in said.iter().enumerate() {
            if index > 0 {
                to.push(b',');
            }
            let business = Decimal::of(said.business);
            let (id, display) = (business.padded(), business.at_least(7));
            put!(
                to,
                r#"{"id":"20000"#,
                id,
                r#"","changes":[{"value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"1555"#,
                display,
                r#"","phone_number_id":"10000"#,
                id,
                r#""},"#,
            );
            value(to, &self.run, &Ids::of(said), display);
            put!(to, r#"},"field":"messages"}]}"#);
        }
        put!(to, "]}");
        self.sign()
    }

    /// Puts the head before the body.
    fn sign(&mut self) -> &[u8] {
        let (room, body) = self.buffer.split_at_mut(HEAD_ROOM);
        let mut signature = [0; 32];
        signature.copy_from_slice(hmac::sign(&self.key, body).as_ref());
        let mut length = itoa::Buffer::new();
        let length = length.format(body.len()).as_bytes();
        self.start = HEAD_ROOM;
        for piece in [&b"\r\n\r\n"[..], &digits::digest(signature), SIGNATURE, length, HEAD] {
            let end = self.start;
            self.start -= piece.len();
            room[self.start..end].copy_from_slice(piece);
        }
        self.last()
    }

    /// The request that was composed last.
    pub fn last(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Bytes of the body that was composed last.
    pub fn body_len(&self) -> usize {
        self.buffer.len() - HEAD_ROOM
    }
}

/// The numbers of a message and their digits.
struct Ids {
    conversation: u32,
    nth: u32,
    c: Decimal,
    n: Decimal,
    c_upper: [u8; 8],
    n_upper: [u8; 8],
}

impl Ids {
    fn of(said: &Said) -> Self {
        let Said { conversation, nth, .. } = *said;
        Self {
            conversation,
            nth,
            c: Decimal::of(conversation),
            n: Decimal::of(nth),
            c_upper: digits::upper(conversation),
            n_upper: digits::upper(nth),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use whatsapp_webhook::event::Kind;
    use whatsapp_webhook::webhook::{parse, unpack};

    use super::*;
    use crate::names;

    /// The body of an entry as `format!` writes it: what the pieces have to add up to.
    fn plain(run: u32, said: &Said, timestamp: u64, is_status: bool) -> String {
        let (c, n, to) = (said.conversation, said.nth, names::customer(said.conversation));
        let (waba, number) = (names::waba(said.business), names::number(said.business));
        let display = names::display(said.business);
        let value = if is_status {
            format!(
                concat!(
                    r#""statuses":[{{"id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSQzdE{run:08X}{c:08X}{n:08X}AA==","#,
                    r#""status":"delivered","timestamp":"{timestamp}","recipient_id":"{to}","#,
                    r#""recipient_user_id":"GB.1349120865530274{c:010}","#,
                    r#""conversation":{{"id":"5d9b1c7a0e4f{c:08x}{n:012x}","origin":{{"type":"service"}}}},"#,
                    r#""pricing":{{"billable":false,"pricing_model":"PMP","category":"service","#,
                    r#""type":"free_customer_service"}},"biz_opaque_callback_data":"load-{run:08x}-{c}-{n}"}}]"#
                ),
                run = run,
                c = c,
                n = n,
                to = to,
                timestamp = timestamp,
            )
        } else {
            format!(
                concat!(
                    r#""contacts":[{{"profile":{{"name":"J\u00f6rg \u0141oad {c}"}},"wa_id":"{to}","#,
                    r#""user_id":"GB.1349120865530274{c:010}","parent_user_id":"GB.ENT.11815{c:010}"}}],"#,
                    r#""messages":[{{"context":{{"from":"{display}","#,
                    r#""id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSQzdE{run:08X}{c:08X}AA=="}},"from":"{to}","#,
                    r#""from_user_id":"GB.1349120865530274{c:010}","from_parent_user_id":"GB.ENT.11815{c:010}","#,
                    r#""id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAEhgUM0E{run:08X}{c:08X}{n:08X}AA==","#,
                    r#""timestamp":"{timestamp}","text":{{"body":"m{c}.{n}"}},"type":"text"}}]"#
                ),
                run = run,
                c = c,
                n = n,
                to = to,
                timestamp = timestamp,
                display = display,
            )
        };
        format!(
            concat!(
                r#"{{"id":"{waba}","changes":[{{"value":{{"messaging_product":"whatsapp","#,
                r#""metadata":{{"display_phone_number":"{display}","phone_number_id":"{number}"}},"#,
                r#"{value}}},"field":"messages"}}]}}"#
            ),
            waba = waba,
            display = display,
            number = number,
            value = value,
        )
    }

    /// A number with as many bits as it happens to have.
    fn number() -> impl Strategy<Value = u32> {
        (any::<u32>(), 0_u32..32).prop_map(|(number, bits)| number >> bits)
    }

    prop_compose! {
        fn said()(conversation in number(), nth in number(), business in number()) -> Said {
            Said { conversation, nth, business }
        }
    }

    proptest! {
        /// Whatever was composed before.
        #[test]
        fn the_pieces_add_up_to_what_format_writes(
            run in any::<u32>(),
            requests in prop::collection::vec(
                (prop::collection::vec(said(), 1..5), any::<bool>(), prop_oneof![any::<u64>(), 1..4_000_000_000_u64]),
                1..4,
            ),
        ) {
            let mut composer = Composer::new(key("secret"), run);
            for (said, is_status, timestamp) in requests {
                let entries: Vec<_> =
                    said.iter().map(|said| plain(run, said, timestamp, is_status)).collect();
                let expected = format!(
                    r#"{{"object":"whatsapp_business_account","entry":[{}]}}"#,
                    entries.join(",")
                );
                let signature = hmac::sign(&key("secret"), expected.as_bytes());
                let expected = format!(
                    "POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\
                     Accept-Encoding: deflate, gzip\r\nUser-Agent: facebookexternalua\r\n\
                     Content-Type: application/json\r\nContent-Length: {}\r\n\
                     X-Hub-Signature-256: sha256={}\r\n\r\n{expected}",
                    expected.len(),
                    hex::encode(signature),
                );
                let request = if is_status {
                    composer.statuses(&said, timestamp)
                } else {
                    composer.messages(&said, timestamp)
                };
                prop_assert_eq!(String::from_utf8_lossy(request).into_owned(), expected);
            }
        }
    }

    fn body(request: &[u8]) -> &[u8] {
        let end = memchr::memmem::find(request, b"\r\n\r\n").expect("a head");
        &request[end + 4..]
    }

    #[test]
    fn the_server_reads_what_is_composed_and_every_body_is_another() {
        let mut composer = Composer::new(key("secret"), 7);
        let said =
            [Said { conversation: 5, nth: 0, business: 1 }, Said { conversation: 6, nth: 3, business: 0 }];
        let request = composer.messages(&said, 1_700_000_000).to_vec();
        let mut items = Vec::new();
        parse::parse(body(&request), &mut items);
        assert_eq!(items.iter().map(|i| i.kind).collect::<Vec<_>>(), [Kind::Message, Kind::Message]);
        for (item, said) in items.iter().zip(&said) {
            let mut messages = unpack::messages(body(&request), &[item.path]).expect("a message");
            let message = messages.remove(0);
            assert_eq!(message.phone_number_id, names::number(said.business));
            assert_eq!(message.reply_to.id(), names::customer(said.conversation));
            let text = message.text.expect("words");
            assert_eq!(names::place(&text), Some((said.conversation, said.nth)));
        }
        let one = composer.messages(&said[..1], 1_700_000_000).to_vec();
        assert!((650..850).contains(&body(&one).len()), "{}", body(&one).len());
        let next = Said { nth: 1, ..said[0] };
        assert_ne!(composer.messages(&[next], 1_700_000_000), one);
    }

    #[test]
    fn statuses_are_statuses() {
        let mut composer = Composer::new(key("secret"), 7);
        let said = [Said { conversation: 5, nth: 0, business: 1 }; 1];
        let request = composer.statuses(&said, 1_700_000_000).to_vec();
        let mut items = Vec::new();
        parse::parse(body(&request), &mut items);
        assert_eq!(items.iter().map(|i| i.kind).collect::<Vec<_>>(), [Kind::Status]);
        assert!((600..900).contains(&body(&request).len()), "{}", body(&request).len());
    }

    #[test]
    fn the_signature_is_that_of_the_body() {
        let mut composer = Composer::new(key("secret"), 7);
        let request = composer.messages(&[Said { conversation: 0, nth: 0, business: 0 }], 1).to_vec();
        let head = String::from_utf8_lossy(&request);
        let signature =
            head.lines().find_map(|l| l.strip_prefix("X-Hub-Signature-256: sha256=")).expect("signed");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        hmac::verify(&key, body(&request), &hex::decode(signature).expect("hex")).expect("right");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body(&request).len())));
    }
}
