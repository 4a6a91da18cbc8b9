//! The store: whether it can be written, on what, how fast, and what in it waits for a hand.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::report::{Level, Report};
use crate::clock;
use crate::config::Config;
use crate::inbox::State;
use crate::ops::machine;
use crate::store::{self, OpenError};

/// Below this much room: look at it, and wrong.
const FREE_LOW: u64 = 1 << 30;
const FREE_LEAST: u64 = 64 << 20;
/// A page written and synced takes longer than this on a slow disk only.
const SYNC_SLOW: Duration = Duration::from_millis(20);
const PAGE: usize = 16 << 10;
const SYNCS: usize = 5;
const PROBE: &str = "doctor.probe";
/// What pends for longer waits for something.
const PENDING_LONG: Duration = Duration::from_secs(600);
/// Counting gives up after this.
const COUNT_WITHIN: Duration = Duration::from_secs(8);
/// Reasons that are named.
const REASONS: usize = 3;
/// Others' files of the store, beside [`store::FILE`].
const BESIDE: [&str; 4] = ["-wal", "-shm", "serve.lock", "guest.lock"];

/// File systems over a network, on which SQLite's log can't be shared between processes, by their magic numbers.
/// Source: statfs(2), linux/magic.h.
const NETWORK: [(u64, &str); 8] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd3, "Lustre"),
    (0x5346_414f, "AFS"),
];
/// What goes with the machine or the container.
const FLEETING: [(u64, &str); 3] =
    [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs"), (0x794c_7630, "overlayfs, a container's own layer")];
const FUSE: u64 = 0x6573_5546;

/// Looks at all of it.
pub fn look(config: &Config, report: &Report) {
    let folder = &config.inbox.data_dir;
    let is_there = folder.is_dir();
    let Some(place) = existing(folder) else {
        return report.fail("store", format!("{} leads nowhere; set DATA_DIR", folder.display()));
    };
    if !place.is_dir() {
        let text = format!("{}: {} is not a folder; set another DATA_DIR", folder.display(), place.display());
        return report.fail("store", text);
    }
    if let Err(e) = machine::may_write(&place) {
        let text = format!(
            "{} can't be written by this user: {e}; it must belong to the user that the service runs as (and stand in \
             the unit's ReadWritePaths= if it is not its StateDirectory)",
            place.display()
        );
        return report.fail("store", text);
    }
    volume(&place, report);
    if !is_there {
        return report.ok("store", format!("{} is not there yet; `serve` makes it", folder.display()));
    }
    owners(folder, report);
    sync(folder, report);
    if !folder.join(store::FILE).exists() {
        return report.ok("store", format!("{}: nothing is stored yet", folder.display()));
    }
    match store::open_read_only(folder) {
        Ok(connection) => opened(folder, connection, report),
        Err(e) => report.fail("store", unopened(folder, &e)),
    }
}

/// The path, or of what is above it the nearest that is there.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|above| above.symlink_metadata().is_ok()).map(Path::to_owned)
}

