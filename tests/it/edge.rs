//! The edge over real sockets: each row of the guard, each route, and what strange clients do to it. The inbox and the
//! console behind it are fakes; every test has its own server on its own port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use ring::hmac;
use whatsapp_webhook::config::{App, Http, Rates, Webhook};
use whatsapp_webhook::event::{Item, ItemId, Said};
use whatsapp_webhook::failure::{Failure, Reason};
use whatsapp_webhook::http::{self, Server};
use whatsapp_webhook::inbox::{
    Counts, Evidence, Feed, Inbox, NewTurn, OpenTurn, Page, Position, Refusal, State, Ticket, TurnId,
};
use whatsapp_webhook::ops::Console;
use whatsapp_webhook::secret::Secret;

const SECRET: &str = "test_app_secret";
const BODY: &str = r#"{"object":"whatsapp_business_account","entry":[]}"#;

// ---- the fakes

#[derive(Default)]
struct Books {
    bodies: Mutex<Vec<(u64, Vec<u8>)>>,
    refuse: AtomicU8,
    stall: AtomicBool,
    waiting: AtomicUsize,
    tickets: AtomicUsize,
    panics: AtomicBool,
}

struct FakeInbox(Arc<Books>);

struct FakeTicket {
    books: Arc<Books>,
    body: Vec<u8>,
    items: Vec<Item>,
}

impl Ticket for FakeTicket {
    fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }
    fn body_and_items(&mut self) -> (&[u8], &mut Vec<Item>) {
        (&self.body, &mut self.items)
    }
    fn append(&mut self, app: u64) -> Result<(), Refusal> {
        assert!(!self.books.panics.load(SeqCst), "the inbox was told to panic");
        self.books.waiting.fetch_add(1, SeqCst);
        while self.books.stall.load(SeqCst) {
            whatsapp_webhook::clock::sleep(Duration::from_millis(1));
        }
        self.books.waiting.fetch_sub(1, SeqCst);
        let refusal = match self.books.refuse.load(SeqCst) {
            0 => None,
            1 => Some(Refusal::Poisoned),
            2 => Some(Refusal::Full),
            3 => Some(Refusal::Late),
            _ => Some(Refusal::Draining),
        };
        let body = std::mem::take(&mut self.body);
        self.items.clear();
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        self.books.bodies.lock().unwrap().push((app, body));
        Ok(())
    }
}

type Done<T> = Result<T, Failure>;

impl Inbox for FakeInbox {
    fn forget(&self, _: &str) {}
    fn ticket(&self) -> Box<dyn Ticket> {
        self.0.tickets.fetch_add(1, SeqCst);
        Box::new(FakeTicket { books: self.0.clone(), body: Vec::new(), items: Vec::new() })
    }
    fn unhealthy(&self) -> Option<Refusal> {
        None
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
    fn feed(&self, _: Arc<dyn Feed>) {}
    fn open_numbers(&self) -> Done<(Vec<u64>, Position)> {
        unreachable!()
    }
    fn pending(&self, _: u64, _: Position, _: usize) -> Done<Page> {
        unreachable!()
    }
    fn open_turns(&self, _: TurnId, _: usize) -> Done<Vec<OpenTurn>> {
        unreachable!()
    }
    fn history(&self, _: &str, _: usize) -> Done<Vec<Said>> {
        unreachable!()
    }
    fn answered(&self, _: NewTurn) -> Done<OpenTurn> {
        unreachable!()
    }
    fn sending(&self, _: &str, _: u64) -> Done<()> {
        unreachable!()
    }
    fn sent(&self, _: &str, _: &str) {}
    fn unsent(&self, _: &str) {}
    fn reply_dead(&self, _: &str, _: &Reason, _: &str) {}
    fn evidence(&self, _: &str, _: Duration) -> Option<Evidence> {
        None
    }
    fn settle(&self, _: &[ItemId], _: State, _: &Reason, _: &str) {}
    fn close(&self) -> Done<()> {
        Ok(())
    }
}

#[derive(Default)]
struct FakeConsole {
    sick: AtomicBool,
    cold: AtomicBool,
    connected: AtomicBool,
    cleared: AtomicUsize,
    large: AtomicBool,
}

impl Console for FakeConsole {
    fn health(&self) -> Result<(), &'static str> {
        if self.sick.load(SeqCst) { Err("the \"store\" failed") } else { Ok(()) }
    }
    fn database_connected(&self) -> bool {
        self.connected.load(SeqCst)
    }
    fn ready(&self) -> Result<(), &'static str> {
        if self.cold.load(SeqCst) { Err("starting") } else { Ok(()) }
    }
    fn metrics_json(&self) -> String {
        r#"{"cache":{}}"#.to_owned()
    }
    fn metrics_text(&self) -> String {
        if self.large.load(SeqCst) {
            return "# large\n".repeat(1 << 20);
        }
        "# HELP whatsapp_webhook_x y\n".to_owned()
    }
    fn clear_cache(&self) {
        self.cleared.fetch_add(1, SeqCst);
    }
    fn warm_up_cache(&self) -> Result<(), String> {
        if self.connected.load(SeqCst) {
            Ok(())
        } else {
            Err("mongodb://user:password@host is away".to_owned())
        }
    }
}

// ---- the harness

