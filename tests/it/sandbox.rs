//! The simulated Meta over real sockets: what it takes and refuses, what it posts, and how it misbehaves on demand.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use ring::hmac;
use whatsapp_webhook::clock;
use whatsapp_webhook::sandbox::openai::{self, OpenAi};
use whatsapp_webhook::sandbox::wire::{self, After, Request};
use whatsapp_webhook::sandbox::{Fault, Number, Options, Sandbox, What};
use whatsapp_webhook::secret::Secret;

use crate::harness::{ask, until};

const SECRET: &str = "sandbox-test-secret";
const SOON: Duration = Duration::from_secs(10);

fn number(id: &str) -> Number {
    Number {
        phone_number_id: id.to_owned(),
        waba_id: format!("9{id}"),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(format!("token-{id}")),
    }
}

fn options() -> Options {
    let numbers = vec![number("101"), number("102")];
    Options {
        redeliver_after: Duration::from_millis(5),
        status_delay: Duration::from_millis(1),
        ..Options::new(Secret::new(SECRET), numbers)
    }
}

fn start(options: Options) -> Sandbox {
    crate::coroutines();
    Sandbox::start(options).expect("a free port")
}

fn text(to: &str, id: &str) -> String {
    format!(
        r#"{{"messaging_product":"whatsapp","to":"{to}","type":"text","text":{{"body":"hi"}},"biz_opaque_callback_data":"{id}"}}"#
    )
}

fn request(method: &str, path: &str, token: Option<&str>, body: &str) -> Vec<u8> {
    let bearer = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// A message sent from 101 with its token.
fn send(sandbox: &Sandbox, body: &str) -> Option<(u16, String)> {
    ask(sandbox.addr(), &request("POST", "/v25.0/101/messages", Some("token-101"), body))
}

fn control(sandbox: &Sandbox, method: &str, what: &str, body: &str) -> (u16, String) {
    ask(sandbox.addr(), &request(method, &format!("/_sandbox/{what}"), None, body)).expect("an answer")
}

/// Takes webhooks: keeps those with a right signature, answers as told.
struct Taker {
    status: AtomicU16,
    posts: AtomicUsize,
    bodies: Mutex<Vec<String>>,
}

impl Taker {
    fn start(status: u16) -> (wire::Server, Arc<Self>) {
        let taker = Arc::new(Self {
            status: AtomicU16::new(status),
            posts: AtomicUsize::new(0),
            bodies: Mutex::default(),
        });
        let server = wire::Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::clone(&taker) as Arc<_>);
        (server.expect("a free port"), taker)
    }

    fn count(&self, part: &str) -> usize {
        self.bodies.lock().iter().filter(|body| body.contains(part)).count()
    }
}

impl wire::Service for Taker {
    fn call(&self, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        self.posts.fetch_add(1, Relaxed);
        let tag = request.header("x-hub-signature-256").and_then(|tag| tag.strip_prefix("sha256="));
        let tag = tag.and_then(|tag| hex::decode(tag).ok()).unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let is_right = hmac::verify(&key, request.body, &tag).is_ok();
        let status = if is_right { self.status.load(Relaxed) } else { 401 };
        if status == 200 {
            self.bodies.lock().push(String::from_utf8_lossy(request.body).into_owned());
        }
        wire::answer(out, status, "text/plain", &[], b"");
        After::Keep
    }
}

fn url(server: &wire::Server) -> String {
    format!("http://{}/webhook", server.addr())
}

