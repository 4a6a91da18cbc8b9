//! When the store's log (SQLite's WAL) is folded into its file (a checkpoint).
//!
//! Left to itself SQLite does that inside the COMMIT that finds the log too long, while everybody who waits for it waits.
//! It takes many times as long as the commit. So a thread beside the committer does it while commits go on. What they
//! append meanwhile is little, and the committer folds that itself, after it has woken who waited: the log begins again
//! only once all of it is in the file.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use parking_lot::{Condvar, Mutex};
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};

/// A log of so many times the length at which it is folded waits for the thread: the disk can't keep up.
const WAIT_AT: i32 = 8;

/// How long the log is.
pub struct Fold {
    /// Pages in it after the last commit.
    pages: Arc<AtomicI32>,
    /// It is folded when it has so many.
    at: i32,
    /// And again when it has so many more.
    step: i32,
    beside: Arc<Beside>,
    /// The thread was sent, and its rest has not been folded.
    has_rest: bool,
}

impl Fold {
    /// From now on nobody else folds this connection's commits.
    pub fn watch(connection: &mut Connection, log_bytes: u64) -> rusqlite::Result<Self> {
        let page: i64 = connection.query_row("PRAGMA page_size", [], |r| r.get(0))?;
        let step = i32::try_from(log_bytes as i64 / page.max(1)).unwrap_or(i32::MAX / (2 * WAIT_AT));
        let step = step.clamp(1, i32::MAX / (2 * WAIT_AT));
        let pages = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&pages);
        connection.wal_hook(Some(move |_: &mut Wal, pages| {
            seen.store(pages, Relaxed);
            Ok(())
        }))?;
        let beside = Beside::start(connection.path().unwrap_or_default())?;
        Ok(Self { pages, at: step, step, beside, has_rest: false })
    }

    /// Has the log folded if it has grown long. Not inside a transaction. What can't be folded now (somebody reads it, or
    /// the disk fails) stays in the log until it has grown as much again.
    pub fn fold_if_due(&mut self, connection: &Connection) {
        let pages = self.pages.load(Relaxed);
        if self.has_rest {
            if self.beside.is_busy(pages >= WAIT_AT * self.step) {
                return;
            }
            self.has_rest = false;
            self.at = pages + self.step;
            return fold(connection);
        }
        if pages < self.at {
            // folded as a whole it begins again
            self.at = self.at.min(pages + self.step);
            return;
        }
        self.at = pages + self.step;
        self.beside.send();
        self.has_rest = true;
    }

    /// Waits until the thread has done what it was sent for: SQLite lets one fold at a time.
    pub fn wait(&self) {
        self.beside.is_busy(true);
    }
}

impl Drop for Fold {
    fn drop(&mut self) {
        self.beside.set(State::Over);
    }
}

fn fold(connection: &Connection) {
    let folded = connection
        .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")
        .and_then(|mut passive| passive.query_row([], |_| Ok(())));
    if let Err(e) = folded {
        log::warn!("inbox: the log can't be folded into the file and grows ({e})");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Busy,
    Over,
}

/// The thread, with a connection of its own.
struct Beside {
    state: Mutex<State>,
    changed: Condvar,
}

impl Beside {
    fn start(path: &str) -> rusqlite::Result<Arc<Self>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;")?;
        let beside = Arc::new(Self { state: Mutex::new(State::Idle), changed: Condvar::new() });
        let it = Arc::clone(&beside);
        let spawned =
            std::thread::Builder::new().name("inbox-fold".to_owned()).spawn(move || it.live(&connection));
        spawned.map_err(|e| {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOMEM);
            rusqlite::Error::SqliteFailure(code, Some(format!("no thread for the log: {e}")))
        })?;
        Ok(beside)
    }

    fn live(&self, connection: &Connection) {
        let mut state = self.state.lock();
        loop {
            match *state {
                State::Over => return,
                State::Idle => self.changed.wait(&mut state),
                State::Busy => {
                    drop(state);
                    fold(connection);
                    state = self.state.lock();
                    if *state == State::Busy {
                        *state = State::Idle;
                        self.changed.notify_all();
                    }
                }
            }
        }
    }

    fn send(&self) {
        self.set(State::Busy);
    }

    fn set(&self, to: State) {
        *self.state.lock() = to;
        self.changed.notify_all();
    }

    /// Whether it has not ended what it was sent for; waits for that if it must.
    fn is_busy(&self, must_wait: bool) -> bool {
        let mut state = self.state.lock();
        while must_wait && *state == State::Busy {
            self.changed.wait(&mut state);
        }
        *state == State::Busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that is never folded would grow with every commit; a commit of one body takes two pages or more. The thread
    /// beside is not waited for, so the log grows by what is committed while it works.
    #[test]
    fn the_log_stays_short_also_after_a_reader_held_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut connection = crate::store::open(folder.path()).expect("opens");
        let mut fold = Fold::watch(&mut connection, 4 << 20).expect("watched");
        let log = folder.path().join(format!("{}-wal", crate::store::FILE));
        let length = || std::fs::metadata(&log).map_or(0, |log| log.len());
        let commit = |fold: &mut Fold, n: i64| {
            connection
                .execute("INSERT INTO commits VALUES (?1, 0, x'', zeroblob(60000))", [n])
                .expect("inserted");
            fold.fold_if_due(&connection);
        };
        let most = 256 * (1 + WAIT_AT as u64) * 16_500;
        (0..900).for_each(|n| commit(&mut fold, n));
        assert!(length() <= most, "{}", length());
        let reader = crate::store::open_read_only(folder.path()).expect("opens");
        reader.execute_batch("BEGIN; SELECT count(*) FROM commits;").expect("reads");
        (900..1800).for_each(|n| commit(&mut fold, n));
        let held = length();
        assert!(held > most, "the reader needs what was there: {held}");
        reader.execute_batch("COMMIT").expect("ends");
        (1800..3600).for_each(|n| commit(&mut fold, n));
        assert!(length() <= held + most, "{} after {held}", length());
    }
}
