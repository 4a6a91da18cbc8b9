//! The server under test: found or built, started as a child with its own data, stopped, and never left behind.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use whatsapp_webhook::clock;

use crate::sys;

/// The name of the server's executable.
const NAME: &str = "whatsapp-webhook";
/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(60);
/// How long the drain after SIGTERM may take before the server is killed.
const STOP_MAX: Duration = Duration::from_secs(60);
/// Lines of its standard error that are kept.
const LINES_MAX: usize = 20;
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The executable: as told, or beside this program, brought up to date by cargo first.
pub fn locate(told: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(path) = told {
        // the child runs in another folder
        return match path.canonicalize() {
            Ok(path) if path.is_file() => Ok(path),
            _ => Err(format!("--server {}: no such file", path.display())),
        };
    }
    let folder = own_folder()?;
    let path = folder.join(NAME);
    let is_release = folder.ends_with("release");
    if !is_release && !folder.ends_with("debug") && !folder.ends_with("deps") {
        // cargo would build one for debugging, and that one would be measured
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("there is no {NAME} beside this program: name one with --server"))
        };
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // both packages, so that the features of what they share are those of this program's own build
    build
        .args(["build", "-p", NAME, "-p", "loadtest", "--bin", NAME])
        .args(is_release.then_some("--release"));
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let by_hand = format!("cargo build{} --bin {NAME}", if is_release { " --release" } else { "" });
    eprintln!("loadtest: {by_hand}");
    match build.status() {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(format!("the server could not be built; see above, or run `{by_hand}`")),
        Err(_) if path.is_file() => {
            eprintln!("loadtest: cargo can't be run; the server that is there is taken as it is");
        }
        Err(e) => {
            return Err(format!(
                "there is no {} and cargo can't be run ({e}); run `{by_hand}`",
                path.display()
            ));
        }
    }
    if path.is_file() { Ok(path) } else { Err(format!("{} is not there after `{by_hand}`", path.display())) }
}

/// The folder of this program.
pub fn own_folder() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("where this program lies is not known: {e}"))?;
    own.parent().map(Path::to_owned).ok_or_else(|| "this program lies nowhere".to_owned())
}

/// A folder that is removed at the end.
pub struct Data(PathBuf);

impl Data {
    /// Makes it inside `parent`, and removes what killed runs left there.
    pub fn new(parent: &Path) -> Result<Self, String> {
        const PREFIX: &str = "loadtest-data-";
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX))
                .and_then(|pid| pid.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let path = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("loadtest: {}: {e}", self.0.display());
        }
    }
}

/// How to run the executable: with these settings and no others.
pub struct Setup<'a> {
    /// The executable.
    pub path: &'a Path,
    /// The working directory, which has no `.env`, and DATA_DIR.
    pub data: &'a Path,
    /// The environment.
    pub settings: Vec<(String, String)>,
}

impl Setup<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.path);
        command.env_clear().current_dir(self.data).env("DATA_DIR", self.data);
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        // its own group: an interrupt at the terminal is for us, who then stop it in order
        command.process_group(0);
        sys::dies_with_us(&mut command);
        command
    }

    /// Runs a subcommand to its end with `input` on standard input.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<(), String> {
        let what = arguments.join(" ");
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().map_err(|e| format!("{what}: {e}"))?;
        if !output.status.success() {
            return Err(format!(
                "`{NAME} {what}` failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        fed.map_err(|e| format!("`{NAME} {what}`: {e}"))
    }

    /// Starts `serve` and waits until it listens. Call from the main thread: the server dies with the caller's.
    pub fn serve(&self, is_interrupted: impl Fn() -> bool) -> Result<Server, String> {
        let mut command = self.command();
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let listening = child.stderr.take().map(|stderr| follow(stderr, Arc::clone(&lines)));
        let mut server = Server { child, lines, address: SocketAddr::from(([127, 0, 0, 1], 0)), ended: None };
        let listening = listening.transpose().map_err(|e| format!("a thread: {e}"))?;
        let begun = clock::monotonic();
        loop {
            if let Some(Ok(address)) = listening.as_ref().map(Receiver::try_recv) {
                server.address = address;
                return Ok(server);
            }
            let why = if server.has_ended() {
                "the server ended at its start"
            } else if clock::monotonic() - begun > START_MAX {
                "the server does not listen"
            } else if is_interrupted() {
                "interrupted"
            } else {
                clock::sleep(LOOK_EVERY);
                continue;
            };
            return Err(format!("{why}{}", server.said()));
        }
    }
}

/// Keeps the last lines, and sends the address once it is told. Reads to the end, so that the server never waits.
fn follow(
    stderr: impl io::Read + Send + 'static,
    lines: Arc<Mutex<VecDeque<String>>>,
) -> io::Result<Receiver<SocketAddr>> {
    let (told, listening) = sync_channel(1);
    let read = move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(address) =
                line.strip_prefix("listening on http://").and_then(|a| a.trim().parse().ok())
            {
                let _ = told.try_send(address);
                continue;
            }
            let mut lines = lines.lock();
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    };
    std::thread::Builder::new().name("server-stderr".to_owned()).spawn(read)?;
    Ok(listening)
}

/// The running server; killed and reaped when dropped.
pub struct Server {
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    address: SocketAddr,
    ended: Option<ExitStatus>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is gone.
    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_some()
    }

    /// Its last words, each on a line of its own.
    pub fn said(&self) -> String {
        self.lines.lock().iter().map(|line| format!("\n  server: {line}")).collect()
    }

    /// SIGTERM, and waits for the drain; the reason if it did not end well.
    pub fn stop(&mut self) -> Result<(), String> {
        let begun = clock::monotonic();
        if !self.has_ended() {
            sys::terminate(&self.child);
        }
        while !self.has_ended() {
            if clock::monotonic() - begun > STOP_MAX {
                self.kill();
                return Err(format!("did not stop within {} s of SIGTERM", STOP_MAX.as_secs()));
            }
            clock::sleep(LOOK_EVERY);
        }
        match self.ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(status.to_string()),
            None => Err("its end is not known".to_owned()),
        }
    }

    /// At once.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_removed_at_the_end_and_so_is_what_a_killed_run_left() {
        let parent = std::env::temp_dir().join(format!("loadtest-unit-{}", std::process::id()));
        // no process has this id: it is above the kernel's limit
        let left = parent.join("loadtest-data-4194399");
        fs::create_dir_all(&left).expect("made");
        let data = Data::new(&parent).expect("made");
        assert!(!left.exists() && data.path().is_dir());
        let path = data.path().to_owned();
        drop(data);
        assert!(!path.exists());
        fs::remove_dir_all(&parent).expect("removed");
    }

    #[test]
    fn a_server_that_ends_at_its_start_is_an_error_with_its_words() {
        let data = std::env::temp_dir();
        let setup = Setup { path: Path::new("/bin/ls"), data: &data, settings: Vec::new() };
        let error = setup.serve(|| false).err().expect("ls is no server");
        assert!(error.starts_with("the server ended at its start"), "{error}");
    }
}