#[test]
fn an_accepted_message_is_recorded_told_and_followed_by_its_statuses() {
    let (server, taker) = Taker::start(200);
    let sandbox = start(Options { webhook_url: Some(url(&server)), ..options() });
    let told = Arc::new(AtomicUsize::new(0));
    let tell = Arc::clone(&told);
    sandbox.on_sent(Box::new(move |_| {
        tell.fetch_add(1, Relaxed);
    }));
    let (status, body) = send(&sandbox, &text("16505551234", "r1")).expect("an answer");
    assert_eq!(status, 200, "{body}");
    let sent = sandbox.sent();
    assert_eq!((sent.len(), told.load(Relaxed)), (1, 1));
    assert_eq!((sent[0].to.as_str(), sent[0].text().as_deref()), ("16505551234", Some("hi")));
    assert!(body.contains(&sent[0].wamid) && body.contains(r#""wa_id":"16505551234""#), "{body}");
    assert!(sandbox.wait_quiet(SOON));
    for status in ["sent", "delivered", "read"] {
        assert_eq!(taker.count(&format!(r#""status":"{status}""#)), 1, "{status}");
    }
    assert_eq!(taker.count(r#""biz_opaque_callback_data":"r1""#), 3);
    assert_eq!(sandbox.violation_count(), 0);
}

#[test]
fn a_number_is_only_for_its_own_token_and_every_refusal_is_kept() {
    let sandbox = start(options());
    let code = |path: &str, token: Option<&str>, body: &str| {
        let (status, answer) = ask(sandbox.addr(), &request("POST", path, token, body)).expect("an answer");
        let code = answer.split_once(r#""code":"#).expect("an error").1;
        (status, code.split([',', '}']).next().expect("digits").parse::<i64>().expect("a number"))
    };
    let good = text("16505551234", "r");
    assert_eq!(code("/v25.0/101/messages", None, &good), (401, 190));
    assert_eq!(code("/v25.0/101/messages", Some("nobody's"), &good), (401, 190));
    assert_eq!(code("/v25.0/101/messages", Some("token-102"), &good), (400, 100));
    assert_eq!(code("/v25.0/999/messages", Some("token-101"), &good), (400, 100));
    assert_eq!(code("/v25.0/101/messages", Some("token-101"), "{"), (400, 100));
    assert_eq!(code("/v25.0/101/messages", Some("token-101"), &text("abc", "r")), (400, 131_009));
    assert_eq!(code("/v25.0/101/nonsense", Some("token-101"), &good), (400, 2500));
    assert_eq!((sandbox.violation_count(), sandbox.sent_count()), (7, 0));
    assert_eq!(sandbox.violations()[2].code, 100);
}

#[test]
fn a_webhook_is_posted_signed_until_it_gets_its_200() {
    let (server, taker) = Taker::start(503);
    let sandbox = start(options());
    let wamid = sandbox.say("101", "16505551234", "Zoë", "grüße");
    clock::sleep(Duration::from_millis(30));
    assert_eq!((taker.posts.load(Relaxed), sandbox.webhooks().pending), (0, 1), "it waits for a URL");
    sandbox.set_webhook_url(&url(&server));
    until("posted again", SOON, || taker.posts.load(Relaxed) >= 3);
    taker.status.store(200, Relaxed);
    assert!(sandbox.wait_quiet(SOON));
    assert_eq!(taker.count(&wamid.replace('/', "\\/")), 1);
    assert_eq!(taker.count(r#""body":"gr\u00fc\u00dfe""#), 1);
    let counts = sandbox.webhooks();
    assert!(counts.delivered == 1 && counts.failed >= 3, "{counts:?}");
}

#[test]
fn a_message_can_be_said_in_turn_and_bodies_can_be_composed_or_odd() {
    let (server, taker) = Taker::start(200);
    let sandbox = start(Options { webhook_url: Some(url(&server)), ..options() });
    let (_, taken) = sandbox.say_and_wait("101", "16505551234", "N", "first", SOON);
    assert!(taken && taker.count("first") == 1);
    let batch = [
        sandbox.incoming("101", "16505551234", "N", "one"),
        sandbox.incoming("102", "US.13491208655302741918", "N", "two").with_content(r#""type":"sticker""#),
    ];
    sandbox.post_raw(sandbox.compose(&batch));
    sandbox.post_raw(b"not json".to_vec());
    assert!(sandbox.wait_quiet(SOON));
    let bodies = taker.bodies.lock();
    assert!(
        bodies.iter().any(|b| b.contains("9101") && b.contains("9102") && b.contains("sticker")),
        "{bodies:?}"
    );
    assert!(bodies.iter().any(|b| b == "not json"));
    drop(bodies);
    let before = taker.posts.load(Relaxed);
    sandbox.post_unsigned(b"{}".to_vec(), None);
    until("posted", SOON, || taker.posts.load(Relaxed) > before);
    assert!(sandbox.wait_quiet(SOON), "it is posted once, whatever the answer");
}

#[test]
fn every_fault_looks_to_the_caller_as_it_should() {
    let sandbox = start(Options { statuses: false, ..options() });
    let with = |what: What| {
        sandbox.faults().add(Fault::next(1, what));
        let before = sandbox.sent_count();
        let answer = send(&sandbox, &text("16505551234", &sandbox.incoming("101", "1", "N", "x").wamid));
        (answer, sandbox.sent_count() - before)
    };
    assert_eq!(with(What::Reset), (None, 0));
    assert_eq!(with(What::Close), (None, 0));
    assert_eq!(with(What::StallMs(20)), (None, 0));
    assert_eq!(with(What::AcceptThenReset), (None, 1));
    let (answer, count) = with(What::Html500);
    assert!(answer.is_some_and(|(status, body)| status == 500 && body.contains("<html>")) && count == 0);
    let (answer, count) = with(What::AcceptThen500);
    assert!(answer.is_some_and(|(status, _)| status == 500) && count == 1);
    let (answer, count) = with(What::AcceptThenHalf);
    assert!(answer.is_none_or(|(_, body)| !body.contains("wamid")) && count == 1);
    let (answer, count) = with(What::Graph(131_056));
    assert!(answer.is_some_and(|(status, body)| status == 400 && body.contains("131056")) && count == 0);
    let begun = clock::monotonic();
    let (answer, count) = with(What::DelayMs(50));
    assert!(answer.is_some_and(|(status, _)| status == 200) && count == 1);
    assert!(clock::monotonic() - begun >= Duration::from_millis(50));
    assert_eq!(
        send(&sandbox, &text("1650555", "last")).map(|(status, _)| status),
        Some(200),
        "all are used up"
    );
    assert_eq!((sandbox.faults().hits(), sandbox.violation_count()), (9, 0));
}

#[test]
fn a_failed_status_follows_an_accepted_message_on_demand() {
    let (server, taker) = Taker::start(200);
    let sandbox = start(Options { webhook_url: Some(url(&server)), ..options() });
    sandbox.faults().add(Fault::next(1, What::StatusFailed(131_026)));
    assert_eq!(send(&sandbox, &text("16505551234", "r1")).map(|(status, _)| status), Some(200));
    until("told", SOON, || taker.count(r#""status":"failed""#) == 1);
    assert_eq!(taker.count(r#""code":131026"#), 1);
    assert_eq!(taker.count(r#""status":"sent""#), 0);
}

#[test]
fn a_reply_id_that_goes_out_twice_is_counted_and_only_so_much_is_kept() {
    let sandbox = start(Options { statuses: false, keep: 2, ..options() });
    for id in ["a", "b", "a", "c"] {
        send(&sandbox, &text("16505551234", id));
    }
    assert_eq!((sandbox.doubled(), sandbox.sent_count()), (1, 4));
    let kept: Vec<_> = sandbox.sent().into_iter().map(|s| (s.nth, s.biz_opaque_callback_data)).collect();
    assert_eq!(kept, [(3, Some("a".to_owned())), (4, Some("c".to_owned()))]);
    sandbox.reset();
    assert_eq!((sandbox.doubled(), sandbox.sent_count(), sandbox.sent().len()), (0, 0, 0));
}

#[test]
fn a_refused_call_does_not_make_the_next_one_a_double() {
    let sandbox = start(Options { statuses: false, ..options() });
    sandbox.faults().add(Fault::next(1, What::Graph(130_429)));
    send(&sandbox, &text("16505551234", "a"));
    send(&sandbox, &text("16505551234", "a"));
    assert_eq!((sandbox.doubled(), sandbox.sent_count()), (0, 1));
}

#[test]
fn limits_are_enforced_where_they_are_switched_on() {
    let sandbox = start(Options { statuses: false, pair_limit: true, ..options() });
    let answers: Vec<u16> = (0..46)
        .filter_map(|n| send(&sandbox, &text("16505551234", &n.to_string())))
        .map(|(s, _)| s)
        .collect();
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 45);
    assert_eq!(answers.last(), Some(&400));
    let sandbox = start(Options { statuses: false, window: true, ..options() });
    assert!(send(&sandbox, &text("16505551234", "a")).is_some_and(|(_, body)| body.contains("131047")));
    sandbox.say("101", "16505551234", "N", "hello");
    assert_eq!(send(&sandbox, &text("16505551234", "b")).map(|(status, _)| status), Some(200));
}

#[test]
fn read_receipts_and_typing_are_recorded() {
    let sandbox = start(options());
    let body = r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.X","typing_indicator":{"type":"text"}}"#;
    assert_eq!(send(&sandbox, body), Some((200, r#"{"success":true}"#.to_owned())));
    let reads = sandbox.reads();
    assert_eq!((reads.len(), reads[0].message_id.as_str(), reads[0].typing), (1, "wamid.X", true));
    assert_eq!(sandbox.sent_count(), 0);
}

#[test]
fn numbers_and_media_can_be_looked_up_with_the_right_token() {
    let sandbox = start(options());
    sandbox.add_media("m1", "image/png", b"\x89PNG".to_vec());
    let get = |path: &str, token: Option<&str>| {
        ask(sandbox.addr(), &request("GET", path, token, "")).expect("an answer")
    };
    let (status, body) = get("/v25.0/101", Some("token-101"));
    assert!(status == 200 && body.contains(r#""display_phone_number":"15550783881""#), "{body}");
    assert_eq!(get("/v25.0/101", Some("token-102")).0, 400);
    assert_eq!(get("/v25.0/m1", None).0, 401);
    let (status, body) = get("/v25.0/m1", Some("token-101"));
    assert!(status == 200 && body.contains(r#""file_size":"4""#) && body.contains(r"\/_media\/m1"), "{body}");
    assert_eq!(get("/_media/m1", Some("token-101")).0, 200);
    assert_eq!(get("/_media/m1", None).0, 404);
    assert_eq!(get("/_media/m2", Some("token-101")).0, 404);
}

#[test]
fn another_process_can_do_it_all_over_http() {
    let (server, taker) = Taker::start(200);
    let sandbox = start(options());
    assert_eq!(control(&sandbox, "POST", "webhook_url", &url(&server)).0, 200);
    assert_eq!(control(&sandbox, "POST", "webhook_url", "ftp://x").0, 400);
    let said = r#"{"phone_number_id":"101","from":"16505551234","text":"over http"}"#;
    let (status, body) = control(&sandbox, "POST", "say", said);
    assert!(status == 200 && body.contains("wamid."), "{body}");
    until("posted", SOON, || taker.count("over http") == 1);
    assert_eq!(control(&sandbox, "POST", "faults", r#"[{"what":"html500","times":1}]"#).0, 200);
    assert_eq!(send(&sandbox, &text("16505551234", "r1")).map(|(status, _)| status), Some(500));
    assert_eq!(control(&sandbox, "POST", "faults", r#"{"what":{"graph":190}}"#).0, 200);
    assert_eq!(send(&sandbox, &text("16505551234", "r1")).map(|(status, _)| status), Some(401));
    assert_eq!(control(&sandbox, "DELETE", "faults", "").0, 200);
    for id in ["r1", "r2"] {
        assert_eq!(send(&sandbox, &text("16505551234", id)).map(|(status, _)| status), Some(200));
    }
    let (_, sent) = control(&sandbox, "GET", "sent?after=1", "");
    assert!(sent.contains(r#""nth":2"#) && !sent.contains(r#""nth":1,"#) && sent.contains("r2"), "{sent}");
    assert_eq!(control(&sandbox, "GET", "violations", ""), (200, "[]".to_owned()));
    assert!(control(&sandbox, "GET", "stats", "").1.contains(r#""sent":2"#));
    let new = r#"{"phone_number_id":"103","token":"token-103"}"#;
    assert_eq!(control(&sandbox, "POST", "numbers", new).0, 200);
    let call = request("POST", "/v25.0/103/messages", Some("token-103"), &text("16505551234", "r3"));
    assert_eq!(ask(sandbox.addr(), &call).map(|(status, _)| status), Some(200));
    for (method, what, body) in [("POST", "faults", "{}"), ("POST", "say", "{}"), ("POST", "numbers", "[]")] {
        assert_eq!(control(&sandbox, method, what, body).0, 400, "{what}");
    }
    assert_eq!(control(&sandbox, "GET", "nothing", "").0, 404);
}

#[test]
fn what_is_no_proper_request_ends_its_connection_only() {
    let sandbox = start(options());
    let status = |bytes: &[u8]| ask(sandbox.addr(), bytes).map(|(status, _)| status);
    assert_eq!(status(b"nonsense\r\n\r\n"), Some(400));
    assert_eq!(status(b"POST /x HTTP/1.1\r\nContent-Length: x\r\n\r\n"), Some(400));
    assert_eq!(status(b"POST /x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"), Some(413));
    assert_eq!(status(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Some(411));
    assert_eq!(status(&[b'a'; 40_000]), Some(400));
    assert_eq!(send(&sandbox, &text("16505551234", "r")).map(|(status, _)| status), Some(200));
}

#[test]
fn a_dropped_sandbox_frees_its_port_and_a_taken_port_is_an_error() {
    let sandbox = start(options());
    let address = sandbox.addr();
    assert!(Sandbox::start(Options { listen: address, ..options() }).is_err(), "somebody listens there");
    drop(sandbox);
    until("free", SOON, || TcpStream::connect(address).is_err());
}

fn chat(stub: &OpenAi, key: &str, body: &str) -> Option<(u16, String)> {
    let address = stub.url()["http://".len()..].trim_end_matches("/v1").parse().expect("an address");
    ask(address, &request("POST", "/v1/chat/completions", Some(key), body))
}

#[test]
fn the_stub_of_a_chat_server_says_what_it_heard_and_misbehaves_in_order() {
    crate::coroutines();
    let stub = OpenAi::start(Some(Secret::new("key"))).expect("a free port");
    let asked =
        r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"a \"b\""}]}"#;
    let (status, body) = chat(&stub, "key", asked).expect("an answer");
    assert!(status == 200 && body.contains(r#""content":"You said: a \"b\"""#), "{body}");
    assert_eq!(stub.requests()[0].messages[0].content, "s");
    assert_eq!(chat(&stub, "other", asked).map(|(status, _)| status), Some(401));
    assert_eq!(chat(&stub, "key", "{}").map(|(status, _)| status), Some(400));
    assert_eq!(stub.bad(), 2);
    for fault in [
        openai::Fault::Status(429, Some(1)),
        openai::Fault::Body(r#"{"choices":[]}"#.to_owned()),
        openai::Fault::Reset,
        openai::Fault::StallMs(10),
        openai::Fault::DelayMs(10),
    ] {
        stub.fault(fault);
    }
    assert_eq!(chat(&stub, "key", asked).map(|(status, _)| status), Some(429));
    assert_eq!(chat(&stub, "key", asked), Some((200, r#"{"choices":[]}"#.to_owned())));
    assert_eq!(chat(&stub, "key", asked), None);
    assert_eq!(chat(&stub, "key", asked), None);
    assert_eq!(chat(&stub, "key", asked).map(|(status, _)| status), Some(200));
    assert_eq!(stub.calls(), 8);
}
