//! Real nginx with the shipped site file in front of the real binary.
//!
//! Only ports and paths of the file are substituted; nginx runs from a temporary folder, also without privileges. What
//! arrived is counted in the store, with the binary's own `inbox status`.

#![allow(clippy::disallowed_methods, reason = "tests wait on threads and measure time")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ring::hmac;

const BINARY: &str = env!("CARGO_BIN_EXE_whatsapp-webhook");
const NGINX: &str = "/usr/sbin/nginx";
const SECRET: &str = "nginx-secret";
const VERIFY_TOKEN: &str = "nginx-verify-token";
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with nginx in front. Both end with it.
struct Stack {
    service: Service,
    nginx: Nginx,
    folder: tempfile::TempDir,
}

struct Service {
    child: Child,
    port: u16,
}

struct Nginx {
    child: Child,
    port: u16,
}

impl Service {
    fn start(data: &Path, port: u16) -> Self {
        let mut child = Command::new(BINARY)
            .arg("serve")
            .env_clear()
            .current_dir(data)
            .env("WHATSAPP_APP_SECRET", SECRET)
            .env("WHATSAPP_VERIFY_TOKEN", VERIFY_TOKEN)
            .env("ENCRYPTION_SECRET", "s")
            .env("DATA_DIR", data)
            .env("LISTEN", format!("127.0.0.1:{port}"))
            // nothing that is asked of Graph may leave this machine
            .env("GRAPH_API_URL", "http://127.0.0.1:9")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("standard error")).lines();
        let mut seen = String::new();
        let port = loop {
            let line = lines.next().unwrap_or_else(|| panic!("the service ended: {seen}")).expect("a line");
            if let Some(port) = line.strip_prefix("listening on http://127.0.0.1:") {
                break port.parse().expect("a port");
            }
            seen += &line;
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
            let mut nginx = Self { child, port };
            let begun = Instant::now();
            while nginx.runs() && begun.elapsed() < PATIENCE {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
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
        self.child.try_wait().expect("its state").is_none()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
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
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("data")).expect("a folder");
        let service = Service::start(&folder.path().join("data"), 0);
        let nginx = Nginx::start(folder.path(), service.port);
        Self { service, nginx, folder }
    }

    /// One request, which asks for it to be the last, on a connection of its own: the whole answer.
    ///
    /// No half close: nginx takes that for a caller that gave up.
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
    fn stored(&self) -> u64 {
        let out = Command::new(BINARY)
            .args(["inbox", "status"])
            .env_clear()
            .current_dir(self.folder.path())
            .env("DATA_DIR", self.folder.path().join("data"))
            .output()
            .expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let out = String::from_utf8(out.stdout).expect("text");
        let messages = out.lines().filter(|line| line.split_whitespace().nth(1) == Some("message"));
        messages
            .map(|line| line.split_whitespace().last().expect("a count").parse::<u64>().expect("a count"))
            .sum()
    }

