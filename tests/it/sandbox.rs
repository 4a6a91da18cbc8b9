//! The simulated Meta from outside: what it refuses, what a caller sees of each fault, how it posts webhooks; and the
//! `sandbox` and `dev` commands as somebody new would try them.
#![allow(clippy::disallowed_methods, reason = "tests on plain threads")]

mod dev;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whatsapp_webhook::sandbox::openai::OpenAi;
use whatsapp_webhook::sandbox::{Calls, Fault, Number, Options, Sandbox, What};
use whatsapp_webhook::secret::Secret;

const BINARY: &str = env!("CARGO_BIN_EXE_whatsapp-webhook");
const SOON: Duration = Duration::from_secs(20);
const SHOP: &str = "1001";
const BANK: &str = "1002";
const ANNA: &str = "16505551234";

fn meta() -> Sandbox {
    meta_with(|_| {})
}

fn meta_with(change: impl FnOnce(&mut Options)) -> Sandbox {
    super::coroutines();
    let number = |id: &str, token: &str| Number {
        phone_number_id: id.to_owned(),
        waba_id: format!("9{id}"),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(token),
    };
    let numbers = vec![number(SHOP, "shop-token"), number(BANK, "bank-token")];
    let mut options = Options::new(Secret::new("secret"), numbers);
    options.redeliver_after = Duration::from_millis(20);
    change(&mut options);
    Sandbox::start(options).expect("starts")
}

/// What a caller sees: status and body, or nothing.
type Seen = Option<(u16, String)>;

fn ask(address: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &str) -> Seen {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(SOON)).expect("set");
    let bearer = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n{bearer}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length: usize = head.lines().find_map(|l| l.strip_prefix("Content-Length: "))?.parse().ok()?;
    (body.len() == length).then(|| (head[9..12].parse().expect("a status"), body.to_owned()))
}

fn send(meta: &Sandbox, number: &str, token: &str, body: &str) -> Seen {
    ask(meta.addr(), "POST", &format!("/v25.0/{number}/messages"), Some(token), body)
}

fn text(to: &str, text: &str, tag: &str) -> String {
    format!(
        r#"{{"messaging_product":"whatsapp","to":"{to}","type":"text","text":{{"body":"{text}"}},"biz_opaque_callback_data":"{tag}"}}"#
    )
}