struct Edge {
    server: Server,
    books: Arc<Books>,
    console: Arc<FakeConsole>,
}

fn http_config() -> Http {
    Http {
        listen: "127.0.0.1:0".parse().expect("address"),
        max_connections: 2000,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(30),
        admin_token: None,
        trusted_proxies: vec!["127.0.0.0/8".parse().expect("net")],
        rates: Rates { health: 0, ready: 0, metrics: 0, admin: 0, unverified: 0, webhook: 0 },
    }
}

fn webhook_config() -> Webhook {
    Webhook {
        verify_tokens: vec![Secret::new("right"), Secret::new("too")],
        apps: vec![App { name: None, secret: Secret::new(SECRET) }],
        allow_unsigned: false,
    }
}

fn configure_may() {
    static ONCE: Once = Once::new();
    // the stack size is in words: 256 KiB
    ONCE.call_once(|| {
        may::config().set_stack_size((256 << 10) / size_of::<usize>()).set_pool_capacity(64);
        may::config().set_worker_pin(false);
    });
}

fn edge_with(http: Http, webhook: Webhook) -> Edge {
    configure_may();
    let books = Arc::new(Books::default());
    let console = Arc::new(FakeConsole::default());
    let server = http::serve(http, webhook, Arc::new(FakeInbox(books.clone())), console.clone())
        .expect("the edge starts");
    Edge { server, books, console }
}

fn edge() -> Edge {
    edge_with(http_config(), webhook_config())
}

fn edge_but(change: impl FnOnce(&mut Http)) -> Edge {
    let mut http = http_config();
    change(&mut http);
    edge_with(http, webhook_config())
}

struct Client {
    stream: TcpStream,
    rest: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    code: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, rest: Vec::new() }
    }
    fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }
    /// The next reply; `None` at the end of the stream.
    fn reply_to(&mut self, method: &str) -> Option<Reply> {
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(end) = self.rest.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(self.rest[..end].to_vec()).expect("head");
                let code: u16 = head.split(' ').nth(1).expect("status").parse().expect("code");
                if code == 100 {
                    self.rest.drain(..end + 4);
                    return Some(Reply { code, head, body: Vec::new() });
                }
                let reply = Reply { code, head, body: Vec::new() };
                let length: usize = reply.header("content-length").expect("length").parse().expect("number");
                let length = if method == "HEAD" { 0 } else { length };
                if self.rest.len() >= end + 4 + length {
                    let body = self.rest[end + 4..end + 4 + length].to_vec();
                    self.rest.drain(..end + 4 + length);
                    return Some(Reply { body, ..reply });
                }
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.rest.is_empty(), "cut: {:?}", String::from_utf8_lossy(&self.rest));
                    return None;
                }
                Ok(n) => self.rest.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no reply: {e}"),
            }
        }
    }
    fn reply(&mut self) -> Option<Reply> {
        self.reply_to("GET")
    }
    fn code(&mut self) -> u16 {
        self.reply().map_or(0, |reply| reply.code)
    }
    /// The end, and nothing before it.
    fn is_closed(&mut self) -> bool {
        let mut more = [0; 512];
        match self.stream.read(&mut more) {
            Ok(n) => self.rest.extend_from_slice(&more[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("still open: {e}"),
        }
        assert!(self.rest.is_empty(), "not closed but: {}", String::from_utf8_lossy(&self.rest));
        true
    }
}

impl Edge {
    fn client(&self) -> Client {
        Client::new(self.server.local_addr())
    }
    fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        self.client().send(request).reply().expect("a reply")
    }
    fn get(&self, path: &str) -> Reply {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }
    fn bodies(&self) -> Vec<Vec<u8>> {
        self.books.bodies.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
    fn wait_until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let started = Instant_::now();
        while !is(self) {
            assert!(started.elapsed() < Duration::from_secs(15), "never: {what}");
            pause(5);
        }
    }
}