    fn expect_stored(&self, count: u64) {
        let begun = Instant::now();
        while self.stored() != count {
            assert!(begun.elapsed() < PATIENCE, "{} messages in the store, not {count}", self.stored());
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
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), body);
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

#[test]
fn forty_headers_old_http_chunks_and_three_megabytes_come_through_nginx() {
    let stack = Stack::start();
    let many: String = (0..36).map(|n| format!("X-Filler-{n}: {}\r\n", "v".repeat(n))).collect();
    let answer = stack.ask(&post("1.1", &(many + "Connection: close\r\n"), &webhook("headers", 0)));
    assert_eq!(status(&answer), 200, "{answer}");

    let answer = stack.ask(&post("1.0", "", &webhook("old", 0)));
    assert_eq!(status(&answer), 200, "{answer}");

    let answer = stack.ask(&post("1.1", "Connection: close\r\n", &webhook("large", 3_000_000)));
    assert_eq!(status(&answer), 200, "{answer}");

    let body = webhook("chunked", 0);
    let (front, back) = body.split_at(100);
    let head = format!(
        "POST /whatsapp_response HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
         X-Hub-Signature-256: {}\r\n\r\n",
        signature(&body)
    );
    let chunk =
        |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n".as_slice()].concat();
    let answer = stack.ask_slowly(&[head.as_bytes(), &chunk(front), &chunk(back), b"0\r\n\r\n"]);
    assert_eq!(status(&answer), 200, "{answer}");
    stack.expect_stored(4);
}

#[test]
fn five_hundred_connections_at_once_come_through_nginx() {
    const CONNECTIONS: usize = 500;
    let stack = Stack::start();
    let all_there = Arc::new(Barrier::new(CONNECTIONS));
    let callers: Vec<_> = (0..CONNECTIONS)
        .map(|n| {
            let (port, all_there) = (stack.nginx.port, Arc::clone(&all_there));
            let call = move || {
                let mut stream = connect(port);
                let body = webhook(&format!("at-once-{n}"), 0);
                let request = post("1.1", "", &body);
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
    stack.expect_stored(CONNECTIONS as u64);
}

#[test]
fn a_restart_of_the_service_is_not_seen_by_who_comes_after_it() {
    let mut stack = Stack::start();
    let data = stack.folder.path().join("data");
    for round in 0..3 {
        let wamid = |n: &str| webhook(&format!("round-{round}-{n}"), 0);
        for n in ["a", "b"] {
            let answer = stack.ask(&post("1.1", "Connection: close\r\n", &wamid(n)));
            assert_eq!(status(&answer), 200, "{answer}");
        }
        // nginx keeps connections to the service, which are dead after this
        let port = stack.service.port;
        stack.service.child.kill().expect("killed");
        stack.service.child.wait().expect("ended");
        let answer = stack.ask(&post("1.1", "Connection: close\r\n", &wamid("meanwhile")));
        assert_eq!(status(&answer), 502, "{answer}");
        stack.service = Service::start(&data, port);
        let answer = stack.ask(&post("1.1", "Connection: close\r\n", &wamid("c")));
        assert_eq!(status(&answer), 200, "{answer}");
    }
    stack.expect_stored(9);
}

#[test]
fn the_site_lets_in_what_is_public_and_nothing_else() {
    let stack = Stack::start();
    let get = |target: &str| {
        stack.ask(format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes())
    };
    assert_eq!(status(&get("/health")), 200);
    let handshake =
        get(&format!("/webhook?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={VERIFY_TOKEN}"));
    assert_eq!(status(&handshake), 200);
    assert!(handshake.ends_with("\r\n\r\n1158201444"), "{handshake}");
    for inside in
        ["/metrics", "/metrics/prometheus", "/ready", "/admin/cache/clear", "/webhook/", "//webhook", "/"]
    {
        assert_eq!(status(&get(inside)), 404, "{inside}");
    }
    let large = "POST /webhook HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4194305\r\n\r\n";
    let mut stream = connect(stack.nginx.port);
    stream.write_all(large.as_bytes()).expect("sent");
    let mut answer = [0; 12];
    // no more of it: nginx waits a while for the body before it closes
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");

    let log =
        std::fs::read_to_string(stack.folder.path().join("whatsapp-webhook.access.log")).expect("a log");
    assert!(log.contains("GET /webhook\" 200") && !log.contains(VERIFY_TOKEN), "{log}");
}

#[test]
fn a_flood_without_signature_is_limited_and_delays_no_signed_webhook() {
    let stack = Stack::start();
    let body = webhook("unsigned", 0);
    let unsigned = [
        format!(
            "POST /webhook HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
        &body,
    ]
    .concat();
    let codes: Vec<u16> = (0..60).map(|_| status(&stack.ask(&unsigned))).collect();
    assert_eq!(codes[0], 401, "{codes:?}");
    assert!(codes.contains(&429) && codes.iter().all(|code| [401, 429].contains(code)), "{codes:?}");
    for n in 0..60 {
        let answer = stack.ask(&post("1.1", "Connection: close\r\n", &webhook(&format!("signed-{n}"), 0)));
        assert_eq!(status(&answer), 200, "{answer}");
    }
    stack.expect_stored(60);
}
