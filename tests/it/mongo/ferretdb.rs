//! FerretDB as a process: started on a free port over a folder of its own, frozen, killed, started again on the
//! same port and folder. Ended and removed with the value.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{BINARY, SOON};

pub struct Ferretdb {
    child: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

/// The server's binary, built if need be: a test without it is a failure, never skipped.
fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(BINARY).ancestors().nth(2).expect("target/debug/binary");
        let folder = target.join("ferretdb");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ferretdb/build");
        let built = Command::new(script).arg(&folder).status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "FerretDB can't be built: run tests/run, which installs what is missing (Go >= 1.24)"
        );
        folder.join("ferretdb")
    })
}

impl Ferretdb {
    /// Starts it and waits until it answers.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (child, address) = spawn("127.0.0.1:0", folder.path()).expect("FerretDB starts");
        Self { child, address, folder }
    }

    /// With the database `whatsapp`.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/whatsapp", self.address)
    }

    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// After [`Ferretdb::kill`], on the same port and folder.
    pub fn restart(&mut self) {
        let until = Instant::now() + SOON;
        self.child = loop {
            match spawn(&self.address.to_string(), self.folder.path()) {
                Some((child, _)) => break child,
                None => assert!(Instant::now() < until, "FerretDB does not start again"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }
}

impl Drop for Ferretdb {
    fn drop(&mut self) {
        self.kill();
    }
}

/// It says where it listens once it does, and ends with its standard input, which the child keeps open. `None` if
/// it ended at once.
fn spawn(address: &str, folder: &Path) -> Option<(Child, SocketAddr)> {
    let mut child = Command::new(binary())
        .arg(address)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    lines.read_line(&mut line).expect("readable");
    let Ok(address) = line.trim().parse() else {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    };
    Some((child, address))
}
