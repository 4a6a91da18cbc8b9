//! The edge over raw sockets: every way in which HTTP can be wrong, late, endless or in pieces.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring::hmac;
use whatsapp_webhook::config::vars::Vars;
use whatsapp_webhook::config::{Config, read};
use whatsapp_webhook::event::{Item, ItemId, Said};
use whatsapp_webhook::failure::{Failure, Reason};
use whatsapp_webhook::http::{Server, serve};
use whatsapp_webhook::inbox::{
    Counts, Evidence, Feed, Inbox, NewTurn, OpenTurn, Page, Position, Refusal, State, Ticket, TurnId,
};
use whatsapp_webhook::ops::Console;

const SECRET: &str = "guard-secret";

/// Keeps bodies in memory; refuses or stalls on demand.
#[derive(Default)]
struct Memory {
    bodies: Mutex<Vec<Vec<u8>>>,
    refuse: Mutex<Option<Refusal>>,
    stall: AtomicBool,
}

struct MemoryTicket {
    memory: Arc<Memory>,
    body: Vec<u8>,
    items: Vec<Item>,
}

impl Ticket for MemoryTicket {
    fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }
    fn body_and_items(&mut self) -> (&[u8], &mut Vec<Item>) {
        (&self.body, &mut self.items)
    }
    fn append(&mut self, _: u64) -> Result<(), Refusal> {
        let body = std::mem::take(&mut self.body);
        while self.memory.stall.load(Ordering::Relaxed) {
            whatsapp_webhook::clock::sleep(Duration::from_millis(5));
        }
        if let Some(refusal) = *self.memory.refuse.lock() {
            return Err(refusal);
        }
        self.memory.bodies.lock().push(body);
        Ok(())
    }
}

struct Handle(Arc<Memory>);

#[rustfmt::skip]
impl Inbox for Handle {
    fn ticket(&self) -> Box<dyn Ticket> {
        Box::new(MemoryTicket { memory: Arc::clone(&self.0), body: Vec::new(), items: Vec::new() })
    }
    fn unhealthy(&self) -> Option<Refusal> { None }
    fn counts(&self) -> Counts { Counts::default() }
    fn feed(&self, _: Arc<dyn Feed>) { unreachable!() }
    fn open_numbers(&self) -> Result<(Vec<u64>, Position), Failure> { unreachable!() }
    fn pending(&self, _: u64, _: Position, _: usize) -> Result<Page, Failure> { unreachable!() }
    fn open_turns(&self, _: TurnId, _: usize) -> Result<Vec<OpenTurn>, Failure> { unreachable!() }
    fn history(&self, _: &str, _: usize) -> Result<Vec<Said>, Failure> { unreachable!() }
    fn answered(&self, _: NewTurn) -> Result<OpenTurn, Failure> { unreachable!() }
    fn sending(&self, _: &str, _: u64) -> Result<(), Failure> { unreachable!() }
    fn sent(&self, _: &str, _: &str) { unreachable!() }
    fn unsent(&self, _: &str) { unreachable!() }
    fn reply_dead(&self, _: &str, _: &Reason, _: &str) { unreachable!() }
    fn evidence(&self, _: &str, _: Duration) -> Option<Evidence> { unreachable!() }
    fn forget(&self, _: &str) { unreachable!() }
    fn settle(&self, _: &[ItemId], _: State, _: &Reason, _: &str) { unreachable!() }
    fn close(&self) -> Result<(), Failure> { unreachable!() }
}

struct Plain;

#[rustfmt::skip]
impl Console for Plain {
    fn health(&self) -> Result<(), &'static str> { Ok(()) }
    fn database_connected(&self) -> bool { false }
    fn ready(&self) -> Result<(), &'static str> { Err("starting") }
    fn metrics_json(&self) -> String { "{\"cache\":{}}".to_owned() }
    fn metrics_text(&self) -> String { "# TYPE a counter\na 1\n".to_owned() }
    fn clear_cache(&self) {}
    fn warm_up_cache(&self) -> Result<(), String> { Ok(()) }
}

struct Edge {
    server: Server,
    memory: Arc<Memory>,
}