/// Tests may look at the clock.
struct Instant_(Instant);
impl Instant_ {
    #[allow(clippy::disallowed_methods, reason = "a test's own clock")]
    fn now() -> Self {
        Self(Instant::now())
    }
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[allow(clippy::disallowed_methods, reason = "a test's own thread")]
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn sign(body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("sha256={}", hex::encode(hmac::sign(&key, body)))
}

fn post_with(body: &[u8], signature: Option<&str>, lines: &str) -> Vec<u8> {
    let signature = signature.map_or(String::new(), |s| format!("X-Hub-Signature-256: {s}\r\n"));
    let head = format!(
        "POST /webhook HTTP/1.1\r\nHost: x\r\n{signature}{lines}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn post(body: &[u8]) -> Vec<u8> {
    post_with(body, Some(&sign(body)), "")
}

fn ignore<T>(_: T) {}

// ---- the webhook

#[test]
fn a_signed_body_is_stored_and_answered_200() {
    let edge = edge();
    let mut client = edge.client();
    for path in ["/webhook", "/whatsapp_response", "/webhook?x=y"] {
        let request = String::from_utf8(post(BODY.as_bytes())).expect("text").replace("/webhook", path);
        let reply = client.send(request).reply().expect("reply");
        assert_eq!((reply.code, reply.text()), (200, r#"{"status":"ok"}"#));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    assert_eq!(edge.bodies(), [BODY.as_bytes(); 3]);
    assert_eq!(edge.books.tickets.load(SeqCst), 1, "one ticket a connection");
}

#[test]
fn a_wrong_or_missing_signature_is_401_and_the_connection_goes_on() {
    let edge = edge();
    let mut client = edge.client();
    let wrong = format!("sha256={}", "0".repeat(64));
    let twice = format!("{}\r\nX-Hub-Signature-256: {}", sign(BODY.as_bytes()), sign(BODY.as_bytes()));
    for signature in [None, Some(wrong.as_str()), Some("sha256=00"), Some(""), Some(twice.as_str())] {
        assert_eq!(client.send(post_with(BODY.as_bytes(), signature, "")).code(), 401, "{signature:?}");
    }
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 200);
    assert_eq!(edge.bodies().len(), 1);
}

#[test]
fn a_refusal_of_the_inbox_is_503_with_retry_after() {
    let edge = edge();
    let mut client = edge.client();
    for refusal in 1..=4 {
        edge.books.refuse.store(refusal, SeqCst);
        let reply = client.send(post(BODY.as_bytes())).reply().expect("reply");
        assert_eq!((reply.code, reply.header("retry-after")), (503, Some("5")));
    }
    edge.books.refuse.store(0, SeqCst);
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 200);
}

#[test]
fn a_signed_body_that_is_not_json_is_kept_and_an_unsigned_one_is_400() {
    let edge = edge();
    assert_eq!(edge.ask(post(b"not json")).code, 200);
    assert_eq!(edge.bodies(), [b"not json"]);
    let open = edge_with(http_config(), Webhook { allow_unsigned: true, ..webhook_config() });
    let mut client = open.client();
    assert_eq!(client.send(post_with(b"not json", None, "")).code(), 400);
    assert_eq!(client.send(post_with(BODY.as_bytes(), None, "")).code(), 200);
    assert_eq!(client.send(post_with(BODY.as_bytes(), Some("sha256=00"), "")).code(), 401);
    assert_eq!(open.bodies(), [BODY.as_bytes()]);
}

#[test]
fn a_body_of_4_mib_passes_on_a_coroutines_stack_and_one_byte_more_is_413() {
    let edge = edge();
    // the deepest way: deep nesting and a megabyte of text, which the scan reads instead of the tape
    let mut body = format!(r#"{{"x":{}1{},"entry":["#, "[".repeat(10_000), "]".repeat(10_000));
    let filler = 4 << 20;
    body.push_str(r#"{"id":"1","changes":[{"field":"messages","value":{"messages":[{"id":"w","from":"1","type":"text","text":{"body":""#);
    let end = r#""}}]}}]}]}"#;
    body.extend(std::iter::repeat_n('x', filler - body.len() - end.len()));
    body.push_str(end);
    assert_eq!(body.len(), filler);
    let mut client = edge.client();
    assert_eq!(client.send(post(body.as_bytes())).code(), 200);
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 200, "the connection goes on");
    assert_eq!(edge.bodies()[0].len(), 4 << 20);
    let reply =
        client.send(post(&vec![b'x'; (4 << 20) + 1])).reply().expect("read under the client's own sending");
    assert_eq!(reply.code, 413);
    assert!(client.is_closed());
    assert_eq!(edge.bodies().len(), 2);
}

#[test]
fn a_body_cut_in_the_middle_is_never_stored() {
    let edge = edge();
    let whole = post(BODY.as_bytes());
    for at in [1, 20, BODY.len() - 1] {
        let mut client = edge.client();
        client.send(&whole[..whole.len() - at]);
        pause(30);
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(client.code(), 400);
        assert!(client.is_closed());
    }
    let mut client = edge.client();
    client.send(&whole[..whole.len() - 1]);
    drop(client);
    edge.wait_until("all gone", |edge| edge.server.connections() == 0);
    assert!(edge.bodies().is_empty());
}

// ---- framing

#[test]
fn bad_lengths_and_transfer_codings_are_refused_and_their_bytes_are_never_a_request() {
    let edge = edge();
    let smuggled = String::from_utf8(post(BODY.as_bytes())).expect("text");
    for (lines, code) in [
        ("", 411),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: \u{ff}\r\n", 400),
        ("Content-Length: 99999999999999999999999999\r\n", 413),
        ("Content-Length: 4194305\r\n", 413),
        ("Transfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 501),
        ("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", 501),
        ("Content-Length: 5\r\nExpect: the-unexpected\r\n", 417),
    ] {
        let mut client = edge.client();
        client.send(format!("POST /webhook HTTP/1.1\r\nHost: x\r\n{lines}\r\n0\r\n\r\n{smuggled}"));
        let reply = client.reply().unwrap_or_else(|| panic!("no reply to {lines:?}"));
        assert_eq!(reply.code, code, "{lines:?}");
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(client.is_closed(), "{lines:?}");
    }
    assert!(edge.bodies().is_empty());
}

#[test]
fn a_body_where_none_belongs_is_read_and_is_not_the_next_request() {
    let edge = edge();
    let mut client = edge.client();
    let inner = String::from_utf8(post(BODY.as_bytes())).expect("text");
    for (method, path, code) in [
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("PUT", "/webhook", 405),
        ("POST", "/health", 405),
        ("DELETE", "/nothing", 404),
    ] {
        let head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", inner.len());
        assert_eq!(client.send(head).send(&inner).code(), code, "{method} {path}");
    }
    assert_eq!(client.send("GET /ready HTTP/1.1\r\n\r\n").code(), 200);
    assert!(edge.bodies().is_empty());
    let large = format!("GET /health HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let mut client = edge.client();
    assert_eq!(client.send(large).code(), 200);
    assert!(client.is_closed());
}

#[test]
fn no_http_is_told_400_and_too_many_lines_431() {
    let edge = edge();
    for garbage in [
        "garbage\r\n\r\n",
        "GET /health\r\n\r\n",
        "GET /health HTTP/1.1\r\nbad line\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
    ] {
        let mut client = edge.client();
        assert_eq!(client.send(garbage).code(), 400, "{garbage:?}");
        assert!(client.is_closed());
    }
    let lines = |n: usize| (0..n).map(|i| format!("X-Line-{i}: value\r\n")).collect::<String>();
    assert_eq!(edge.ask(format!("GET /health HTTP/1.1\r\n{}\r\n", lines(16))).code, 200);
    for n in [17, 40, 200] {
        let mut client = edge.client();
        assert_eq!(client.send(format!("GET /health HTTP/1.1\r\n{}\r\n", lines(n))).code(), 431, "{n}");
        assert!(client.is_closed());
    }
    // and after a good request on the same connection
    let mut client = edge.client();
    assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    assert_eq!(client.send("garbage\r\n\r\n").code(), 400);
}

#[test]
fn an_endless_header_line_is_cut() {
    let edge = edge();
    let mut client = edge.client();
    client.stream.set_write_timeout(Some(Duration::from_secs(5))).expect("timeout");
    client.send("GET /health HTTP/1.1\r\nX-Endless: ");
    let started = Instant_::now();
    let mut sent = 0_usize;
    while let Ok(n) = client.stream.write(&[b'x'; 4096]) {
        sent += n;
        assert!(started.elapsed() < Duration::from_secs(8), "not cut after {sent} bytes");
        if sent > 80 << 10 {
            pause(2);
        }
    }
    assert_eq!(edge.get("/health").code, 200);
    edge.wait_until("gone", |edge| edge.server.connections() <= 1);
}

#[test]
fn expect_continue_gets_its_interim_answer_only_where_the_body_is_wanted() {
    let edge = edge();
    let mut client = edge.client();
    for _ in 0..2 {
        let request = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Expect: 100-continue\r\n");
        let (head, body) = request.split_at(request.len() - BODY.len());
        assert_eq!(client.send(head).code(), 100);
        assert_eq!(client.send(body).code(), 200);
    }
    let too_large = "POST /webhook HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n";
    assert_eq!(edge.client().send(too_large).code(), 413);
    let old = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Expect: 100-continue\r\n");
    let old = String::from_utf8(old).expect("text").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(edge.client().send(old).code(), 200);
}

#[test]
fn http_1_0_and_connection_close_end_the_connection_after_the_answer() {
    let edge = edge();
    for request in [
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: foo, CLOSE\r\n\r\n",
    ] {
        let mut client = edge.client();
        let reply = client.send(request).reply().expect("reply");
        assert_eq!((reply.code, reply.header("connection")), (200, Some("close")), "{request:?}");
        assert!(client.is_closed());
    }
    let close = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Connection: close\r\n");
    let mut client = edge.client();
    assert_eq!(client.send(close).code(), 200);
    assert!(client.is_closed());
    assert_eq!(edge.bodies().len(), 1);
}

#[test]
fn a_large_answer_to_a_connection_that_ends_is_whole() {
    let edge = edge();
    edge.console.large.store(true, SeqCst);
    let mut client = edge.client();
    client.send("GET /metrics/prometheus HTTP/1.1\r\nConnection: close\r\n\r\n");
    pause(100);
    assert_eq!(client.reply().expect("reply").body.len(), 8 << 20);
    assert!(client.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let edge = edge();
    let mut client = edge.client();
    let mut all = Vec::new();
    for i in 0..200 {
        let body = format!(r#"{{"entry":[],"n":{i}}}"#);
        all.extend_from_slice(&post(body.as_bytes()));
        all.extend_from_slice(b"GET /ready HTTP/1.1\r\n\r\n");
        all.extend_from_slice(b"GET /nothing HTTP/1.1\r\n\r\n");
    }
    client.send(&all);
    for _ in 0..200 {
        assert_eq!((client.code(), client.code(), client.code()), (200, 200, 404));
    }
    let bodies = edge.bodies();
    assert!(bodies.iter().enumerate().all(|(i, b)| b.ends_with(format!(r#""n":{i}}}"#).as_bytes())));
}

#[test]
fn what_is_pipelined_behind_a_large_body_does_not_wait() {
    let edge = edge();
    let large = format!(r#"{{"entry":[],"x":"{}"}}"#, "x".repeat(1 << 20));
    for _ in 0..20 {
        let mut client = edge.client();
        let small = post(BODY.as_bytes());
        let started = Instant_::now();
        client.send([post(large.as_bytes()), small.repeat(300)].concat());
        for _ in 0..301 {
            assert_eq!(client.code(), 200);
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

#[test]
fn what_comes_with_the_body_and_was_not_read_with_it_does_not_wait() {
    let edge = edge();
    for _ in 0..5 {
        let whole = post(&[b'x'; 10_000]);
        let (head, body) = whole.split_at(whole.len() - 10_000);
        let mut client = edge.client();
        client.send(head);
        pause(20);
        let started = Instant_::now();
        client.send([body, &post(BODY.as_bytes()).repeat(200)].concat());
        for _ in 0..201 {
            assert_eq!(client.code(), 200);
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

#[test]
fn a_client_that_ends_its_half_behind_its_body_is_answered_and_closed() {
    let edge = edge();
    for body in [BODY.to_owned(), format!(r#"{{"entry":[],"x":"{}"}}"#, "x".repeat(100_000))] {
        let whole = post(body.as_bytes());
        let mut client = edge.client();
        client.send(&whole[..whole.len() - body.len()]);
        pause(20);
        client.send(&body);
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        let started = Instant_::now();
        assert_eq!(client.code(), 200);
        assert!(client.is_closed());
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}

#[test]
fn what_was_stored_is_acknowledged_even_if_something_bad_comes_right_behind_it() {
    let edge = edge();
    let good = post(BODY.as_bytes());
    let close = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Connection: close\r\n");
    for (behind, code) in [
        (&b"POST /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..], 501),
        (b"POST /webhook HTTP/1.1\r\n\r\nxyz", 411),
        (b"garbage\r\n\r\n", 400),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (&close, 200),
    ] {
        let mut client = edge.client();
        client.send([&good, &good, behind].concat());
        assert_eq!((client.code(), client.code(), client.code()), (200, 200, code));
        assert!(client.is_closed());
    }
    // an answer of another kind in front of it: still in order
    let mut client = edge.client();
    client.send(b"GET /nothing HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!((client.code(), client.code()), (404, 200));
    assert!(client.is_closed());
}

#[test]
fn a_client_that_has_ended_its_half_still_gets_its_answer() {
    let edge = edge();
    edge.books.stall.store(true, SeqCst);
    let mut client = edge.client();
    client.send(post(BODY.as_bytes()));
    edge.wait_until("the request is in the inbox", |edge| edge.books.waiting.load(SeqCst) == 1);
    client.stream.shutdown(Shutdown::Write).expect("shutdown");
    pause(20);
    edge.books.stall.store(false, SeqCst);
    assert_eq!(client.code(), 200);
    assert!(client.is_closed());
    assert_eq!(edge.bodies().len(), 1);
}

#[test]
fn a_client_that_ends_its_half_at_once_is_answered_and_200_only_if_it_was_stored() {
    let edge = edge();
    let mut stored = 0;
    for _ in 0..50 {
        let mut client = edge.client();
        client.send(post(BODY.as_bytes()));
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        let code = client.code();
        assert!([200, 503].contains(&code), "{code}");
        stored += usize::from(code == 200);
    }
    assert_eq!(edge.bodies().len(), stored);
}

// ---- deadlines

#[test]
fn a_late_header_is_told_408_and_cut() {
    let edge = edge_but(|http| http.header_timeout = Duration::from_millis(300));
    let started = Instant_::now();
    let mut client = edge.client();
    for byte in b"POST /webhook HTTP/1.1\r\nX-Slow: 1234567890" {
        client.send([*byte]);
        if started.elapsed() > Duration::from_millis(700) {
            break;
        }
        pause(25);
    }
    assert_eq!(client.code(), 408);
    assert!(client.is_closed());
    // again on a connection that was fine before
    let mut client = edge.client();
    assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    pause(200);
    client.send("GET /hea");
    assert_eq!(client.code(), 408);
}

#[test]
fn a_late_body_is_told_408_and_not_stored() {
    let edge = edge_but(|http| http.body_timeout = Duration::from_millis(300));
    let whole = post(BODY.as_bytes());
    let (start, end) = whole.split_at(whole.len() - 10);
    let mut client = edge.client();
    client.send(start);
    assert_eq!(client.code(), 408);
    client.send(end);
    assert!(client.is_closed());
    let mut client = edge.client();
    client.send("GET /health HTTP/1.1\r\nContent-Length: 10\r\n\r\nx");
    assert_eq!(client.code(), 408);
    assert!(client.is_closed());
    assert!(edge.bodies().is_empty());
}

#[test]
fn an_idle_connection_is_closed_and_a_waiting_one_is_not() {
    let edge = edge_but(|http| {
        http.idle_timeout = Duration::from_millis(300);
        http.body_timeout = Duration::from_millis(300);
        http.header_timeout = Duration::from_millis(300);
    });
    edge.books.stall.store(true, SeqCst);
    let mut waiting = edge.client();
    waiting.send(post(BODY.as_bytes()));
    let mut silent = edge.client();
    let mut used = edge.client();
    assert_eq!(used.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    assert!(silent.is_closed() && used.is_closed());
    pause(600);
    edge.books.stall.store(false, SeqCst);
    assert_eq!(waiting.code(), 200);
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let edge = edge_but(|http| http.body_timeout = Duration::from_millis(500));
    edge.console.large.store(true, SeqCst);
    let mut client = edge.client();
    client.send("GET /metrics/prometheus HTTP/1.1\r\n\r\n");
    edge.wait_until("cut", |edge| edge.server.connections() == 0);
    let mut close = edge.client();
    close.send("GET /metrics/prometheus HTTP/1.0\r\n\r\n");
    edge.wait_until("cut", |edge| edge.server.connections() == 0);
    drop((client, close));
}

#[test]
fn a_client_that_pipelines_and_never_reads_does_not_fill_the_memory() {
    let edge = edge();
    let mut client = edge.client();
    client.stream.set_write_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let many = "GET /nothing HTTP/1.1\r\n\r\n".repeat(1000);
    let mut sent = 0_usize;
    while client.stream.write_all(many.as_bytes()).is_ok() {
        sent += many.len();
        assert!(sent < 512 << 20, "still taken after {sent} bytes");
    }
    edge.wait_until("cut", |edge| edge.server.connections() == 0);
}

// ---- connections

#[test]
fn above_the_limit_new_connections_are_closed_and_old_ones_go_on() {
    let edge = edge_but(|http| http.max_connections = 5);
    let mut kept: Vec<_> = (0..5).map(|_| edge.client()).collect();
    for client in &mut kept {
        assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    }
    for _ in 0..50 {
        assert!(edge.client().is_closed());
    }
    for client in &mut kept {
        assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    }
    kept.pop();
    edge.wait_until("one place", |edge| edge.server.connections() == 4);
    assert_eq!(edge.get("/health").code, 200);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let edge = edge();
    let mut clients: Vec<_> = (0..1000).map(|_| edge.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        if i % 2 == 0 {
            client.send(post(BODY.as_bytes()));
        }
    }
    for client in clients.iter_mut().step_by(2) {
        assert_eq!(client.code(), 200);
    }
    edge.wait_until("all in the table", |edge| edge.server.connections() == 1000);
    let at_peak = open_files();
    drop(clients);
    edge.wait_until("none in the table", |edge| edge.server.connections() == 0);
    // other tests of this binary run beside it: nearly all of the 2,000 must be gone
    edge.wait_until("descriptors closed", |_| open_files() + 1500 < at_peak);
}

#[test]
fn a_port_in_use_is_an_error_and_port_0_is_a_real_one() {
    let edge = edge();
    let taken = edge.server.local_addr();
    assert_ne!(taken.port(), 0);
    let again = |listen| {
        let http = Http { listen, ..http_config() };
        let books = Arc::new(Books::default());
        http::serve(http, webhook_config(), Arc::new(FakeInbox(books)), Arc::new(FakeConsole::default()))
    };
    assert_eq!(again(taken).err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = other.local_addr().expect("address");
    assert_eq!(again(taken).err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));
    // right after a service that served: no TIME_WAIT in the way
    let address = edge.server.local_addr();
    assert_eq!(edge.ask("GET /health HTTP/1.0\r\n\r\n").code, 200);
    edge.server.drain(Duration::from_secs(5));
    assert!(again(address).is_ok());
    let v6 = again("[::1]:0".parse().expect("address")).expect("IPv6");
    let mut client = Client::new(v6.local_addr());
    assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
}

#[test]
fn a_drain_closes_idle_connections_at_once_and_lets_requests_finish() {
    let edge = edge();
    let mut idle: Vec<_> = (0..20).map(|_| edge.client()).collect();
    for client in idle.iter_mut().skip(10) {
        assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    }
    edge.books.stall.store(true, SeqCst);
    let mut busy = edge.client();
    busy.send(post(BODY.as_bytes()));
    edge.wait_until("busy", |edge| edge.books.waiting.load(SeqCst) == 1);
    edge.server.stop_accepting();
    assert!(TcpStream::connect(edge.server.local_addr()).is_err(), "the listening socket is closed");
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| edge.server.drain(Duration::from_secs(10)));
        for client in &mut idle {
            assert!(client.is_closed());
        }
        assert!(!drained.is_finished());
        edge.books.stall.store(false, SeqCst);
        let reply = busy.reply().expect("reply");
        assert_eq!((reply.code, reply.header("connection")), (200, Some("close")));
        assert_eq!(drained.join().expect("drain"), 0);
    });
    assert_eq!((edge.server.connections(), edge.bodies().len()), (0, 1));
}

#[test]
fn a_drain_cuts_what_does_not_finish() {
    let edge = edge();
    let mut slow = edge.client();
    slow.send("POST /webhook HTTP/1.1\r\n");
    edge.wait_until("there", |edge| edge.server.connections() == 1);
    pause(50);
    assert_eq!(edge.server.drain(Duration::from_millis(200)), 1);
    assert!(slow.is_closed());
    assert_eq!(edge.server.connections(), 0);
}

#[test]
fn progress_is_made_as_long_as_it_lives() {
    let edge = edge();
    let before = edge.server.progress();
    edge.wait_until("progress", |edge| edge.server.progress() > before + 2);
}

#[test]
fn a_panic_ends_one_connection_and_not_the_service() {
    let edge = edge();
    edge.books.panics.store(true, SeqCst);
    let mut client = edge.client();
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 0);
    edge.books.panics.store(false, SeqCst);
    edge.wait_until("gone", |edge| edge.server.connections() == 0);
    assert_eq!(edge.ask(post(BODY.as_bytes())).code, 200);
}

// ---- routes

#[test]
fn the_handshake_echoes_the_challenge() {
    let edge = edge();
    for path in ["/webhook", "/whatsapp_response"] {
        let ask = |token: &str| {
            edge.get(&format!("{path}?hub.mode=subscribe&hub.challenge=11%2058&hub.verify_token={token}"))
        };
        for token in ["right", "too"] {
            let reply = ask(token);
            assert_eq!((reply.code, reply.text()), (200, "11 58"));
            assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
        }
        assert_eq!((ask("wrong").code, edge.get(path).code), (403, 403));
    }
}

#[test]
fn health_and_readiness_say_what_the_console_says() {
    let edge = edge();
    let value = |reply: &Reply| serde_json::from_slice::<serde_json::Value>(&reply.body).expect("JSON");
    let health = edge.get("/health?x=y");
    let json = value(&health);
    assert_eq!((health.code, health.header("content-type")), (200, Some("application/json")));
    assert!(
        json["status"] == "healthy"
            && json["database"] == "disconnected"
            && json["service"] == "whatsapp-webhook"
    );
    assert!(json["timestamp"].as_f64().is_some_and(|t| t > 1.7e9 && t < 1e11));
    edge.console.connected.store(true, SeqCst);
    assert_eq!(value(&edge.get("/health"))["database"], "healthy");
    edge.console.sick.store(true, SeqCst);
    let sick = edge.get("/health");
    assert!(
        sick.code == 503
            && value(&sick)["error"] == "the \"store\" failed"
            && value(&sick)["status"] == "unhealthy"
    );
    let ready = edge.get("/ready");
    assert!(ready.code == 200 && value(&ready)["ready"] == true && value(&ready)["timestamp"].is_f64());
    edge.console.cold.store(true, SeqCst);
    let cold = edge.get("/ready");
    assert!(cold.code == 503 && value(&cold)["ready"] == false && value(&cold)["reason"] == "starting");
}

#[test]
fn metrics_are_json_or_prometheus() {
    let edge = edge();
    let ask = |path: &str, accept: &str| edge.ask(format!("GET {path} HTTP/1.1\r\nAccept: {accept}\r\n\r\n"));
    let json = ask("/metrics", "*/*");
    assert_eq!((json.header("content-type"), json.text()), (Some("application/json"), r#"{"cache":{}}"#));
    for (path, accept) in [
        ("/metrics", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
        ("/metrics", "application/openmetrics-text"),
        ("/metrics/prometheus", "application/json"),
    ] {
        let text = ask(path, accept);
        assert!(
            text.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
        );
        assert!(text.text().starts_with("# HELP whatsapp_webhook_"));
    }
    let mut out = String::new();
    http::METRICS.iter().for_each(|metric| metric.render(&mut out));
    assert!(out.contains("whatsapp_webhook_http_requests_total{route=\"metrics\",class=\"2xx\"}"), "{out}");
}

#[test]
fn unknown_paths_are_404_and_other_methods_405_with_allow() {
    let edge = edge();
    let mut client = edge.client();
    for path in ["/", "/webhook/", "/health/", "/metrics/x", "/admin", "/admin/cache", "*"] {
        assert_eq!(client.send(format!("GET {path} HTTP/1.1\r\n\r\n")).code(), 404, "{path}");
    }
    for (method, path, allow) in [
        ("PUT", "/webhook", "GET, HEAD, POST"),
        ("DELETE", "/whatsapp_response", "GET, HEAD, POST"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("POST", "/ready", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("GET", "/admin/cache/clear", "POST"),
        ("get", "/health", "GET, HEAD"),
    ] {
        let reply = client.send(format!("{method} {path} HTTP/1.1\r\n\r\n")).reply().expect("reply");
        assert_eq!((reply.code, reply.header("allow")), (405, Some(allow)), "{method} {path}");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let edge = edge();
    for path in ["/health", "/ready", "/metrics"] {
        let mut client = edge.client();
        let reply = client.send(format!("HEAD {path} HTTP/1.1\r\n\r\n")).reply_to("HEAD").expect("reply");
        assert_eq!(reply.code, 200);
        assert_ne!(reply.header("content-length"), Some("0"));
        assert!(client.is_closed(), "nothing after the header");
    }
}

#[test]
fn the_cache_is_cleared_from_this_machine_or_with_the_token() {
    let edge = edge();
    let ask = |edge: &Edge, path: &str, lines: &str| edge.ask(format!("POST {path} HTTP/1.1\r\n{lines}\r\n"));
    let clear = "/admin/cache/clear";
    let cleared = ask(&edge, clear, "");
    assert_eq!((cleared.code, cleared.text()), (200, r#"{"status":"success","message":"Cache cleared"}"#));
    for line in [
        "X-Forwarded-For: 127.0.0.1\r\n",
        "Forwarded: for=x\r\n",
        "X-Real-IP: 127.0.0.1\r\n",
        "Via: 1.1 x\r\n",
    ] {
        assert_eq!(ask(&edge, clear, line).code, 403, "{line}");
    }
    let failed = ask(&edge, "/admin/cache/warmup", "Content-Length: 0\r\n");
    assert!(failed.code == 503 && !failed.text().contains("mongodb"));
    edge.console.connected.store(true, SeqCst);
    let warm = ask(&edge, "/admin/cache/warmup", "");
    assert_eq!((warm.code, warm.text()), (200, r#"{"status":"success","message":"Cache warmed up"}"#));
    let locked = edge_but(|http| http.admin_token = Some(Secret::new("sesame")));
    let refused = ask(&locked, clear, "");
    assert_eq!((refused.code, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(ask(&locked, clear, "Authorization: Bearer sesam\r\n").code, 401);
    let twice = "Authorization: Bearer sesame\r\nAuthorization: Bearer sesame\r\n";
    assert_eq!(ask(&locked, clear, twice).code, 401);
    assert_eq!(ask(&locked, clear, "X-Forwarded-For: 1.2.3.4\r\nauthorization: bearer sesame\r\n").code, 200);
    assert_eq!((edge.console.cleared.load(SeqCst), locked.console.cleared.load(SeqCst)), (1, 1));
}

// ---- rate limits

#[test]
fn each_class_has_its_limit_for_each_address() {
    let edge = edge_but(|http| http.rates.health = 3);
    let ask = |hops: &str| edge.ask(format!("GET /health HTTP/1.1\r\nX-Forwarded-For: {hops}\r\n\r\n"));
    for _ in 0..3 {
        assert_eq!(ask("203.0.113.1").code, 200);
    }
    let refused = ask("6.6.6.6, 203.0.113.1");
    let after: u64 = refused.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!(refused.code == 429 && (1..=60).contains(&after));
    assert_eq!(ask("203.0.113.2").code, 200);
    assert_eq!(edge.get("/ready").code, 200);
}

#[test]
fn a_right_signature_passes_from_an_address_that_is_over_its_limit() {
    let edge = edge_but(|http| http.rates.unverified = 5);
    let mut client = edge.client();
    let wrong = format!("sha256={}", "0".repeat(64));
    let codes: Vec<_> =
        (0..8).map(|_| client.send(post_with(BODY.as_bytes(), Some(&wrong), "")).code()).collect();
    assert_eq!(codes, [401, 401, 401, 401, 401, 429, 429, 429]);
    assert_eq!(edge.get("/webhook").code, 429, "handshakes are of the same class");
    for _ in 0..100 {
        assert_eq!(client.send(post(BODY.as_bytes())).code(), 200);
    }
    assert_eq!(client.send(post(&vec![b' '; 3 << 20])).code(), 200, "a large one too");
    // but what large wrong ones cost is bounded
    let large = vec![b'x'; 4 << 20];
    let mut refused_unread = false;
    for _ in 0..40 {
        let mut client = edge.client();
        let head = format!(
            "POST /webhook HTTP/1.1\r\nX-Hub-Signature-256: {wrong}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            large.len()
        );
        match client.send(head).code() {
            100 => assert_eq!(client.send(&large).code(), 429),
            429 => refused_unread = true,
            other => panic!("{other}"),
        }
    }
    assert!(refused_unread);
}

#[test]
fn the_webhooks_own_limit_counts_only_if_it_is_set() {
    let edge = edge_but(|http| http.rates.webhook = 2);
    let mut client = edge.client();
    let codes: Vec<_> = (0..4).map(|_| client.send(post(BODY.as_bytes())).code()).collect();
    assert_eq!(codes, [200, 200, 429, 429]);
    assert_eq!(edge.bodies().len(), 2);
}

// ---- fuzz

fn noise(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn no_input_ends_the_service_or_is_stored_unsigned() {
    let edge = edge_but(|http| {
        http.header_timeout = Duration::from_millis(400);
        http.body_timeout = Duration::from_millis(400);
        http.idle_timeout = Duration::from_millis(400);
    });
    let before = open_files();
    let seed = &mut 0x9E37_79B9_7F4A_7C15;
    let wrong = format!("sha256={}", "1".repeat(64));
    let base = [
        post_with(BODY.as_bytes(), Some(&wrong), ""),
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /webhook?hub.mode=subscribe&hub.verify_token=x HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
    ];
    let mut open = Vec::new();
    for round in 0..3000 {
        let mut bytes = match round % 4 {
            0 => (0..noise(seed) % 600).map(|_| noise(seed) as u8).collect(),
            _ => base[noise(seed) as usize % base.len()].repeat(1 + noise(seed) as usize % 3),
        };
        for _ in 0..noise(seed) % 6 {
            if bytes.is_empty() {
                break;
            }
            let at = noise(seed) as usize % bytes.len();
            match noise(seed) % 4 {
                0 => bytes[at] = noise(seed) as u8,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, b"\r\n\0:, 9+"[noise(seed) as usize % 8]),
                _ => ignore(bytes.remove(at)),
            }
        }
        let mut client = edge.client();
        client.send(&bytes);
        if noise(seed) % 3 == 0 {
            let _ = client.stream.shutdown(Shutdown::Write);
        }
        open.push(client);
        if open.len() >= 100 {
            open.clear();
        }
        if round % 500 == 0 {
            assert_eq!(edge.get("/health").code, 200);
        }
    }
    drop(open);
    edge.wait_until("all gone", |edge| edge.server.connections() == 0);
    edge.wait_until("descriptors closed", |_| open_files() < before + 600);
    assert!(edge.bodies().is_empty());
    assert_eq!(edge.ask(post(BODY.as_bytes())).code, 200);
}