fn code(seen: &Seen) -> i64 {
    let (_, body) = seen.as_ref().expect("an answer");
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    json["error"]["code"].as_i64().unwrap_or(0)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Body and signature of what was posted.
type Posted = (String, String);

/// A server for webhooks on a thread: keeps the bodies and answers what `status` says of the n-th.
struct Hook {
    url: String,
    got: Arc<Mutex<Vec<Posted>>>,
}

fn hook(status: impl Fn(usize) -> u16 + Send + Sync + 'static) -> Hook {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("http://{}/webhook", listener.local_addr().expect("bound"));
    let got = Arc::new(Mutex::new(Vec::new()));
    let (kept, status) = (Arc::clone(&got), Arc::new(status));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (kept, status) = (Arc::clone(&kept), Arc::clone(&status));
            std::thread::spawn(move || serve(stream, &kept, &*status));
        }
    });
    Hook { url, got }
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Posted>>, status: &(dyn Fn(usize) -> u16 + Sync)) {
    let mut answers = stream.try_clone().expect("cloned");
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut signature) = (0, String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().expect("a length"),
                    "x-hub-signature-256" => value.clone_into(&mut signature),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let nth = {
            let mut kept = kept.lock();
            kept.push((String::from_utf8(body).expect("text"), signature));
            kept.len()
        };
        let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 0\r\n\r\n", status(nth));
        if answers.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_number_takes_only_its_own_token() {
    let meta = meta();
    let hello = text(ANNA, "hello", "r1");
    let sent = send(&meta, SHOP, "shop-token", &hello);
    assert_eq!(sent.as_ref().expect("an answer").0, 200);
    assert!(sent.expect("an answer").1.contains(r#""id":"wamid."#));
    assert_eq!(code(&send(&meta, SHOP, "bank-token", &hello)), 100, "another tenant's token");
    assert_eq!(code(&send(&meta, SHOP, "made-up", &hello)), 190);
    assert_eq!(code(&ask(meta.addr(), "POST", "/v25.0/1001/messages", None, &hello)), 190);
    assert_eq!(code(&send(&meta, "1003", "shop-token", &hello)), 100);
    assert_eq!((meta.sent_count(), meta.violation_count()), (1, 4));
    let shown = format!("{:?}", meta.violations());
    assert!(
        !shown.contains("token") || !shown.contains("bank-token") && !shown.contains("made-up"),
        "{shown}"
    );
}

#[test]
fn what_graph_refuses_is_refused_with_its_code_and_kept_as_a_violation() {
    let meta = meta();
    let with = |members: &str| format!(r#"{{"messaging_product":"whatsapp","to":"{ANNA}",{members}}}"#);
    let long = "x".repeat(4097);
    let cases = [
        ("not JSON".to_owned(), 100),
        (format!(r#"{{"to":"{ANNA}","type":"text","text":{{"body":"x"}}}}"#), 100),
        (r#"{"messaging_product":"whatsapp","type":"text","text":{"body":"x"}}"#.to_owned(), 100),
        (
            r#"{"messaging_product":"whatsapp","to":"anna","type":"text","text":{"body":"x"}}"#.to_owned(),
            131_009,
        ),
        (with(r#""type":"fax","fax":{}"#), 100),
        (with(r#""type":"text","text":{"body":""}"#), 100),
        (with(&format!(r#""type":"text","text":{{"body":"{long}"}}"#)), 100),
        (
            with(&format!(
                r#""type":"text","text":{{"body":"x"}},"biz_opaque_callback_data":"{}""#,
                "c".repeat(513)
            )),
            100,
        ),
        (with(r#""typo":1,"type":"text","text":{"body":"x"}"#), 100),
        (
            with(
                r#""type":"interactive","interactive":{"type":"button","body":{"text":"x"},"action":{"buttons":[]}}"#,
            ),
            131_009,
        ),
        (r#"{"messaging_product":"whatsapp","status":"read","message_id":"no wamid"}"#.to_owned(), 131_009),
    ];
    for (nth, (body, expected)) in cases.iter().enumerate() {
        let seen = send(&meta, SHOP, "shop-token", body);
        assert_eq!(code(&seen), *expected, "case {nth}: {seen:?}");
        assert_eq!(meta.violation_count(), nth as u64 + 1);
    }
    assert_eq!(meta.sent_count(), 0);
}

#[test]
fn a_message_that_goes_out_twice_is_seen() {
    let meta = meta();
    for tag in ["r1", "r2", "r1"] {
        assert_eq!(send(&meta, SHOP, "shop-token", &text(ANNA, "x", tag)).expect("an answer").0, 200);
    }
    assert_eq!(send(&meta, BANK, "bank-token", &text(ANNA, "x", "r2")).expect("an answer").0, 200);
    assert_eq!((meta.sent_count(), meta.doubled()), (4, 1));
}

#[test]
fn each_fault_looks_to_the_caller_as_it_should_and_says_whether_the_message_went_out() {
    let meta = meta();
    let cases: [(What, Option<u16>, u64); 9] = [
        (What::Graph(131_056), Some(400), 0),
        (What::Graph(190), Some(401), 0),
        (What::Html500, Some(500), 0),
        (What::Reset, None, 0),
        (What::Close, None, 0),
        (What::StallMs(50), None, 0),
        (What::AcceptThenReset, None, 1),
        (What::AcceptThenHalf, None, 1),
        (What::AcceptThen500, Some(500), 1),
    ];
    for (nth, (what, status, out)) in cases.into_iter().enumerate() {
        let before = meta.sent_count();
        meta.faults().add(Fault::next(1, what.clone()).to(ANNA));
        let other = send(&meta, SHOP, "shop-token", &text("4915112345678", "x", &format!("o{nth}")));
        assert_eq!(other.expect("another recipient is not hit").0, 200);
        let seen = send(&meta, SHOP, "shop-token", &text(ANNA, "x", &format!("r{nth}")));
        assert_eq!(seen.as_ref().map(|(status, _)| *status), status, "{what:?}: {seen:?}");
        assert_eq!(meta.sent_count() - before, 1 + out, "{what:?}");
        let again = send(&meta, SHOP, "shop-token", &text(ANNA, "x", &format!("a{nth}")));
        assert_eq!(again.expect("it hits once").0, 200, "{what:?}");
    }
    assert_eq!(
        (meta.faults().hits(), meta.violation_count()),
        (9, 0),
        "a fault is no violation of the caller's"
    );
}

#[test]
fn a_reset_is_a_reset_on_the_wire() {
    let meta = meta();
    meta.faults().add(Fault::next(1, What::Reset).calls(Calls::All));
    let mut stream = TcpStream::connect(meta.addr()).expect("connects");
    let body = text(ANNA, "x", "r");
    let request = format!(
        "POST /v25.0/{SHOP}/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-token\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let end = stream.read(&mut [0; 16]).expect_err("reset");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn limits_are_those_of_meta_where_they_are_on() {
    let meta = meta_with(|options| {
        options.pair_limit = true;
        options.window = true;
    });
    assert_eq!(
        code(&send(&meta, SHOP, "shop-token", &text(ANNA, "x", "r"))),
        131_047,
        "she said nothing yet"
    );
    meta.say(SHOP, ANNA, "Anna", "hello");
    let codes: Vec<i64> =
        (0..46).map(|n| code(&send(&meta, SHOP, "shop-token", &text(ANNA, "x", &format!("r{n}"))))).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 45);
    assert_eq!(codes.last(), Some(&131_056));
}

#[test]
fn what_one_customer_says_is_posted_in_order_until_each_gets_its_200() {
    let meta = meta();
    // every third post fails
    let hook = hook(|nth| if nth.is_multiple_of(3) { 503 } else { 200 });
    meta.set_webhook_url(&hook.url);
    for n in 0..30 {
        meta.say(SHOP, ANNA, "Zo\u{eb}", &format!("line {n:02}"));
    }
    assert!(meta.wait_quiet(SOON));
    let got = hook.got.lock();
    let mut said: Vec<String> = got
        .iter()
        .map(|(body, signature)| {
            assert_eq!(*signature, meta.signature(body.as_bytes()), "signed over the bytes on the wire");
            assert!(body.is_ascii(), "escaped as Meta does");
            let at = body.find("line ").expect("the text");
            body[at..at + 7].to_owned()
        })
        .collect();
    assert!(said.len() > 30, "some came again");
    said.dedup();
    let expected: Vec<String> = (0..30).map(|n| format!("line {n:02}")).collect();
    assert_eq!(said, expected);
    assert_eq!((meta.webhooks().delivered, meta.webhooks().dropped), (30, 0));
}

#[test]
fn every_accepted_message_gets_its_three_statuses_however_long_the_server_is_away() {
    let meta = meta_with(|options| options.status_delay = Duration::from_millis(1));
    for n in 0..3_000 {
        assert_eq!(
            send(&meta, SHOP, "shop-token", &text(ANNA, "x", &format!("r{n}"))).expect("an answer").0,
            200
        );
    }
    // more than are posted at once, and nobody listens yet
    let hook = hook(|nth| if nth.is_multiple_of(10) { 500 } else { 200 });
    meta.set_webhook_url(&hook.url);
    assert!(meta.wait_quiet(Duration::from_secs(60)), "{:?}", meta.webhooks());
    let mut statuses: Vec<(String, String)> = hook
        .got
        .lock()
        .iter()
        .map(|(body, _)| {
            let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
            let status = &json["entry"][0]["changes"][0]["value"]["statuses"][0];
            let text = |name: &str| status[name].as_str().expect("text").to_owned();
            (text("biz_opaque_callback_data"), text("status"))
        })
        .collect();
    statuses.sort();
    statuses.dedup();
    assert_eq!(statuses.len(), 9_000);
    assert_eq!(meta.webhooks().dropped, 0);
}

#[test]
fn a_failed_delivery_is_reported_by_webhook_alone() {
    let meta = meta();
    let hook = hook(|_| 200);
    meta.set_webhook_url(&hook.url);
    meta.faults().add(Fault::next(1, What::StatusFailed(131_026)));
    assert_eq!(send(&meta, SHOP, "shop-token", &text(ANNA, "x", "r9")).expect("an answer").0, 200);
    assert!(meta.wait_quiet(SOON));
    let got = hook.got.lock();
    assert_eq!(got.len(), 1);
    let json: serde_json::Value = serde_json::from_str(&got[0].0).expect("JSON");
    let status = &json["entry"][0]["changes"][0]["value"]["statuses"][0];
    assert_eq!(
        (status["status"].as_str(), status["errors"][0]["code"].as_i64()),
        (Some("failed"), Some(131_026))
    );
    assert_eq!(status["biz_opaque_callback_data"], "r9");
}

#[test]
fn numbers_and_media_are_shown_to_their_owner_only() {
    let meta = meta();
    meta.add_media("555", "image/png", b"pixels".to_vec());
    let get = |path: &str, token| ask(meta.addr(), "GET", path, Some(token), "");
    let (status, body) = get("/v25.0/1001", "shop-token").expect("an answer");
    assert!(status == 200 && body.contains("15550783881"), "{body}");
    assert_eq!(code(&get("/v25.0/1001", "bank-token")), 100);
    let (_, body) = get("/v25.0/555", "shop-token").expect("an answer");
    let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let url = json["url"].as_str().expect("a URL");
    let path = url.strip_prefix(&meta.url()).expect("on this server");
    assert_eq!(get(path, "shop-token").expect("an answer"), (200, "pixels".to_owned()));
    assert_ne!(get(path, "made-up").map(|(status, _)| status), Some(200));
}

/// Killed and reaped at the end.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `sandbox` command, run in a folder, and its address.
fn command(folder: &Path, hook: &Hook) -> (Running, SocketAddr) {
    let mut child = Command::new(BINARY)
        .args(["sandbox", "--listen", "127.0.0.1:0", "--webhook-url", &hook.url, "--number", "77:tok"])
        .env_clear()
        .current_dir(folder)
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("starts");
    let mut lines = BufReader::new(child.0.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("http://127.0.0.1:")).expect("says where");
    let at = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    // it goes on writing
    std::thread::spawn(move || lines.for_each(drop));
    (child, at.parse().expect("an address"))
}

const SAY: &str = r#"{"phone_number_id":"77","from":"16505551234","text":"hello"}"#;

#[test]
fn the_sandbox_command_is_driven_over_http_and_ends_on_sigterm() {
    let hook = hook(|_| 200);
    let folder = tempfile::tempdir().expect("a folder");
    let (mut child, address) = command(folder.path(), &hook);
    let (status, wamid) = ask(address, "POST", "/_sandbox/say", None, SAY).expect("an answer");
    assert!(status == 200 && wamid.contains("wamid."), "{wamid}");
    until("the webhook", || hook.got.lock().iter().any(|(body, _)| body.contains("hello")));
    let fault = r#"{"what":{"graph":131056},"times":1}"#;
    assert_eq!(ask(address, "POST", "/_sandbox/faults", None, fault).expect("an answer").0, 200);
    let message = text(ANNA, "hi", "r1");
    let path = "/v25.0/77/messages";
    assert_eq!(code(&ask(address, "POST", path, Some("tok"), &message)), 131_056);
    assert_eq!(ask(address, "POST", path, Some("tok"), &message).expect("an answer").0, 200);
    let (_, sent) = ask(address, "GET", "/_sandbox/sent", None, "").expect("an answer");
    let sent: serde_json::Value = serde_json::from_str(&sent).expect("JSON");
    assert_eq!(sent[0]["body"]["text"]["body"], "hi");
    assert_eq!(sent.as_array().map(Vec::len), Some(1));
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
    assert!(child.0.wait().expect("waited").success());
}

#[test]
fn the_sandbox_command_signs_with_the_first_secret_that_the_server_reads() {
    let hook = hook(|_| 200);
    let folder = tempfile::tempdir().expect("a folder");
    let dotenv = "WHATSAPP_APP_SECRET=main=first,other=second\n";
    std::fs::write(folder.path().join(".env"), dotenv).expect("written");
    let (_child, address) = command(folder.path(), &hook);
    assert_eq!(ask(address, "POST", "/_sandbox/say", None, SAY).map(|answer| answer.0), Some(200));
    until("the webhook", || !hook.got.lock().is_empty());
    let (body, signature) = hook.got.lock().remove(0);
    let signed = crate::harness::signed(body.as_bytes(), "first");
    assert!(String::from_utf8(signed).expect("text").contains(&signature), "{signature}");
}
