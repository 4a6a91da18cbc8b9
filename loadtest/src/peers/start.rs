//! Builds, installs and starts the peers. What is missing is told before any of them runs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use whatsapp_webhook::clock;

use super::{Args, Kind, table};
use crate::machine::Machine;
use crate::run::APP_SECRET;
use crate::server::{self, Data};
use crate::sys;

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(30);
/// How long an end may take before it is forced.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Everything that the peers need.
pub struct Starter {
    server: PathBuf,
    axum: PathBuf,
    gunicorn: PathBuf,
    parent: PathBuf,
    machine: Machine,
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// Runs a program to its end; what is wrong if that was none or not a good one.
fn done(command: &mut Command, what: &str) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{what} failed ({status}); see above")),
        Err(e) => Err(format!("{what}: {e}")),
    }
}

fn instead(args: &Args, without: &[Kind]) -> String {
    let rest: Vec<&str> =
        args.peers.iter().filter(|k| !without.contains(k)).map(|k| table::word(*k)).collect();
    format!("or leave it out: --peers {}", rest.join(","))
}

impl Starter {
    /// Builds and installs what the wanted peers need.
    ///
    /// # Errors
    /// Something is missing; what, and how to get it.
    pub fn prepare(args: &Args) -> Result<Self, String> {
        let wants = |kinds: &[Kind]| args.peers.iter().any(|kind| kinds.contains(kind));
        let own = server::own_folder()?;
        let folder = own.join("peers");
        let parent = args.data_dir.clone().unwrap_or_else(|| own.clone());
        let nginx = Command::new("nginx").arg("-v").stderr(Stdio::null()).status();
        if wants(&[Kind::Nginx]) && nginx.is_err() {
            return Err(format!(
                "there is no nginx: apt-get install nginx, {}",
                instead(args, &[Kind::Nginx])
            ));
        }
        let gunicorn = folder.join("python/bin/gunicorn");
        if wants(&[Kind::Original]) {
            python(&folder.join("python")).map_err(|why| {
                format!("the original's shape: {why}; {}", instead(args, &[Kind::Original]))
            })?;
        }
        let axum = folder.join("release/axum-twin");
        if wants(&[Kind::Hash, Kind::Items]) {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            eprintln!("loadtest: cargo build --release --manifest-path loadtest/peers/axum/Cargo.toml");
            let mut build = Command::new(cargo);
            build.args(["build", "--release", "--locked", "--target-dir"]).arg(&folder);
            build.current_dir(sources().join("axum"));
            done(&mut build, "the build of the axum twins")
                .map_err(|why| format!("{why}; {}", instead(args, &[Kind::Hash, Kind::Items])))?;
        }
        let server =
            if wants(&[Kind::Ours]) { server::locate(args.server.as_deref())? } else { PathBuf::from("-") };
        let data = Data::new(&parent)?;
        if sys::is_in_memory(data.path()) {
            eprintln!(
                "loadtest: {} is in memory, where durable costs nothing; take --data-dir on a disk",
                parent.display()
            );
        }
        let machine = Machine::look(&server, data.path());
        Ok(Self { server, axum, gunicorn, parent, machine })
    }

