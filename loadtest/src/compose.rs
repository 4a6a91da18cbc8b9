//! Signed webhooks as Meta sends them, about 750 bytes each, no two alike: fixed pieces with ids between them, so that
//! a request costs little more than its HMAC.

use std::io::Write;

use ring::hmac;

use crate::names;

/// Writes one request after the other into its own buffers.
pub struct Composer {
    key: hmac::Key,
    /// Tells the ids of this run from those of another.
    run: u32,
    body: Vec<u8>,
    request: Vec<u8>,
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

impl Composer {
    /// Signs with this app secret.
    pub fn new(app_secret: &str, run: u32) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, app_secret.as_bytes());
        Self { key, run, body: Vec::with_capacity(4096), request: Vec::with_capacity(4096) }
    }

    /// A whole request that carries these messages, an entry each. `timestamp`: seconds since the epoch.
    pub fn messages(&mut self, said: &[Said], timestamp: u64) -> &[u8] {
        self.entries(said, |body, run, said| {
            let _ = write!(
                body,
                concat!(
                    r#""contacts":[{{"profile":{{"name":"J\u00f6rg \u0141oad {c}"}},"wa_id":"{to}","user_id":"GB.1349120865530274{c:010}","parent_user_id":"GB.ENT.11815{c:010}"}}],"#,
                    r#""messages":[{{"context":{{"from":"{display}","id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSQzdE{run:08X}{c:08X}AA=="}},"#,
                    r#""from":"{to}","from_user_id":"GB.1349120865530274{c:010}","from_parent_user_id":"GB.ENT.11815{c:010}","id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAEhgUM0E{run:08X}{c:08X}{n:08X}AA==","#,
                    r#""timestamp":"{timestamp}","text":{{"body":"m{c}.{n}"}},"type":"text"}}]"#
                ),
                run = run,
                timestamp = timestamp,
                c = said.conversation,
                n = said.nth,
                to = names::customer(said.conversation),
                display = names::display(said.business),
            );
        })
    }

    /// A whole request that carries a delivery status each, of something that was never sent.
    pub fn statuses(&mut self, said: &[Said], timestamp: u64) -> &[u8] {
        self.entries(said, |body, run, said| {
            let _ = write!(
                body,
                concat!(
                    r#""statuses":[{{"id":"wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSQzdE{run:08X}{c:08X}{n:08X}AA==","status":"delivered","#,
                    r#""timestamp":"{timestamp}","recipient_id":"{to}","recipient_user_id":"GB.1349120865530274{c:010}","#,
                    r#""conversation":{{"id":"5d9b1c7a0e4f{c:08x}{n:012x}","origin":{{"type":"service"}}}},"#,
                    r#""pricing":{{"billable":false,"pricing_model":"PMP","category":"service","type":"free_customer_service"}},"#,
                    r#""biz_opaque_callback_data":"load-{run:08x}-{c}-{n}"}}]"#
                ),
                run = run,
                timestamp = timestamp,
                c = said.conversation,
                n = said.nth,
                to = names::customer(said.conversation),
            );
        })
    }

    fn entries(&mut self, said: &[Said], value: impl Fn(&mut Vec<u8>, u32, &Said)) -> &[u8] {
        self.body.clear();
        self.body.extend_from_slice(br#"{"object":"whatsapp_business_account","entry":["#);
        for (index, said) in said.iter().enumerate() {
            if index > 0 {
                self.body.push(b',');
            }
            let _ = write!(
                self.body,
                concat!(
                    r#"{{"id":"{}","changes":[{{"value":{{"messaging_product":"whatsapp","#,
                    r#""metadata":{{"display_phone_number":"{}","phone_number_id":"{}"}},"#
                ),
                names::waba(said.business),
                names::display(said.business),
                names::number(said.business),
            );
            value(&mut self.body, self.run, said);
            self.body.extend_from_slice(br#"},"field":"messages"}]}"#);
        }
        self.body.extend_from_slice(b"]}");
        self.sign()
    }

    /// Head and body; the header lines are those of a capture of Meta's, without the old SHA-1.
    fn sign(&mut self) -> &[u8] {
        let mut signature = [0; 64];
        hex::encode_to_slice(hmac::sign(&self.key, &self.body), &mut signature)
            .expect("32 bytes are 64 hex digits");
        self.request.clear();
        self.request.extend_from_slice(
            b"POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nAccept-Encoding: deflate, gzip\r\n\
              User-Agent: facebookexternalua\r\nContent-Type: application/json\r\nContent-Length: ",
        );
        self.request.extend_from_slice(itoa::Buffer::new().format(self.body.len()).as_bytes());
        self.request.extend_from_slice(b"\r\nX-Hub-Signature-256: sha256=");
        self.request.extend_from_slice(&signature);
        self.request.extend_from_slice(b"\r\n\r\n");
        self.request.extend_from_slice(&self.body);
        &self.request
    }

    /// The request that was composed last.
    pub fn last(&self) -> &[u8] {
        &self.request
    }

    /// Bytes of the body that was composed last.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use whatsapp_webhook::event::Kind;
    use whatsapp_webhook::webhook::{parse, unpack};

    use super::*;

    fn body(request: &[u8]) -> &[u8] {
        let end = memchr::memmem::find(request, b"\r\n\r\n").expect("a head");
        &request[end + 4..]
    }

    #[test]
    fn the_server_reads_what_is_composed_and_every_body_is_another() {
        let mut composer = Composer::new("secret", 7);
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
        let mut composer = Composer::new("secret", 7);
        let said = [Said { conversation: 5, nth: 0, business: 1 }; 1];
        let request = composer.statuses(&said, 1_700_000_000).to_vec();
        let mut items = Vec::new();
        parse::parse(body(&request), &mut items);
        assert_eq!(items.iter().map(|i| i.kind).collect::<Vec<_>>(), [Kind::Status]);
        assert!((600..900).contains(&body(&request).len()), "{}", body(&request).len());
    }

    #[test]
    fn the_signature_is_that_of_the_body() {
        let mut composer = Composer::new("secret", 7);
        let request = composer.messages(&[Said { conversation: 0, nth: 0, business: 0 }], 1).to_vec();
        let head = String::from_utf8_lossy(&request);
        let signature =
            head.lines().find_map(|l| l.strip_prefix("X-Hub-Signature-256: sha256=")).expect("signed");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        hmac::verify(&key, body(&request), &hex::decode(signature).expect("hex")).expect("right");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body(&request).len())));
    }
}