fn volume(place: &Path, report: &Report) {
    let seen = match machine::volume(place) {
        Ok(seen) => seen,
        Err(e) => return report.warn("store", format!("its volume can't be looked at: {e}")),
    };
    let named = |names: &[(u64, &'static str)]| {
        names.iter().find(|(magic, _)| *magic == seen.magic).map(|(_, name)| *name)
    };
    if let Some(name) = named(&NETWORK) {
        let text =
            format!("DATA_DIR is on {name}, where SQLite's log does not work; set one on a local disk");
        report.fail("store", text);
    } else if let Some(name) = named(&FLEETING) {
        let text =
            format!("DATA_DIR is on {name}: it goes with it; set one on a disk (in a container: a volume)");
        report.warn("store", text);
    } else if seen.magic == FUSE {
        report.warn("store", "DATA_DIR is on FUSE: it works if that is a local disk, and not over a network");
    }
    let free = seen.free_bytes;
    let level = match free {
        0..FREE_LEAST => Level::Fail,
        FREE_LEAST..FREE_LOW => Level::Warn,
        _ => Level::Ok,
    };
    let mend = if level == Level::Ok {
        String::new()
    } else {
        "; when it is full webhooks get 503: make room (INBOX_RETENTION says what is kept)".to_owned()
    };
    report.say(level, "store", format!("{} MiB are free{mend}", free >> 20));
}

/// A command that root ran may leave files that the service can't open; and root may write everything, so that for root
/// the owner's own rights are looked at.
fn owners(folder: &Path, report: &Report) {
    let Ok(of_folder) = folder.metadata() else { return };
    let owner = of_folder.uid();
    if owner != 0 && of_folder.mode() & 0o300 != 0o300 {
        let text = format!("user {owner} owns {} and can't write it; chmod u+rwx it", folder.display());
        report.fail("store", text);
    }
    let beside = BESIDE.map(|name| match name.strip_prefix('-') {
        Some(_) => format!("{}{name}", store::FILE),
        None => name.to_owned(),
    });
    for name in std::iter::once(store::FILE.to_owned()).chain(beside) {
        let path = folder.join(name);
        let Ok(of_file) = path.metadata() else { continue };
        let why = match machine::may_write(&path) {
            Err(e) => e.to_string(),
            Ok(()) if owner != 0 && of_file.uid() != owner => format!("it belongs to user {}", of_file.uid()),
            Ok(()) if owner != 0 && of_file.mode() & 0o200 == 0 => "its mode forbids it".to_owned(),
            Ok(()) => continue,
        };
        let text =
            format!("the service can't write {}: {why}; chown {owner} it and chmod u+rw it", path.display());
        report.fail("store", text);
    }
}

/// What the 200 waits for, several times.
fn sync(folder: &Path, report: &Report) {
    let timed = Probe::new(folder).and_then(|probe| {
        let page = [0x5a; PAGE];
        let mut took = Vec::new();
        for nth in 0..SYNCS {
            let begun = clock::monotonic();
            probe.file.write_all_at(&page, (nth * PAGE) as u64)?;
            probe.file.sync_data()?;
            took.push(clock::monotonic() - begun);
        }
        took.sort();
        Ok(took[SYNCS / 2])
    });
    match timed {
        Ok(took) if took > SYNC_SLOW => report.warn(
            "store",
            format!(
                "a page takes {} ms to be on disk, and each 200 waits for that; is the disk busy?",
                ms(took)
            ),
        ),
        Ok(took) => report.ok("store", format!("writable; a page is on disk after {} ms", ms(took))),
        Err(e) => report.fail(
            "store",
            format!("{}: a file can't be written: {e}; is the disk full, or read-only?", folder.display()),
        ),
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// A file that is removed with the value.
struct Probe {
    path: PathBuf,
    file: File,
}

impl Probe {
    /// Never follows a link that somebody put there.
    fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join(PROBE);
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                open()?
            }
            other => other?,
        };
        Ok(Self { path, file })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn unopened(folder: &Path, e: &OpenError) -> String {
    match e {
        OpenError::Sqlite(..) => format!(
            "{e}; is it whole (sqlite3 {} 'PRAGMA integrity_check')? If not, put a copy of it back",
            folder.join(store::FILE).display()
        ),
        // they say what to do
        OpenError::Io(..) | OpenError::TooNew(_) | OpenError::InUse(_) => e.to_string(),
    }
}

fn opened(folder: &Path, mut connection: Connection, report: &Report) {
    match store::version(&connection) {
        Ok(0) => return report.ok("store", format!("{}: nothing is stored yet", folder.display())),
        Ok(version) if version < store::SCHEMA_VERSION => {
            report.ok("store", format!("{}: version {version}; `serve` takes it over", folder.display()));
        }
        Ok(version) => report.ok("store", format!("{}: opens, version {version}", folder.display())),
        Err(e) => {
            return report.fail("store", unopened(folder, &OpenError::Sqlite(folder.join(store::FILE), e)));
        }
    }
    let end = clock::monotonic() + COUNT_WITHIN;
    let counted = connection
        .progress_handler(100_000, Some(move || clock::monotonic() > end))
        .and_then(|()| inbox(&connection, report));
    match counted {
        Ok(()) => {}
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
            report.skip("inbox", "counting takes too long; `inbox status` takes its time");
        }
        Err(e) => {
            report.fail("inbox", format!("can't be read: {e}; `inbox status`, and see the store's lines"))
        }
    }
}

/// Items that wait for a hand. Each condition names the partial index that answers it.
fn inbox(connection: &Connection, report: &Report) -> rusqlite::Result<()> {
    let count = |condition: &str| {
        let sql = format!("SELECT count(*) FROM items WHERE {condition}");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0))
    };
    let of = |state: State| match state {
        State::Dead => format!("state = {}", state as u8),
        _ => format!("state < 2 AND state = {}", state as u8),
    };
    for (state, name) in [(State::Dead, "dead"), (State::Parked, "parked")] {
        let condition = of(state);
        let items = count(&condition)?;
        if items > 0 {
            let reasons = reasons(connection, &condition)?;
            let text = format!(
                "{items} {name}: {reasons}; `inbox list --state {name}` shows them, `inbox replay --state {name}` puts \
                 them back once the cause is mended"
            );
            report.warn("inbox", text);
        }
    }
    let pending = count(&of(State::Pending))?;
    let replies: i64 =
        connection.query_row("SELECT count(*) FROM turns WHERE state = 0", [], |row| row.get(0))?;
    let oldest: Option<i64> = connection.query_row(
        &format!(
            "SELECT min(received_ms) FROM commits
             WHERE id = (SELECT min(commit_id) FROM items WHERE {})",
            of(State::Pending)
        ),
        [],
        |row| row.get(0),
    )?;
    let age =
        oldest.map_or(Duration::ZERO, |at| Duration::from_millis(clock::now().saturating_sub(at as u64)));
    let counts = format!("{pending} pending, {replies} turns with replies to send");
    if age > PENDING_LONG {
        let text = format!(
            "{counts}, the oldest for {} min; is the service running? `inbox list --state pending` says what they wait for",
            age.as_secs() / 60
        );
        report.warn("inbox", text);
    } else {
        report.ok("inbox", counts);
    }
    Ok(())
}

/// The commonest ones.
fn reasons(connection: &Connection, condition: &str) -> rusqlite::Result<String> {
    let sql = format!(
        "SELECT coalesce(reason, '?'), count(*) FROM items WHERE {condition} GROUP BY 1 ORDER BY 2 DESC LIMIT {REASONS}"
    );
    let mut statement = connection.prepare(&sql)?;
    let named = statement
        .query_map([], |row| Ok(format!("{} {}", row.get::<_, i64>(1)?, row.get::<_, String>(0)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(named.join(", "))
}