    /// On what.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Starts one with empty data, and waits until it listens. Call from the main thread: it dies with the caller's.
    ///
    /// # Errors
    /// It does not start; the reason.
    pub fn start(&self, kind: Kind) -> Result<Peer, String> {
        let data = Data::new(&self.parent)?;
        let port = free_port()?;
        let mut told = true;
        let mut command = match kind {
            Kind::Ours => {
                let mut command = Command::new(&self.server);
                command.arg("serve").env_clear().env("DATA_DIR", data.path()).envs([
                    ("WHATSAPP_VERIFY_TOKEN", "loadtest-verify-token"),
                    ("ENCRYPTION_SECRET", "loadtest-encryption-secret"),
                    ("GRAPH_API_URL", "http://127.0.0.1:9"),
                    ("LISTEN", "127.0.0.1:0"),
                    ("RUST_LOG", "warn"),
                    ("MAX_CONNECTIONS", "12000"),
                ]);
                command
            }
            Kind::Hash | Kind::Items => {
                let mut command = Command::new(&self.axum);
                command.arg(table::word(kind)).arg(data.path());
                command
            }
            Kind::Original => {
                told = false;
                let mut command = Command::new(&self.gunicorn);
                command.args(["--worker-class", "uvicorn_worker.UvicornWorker", "--log-level", "warning"]);
                command.args(["--workers", &self.machine.cores.to_string(), "--graceful-timeout", "1"]);
                command.args(["--backlog", "4096", "--bind", &format!("127.0.0.1:{port}"), "--chdir"]);
                command.arg(sources().join("original")).arg("app:app").env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Kind::Nginx => {
                told = false;
                let wrong = |e: std::io::Error| format!("nginx.conf: {e}");
                let conf = fs::read_to_string(sources().join("nginx.conf")).map_err(wrong)?;
                let path = data.path().join("nginx.conf");
                fs::write(&path, conf.replace("PORT", &port.to_string())).map_err(wrong)?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(data.path()).arg("-c").arg(path).args([
                    "-e",
                    "stderr",
                    "-g",
                    "daemon off;",
                ]);
                command
            }
        };
        command.current_dir(data.path()).env("WHATSAPP_APP_SECRET", APP_SECRET);
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        sys::dies_with_us(&mut command);
        let child = command.spawn().map_err(|e| format!("{}: {e}", table::name(kind)))?;
        let mut peer = Peer { kind, child, address: SocketAddr::from(([127, 0, 0, 1], port)), _data: data };
        peer.listens(told)?;
        Ok(peer)
    }
}

fn python(folder: &Path) -> Result<(), String> {
    let requirements = sources().join("original/requirements.txt");
    let wanted = fs::read_to_string(&requirements).map_err(|e| format!("{}: {e}", requirements.display()))?;
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("loadtest: python3 -m venv, pip install -r loadtest/peers/original/requirements.txt");
    done(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder),
        "python3 -m venv (apt-get install python3 python3-venv)",
    )?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements);
    done(&mut pip, "pip install")?;
    fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|e| format!("no free port: {e}"))
}

/// A running peer; it and its processes end when it is dropped.
pub struct Peer {
    kind: Kind,
    child: Child,
    address: SocketAddr,
    _data: Data,
}

impl Peer {
    /// Which.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its first process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error if it is gone.
    pub fn is_up(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended: {status}", table::name(self.kind))),
            Err(e) => Err(format!("{}: {e}", table::name(self.kind))),
        }
    }

    /// Waits until it listens: `told` by a line of its standard error, or until it can be connected to.
    fn listens(&mut self, told: bool) -> Result<(), String> {
        let (tell, telling) = sync_channel(1);
        let stderr = self.child.stderr.take();
        let name = table::name(self.kind);
        // read to the end, so that the peer never waits
        let read = move || {
            let lines = stderr.into_iter().flat_map(|out| BufReader::new(out).lines().map_while(Result::ok));
            for line in lines {
                match line.strip_prefix("listening on http://").map(|a| a.trim().parse()) {
                    Some(Ok(address)) => drop(tell.try_send(address)),
                    _ => eprintln!("  {name}: {line}"),
                }
            }
        };
        std::thread::Builder::new().name("peer-stderr".to_owned()).spawn(read).map_err(|e| e.to_string())?;
        let begun = clock::monotonic();
        while clock::monotonic() - begun < START_MAX {
            self.is_up()?;
            if told {
                if let Ok(address) = telling.recv_timeout(LOOK_EVERY) {
                    self.address = address;
                    return Ok(());
                }
            } else if TcpStream::connect(self.address).is_ok() {
                // workers that are still starting are not yet what is measured
                clock::sleep(Duration::from_secs(1));
                return Ok(());
            } else {
                clock::sleep(LOOK_EVERY);
            }
        }
        Err(format!("{name} does not listen"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::terminate(&self.child);
        }
        let until = clock::monotonic() + STOP_MAX;
        while clock::monotonic() < until && matches!(self.child.try_wait(), Ok(None)) {
            clock::sleep(LOOK_EVERY);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::kill_group(&self.child);
            let _ = self.child.wait();
        }
    }
}