fn config(extra: &[(&str, &str)]) -> Config {
    let base = [
        ("WHATSAPP_VERIFY_TOKEN", "vt"),
        ("WHATSAPP_APP_SECRET", SECRET),
        ("ENCRYPTION_SECRET", "s"),
        ("LISTEN", "127.0.0.1:0"),
        ("RATE_LIMIT_UNVERIFIED", "0"),
    ];
    let all = base.iter().chain(extra).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    read::config(Vars::from_map(all)).expect("a right configuration")
}

fn edge(extra: &[(&str, &str)]) -> Edge {
    super::coroutines();
    let config = config(extra);
    let memory = Arc::new(Memory::default());
    let inbox = Arc::new(Handle(Arc::clone(&memory)));
    let server = serve(config.http, config.webhook, inbox, Arc::new(Plain)).expect("listens");
    Edge { server, memory }
}

fn signature(body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), body);
    format!("sha256={}", hex::encode(tag))
}

fn post(body: &[u8], extra: &str) -> Vec<u8> {
    let head = format!(
        "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {}\r\nContent-Length: {}\r\n{extra}\r\n",
        signature(body),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

impl Edge {
    fn connect(&self) -> TcpStream {
        connect(self.server.local_addr())
    }

    /// Sends and reads until the server closes, or `wait` passes.
    fn talk(&self, bytes: &[u8], wait: Duration) -> String {
        let mut stream = self.connect();
        // a server that has answered may have shut its side already
        let _ = stream.write_all(bytes);
        read_for(&mut stream, wait)
    }

    fn ask(&self, bytes: &[u8]) -> String {
        self.talk(bytes, Duration::from_millis(300))
    }

    fn stored(&self) -> usize {
        self.memory.bodies.lock().len()
    }

    /// The table is empty again.
    fn is_left(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.server.connections() > 0 {
            assert!(Instant::now() < until, "{} connections are left", self.server.connections());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("set");
    stream
}

fn read_for(stream: &mut TcpStream, wait: Duration) -> String {
    let until = Instant::now() + wait;
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left)).expect("set");
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// True once the server has closed it.
fn is_closed(stream: &mut TcpStream, within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).expect("set");
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

#[test]
fn a_signed_body_is_stored_byte_for_byte() {
    let edge = edge(&[]);
    let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    assert_eq!(status(&edge.ask(&post(body, ""))), 200);
    assert_eq!(edge.memory.bodies.lock()[0], body);
    for path in ["/whatsapp_response", "/webhook/", "/webhook?x=1"] {
        let text = String::from_utf8(post(body, "")).expect("text").replace("/webhook", path);
        assert_eq!(status(&edge.ask(text.as_bytes())), 200, "{path}");
    }
}

#[test]
fn nothing_without_a_right_signature_is_stored() {
    let edge = edge(&[]);
    let right = String::from_utf8(post(b"{}", "")).expect("text");
    let good = signature(b"{}");
    for wrong in [
        "sha256=00",
        "",
        &good.replace("sha256=", "sha1="),
        &good[..70],
        &format!("{good}0"),
        &signature(b"[]"),
    ] {
        assert_eq!(status(&edge.ask(right.replace(&good, wrong).as_bytes())), 401, "{wrong}");
    }
    assert_eq!(status(&edge.ask(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")), 401);
    let twice = right.replace("Host: x", &format!("x-hub-signature-256: {good}"));
    assert_eq!(status(&edge.ask(twice.as_bytes())), 401, "two signatures are none");
    assert_eq!(edge.stored(), 0);
}

#[test]
fn an_unsigned_body_must_be_json() {
    let edge = edge(&[("WHATSAPP_ALLOW_UNSIGNED", "true")]);
    let unsigned = |body: &str| {
        format!("POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    assert_eq!(status(&edge.ask(unsigned("{}").as_bytes())), 200);
    assert_eq!(status(&edge.ask(unsigned("{]").as_bytes())), 400);
    assert_eq!(edge.stored(), 1);
    let signed_wrong = unsigned("{}").replace("Host: x", "X-Hub-Signature-256: sha256=00");
    assert_eq!(status(&edge.ask(signed_wrong.as_bytes())), 401, "a wrong signature is no missing one");
}

#[test]
fn lengths_that_cannot_be_trusted_end_the_connection() {
    let edge = edge(&[]);
    let with = |lines: &str| {
        format!("POST /webhook HTTP/1.1\r\nHost: x\r\n{lines}\r\n{{}}GET /health HTTP/1.1\r\n\r\n")
    };
    for (lines, expected) in [
        ("", 411),
        ("Content-Length: \r\n", 400),
        ("Content-Length: +2\r\n", 400),
        ("Content-Length: -2\r\n", 400),
        ("Content-Length: 2 2\r\n", 400),
        ("Content-Length: 0x2\r\n", 400),
        ("Content-Length: 2\r\nContent-Length: 2\r\n", 400),
        ("Content-Length: 2\r\ncontent-length: 40\r\n", 400),
        ("Content-Length: 4194305\r\n", 413),
        ("Content-Length: 99999999999999999999999\r\n", 413),
        ("Transfer-Encoding: chunked\r\n", 501),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
    ] {
        let answer = edge.ask(with(lines).as_bytes());
        assert_eq!(status(&answer), expected, "{lines:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "nothing is smuggled behind {lines:?}: {answer}");
    }
    edge.is_left();
    assert_eq!(edge.stored(), 0);
}

#[test]
fn the_413_arrives_although_the_body_is_still_being_sent() {
    let edge = edge(&[]);
    let mut stream = edge.connect();
    stream.write_all(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 6000000\r\n\r\n").expect("sent");
    let mut writer = stream.try_clone().expect("cloned");
    let sender = std::thread::spawn(move || writer.write_all(&vec![b'x'; 6_000_000]).is_ok());
    assert_eq!(status(&read_for(&mut stream, Duration::from_secs(5))), 413);
    drop(stream);
    let _ = sender.join();
    edge.is_left();
}

#[test]
fn a_body_of_any_method_is_no_request() {
    let edge = edge(&[]);
    let answer = edge.ask(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 24\r\n\r\nGET /ready HTTP/1.1\r\n\r\n..GET /nothing HTTP/1.1\r\n\r\n");
    let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|a| &a[..3]).collect();
    assert_eq!(statuses, ["200", "404"], "{answer}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let edge = edge(&[]);
    let mut all = Vec::new();
    for path in ["/health", "/nothing", "/ready"] {
        all.extend_from_slice(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    }
    all.extend_from_slice(&post(b"{}", ""));
    let answer = edge.ask(&all);
    let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|a| &a[..3]).collect();
    assert_eq!(statuses, ["200", "404", "503", "200"], "{answer}");
}

#[test]
fn a_request_in_pieces_is_one_request() {
    let edge = edge(&[]);
    let mut stream = edge.connect();
    for piece in post(b"{\"a\":1}", "").chunks(7) {
        stream.write_all(piece).expect("sent");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status(&read_for(&mut stream, Duration::from_millis(300))), 200);
}

#[test]
fn http_1_0_and_connection_close_get_an_answer_and_the_end() {
    let edge = edge(&[]);
    for request in [
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nconnection: keep-alive, Close\r\n\r\n",
    ] {
        let begun = Instant::now();
        let answer = edge.talk(request.as_bytes(), Duration::from_secs(5));
        assert_eq!(status(&answer), 200, "{request}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{request} keeps the connection");
    }
    edge.is_left();
}

#[test]
fn expect_100_continue_is_answered_before_the_body_comes() {
    let edge = edge(&[]);
    let whole = post(b"{}", "Expect: 100-continue\r\n");
    let (head, body) = whole.split_at(whole.len() - 2);
    let mut stream = edge.connect();
    stream.write_all(head).expect("sent");
    let interim = read_for(&mut stream, Duration::from_millis(300));
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body).expect("sent");
    assert_eq!(status(&read_for(&mut stream, Duration::from_millis(300))), 200);
}

#[test]
fn what_is_no_http_is_told_so() {
    let edge = edge(&[]);
    for garbage in [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        "\x16\x03\x01\x02\0\x01",
        "GET / HTTP/3.0\r\n\r\n",
    ] {
        assert_eq!(status(&edge.ask(garbage.as_bytes())), 400, "{garbage:?}");
    }
    edge.is_left();
}

#[test]
fn more_than_16_header_lines_are_431() {
    let edge = edge(&[]);
    let with = |n: usize| {
        let lines: String = (0..n).map(|i| format!("X-Filler-{i}: y\r\n")).collect();
        format!("GET /health HTTP/1.1\r\n{lines}\r\n")
    };
    assert_eq!(status(&edge.ask(with(16).as_bytes())), 200);
    assert_eq!(status(&edge.ask(with(17).as_bytes())), 431);
    edge.is_left();
}

#[test]
fn an_endless_header_line_is_cut() {
    let edge = edge(&[("HEADER_TIMEOUT", "4s")]);
    let mut stream = edge.connect();
    let begun = Instant::now();
    let mut line = b"GET /health HTTP/1.1\r\nX-Endless: ".to_vec();
    line.resize(100_000, b'a');
    let _ = stream.write_all(&line);
    assert_eq!(status(&read_for(&mut stream, Duration::from_secs(5))), 431);
    assert!(begun.elapsed() < Duration::from_secs(3), "cut by its size, not by its time");
    edge.is_left();
}

#[test]
fn a_slow_header_a_slow_body_and_a_silent_peer_are_ended() {
    let edge = edge(&[("HEADER_TIMEOUT", "400ms"), ("BODY_TIMEOUT", "400ms"), ("IDLE_TIMEOUT", "700ms")]);
    let drip = |stream: &mut TcpStream, bytes: &[u8]| {
        let begun = Instant::now();
        for byte in bytes.iter().cycle() {
            if stream.write_all(&[*byte]).is_err() || begun.elapsed() > Duration::from_secs(3) {
                break;
            }
            stream.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
            if stream.peek(&mut [0]).is_ok() {
                break;
            }
        }
        (read_for(stream, Duration::from_secs(1)), begun.elapsed())
    };
    let (answer, took) = drip(&mut edge.connect(), b"GET /health HTTP/1.1 X-a-b-c");
    assert_eq!(status(&answer), 408);
    assert!((Duration::from_millis(350)..Duration::from_secs(2)).contains(&took), "{took:?}");
    let mut body = edge.connect();
    body.write_all(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n").expect("sent");
    let (answer, took) = drip(&mut body, b"x");
    assert_eq!(status(&answer), 408);
    assert!((Duration::from_millis(350)..Duration::from_secs(2)).contains(&took), "{took:?}");
    assert!(is_closed(&mut edge.connect(), Duration::from_secs(2)), "a silent peer");
    let mut kept = edge.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let begun = Instant::now();
    assert!(is_closed(&mut kept, Duration::from_secs(3)), "an idle connection");
    assert!(begun.elapsed() > Duration::from_millis(600), "not before its time");
    edge.is_left();
    assert_eq!(edge.stored(), 0);
}

#[test]
fn a_body_that_is_cut_is_not_stored() {
    let edge = edge(&[]);
    let whole = post(br#"{"object":"whatsapp_business_account","entry":[]}"#, "");
    for end in [Shutdown::Write, Shutdown::Both] {
        let mut stream = edge.connect();
        stream.write_all(&whole[..whole.len() - 5]).expect("sent");
        stream.shutdown(end).expect("shut");
        read_for(&mut stream, Duration::from_millis(200));
    }
    edge.is_left();
    assert_eq!(edge.stored(), 0);
}

#[test]
fn surplus_connections_are_turned_away_and_the_others_go_on() {
    let edge = edge(&[("MAX_CONNECTIONS", "5")]);
    let mut kept: Vec<_> = (0..5).map(|_| edge.connect()).collect();
    while edge.server.connections() < 5 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let answer = edge.talk(b"", Duration::from_secs(2));
    assert_eq!(status(&answer), 503);
    kept[0].write_all(&post(b"{}", "")).expect("sent");
    assert_eq!(status(&read_for(&mut kept[0], Duration::from_millis(300))), 200);
    drop(kept);
    edge.is_left();
    assert_eq!(status(&edge.ask(&post(b"{}", ""))), 200);
}

#[test]
fn a_peer_that_never_reads_is_ended() {
    let edge = edge(&[]);
    let stream = edge.connect();
    let mut writer = stream.try_clone().expect("cloned");
    let flood = std::thread::spawn(move || {
        let many = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        (0..2000).take_while(|_| writer.write_all(&many).is_ok()).count()
    });
    let rounds = flood.join().expect("no panic");
    assert!(rounds < 2000, "two million answers were kept for a peer that reads none");
    drop(stream);
    edge.is_left();
}

#[test]
fn refusals_of_the_inbox_are_503_with_retry_after() {
    let edge = edge(&[]);
    for refusal in [Refusal::Full, Refusal::Late, Refusal::Poisoned, Refusal::Draining] {
        *edge.memory.refuse.lock() = Some(refusal);
        let answer = edge.ask(&post(b"{}", ""));
        assert_eq!(status(&answer), 503);
        assert!(answer.contains("Retry-After: "), "{answer}");
    }
    assert_eq!(edge.stored(), 0);
}

#[test]
fn a_drain_finishes_what_is_begun_and_closes_the_rest() {
    let edge = edge(&[]);
    edge.memory.stall.store(true, Ordering::Relaxed);
    let mut idle = edge.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    assert_eq!(status(&read_for(&mut idle, Duration::from_millis(200))), 200);
    let mut busy = edge.connect();
    busy.write_all(&post(b"{}", "")).expect("sent");
    std::thread::sleep(Duration::from_millis(100));
    edge.server.stop_accepting();
    assert!(TcpStream::connect(edge.server.local_addr()).is_err(), "the listener is closed");
    let memory = Arc::clone(&edge.memory);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        memory.stall.store(false, Ordering::Relaxed);
    });
    assert_eq!(edge.server.drain(Duration::from_secs(5)), 0);
    release.join().expect("no panic");
    let answer = read_for(&mut busy, Duration::from_secs(1));
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("Connection: close"), "{answer}");
    assert!(is_closed(&mut idle, Duration::from_secs(1)));
    assert_eq!(edge.stored(), 1);
}

#[test]
fn the_address_of_another_listener_is_refused() {
    let first = edge(&[]);
    let taken = first.server.local_addr().to_string();
    let config = config(&[("LISTEN", &taken)]);
    let inbox = Arc::new(Handle(Arc::default()));
    let again = serve(config.http, config.webhook, inbox, Arc::new(Plain));
    assert_eq!(again.err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));
}

#[test]
fn routes_answer_as_documented() {
    let edge = edge(&[]);
    let get = |path: &str, extra: &str| {
        edge.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{extra}Connection: close\r\n\r\n").as_bytes())
    };
    let challenge = get("/webhook?hub.mode=subscribe&hub.challenge=0012&hub.verify_token=vt", "");
    assert!(challenge.ends_with("\r\n\r\n0012") && challenge.contains("text/plain"), "{challenge}");
    assert_eq!(status(&get("/webhook?hub.mode=subscribe&hub.challenge=1&hub.verify_token=no", "")), 403);
    let health = get("/health", "");
    assert!(
        health.contains("\"status\":\"healthy\"") && health.contains("\"database\":\"disconnected\""),
        "{health}"
    );
    assert!(health.contains("application/json"));
    let ready = get("/ready", "");
    assert!(ready.contains("{\"ready\":false,\"reason\":\"starting\"}"), "{ready}");
    assert!(get("/metrics", "").contains("{\"cache\":{}}"));
    assert!(get("/metrics", "Accept: text/plain\r\n").contains("a 1"));
    assert!(get("/metrics/prometheus", "").contains("a 1"));
    assert_eq!(status(&get("/nothing", "")), 404);
    let not_allowed = edge.ask(b"DELETE /webhook HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        not_allowed.starts_with("HTTP/1.1 405") && not_allowed.contains("Allow: GET, HEAD, POST"),
        "{not_allowed}"
    );
    let head = edge.ask(b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn admin_is_for_the_token_or_for_this_machine() {
    let local = edge(&[]);
    let clear = |extra: &str| {
        format!("POST /admin/cache/clear HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{extra}\r\n")
    };
    let answer = local.ask(clear("").as_bytes());
    assert!(answer.contains("{\"status\":\"success\",\"message\":\"Cache cleared\"}"), "{answer}");
    for line in ["X-Forwarded-For: 1.2.3.4\r\n", "Forwarded: for=1.2.3.4\r\n", "X-Real-IP: 1.2.3.4\r\n"] {
        assert_eq!(status(&local.ask(clear(line).as_bytes())), 403, "{line}");
    }
    let tokened = edge(&[("ADMIN_TOKEN", "secret-token"), ("RATE_LIMIT_ADMIN", "0")]);
    assert_eq!(status(&tokened.ask(clear("").as_bytes())), 401);
    assert_eq!(status(&tokened.ask(clear("Authorization: Bearer wrong\r\n").as_bytes())), 401);
    assert_eq!(status(&tokened.ask(clear("Authorization: bearer secret-token\r\n").as_bytes())), 200);
}

#[test]
fn limits_count_by_client_and_a_right_signature_passes() {
    let edge = edge(&[("RATE_LIMIT_UNVERIFIED", "3"), ("RATE_LIMIT_HEALTH", "2")]);
    let health = |client: &str| {
        edge.ask(format!("GET /health HTTP/1.1\r\nX-Forwarded-For: 9.9.9.9, {client}\r\n\r\n").as_bytes())
    };
    assert_eq!([status(&health("1.1.1.1")), status(&health("1.1.1.1"))], [200, 200]);
    let limited = health("1.1.1.1");
    assert!(limited.starts_with("HTTP/1.1 429") && limited.contains("Retry-After: "), "{limited}");
    assert_eq!(status(&health("2.2.2.2")), 200, "another client");
    for expected in [401, 401, 401, 429, 429] {
        assert_eq!(
            status(&edge.ask(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")),
            expected
        );
    }
    assert_eq!(status(&edge.ask(&post(b"{}", ""))), 200, "signed, from the same address");
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let edge = edge(&[]);
    let before = descriptors();
    for _ in 0..10 {
        let mut streams: Vec<_> = (0..100).map(|_| edge.connect()).collect();
        for stream in &mut streams {
            stream.write_all(&post(b"{}", "")).expect("sent");
        }
        for stream in &mut streams {
            let mut start = [0; 12];
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
            stream.read_exact(&mut start).expect("an answer");
            assert_eq!(&start, b"HTTP/1.1 200");
        }
    }
    edge.is_left();
    assert_eq!(edge.stored(), 1000);
    let until = Instant::now() + Duration::from_secs(5);
    // other tests of this process open sockets too: at least these thousand are gone
    while descriptors() > before + 500 {
        assert!(Instant::now() < until, "{} descriptors, {before} before", descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

#[test]
fn garbage_of_every_kind_leaves_the_edge_answering() {
    let edge = edge(&[("HEADER_TIMEOUT", "300ms"), ("BODY_TIMEOUT", "300ms")]);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let whole = post(
        br#"{"object":"whatsapp_business_account","entry":[]}"#,
        "Expect: 100-continue\r\nAccept: */*\r\n",
    );
    for _ in 0..1500 {
        let mut bytes = whole.clone();
        for _ in 0..=random(6) {
            if bytes.len() < 2 {
                break;
            }
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, b"\r\n\0 :"[random(5)]),
            }
        }
        let mut stream = edge.connect();
        let _ = stream.write_all(&bytes);
        if random(10) == 0 {
            read_for(&mut stream, Duration::from_millis(2));
        }
    }
    edge.is_left();
    let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    assert!(edge.memory.bodies.lock().iter().all(|b| b == body), "only what was signed is stored");
    assert_eq!(status(&edge.ask(&post(body, ""))), 200);
}
