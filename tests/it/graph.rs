//! The Graph client against a real HTTP server: the exact requests, and what each answer means. And the error
//! classes of a corpus of real and published errors.

#![allow(
    clippy::disallowed_methods,
    reason = "the servers here are threads, which sleep, and tests measure time"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use whatsapp_webhook::config;
use whatsapp_webhook::event::{Business, Recipient};
use whatsapp_webhook::failure::{Failure, Scope, Source, Verdict};
use whatsapp_webhook::graph::client::Client;
use whatsapp_webhook::graph::{Graph, Send, errors};
use whatsapp_webhook::secret::Secret;

use crate::net::{Seen, Server, reply};

const ACCEPTED: &str = concat!(
    r#"{"messaging_product":"whatsapp","contacts":[{"input":"16505551234","user_id":"US.1"}],"#,
    r#""messages":[{"id":"wamid.OK","message_status":"accepted"}]}"#
);

fn client(url: &str, timeout: Duration) -> Client {
    crate::coroutines();
    Client::new(&config::Graph {
        url: url.to_owned(),
        version: "v25.0".to_owned(),
        timeout,
        pool_size: 8,
        rate_per_number: 80,
    })
}

fn business() -> Business {
    Business {
        id: "1".into(),
        name: "Shop".into(),
        sub_domain: "shop".into(),
        waba_id: "2".into(),
        phone_number_ids: vec!["106540352242922".into()],
        meta_app: None,
        token: Secret::new("EAAG-the-token"),
    }
}

