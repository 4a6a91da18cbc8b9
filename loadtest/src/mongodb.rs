//! The businesses' MongoDB of a run: the one that is named, or FerretDB, built and started from `tests/ferretdb`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::{server, sys};

/// Names a MongoDB for `--mongodb` without a value: a URI may hold a password, which does not belong on a command line.
pub const VARIABLE: &str = "LOADTEST_MONGODB_URI";
/// The database, unless the URI names one.
const DATABASE: &str = "whatsapp_loadtest";
/// How long FerretDB may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// A MongoDB to be used; FerretDB ends when it is dropped.
pub struct Mongodb {
    uri: String,
    store: &'static str,
    ferretdb: Option<Ferretdb>,
}

impl Mongodb {
    /// The one that `given` or the variable names, or FerretDB with its data inside of `data`. Call from the main thread.
    ///
    /// # Errors
    /// FerretDB can't be built or started; the reason.
    pub fn start(given: &str, data: &Path) -> Result<Self, String> {
        let named = if given.is_empty() { std::env::var(VARIABLE).ok() } else { Some(given.to_owned()) };
        if let Some(uri) = named {
            return Ok(Self { uri, store: "MongoDB", ferretdb: None });
        }
        let ferretdb = Ferretdb::start(&data.join("ferretdb"))?;
        let uri = format!("mongodb://{}/", ferretdb.address);
        Ok(Self { uri, store: "FerretDB", ferretdb: Some(ferretdb) })
    }

    /// What the server has to be told.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![("MONGODB_URI", self.uri.clone())];
        if !names_database(&self.uri) {
            settings.push(("MONGODB_DB_NAME", DATABASE.to_owned()));
        }
        settings
    }

    /// Its process, if it was started here.
    pub fn pid(&self) -> Option<u32> {
        self.ferretdb.as_ref().map(|ferretdb| ferretdb.child.id())
    }

    /// What it is.
    pub fn store(&self) -> &'static str {
        self.store
    }
}

/// Whether something looks like a URI of MongoDB.
pub fn is_uri(uri: &str) -> bool {
    uri.starts_with("mongodb://") || uri.starts_with("mongodb+srv://")
}

fn names_database(uri: &str) -> bool {
    let hosts = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = hosts.split_once('/').map_or("", |(_, path)| path);
    !path.split('?').next().unwrap_or_default().is_empty()
}

/// A word of a command line without what is secret in it.
pub fn masked(word: &str) -> String {
    const SECRET: [&str; 5] = ["KEY", "SECRET", "TOKEN", "PASSWORD", "URI"];
    if let (true, Some((scheme, (_, host)))) =
        (word.contains("@"), word.split_once("://").and_then(|(s, r)| Some((s, r.rsplit_once('@')?))))
    {
        return format!("{scheme}://***@{host}");
    }
    match word.split_once('=') {
        Some((name, _)) if SECRET.iter().any(|s| name.ends_with(s)) => format!("{name}=***"),
        _ => word.to_owned(),
    }
}

struct Ferretdb {
    child: Child,
    address: String,
}

impl Ferretdb {
    fn start(data: &Path) -> Result<Self, String> {
        let wrong = |e: &dyn std::fmt::Display| format!("FerretDB: {e}");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ferretdb");
        let folder = server::own_folder()?.join("ferretdb");
        eprintln!("loadtest: tests/ferretdb/build");
        let built = Command::new(sources.join("build")).arg(&folder).stdout(Stdio::null()).status();
        match built {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(wrong(&format!("tests/ferretdb/build: {status}"))),
            Err(e) => {
                return Err(wrong(&format!(
                    "tests/ferretdb/build: {e}; name a MongoDB after --mongodb instead"
                )));
            }
        }
        std::fs::create_dir_all(data).map_err(|e| wrong(&e))?;
        let mut command = Command::new(folder.join("ferretdb"));
        command.arg("127.0.0.1:0").arg(data);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        sys::dies_with_us(&mut command);
        let mut child = command.spawn().map_err(|e| wrong(&e))?;
        let stdout = child.stdout.take();
        let mut ferretdb = Self { child, address: String::new() };
        let (tell, told) = sync_channel(1);
        let listen = move || {
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines().map_while(Result::ok)) {
                let _ = tell.try_send(line.trim().to_owned());
            }
        };
        std::thread::Builder::new()
            .name("ferretdb-stdout".to_owned())
            .spawn(listen)
            .map_err(|e| wrong(&e))?;
        ferretdb.address = told.recv_timeout(START_MAX).map_err(|_| wrong(&"it does not listen"))?;
        Ok(ferretdb)
    }
}

impl Drop for Ferretdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_that_names_a_database_keeps_it() {
        for (uri, names) in [
            ("mongodb://127.0.0.1:1", false),
            ("mongodb://127.0.0.1:1/", false),
            ("mongodb://u:p@a,b/?replicaSet=r", false),
            ("mongodb+srv://a/db?x=/y", true),
        ] {
            assert_eq!(names_database(uri), names, "{uri}");
        }
    }

    #[test]
    fn no_secret_of_a_command_line_is_repeated() {
        assert_eq!(masked("mongodb://user:p%40@host/db"), "mongodb://***@host/db");
        assert_eq!(masked("--mongodb=mongodb+srv://u:p@q@host"), "--mongodb=mongodb+srv://***@host");
        assert_eq!(masked("AGENT_API_KEY=x"), "AGENT_API_KEY=***");
        assert_eq!(masked("MONGODB_URI=x"), "MONGODB_URI=***");
        assert_eq!(masked("WORKERS=2"), "WORKERS=2");
        assert_eq!(masked("--users"), "--users");
    }
}
