//! When the store's log (SQLite's WAL) is folded into its file (a checkpoint).
//!
//! Left to itself SQLite does that inside the COMMIT that finds the log too long, while everybody who waits for it waits.
//! It takes several times as long as the commit: here it comes after they were woken, and only who comes meanwhile waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

/// How long the log is.
pub struct Fold {
    /// Pages in it after the last commit.
    pages: Arc<AtomicI32>,
    /// It is folded when it has so many.
    at: i32,
    /// And again when it has so many more.
    step: i32,
}

impl Fold {
    /// From now on nobody else folds this connection's commits.
    pub fn watch(connection: &mut Connection, log_bytes: u64) -> rusqlite::Result<Self> {
        let page: i64 = connection.query_row("PRAGMA page_size", [], |r| r.get(0))?;
        let step =
            i32::try_from(log_bytes as i64 / page.max(1)).unwrap_or(i32::MAX / 2).clamp(1, i32::MAX / 2);
        let pages = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&pages);
        connection.wal_hook(Some(move |_: &mut Wal, pages| {
            seen.store(pages, Relaxed);
            Ok(())
        }))?;
        Ok(Self { pages, at: step, step })
    }

    /// Folds the log if it has grown long. Not inside a transaction. What can't be folded now (somebody reads it, or the
    /// disk fails) stays in the log until it has grown as much again.
    pub fn fold_if_due(&mut self, connection: &Connection) {
        let pages = self.pages.load(Relaxed);
        if pages < self.at {
            // folded as a whole it begins again
            self.at = self.at.min(pages + self.step);
            return;
        }
        self.at = pages.saturating_add(self.step);
        let folded = connection
            .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")
            .and_then(|mut passive| passive.query_row([], |_| Ok(())));
        if let Err(e) = folded {
            log::warn!("inbox: the log can't be folded into the file and grows ({e})");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that is never folded would grow with every commit; a commit of one body takes two pages or more.
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
        let most = (256 + 20) * 16_500;
        (0..300).for_each(|n| commit(&mut fold, n));
        assert!(length() <= most, "{}", length());
        let reader = crate::store::open_read_only(folder.path()).expect("opens");
        reader.execute_batch("BEGIN; SELECT count(*) FROM commits;").expect("reads");
        (300..600).for_each(|n| commit(&mut fold, n));
        let held = length();
        assert!(held > most, "the reader needs what was there: {held}");
        reader.execute_batch("COMMIT").expect("ends");
        (600..1200).for_each(|n| commit(&mut fold, n));
        assert!(length() <= held + most, "{} after {held}", length());
    }
}
