//! The directory in MongoDB: a real server of its protocol (FerretDB), a proxy that misbehaves in front of it, a
//! scripted replica-set primary for what it never does, and documents that Python wrote.

mod answers;
mod commands;
mod doctor;
mod failover;
mod ferretdb;
mod original;
mod outage;
mod peer;
mod proxy;
mod wire;

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use whatsapp_webhook::config::read;
use whatsapp_webhook::config::vars::Vars;
use whatsapp_webhook::directory::store::Store;
use whatsapp_webhook::directory::{self, Directory};
use whatsapp_webhook::sandbox::{Number, Options, Sandbox};
use whatsapp_webhook::secret::Secret;

use crate::harness::{self, APP_SECRET, SOON, Service, settings, until};

/// The real binary between the simulated Meta and a MongoDB.
struct World {
    meta: Sandbox,
    service: Service,
    settings: HashMap<String, String>,
    _folder: TempDir,
}

/// Numbers and the tokens that the simulated Graph API takes for them.
fn world(uri: &str, numbers: &[(&str, &str)], extra: &[(&str, &str)]) -> World {
    super::coroutines();
    let folder = tempfile::tempdir().expect("a folder");
    let numbers = numbers.iter().map(|(id, token)| Number {
        phone_number_id: (*id).to_owned(),
        waba_id: format!("waba-{id}"),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(*token),
    });
    let meta = Sandbox::start(Options::new(Secret::new(APP_SECRET), numbers.collect())).expect("starts");
    let graph = meta.url();
    let base = [("GRAPH_API_URL", &*graph), ("SEND_SETTLE", "2s"), ("MONGODB_URI", uri)];
    let settings = settings(folder.path(), &[&base, extra].concat());
    let service = Service::start(&settings);
    meta.set_webhook_url(&service.url("/webhook"));
    World { meta, service, settings, _folder: folder }
}

impl World {
    /// Drains it and starts it again, with the settings as they are now.
    fn restart(&mut self) {
        self.service.signal("TERM");
        assert!(self.service.ended(2 * SOON).is_some_and(|status| status.success()));
        self.service = Service::start(&self.settings);
        self.meta.set_webhook_url(&self.service.url("/webhook"));
    }

    fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.meta.sent().iter().map(|s| s.text().expect("a text")).collect();
        texts.sort();
        texts
    }

    /// Nothing is pending, and exactly these texts went out, each with the token of its number.
    fn settles_with(&self, texts: &[&str]) {
        assert!(self.meta.wait_sent(texts.len() as u64, 3 * SOON), "sent: {:?}", self.texts());
        until("nothing is pending", SOON, || self.service.is_idle());
        assert_eq!(self.texts(), texts);
        assert_eq!(self.meta.doubled(), 0);
        assert!(self.meta.violations().is_empty(), "{:?}", self.meta.violations());
    }

    fn clear_cache(&self) {
        assert_eq!(self.admin("clear").0, 200);
    }

    fn admin(&self, what: &str) -> (u16, String) {
        let request = format!("POST /admin/cache/{what} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        harness::ask(self.service.address, request.as_bytes()).expect("an answer")
    }

    fn has(&self, state: &str, reason: &str) {
        until(&format!("{state} {reason}"), SOON, || {
            let (_, text, _) = run(&self.settings, &["inbox", "status"], "");
            text.lines().any(|line| line.starts_with(state) && line.contains(reason))
        });
    }

    fn database_is(&self, state: &str, within: Duration) {
        until(&format!("database {state}"), within, || {
            self.service.get("/health").1.contains(&format!(r#""database":"{state}""#))
        });
    }

    /// Lines of the log with this in them.
    fn told(&self, what: &str) -> usize {
        self.service.log().lines().filter(|line| line.contains(what)).count()
    }

    /// Errors in the log with this in them.
    fn errors(&self, what: &str) -> usize {
        self.service.log().lines().filter(|line| line.contains(" ERROR ") && line.contains(what)).count()
    }
}

/// A command of the binary: exit code, standard output, standard error.
fn run(settings: &HashMap<String, String>, arguments: &[&str], input: &str) -> (i32, String, String) {
    use std::io::Write;
    let mut child = harness::command(settings)
        .args(arguments)
        .current_dir(&settings["DATA_DIR"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    // a command that reads nothing may be over already
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let out = child.wait_with_output().expect("waited");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (out.status.code().expect("a code"), text(out.stdout), text(out.stderr))
}

fn lookup_settings(uri: &str) -> HashMap<String, String> {
    HashMap::from([
        ("MONGODB_URI".to_owned(), uri.to_owned()),
        ("ENCRYPTION_SECRET".to_owned(), harness::ENCRYPTION_SECRET.to_owned()),
    ])
}

/// The directory over the MongoDB at `uri`, in this process.
fn directory(uri: &str) -> Arc<dyn Directory> {
    super::coroutines();
    let config = read::directory_only(Vars::from_map(lookup_settings(uri))).expect("right");
    directory::open(&config).expect("opens")
}

fn store(uri: &str) -> Arc<dyn Store> {
    super::coroutines();
    let config = read::directory_only(Vars::from_map(lookup_settings(uri))).expect("right");
    directory::store(&config).expect("opens")
}
