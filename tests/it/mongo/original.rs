//! What the Python service's side does to the collection: `tests/original.py`, run with the system's Python.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::harness::ENCRYPTION_SECRET;

/// The Python that has pymongo and cryptography: Debian's, else the one in PATH.
fn python() -> &'static str {
    static FOUND: OnceLock<&str> = OnceLock::new();
    FOUND.get_or_init(|| {
        let has_both = |python: &&str| {
            let imported = Command::new(python)
                .args(["-c", "import pymongo, cryptography.fernet"])
                .stderr(Stdio::null())
                .status();
            imported.is_ok_and(|status| status.success())
        };
        ["/usr/bin/python3", "python3"].into_iter().find(has_both).unwrap_or_else(|| {
            panic!("no Python with pymongo and cryptography: run tests/run, which installs them")
        })
    })
}

/// The collection at a URI, seen with a secret.
#[derive(Clone)]
pub struct Original {
    pub uri: String,
    pub secret: String,
}

impl Original {
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned(), secret: ENCRYPTION_SECRET.to_owned() }
    }

    pub fn with_secret(&self, secret: &str) -> Self {
        Self { uri: self.uri.clone(), secret: secret.to_owned() }
    }

    /// Inserts documents; see the script's head.
    pub fn write(&self, documents: &[Value]) {
        let lines: Vec<String> = documents.iter().map(Value::to_string).collect();
        self.run(&["write"], &lines.join("\n"));
    }

    /// `count` businesses `biz0`.. with numbers from `start` and tokens `token-0`..
    pub fn many(&self, count: usize, start: u64) {
        self.run(&["many", &count.to_string(), &start.to_string()], "");
    }

    pub fn set(&self, sub_domain: &str, fields: &Value) {
        self.run(&["set", sub_domain], &fields.to_string());
    }

    pub fn index(&self, name: &str, field: &str) {
        self.run(&["index", name, field], "");
    }

    /// The access tokens by subdomain, decrypted; `None` where the secret opens nothing.
    pub fn tokens(&self) -> BTreeMap<String, Option<String>> {
        serde_json::from_str(&self.run(&["tokens"], "")).expect("JSON")
    }

    /// All documents as extended JSON, ordered by `_id`.
    pub fn dump(&self) -> Vec<Value> {
        self.run(&["dump"], "").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn run(&self, arguments: &[&str], input: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/original.py");
        let mut child = Command::new(python())
            .arg(script)
            .arg(&self.uri)
            .args(arguments)
            .env("ENCRYPTION_SECRET", &self.secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        let out = child.wait_with_output().expect("waited");
        assert!(out.status.success(), "original.py {arguments:?} failed");
        String::from_utf8(out.stdout).expect("UTF-8")
    }
}
