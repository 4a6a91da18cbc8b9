//! The edge over real sockets: each row of the guard, each route, and what strange clients do to it. The
//! inbox and the console behind it are fakes; every test has its own server on its own port.

mod connections;
mod deadlines;
mod fakes;
mod framing;
mod limits;
mod pipelining;
mod routes;
mod strange;
mod webhook;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use ring::hmac;
use whatsapp_webhook::config::{App, Http, Rates, Webhook};
use whatsapp_webhook::event::{BODY_MAX, hash64};
use whatsapp_webhook::http::{self, Server};
use whatsapp_webhook::secret::Secret;

use self::fakes::{Books, FakeConsole, fake_inbox};
use crate::harness::signed;

pub const SECRET: &str = "test_app_secret";
pub const BODY: &str = r#"{"object":"whatsapp_business_account","entry":[]}"#;

pub struct Edge {
    pub server: Server,
    pub books: Arc<Books>,
    pub console: Arc<FakeConsole>,
}

pub fn http_config() -> Http {
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

pub fn webhook_config() -> Webhook {
    Webhook {
        verify_tokens: vec![Secret::new("right"), Secret::new("too")],
        apps: vec![App { name: None, secret: Secret::new(SECRET) }],
        allow_unsigned: false,
    }
}

pub fn edge_with(http: Http, webhook: Webhook) -> Edge {
    crate::coroutines();
    let books = Arc::new(Books::default());
    let console = Arc::new(FakeConsole::default());
    let server =
        http::serve(http, webhook, fake_inbox(books.clone()), console.clone()).expect("the edge starts");
    Edge { server, books, console }
}

pub fn edge() -> Edge {
    edge_with(http_config(), webhook_config())
}

pub fn edge_but(change: impl FnOnce(&mut Http)) -> Edge {
    let mut http = http_config();
    change(&mut http);
    edge_with(http, webhook_config())
}

pub struct Client {
    pub stream: TcpStream,
    pub rest: Vec<u8>,
}

#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, rest: Vec::new() }
    }
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }
    /// The next reply; `None` at the end of the stream.
    pub fn reply_to(&mut self, method: &str) -> Option<Reply> {
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
    pub fn reply(&mut self) -> Option<Reply> {
        self.reply_to("GET")
    }
    pub fn code(&mut self) -> u16 {
        self.reply().map_or(0, |reply| reply.code)
    }
    /// The end, and nothing before it.
    pub fn is_closed(&mut self) -> bool {
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
    pub fn client(&self) -> Client {
        Client::new(self.server.local_addr())
    }
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        self.client().send(request).reply().expect("a reply")
    }
    pub fn get(&self, path: &str) -> Reply {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.books
            .bodies
            .lock()
            .expect("no test panics with it")
            .iter()
            .map(|(_, body)| body.clone())
            .collect()
    }
    pub fn wait_until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let started = Instant_::now();
        while !is(self) {
            assert!(started.elapsed() < Duration::from_secs(15), "never: {what}");
            pause(5);
        }
    }
}

/// Tests may look at the clock.
pub struct Instant_(Instant);
impl Instant_ {
    #[allow(clippy::disallowed_methods, reason = "a test's own clock")]
    pub fn now() -> Self {
        Self(Instant::now())
    }
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[allow(clippy::disallowed_methods, reason = "a test's own thread")]
pub fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

pub fn sign(body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("sha256={}", hex::encode(hmac::sign(&key, body)))
}

pub fn post_with(body: &[u8], signature: Option<&str>, lines: &str) -> Vec<u8> {
    let signature = signature.map_or(String::new(), |s| format!("X-Hub-Signature-256: {s}\r\n"));
    let head = format!(
        "POST /webhook HTTP/1.1\r\nHost: x\r\n{signature}{lines}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub fn post(body: &[u8]) -> Vec<u8> {
    post_with(body, Some(&sign(body)), "")
}

pub fn ignore<T>(_: T) {}

/// Runs `test` alone in a process of its own, which `command` starts as `"$0" <arguments>`.
pub fn in_own_process(test: &str, command: &str) {
    let own = std::env::current_exe().expect("this binary");
    let mut child = std::process::Command::new("sh");
    child.args(["-c", command]).arg(own).args(["--exact", test, "--include-ignored", "--nocapture"]);
    let output = child.output().expect("sh");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}{said}", output.status, String::from_utf8_lossy(&output.stdout));
}

/// Descriptors of this process.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}
