//! Opening the embedded store: one SQLite file in the data folder, WAL, synchronous=FULL.
//!
//! The committer of `inbox` is the one steady writer. Others (the `business` and `inbox` commands, the directory) open
//! a [`Guest`], which asks the committer to step aside while it writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// Name of the file in DATA_DIR.
pub const FILE: &str = "whatsapp-webhook.db";
/// Written into `PRAGMA user_version`; a file of a later version is refused.
/// 2: a commit's bodies may be compressed; all that version 1 wrote is read as it is.
pub const SCHEMA_VERSION: i64 = 2;

const SCHEMA: &str = include_str!("store.sql");

/// Why the store can't be opened, with what to do about it.
#[derive(Debug)]
pub enum OpenError {
    /// The folder or the file: permissions, read-only, no such path.
    Io(PathBuf, io::Error),
    /// SQLite's word.
    Sqlite(PathBuf, rusqlite::Error),
    /// Written by a later version of this program.
    TooNew(i64),
    /// Another process serves from this folder.
    InUse(PathBuf),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(path, e) => {
                write!(f, "store {}: {e}; DATA_DIR must be a folder that this user can write", path.display())
            }
            Self::Sqlite(path, e) => write!(f, "store {}: {e}", path.display()),
            Self::TooNew(version) => write!(
                f,
                "store: schema version {version} is newer than this program ({SCHEMA_VERSION}); install the newer program"
            ),
            Self::InUse(path) => write!(
                f,
                "store {}: another whatsapp-webhook serves from it; stop that one or set another DATA_DIR",
                path.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// The right to serve from a data folder, held as long as it lives (also through kill -9: the kernel drops it).
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "the open file is the lock")] File);

/// Takes the right to serve from `data_dir`, which is created (mode 0700) if it is not there.
pub fn lock(data_dir: &Path) -> Result<Lock, OpenError> {
    create(data_dir)?;
    let path = data_dir.join("serve.lock");
    let file = lock_file(&path).map_err(|e| OpenError::Io(path.clone(), e))?;
    if !flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
        return Err(OpenError::InUse(data_dir.to_owned()));
    }
    Ok(Lock(file))
}

/// Opens the store read-write, creating folder, file and tables as needed.
pub fn open(data_dir: &Path) -> Result<Connection, OpenError> {
    create(data_dir)?;
    let path = data_dir.join(FILE);
    let sqlite = |e| OpenError::Sqlite(path.clone(), e);
    let connection = Connection::open(&path).map_err(sqlite)?;
    prepare(&connection).map_err(sqlite)?;
    let version = version(&connection).map_err(sqlite)?;
    if version > SCHEMA_VERSION {
        return Err(OpenError::TooNew(version));
    }
    if version == 0 {
        connection
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;\n{SCHEMA}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"
            ))
            .map_err(sqlite)?;
    }
    Ok(connection)
}

/// For who writes bodies: marks a store of an earlier version as one of this version. Others leave that to it, so that
/// a command of this program does not keep an earlier one that serves from starting again.
pub fn take_over(connection: &Connection) -> rusqlite::Result<()> {
    match version(connection)? {
        SCHEMA_VERSION => Ok(()),
        _ => connection.pragma_update(None, "user_version", SCHEMA_VERSION),
    }
}

/// Somebody else holds the lock that was asked for.
pub fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

/// Opens the store for reading only; it must be there.
pub fn open_read_only(data_dir: &Path) -> Result<Connection, OpenError> {
    let path = data_dir.join(FILE);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(&path, flags).map_err(|e| OpenError::Sqlite(path.clone(), e))?;
    let sqlite = |e| OpenError::Sqlite(path.clone(), e);
    connection.busy_timeout(Duration::from_secs(5)).map_err(sqlite)?;
    let version = version(&connection).map_err(sqlite)?;
    if version > SCHEMA_VERSION { Err(OpenError::TooNew(version)) } else { Ok(connection) }
}

/// 0: nothing was written yet.
pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |r| r.get(0))
}

/// The page size counts only for a new file, the rest for every connection.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch(
        "PRAGMA page_size = 16384;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 250;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;",
    )
}

/// A writer beside the committer: while it lives, the committer leaves gaps between its commits.
pub struct Guest {
    /// The connection; write with it in short transactions.
    pub connection: Connection,
    _turn: File,
}

/// Opens the store for a writer beside the committer. Waits for other guests.
pub fn guest(data_dir: &Path) -> Result<Guest, OpenError> {
    create(data_dir)?;
    let path = data_dir.join("guest.lock");
    let turn = lock_file(&path).map_err(|e| OpenError::Io(path.clone(), e))?;
    flock(&turn, libc::LOCK_EX);
    Ok(Guest { connection: open(data_dir)?, _turn: turn })
}

/// The committer's look at whether a guest wants to write.
#[derive(Debug)]
pub struct Gate(File);

impl Gate {
    /// For the folder, which must be there.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        lock_file(&data_dir.join("guest.lock")).map(Self)
    }

    /// One system call or two.
    pub fn is_wanted(&self) -> bool {
        if flock(&self.0, libc::LOCK_SH | libc::LOCK_NB) {
            flock(&self.0, libc::LOCK_UN);
            return false;
        }
        true
    }
}

/// That the files on disk are still those that are open: what is written to a file that was removed is gone with the
/// process.
#[derive(Debug)]
pub struct Presence {
    files: [(PathBuf, Option<u64>); 2],
}

impl Presence {
    /// Of the store in the folder.
    pub fn new(data_dir: &Path) -> Self {
        let files = [FILE.to_owned(), format!("{FILE}-wal")].map(|name| (data_dir.join(name), None));
        Self { files }
    }

    /// The file that was removed or replaced since the first call, if one was.
    pub fn missing(&mut self) -> Option<&Path> {
        use std::os::unix::fs::MetadataExt;
        for (path, known) in &mut self.files {
            let now = fs::metadata(&*path).ok().map(|metadata| metadata.ino());
            match (*known, now) {
                (None, _) => *known = now,
                (Some(before), Some(now)) if before == now => {}
                _ => return Some(path),
            }
        }
        None
    }
}

fn create(data_dir: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    if data_dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(|e| OpenError::Io(data_dir.to_owned(), e))
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

#[allow(
    unsafe_code,
    reason = "flock has no safe wrapper in the standard library of the minimum Rust version"
)]
fn flock(file: &File, operation: libc::c_int) -> bool {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; flock touches no memory of ours.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}
