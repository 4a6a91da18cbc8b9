//! What our side of a call to the Graph API costs, without the network: the request's body beside serde_json's
//! writing of a plain struct of the same bytes, and the answer, a success or an error, beside serde_json's
//! skipping of it.

use std::hint::black_box;

use serde::Serialize;
use serde_json::value::RawValue;
use whatsapp_webhook::event::{Business, Recipient};
use whatsapp_webhook::graph::{Send, body, client, errors};
use whatsapp_webhook::net::Answer;
use whatsapp_webhook::secret::Secret;

use crate::judge::Band;
use crate::pair::{Case, Pairs};
use crate::webhook::skipped;

const REQUEST: Band = Band(0.9, 1.3);
const SUCCESS: Band = Band(1.5, 2.2);
const ERROR: Band = Band(10.0, 13.0);

const REPLY: &str = "Yes, it comes in blue, green and a dark red. Shall I put one of them aside for you?";
const TO: &str = "16505551234";
const REPLY_ID: &str = "r-0123456789abcdef-000000001-0";
const ACCEPTED: &str = r#"{"messaging_product":"whatsapp","contacts":[{"input":"16505551234","wa_id":"16505551234"}],"messages":[{"id":"wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ0RgA="}]}"#;
const REFUSED: &str = r#"{"error":{"message":"(#131056) (Business Account, Consumer Account) pair rate limit hit","type":"OAuthException","code":131056,"error_data":{"messaging_product":"whatsapp","details":"Message failed to send because there were too many messages sent from this phone number to the same phone number in a short period of time."},"fbtrace_id":"AbCdEfGhIjKlMnOpQrStUvW"}}"#;

#[derive(Serialize)]
struct Text<'a> {
    body: &'a str,
}

/// What the request's body is in the end.
#[derive(Serialize)]
struct Plain<'a> {
    messaging_product: &'a str,
    recipient_type: &'a str,
    to: &'a str,
    r#type: &'a str,
    text: Text<'a>,
    biz_opaque_callback_data: &'a str,
}

/// All of them.
pub fn bench(pairs: &mut Pairs) {
    request(pairs);
    answers(pairs);
}

fn request(pairs: &mut Pairs) {
    let business = Business {
        id: String::new(),
        name: String::new(),
        sub_domain: String::new(),
        waba_id: String::new(),
        phone_number_ids: Vec::new(),
        meta_app: None,
        token: Secret::new("a token"),
    };
    let reply = format!(r#"{{"type":"text","text":{{"body":"{REPLY}"}}}}"#);
    let reply = RawValue::from_string(reply).expect("it is JSON");
    let to = Recipient::Phone(TO.to_owned());
    let send = Send {
        business: &business,
        phone_number_id: "106540352242922",
        to: &to,
        body: &reply,
        reply_id: REPLY_ID,
        in_reply_to: None,
    };
    let plain = Plain {
        messaging_product: "whatsapp",
        recipient_type: "individual",
        to: TO,
        r#type: "text",
        text: Text { body: REPLY },
        biz_opaque_callback_data: REPLY_ID,
    };
    let written = serde_json::to_vec(&plain).expect("plain texts can be written");
    assert_eq!(body::message(&send).as_ref(), Ok(&written), "the floor writes the same bytes");
    pairs.calls(
        Case { group: "graph", name: "request", per: 1, floor: "serde_json of a struct", band: REQUEST },
        || body::message(black_box(&send)).is_ok(),
        || serde_json::to_vec(black_box(&plain)).is_ok(),
    );
}

fn answers(pairs: &mut Pairs) {
    let answer = |status, body: &str| Answer {
        status,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: body.as_bytes().to_vec(),
    };
    let token = Secret::new("a token");
    pairs.calls(
        Case { group: "graph", name: "answer: success", per: 1, floor: "skipping it", band: SUCCESS },
        || client::wamid(answer(200, black_box(ACCEPTED)), &token).expect("a success"),
        || skipped(&answer(200, black_box(ACCEPTED)).body),
    );
    let refused = answer(400, REFUSED);
    pairs.calls(
        Case { group: "graph", name: "answer: error", per: 1, floor: "skipping it", band: ERROR },
        || errors::classify(400, &refused.headers, black_box(&refused.body), &token),
        || skipped(&refused.body),
    );
}
