//! The real binary on port 0, with the simulated Meta beside it. What is started is killed and reaped, also on a panic.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring::hmac;
use whatsapp_webhook::inbox::{StoredBodies, stored_bodies};

pub const BINARY: &str = env!("CARGO_BIN_EXE_whatsapp-webhook");
pub const APP_SECRET: &str = "harness-app-secret";
pub const ENCRYPTION_SECRET: &str = "harness-encryption-secret";
pub const SOON: Duration = Duration::from_secs(20);

/// A running server.
pub struct Service {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

/// The settings that every test needs; later ones win.
pub fn settings(data: &Path, extra: &[(&str, &str)]) -> HashMap<String, String> {
    let base = [
        ("WHATSAPP_VERIFY_TOKEN", "vt"),
        ("WHATSAPP_APP_SECRET", APP_SECRET),
        ("ENCRYPTION_SECRET", ENCRYPTION_SECRET),
        ("LISTEN", "127.0.0.1:0"),
        ("GRAPH_RATE", "100000"),
        ("RUST_LOG", "info"),
        ("RATE_LIMIT_METRICS", "0"),
        ("RATE_LIMIT_READY", "0"),
        ("DATA_DIR", data.to_str().expect("a path in UTF-8")),
    ];
    base.iter().chain(extra).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The binary with these settings and nothing else of this process's environment.
pub fn command(settings: &HashMap<String, String>) -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().envs(settings).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

impl Service {
    /// Starts it and waits until it listens.
    pub fn start(settings: &HashMap<String, String>) -> Self {
        let mut child = command(settings)
            .arg("serve")
            .current_dir(&settings["DATA_DIR"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, address) = std::sync::mpsc::channel();
        let lines = BufReader::new(child.stderr.take().expect("piped"));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on http://") {
                    let _ = found.send(address.parse().expect("an address"));
                }
                kept.lock().push(line);
            }
        });
        let Ok(address) = address.recv_timeout(SOON) else {
            let _ = child.kill();
            panic!("it does not listen:\n{}", log.lock().join("\n"));
        };
        Self { child, address, log }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        self.log.lock().join("\n")
    }

    /// kill -9.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        let until = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(Instant::now() < until, "it does not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for an end that it finds by itself.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|s| s.success()));
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        ask(self.address, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .expect("an answer")
    }

    /// Posts a body signed with the app's secret; `None` if there was no answer.
    pub fn post(&self, body: &[u8]) -> Option<u16> {
        ask(self.address, &signed(body, APP_SECRET)).map(|(status, _)| status)
    }

    /// A number of the JSON at /metrics: `inbox.pending`.
    pub fn count(&self, name: &str) -> u64 {
        let (_, json) = self.get("/metrics");
        let key = format!("\"{name}\":");
        let at = json.find(&key).unwrap_or_else(|| panic!("no {name} in {json}")) + key.len();
        let digits: String = json[at..].chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    pub fn is_idle(&self) -> bool {
        self.count("pending") == 0
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the server said:\n{}", self.log());
        }
    }
}

/// One request on a connection of its own.
pub fn ask(address: SocketAddr, request: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.write_all(request).ok()?;
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
        }
        let text = String::from_utf8_lossy(&all);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|l| l.strip_prefix("Content-Length: "))?.parse::<usize>().ok()?;
            if body.len() >= length {
                break;
            }
        }
    }
    let text = String::from_utf8_lossy(&all).into_owned();
    let status = text.get(9..12)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}

/// A POST of a webhook, signed with `secret`.
pub fn signed(body: &[u8], secret: &str) -> Vec<u8> {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
    let head = format!(
        "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: {}\r\n\r\n",
        hex::encode(tag),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// One text message as Meta posts it.
pub fn message(number: &str, from: &str, wamid: &str, text: &str, at: u64) -> String {
    envelope(&[change(number, from, wamid, text, at)])
}

pub fn envelope(changes: &[String]) -> String {
    let entries: Vec<String> =
        changes.iter().map(|c| format!(r#"{{"id":"waba","changes":[{c}]}}"#)).collect();
    format!(r#"{{"object":"whatsapp_business_account","entry":[{}]}}"#, entries.join(","))
}

pub fn change(number: &str, from: &str, wamid: &str, text: &str, at: u64) -> String {
    let text = serde_json::to_string(text).expect("json");
    format!(
        r#"{{"value":{{"messaging_product":"whatsapp","metadata":{{"display_phone_number":"1555","phone_number_id":"{number}"}},"contacts":[{{"profile":{{"name":"N"}},"wa_id":"{from}"}}],"messages":[{{"from":"{from}","id":"{wamid}","timestamp":"{at}","text":{{"body":{text}}},"type":"text"}}]}},"field":"messages"}}"#
    )
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    whatsapp_webhook::clock::now() / 1000
}

/// Waits until it is so.
pub fn until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !is_so() {
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Adds a business to the store of `settings` with `business add`.
pub fn add_business(
    settings: &HashMap<String, String>,
    sub_domain: &str,
    number: &str,
    token: &str,
    extra: &[&str],
) {
    let mut child = command(settings)
        .args(["business", "add", "--name", sub_domain, "--subdomain", sub_domain])
        .args(["--phone-number-id", number, "--waba-id", "1001"])
        .args(extra)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(token.as_bytes()).expect("written");
    assert!(child.wait().expect("waited").success());
}

/// What each commit of the store in a data folder holds.
pub fn bodies_in(data_dir: &Path) -> Vec<StoredBodies> {
    let store = whatsapp_webhook::store::open_read_only(data_dir).expect("opens");
    let mut commits = store.prepare("SELECT bounds, bodies FROM commits").expect("a table");
    let commits = commits.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?))).expect("rows");
    let columns = commits.map(|columns| columns.expect("a row"));
    columns.map(|(bounds, bodies)| stored_bodies(&bounds, bodies)).collect()
}
