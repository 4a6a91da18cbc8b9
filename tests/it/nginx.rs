//! Real nginx with the shipped site file in front of the real binary.
//!
//! Only ports and paths of the file are substituted; nginx runs from a temporary folder, also without privileges. What
//! arrived is compared with the bodies in the store, and counted with the binary's own `inbox status`.

#![allow(clippy::disallowed_methods, reason = "tests wait on threads of their own, by their own clock")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ring::hmac;
use socket2::{Domain, Socket, Type};

use crate::harness::{self, APP_SECRET, Service};

const NGINX: &str = "/usr/sbin/nginx";
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with nginx in front. Both end with it.
struct Stack {
    /// `None` while a test has it down.
    service: Option<Service>,
    nginx: Nginx,
    folder: tempfile::TempDir,
    extra: Vec<(&'static str, &'static str)>,
}

struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    fn start(folder: &Path, upstream: u16) -> Self {
        assert!(Path::new(NGINX).exists(), "no {NGINX}: install the package `nginx` (apt-get install nginx)");
        // a port that is free now can be taken before nginx has it: then another one
        for _ in 0..5 {
            let port = free_port();
            let config = write_config(folder, port, upstream);
            let child = Command::new(NGINX)
                .arg("-c")
                .arg(&config)
                .arg("-p")
                .arg(folder)
                .args(["-e", "start.log"])
                .spawn()
                .expect("nginx starts");
            // from here on it ends whatever happens
            let mut nginx = Self { child, port };
            let begun = Instant::now();
            while nginx.runs() && begun.elapsed() < PATIENCE {
                // it can't be another's port: nginx ends where it can't have it
                if folder.join("nginx.pid").exists() && TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return nginx;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!(
            "nginx did not start: {}",
            std::fs::read_to_string(folder.join("start.log")).unwrap_or_default()
        );
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // its id is another's once it was waited for
        if !self.runs() {
            return;
        }
        // a killed master would leave its workers behind
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// The shipped file with ports and paths replaced, inside the smallest nginx.conf.
fn write_config(folder: &Path, port: u16, upstream: u16) -> PathBuf {
    let mut site = include_str!("../../systemd/nginx.conf").to_owned();
    let mut replace = |from: &str, to: &str, times: usize| {
        assert_eq!(site.matches(from).count(), times, "{from} in systemd/nginx.conf");
        site = site.replace(from, to);
    };
    replace("\n    listen 80;", &format!("\n    listen 127.0.0.1:{port};"), 1);
    replace("server 127.0.0.1:8000 ", &format!("server 127.0.0.1:{upstream} "), 1);
    replace("/var/log/nginx/", &format!("{}/", folder.display()), 2);
    let place = folder.display();
    let main = format!(
        "daemon off;\nuser root;\nworker_processes 2;\nworker_rlimit_nofile 4096;\npid {place}/nginx.pid;\n\
         events {{ worker_connections 2048; }}\nhttp {{\n\
         client_body_temp_path {place}/body;\nproxy_temp_path {place}/proxy;\nfastcgi_temp_path {place}/fastcgi;\n\
         uwsgi_temp_path {place}/uwsgi;\nscgi_temp_path {place}/scgi;\n{site}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, main).expect("written");
    file
}

impl Stack {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(extra: &[(&'static str, &'static str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder");
        // nothing that is asked of Graph may leave this machine
        let extra = [&[("GRAPH_API_URL", "http://127.0.0.1:9")], extra].concat();
        let service = Service::start(&harness::settings(&data, &extra));
        let nginx = Nginx::start(folder.path(), service.address.port());
        Self { service: Some(service), nginx, folder, extra }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// kill -9. Returns where it was.
    fn take_down(&mut self) -> SocketAddr {
        let service = self.service.take().expect("it is up");
        let address = service.address;
        service.kill();
        address
    }

    fn bring_up(&mut self, address: SocketAddr) {
        let mut settings = harness::settings(&self.data(), &self.extra);
        settings.insert("LISTEN".to_owned(), address.to_string());
        self.service = Some(Service::start(&settings));
    }

    /// One request, which asks for it to be the last, on a connection of its own: the whole answer. No half close:
    /// nginx takes that for a caller that gave up.
    fn ask(&self, request: &[u8]) -> String {
        self.ask_slowly(&[request])
    }

    fn ask_slowly(&self, pieces: &[&[u8]]) -> String {
        let mut stream = connect(self.nginx.port);
        for (n, piece) in pieces.iter().enumerate() {
            std::thread::sleep(Duration::from_millis(50 * u64::from(n > 0)));
            stream.write_all(piece).expect("sent");
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Messages in the store, whatever became of them.
    fn messages(&self) -> usize {
        let out = harness::command(&harness::settings(&self.data(), &[]))
            .args(["inbox", "status"])
            .current_dir(self.folder.path())
            .output()
            .expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let out = String::from_utf8(out.stdout).expect("text");
        let messages = out.lines().filter(|line| line.split_whitespace().nth(1) == Some("message"));
        messages
            .map(|line| line.split_whitespace().last().expect("a count").parse::<usize>().expect("a count"))
            .sum()
    }

    /// All bodies in the store, sorted, read from the file.
    fn bodies(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for stored in harness::bodies_in(&self.data()) {
            let end = stored.bodies.last().expect("a body").end;
            assert!(!stored.is_damaged && end == stored.bytes.len(), "bytes that belong to no body");
            all.extend(stored.bodies.into_iter().map(|at| stored.bytes[at].to_vec()));
        }
        all.sort();
        all
    }

    /// Exactly these bodies, each with its one message.
    fn expect_stored(&self, mut bodies: Vec<Vec<u8>>) {
        bodies.sort();
        let stored = self.bodies();
        assert!(stored == bodies, "{} bodies in the store, not these {}", stored.len(), bodies.len());
        // the items follow the bodies within moments
        let begun = Instant::now();
        while self.messages() != bodies.len() {
            assert!(begun.elapsed() < PATIENCE, "{} messages, not {}", self.messages(), bodies.len());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_write_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// From another address of this machine.
fn connect_from(address: &str, port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address: IpAddr = address.parse().expect("an address");
    socket.bind(&SocketAddr::new(address, 0).into()).expect("bound");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// The status line's code.
fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// A webhook with one text message; `padding` more bytes of text.
fn webhook(wamid: &str, padding: usize) -> Vec<u8> {
    let timestamp =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_secs();
    let text = "x".repeat(padding + 1);
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{{"field":"messages","value":{{"messaging_product":"whatsapp","metadata":{{"display_phone_number":"15550000000","phone_number_id":"100"}},"messages":[{{"from":"16505551234","id":"wamid.{wamid}","timestamp":"{timestamp}","type":"text","text":{{"body":"{text}"}}}}]}}}}]}}]}}"#
    )
    .into_bytes()
}

fn signature(body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, APP_SECRET.as_bytes()), body);
    format!("sha256={}", hex::encode(tag))
}

/// A signed POST; `extra` are header lines with their ends.
fn post(version: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /webhook HTTP/{version}\r\nHost: webhook.example.com\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nX-Hub-Signature-256: {}\r\n{extra}\r\n",
        body.len(),
        signature(body)
    );
    [head.as_bytes(), body].concat()
}

/// The same without a signature.
fn unsigned(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /webhook HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

const CLOSE: &str = "Connection: close\r\n";

#[test]
fn forty_headers_old_http_chunks_and_three_megabytes_come_through_nginx() {
    let stack = Stack::start();
    let bodies =
        [webhook("headers", 0), webhook("old", 0), webhook("large", 3_000_000), webhook("chunked", 0)];
    // 4 of its own, these, and Connection: 40 and more
    let many: String = (0..40).map(|n| format!("X-Filler-{n}: {}\r\n", "v".repeat(n))).collect();
    let answer = stack.ask(&post("1.1", &(many + CLOSE), &bodies[0]));
    assert_eq!(status(&answer), 200, "{answer}");

    let answer = stack.ask(&post("1.0", "", &bodies[1]));
    assert_eq!(status(&answer), 200, "{answer}");

    let answer = stack.ask(&post("1.1", CLOSE, &bodies[2]));
    assert_eq!(status(&answer), 200, "{answer}");

    let (front, back) = bodies[3].split_at(100);
    let head = format!(
        "POST /whatsapp_response HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
         X-Hub-Signature-256: {}\r\n\r\n",
        signature(&bodies[3])
    );
    let chunk =
        |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n".as_slice()].concat();
    let answer = stack.ask_slowly(&[head.as_bytes(), &chunk(front), &chunk(back), b"0\r\n\r\n"]);
    assert_eq!(status(&answer), 200, "{answer}");
    stack.expect_stored(bodies.into());
}

#[test]
fn five_hundred_connections_at_once_come_through_nginx() {
    const CONNECTIONS: usize = 500;
    let stack = Stack::start();
    let bodies: Vec<_> = (0..CONNECTIONS).map(|n| webhook(&format!("at-once-{n}"), 0)).collect();
    let all_there = Arc::new(Barrier::new(CONNECTIONS));
    let callers: Vec<_> = bodies
        .iter()
        .map(|body| {
            let (port, all_there) = (stack.nginx.port, Arc::clone(&all_there));
            let request = post("1.1", "", body);
            let call = move || {
                let mut stream = connect(port);
                let (most, rest) = request.split_at(request.len() - 10);
                stream.write_all(most).expect("sent");
                // now all are under way at the same time
                all_there.wait();
                stream.write_all(rest).expect("sent");
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).expect("an answer");
                String::from_utf8_lossy(&answer).into_owned()
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn(call).expect("a thread")
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.join().expect("no panic"), "HTTP/1.1 200");
    }
    stack.expect_stored(bodies);
}

#[test]
fn a_restart_of_the_service_is_not_seen_by_who_comes_after_it() {
    let mut stack = Stack::start();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let bodies = ["a", "b", "meanwhile", "c"].map(|n| webhook(&format!("round-{round}-{n}"), 0));
        for body in &bodies[..2] {
            let answer = stack.ask(&post("1.1", CLOSE, body));
            assert_eq!(status(&answer), 200, "{answer}");
        }
        // nginx keeps connections to the service, which are dead after this
        let address = stack.take_down();
        let answer = stack.ask(&post("1.1", CLOSE, &bodies[2]));
        assert_eq!(status(&answer), 502, "{answer}");
        stack.bring_up(address);
        let answer = stack.ask(&post("1.1", CLOSE, &bodies[3]));
        assert_eq!(status(&answer), 200, "{answer}");
        let [a, b, _, c] = bodies;
        acknowledged.extend([a, b, c]);
    }
    stack.expect_stored(acknowledged);
}

#[test]
fn the_site_lets_in_what_is_public_and_nothing_else() {
    let stack = Stack::start();
    let bare = |method: &str, target: &str| {
        let more = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        stack.ask(
            format!("{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{more}\r\n").as_bytes(),
        )
    };
    assert_eq!(status(&bare("GET", "/health")), 200);
    let token = &harness::settings(&stack.data(), &[])["WHATSAPP_VERIFY_TOKEN"];
    let handshake =
        format!("/webhook?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={token}-is-it");
    assert_eq!(status(&bare("GET", &handshake)), 403);
    let handshake = bare("GET", handshake.trim_end_matches("-is-it"));
    assert_eq!(status(&handshake), 200);
    assert!(handshake.ends_with("\r\n\r\n1158201444"), "{handshake}");
    let inside =
        ["/metrics", "/metrics/prometheus", "/ready", "/admin/cache/clear", "/webhook/", "//webhook/x", "/"];
    for target in inside {
        assert_eq!(status(&bare("GET", target)), 404, "{target}");
        assert_eq!(status(&bare("POST", target)), 404, "{target}");
    }
    let large = "POST /webhook HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4194305\r\n\r\n";
    let mut stream = connect(stack.nginx.port);
    stream.write_all(large.as_bytes()).expect("sent");
    let mut answer = [0; 12];
    // no more of it: nginx waits a while for the body before it closes
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
    stack.expect_stored(Vec::new());

    let log =
        std::fs::read_to_string(stack.folder.path().join("whatsapp-webhook.access.log")).expect("a log");
    assert!(log.contains("GET /webhook\" 200") && !log.contains("verify_token"), "{log}");
}

#[test]
fn a_flood_without_signature_is_limited_and_delays_no_signed_webhook() {
    let stack = Stack::start();
    let flood = unsigned(&webhook("unsigned", 0));
    let codes: Vec<u16> = (0..60).map(|_| status(&stack.ask(&flood))).collect();
    assert_eq!(codes[0], 401, "{codes:?}");
    assert!(codes.contains(&429) && codes.iter().all(|code| [401, 429].contains(code)), "{codes:?}");
    let bodies: Vec<_> = (0..60).map(|n| webhook(&format!("signed-{n}"), 0)).collect();
    for body in &bodies {
        let answer = stack.ask(&post("1.1", CLOSE, body));
        assert_eq!(status(&answer), 200, "{answer}");
    }
    stack.expect_stored(bodies);
}

#[test]
fn a_made_up_forwarded_address_escapes_no_limit_and_blames_nobody_else() {
    // only nginx is trusted, so that callers at 127.0.0.2 and 127.0.0.3 are strangers
    let stack = Stack::with(&[("TRUSTED_PROXIES", "127.0.0.1/32"), ("RATE_LIMIT_UNVERIFIED", "10")]);
    let body = webhook("forged", 0);
    let forge = |from: &str, claims: &str| {
        let claims = format!("{CLOSE}X-Forwarded-For: {claims}\r\n");
        // formed well, so that nginx lets it pass, and wrong
        let request = String::from_utf8(post("1.1", &claims, &body)).expect("text");
        let request = request.replace(&signature(&body), &format!("sha256={}", "0".repeat(64)));
        let mut stream = connect_from(from, stack.nginx.port);
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        status(&answer)
    };
    let codes: Vec<u16> = (0..30).map(|n| forge("127.0.0.2", &format!("198.51.100.{n}"))).collect();
    assert_eq!(codes[0], 401, "{codes:?}");
    assert_eq!(codes[29], 429, "{codes:?}");
    assert_eq!(forge("127.0.0.3", "127.0.0.2"), 401);
    stack.expect_stored(Vec::new());
}