fn send(client: &Client, to: &Recipient) -> Result<String, Failure> {
    let body =
        RawValue::from_string(r#"{"type":"text","text":{"body":"hi"},"to":"666"}"#.into()).expect("JSON");
    let business = business();
    let send = Send {
        business: &business,
        phone_number_id: "106540352242922",
        to,
        body: &body,
        reply_id: "reply-1",
        in_reply_to: Some("wamid.IN"),
    };
    client.send(&send, client.enter(send.phone_number_id))
}

fn phone() -> Recipient {
    Recipient::Phone("16505551234".into())
}

/// A server that keeps what it saw and always answers this.
fn answering(status: u16, headers: &'static str, body: &'static str) -> (Server, Arc<Mutex<Vec<Seen>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let server = Server::start(move |_, _, request, out| {
        kept.lock().push(request);
        reply(out, status, headers, body.as_bytes())
    });
    (server, seen)
}

/// What sending means when the server answers this.
fn failed(status: u16, headers: &'static str, body: &'static str) -> Failure {
    let (server, seen) = answering(status, headers, body);
    let client = client(&format!("http://{}", server.address), Duration::from_secs(10));
    let failure = send(&client, &phone()).expect_err("refused");
    assert_eq!(seen.lock().len(), 1, "never sent twice");
    assert_eq!(failure.source, Source::Graph);
    failure
}

#[test]
fn a_message_is_posted_as_meta_documents_it() {
    let (server, seen) = answering(200, "content-type: application/json\r\n", ACCEPTED);
    let client = client(&format!("http://{}", server.address), Duration::from_secs(10));
    for (to, addressed) in [
        (phone(), r#""recipient_type":"individual","to":"16505551234""#),
        (Recipient::User("US.1349".into()), r#""recipient_type":"individual","recipient":"US.1349""#),
        (Recipient::Group("Y2Fw".into()), r#""recipient_type":"group","to":"Y2Fw""#),
    ] {
        assert_eq!(send(&client, &to).expect("sent"), "wamid.OK");
        let request = seen.lock().pop().expect("a request");
        assert!(
            request.head.starts_with("POST /v25.0/106540352242922/messages HTTP/1.1\r\n"),
            "{}",
            request.head
        );
        let head = request.head.to_lowercase();
        for header in ["authorization: bearer eaag-the-token", "content-type: application/json"] {
            assert!(head.contains(&format!("\r\n{header}\r\n")), "{head}");
        }
        let expected = format!(
            "{{\"messaging_product\":\"whatsapp\",{addressed},{}}}",
            concat!(
                r#""type":"text","text":{"body":"hi"},"context":{"message_id":"wamid.IN"},"#,
                r#""biz_opaque_callback_data":"reply-1""#
            )
        );
        assert_eq!(String::from_utf8_lossy(&request.body), expected);
    }
    assert_eq!(server.count(), 1, "one connection for all");
}

#[test]
fn a_receipt_is_posted_with_and_without_the_indicator() {
    let (server, seen) = answering(200, "", r#"{"success":true}"#);
    let client = client(&format!("http://{}", server.address), Duration::from_secs(10));
    client.read(&business(), "1", "wamid.IN", false, client.enter("1")).expect("read");
    client.read(&business(), "1", "wamid.IN", true, client.enter("1")).expect("read");
    let bodies: Vec<_> = seen.lock().iter().map(|s| String::from_utf8_lossy(&s.body).into_owned()).collect();
    assert_eq!(
        bodies,
        [
            r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.IN"}"#,
            concat!(
                r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.IN","#,
                r#""typing_indicator":{"type":"text"}}"#
            ),
        ]
    );
}

#[test]
fn each_class_of_error_arrives_as_its_verdict() {
    let park = |scope, seconds: Option<u64>| Verdict::Park { scope, after: seconds.map(Duration::from_secs) };
    let token = failed(401, "", r#"{"error":{"message":"expired EAAGxxxxxxxxx","code":190}}"#);
    assert_eq!((token.verdict, token.reason.as_str()), (park(Scope::Business, None), "graph_190"));
    assert_eq!(token.detail, "expired ***");
    let number = failed(400, "Retry-After: 9\r\n", r#"{"error":{"message":"limit","code":130429}}"#);
    assert_eq!(number.verdict, park(Scope::Number, Some(9)));
    assert_eq!(failed(400, "", r#"{"error":{"code":131056}}"#).verdict, park(Scope::Pair, None));
    let usage = "X-Business-Use-Case-Usage: {\"2\":[{\"estimated_time_to_regain_access\":3}]}\r\n";
    assert_eq!(failed(400, usage, r#"{"error":{"code":80007}}"#).verdict, park(Scope::Business, Some(180)));
    assert_eq!(failed(400, "", r#"{"error":{"code":4}}"#).verdict, park(Scope::App, None));
    assert_eq!(failed(500, "", r#"{"error":{"code":131000}}"#).verdict, Verdict::Unknown);
    assert_eq!(failed(400, "", r#"{"error":{"code":131047}}"#).verdict, Verdict::Dead);
    assert_eq!(failed(429, "", r#"{"error":{"code":613}}"#).verdict, Verdict::Retry { after: None });
    let gateway = failed(502, "content-type: text/html\r\n", "<html>Bad Gateway</html>");
    assert_eq!((gateway.verdict, gateway.reason.as_str()), (Verdict::Unknown, "graph_http_502"));
}

#[test]
fn an_acceptance_without_an_id_is_of_unknown_outcome() {
    for body in ["{}", "", r#"{"messages":[]}"#, r#"{"messages":[{"id":""}]}"#, "[1", r#"{"success":true}"#] {
        assert_eq!(failed(200, "", body).verdict, Verdict::Unknown, "{body}");
    }
}

/// The token of [`business`] does not look like one of Meta's where it is cut out of a longer text.
#[test]
fn a_token_that_graph_repeats_is_not_kept() {
    let body =
        r#"{"error":{"message":"Bad token=EAAG-the-token","code":190,"error_data":"xEAAG-the-tokenx"}}"#;
    assert_eq!(failed(401, "", body).detail, "Bad token=***: x***x");
}

#[test]
fn silence_and_a_cut_are_unknown_and_nobody_there_is_tried_again() {
    let silent = Server::start(|_, _, _, _| {
        std::thread::sleep(Duration::from_secs(3));
        false
    });
    let begun = Instant::now();
    let failure = send(&client(&format!("http://{}", silent.address), Duration::from_millis(300)), &phone())
        .expect_err("no answer");
    assert_eq!((failure.verdict, failure.reason.as_str()), (Verdict::Unknown, "graph_timeout"));
    assert!(begun.elapsed() < Duration::from_secs(2));
    let cut = Server::start(|_, _, _, _| false);
    let failure = send(&client(&format!("http://{}", cut.address), Duration::from_secs(5)), &phone())
        .expect_err("no answer");
    assert_eq!((failure.verdict, failure.reason.as_str()), (Verdict::Unknown, "graph_reset"));
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let failure = send(&client(&format!("http://127.0.0.1:{port}"), Duration::from_secs(5)), &phone())
        .expect_err("nobody there");
    assert_eq!((failure.verdict, failure.reason.as_str()), (Verdict::Retry { after: None }, "graph_connect"));
    assert!(!failure.detail.contains("16505551234") && !failure.detail.contains("EAAG"), "{failure:?}");
}

#[test]
fn a_number_whose_calls_hang_leaves_a_place_to_the_others() {
    let server = Server::start(|_, _, request, out| {
        if request.head.contains("/111/") {
            std::thread::sleep(Duration::from_secs(3));
        }
        reply(out, 200, "", ACCEPTED.as_bytes())
    });
    let client = Arc::new(client(&format!("http://{}", server.address), Duration::from_secs(20)));
    let hanging: Vec<_> = (0..20)
        .map(|n| {
            let client = Arc::clone(&client);
            let wamid = format!("wamid.{n}");
            std::thread::spawn(move || client.read(&business(), "111", &wamid, false, client.enter("111")))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    send(&client, &phone()).expect("sent");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for call in hanging {
        drop(call.join().expect("no panic"));
    }
}

#[test]
fn a_number_that_would_change_the_path_is_never_put_into_it() {
    let (server, seen) = answering(200, "", r#"{"success":true}"#);
    let client = client(&format!("http://{}", server.address), Duration::from_secs(10));
    for id in ["", "../1", "1?x=", "1/2", "1%2f", "1\r\n", "é"] {
        let failure = client.read(&business(), id, "wamid.IN", false, client.enter(id)).expect_err("refused");
        assert_eq!((failure.verdict, failure.reason.as_str()), (Verdict::Dead, "graph_bad_number"));
    }
    assert!(seen.lock().is_empty());
}

#[test]
fn the_second_burst_to_one_user_waits_and_another_user_does_not() {
    let client = client("http://127.0.0.1:1", Duration::from_secs(1));
    let wait = |n: u32| client.reserve("1", &Recipient::User(n.to_string()));
    let longest = (0..46).map(|_| wait(1)).max().expect("46");
    assert!(longest > Duration::from_secs(5) && longest <= Duration::from_secs(6), "{longest:?}");
    assert!(wait(2) < Duration::from_secs(1));
}

#[derive(Deserialize)]
struct Entry {
    http_status: Option<u16>,
    headers: std::collections::HashMap<String, String>,
    body: Box<RawValue>,
}

/// What is expected of the corpus, by code.
fn expected(code: i64, headers: &[(String, String)]) -> Verdict {
    let after = headers.iter().find(|(n, _)| n == "retry-after").and_then(|(_, v)| v.parse().ok());
    let after = after.map(Duration::from_secs);
    match code {
        0 | 10 | 104 | 190 | 200 | 368 => Verdict::Park { scope: Scope::Business, after: None },
        4 => Verdict::Park { scope: Scope::App, after },
        80007 => Verdict::Park { scope: Scope::Business, after },
        130429 => Verdict::Park { scope: Scope::Number, after: after.or(Some(Duration::from_secs(2))) },
        131056 => Verdict::Park { scope: Scope::Pair, after },
        133010 => Verdict::Park { scope: Scope::Number, after: None },
        17 | 613 => Verdict::Retry { after },
        1 | 2 => Verdict::Unknown,
        100 | 400 | 403 | 803 | 131009 | 131030 | 131047 | 131053 | 132001 | 136024 | 136025 => Verdict::Dead,
        other => panic!("no expectation for code {other}"),
    }
}

#[test]
fn every_error_of_the_corpus_has_the_expected_class() {
    #[derive(Deserialize)]
    struct Coded {
        error: Code,
    }
    #[derive(Deserialize)]
    struct Code {
        code: i64,
    }
    let shared = std::env::var("WEBHOOK_SHARED")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").to_owned());
    let file = std::path::Path::new(&shared).join("corpus/graph_errors.json");
    let Ok(text) = std::fs::read_to_string(&file) else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the corpus of errors is missing");
        println!("NOT RUN: the corpus of errors is missing");
        return;
    };
    let entries: Vec<Entry> = serde_json::from_str(&text).expect("the corpus is an array of entries");
    assert_eq!(entries.len(), 63);
    let token = Secret::new("the-token");
    for (nth, entry) in entries.iter().enumerate() {
        let status = entry.http_status.unwrap_or(400);
        let headers: Vec<_> = entry.headers.iter().map(|(n, v)| (n.to_lowercase(), v.clone())).collect();
        let failure = errors::classify(status, &headers, entry.body.get().as_bytes(), &token);
        match serde_json::from_str::<Coded>(entry.body.get()) {
            Ok(coded) => {
                let code = coded.error.code;
                assert_eq!(failure.verdict, expected(code, &headers), "entry {nth}, code {code}");
                assert_eq!(failure.reason.as_str(), format!("graph_{code}"));
                assert!(!failure.detail.is_empty());
            }
            Err(_) => {
                assert_eq!(failure.verdict, Verdict::Unknown, "entry {nth}");
                assert_eq!(failure.reason.as_str(), format!("graph_http_{status}"));
            }
        }
        assert!(failure.detail.chars().count() <= errors::DETAIL_MAX);
    }
}
