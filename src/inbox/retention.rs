//! Removing what is finished and old, a little at a time.
//!
//! Items go by range of their timestamp, commits by range of their number once no item in them is open.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::tables::Tables;
use crate::clock::UnixMillis;

/// Rows of a table that one transaction removes.
const CHUNK: i64 = 256;
/// How long after a sweep that found nothing the next one starts.
const PAUSE: Duration = Duration::from_secs(60);

/// Where the sweep stands.
pub struct Retention {
    keep: Duration,
    next: Duration,
    busy: bool,
}

impl Retention {
    pub fn new(keep: Duration) -> Self {
        Self { keep, next: Duration::ZERO, busy: false }
    }

    /// Whether the last sweep removed something, so that more may be due.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Removes at most one chunk of each table, if it is time.
    pub fn sweep(&mut self, tables: &Tables, now: UnixMillis, at: Duration) -> rusqlite::Result<()> {
        if at < self.next {
            return Ok(());
        }
        let cutoff = now.saturating_sub(self.keep.as_millis() as u64);
        tables.begin()?;
        let removed =
            sweep_items(tables, cutoff)? + sweep_commits(tables, cutoff)? + sweep_turns(tables, cutoff)?;
        tables.commit()?;
        super::REMOVED.add(removed as u64);
        self.busy = removed > 0;
        if removed == 0 {
            self.next = at + PAUSE;
        }
        Ok(())
    }
}

fn sweep_items(tables: &Tables, cutoff: UnixMillis) -> rusqlite::Result<usize> {
    let newest: Option<i64> = tables
        .connection()
        .prepare_cached("SELECT max(id) FROM (SELECT id, received_ms FROM commits ORDER BY id LIMIT 4096) WHERE received_ms < ?1")?
        .query_row([cutoff as i64], |r| r.get(0))?;
    let Some(newest) = newest else { return Ok(0) };
    tables
        .connection()
        .prepare_cached(
            "DELETE FROM items WHERE (timestamp, key) IN
             (SELECT timestamp, key FROM items WHERE timestamp < ?1 AND state > 2 AND commit_id <= ?2 LIMIT ?3)",
        )?
        .execute(params![cutoff as i64 / 1000, newest, CHUNK])
}

/// Commits older than the cutoff, up to the first that an open item needs or whose items are not in their table yet.
fn sweep_commits(tables: &Tables, cutoff: UnixMillis) -> rusqlite::Result<usize> {
    let oldest: Option<(i64, i64)> = tables
        .connection()
        .prepare_cached("SELECT id, received_ms FROM commits ORDER BY id LIMIT 1")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    if oldest.is_none_or(|(_, at)| at >= cutoff as i64) {
        return Ok(0);
    }
    let needed: Option<i64> = tables
        .connection()
        .prepare_cached("SELECT min(commit_id) FROM items INDEXED BY items_open WHERE state < 2")?
        .query_row([], |r| r.get(0))?;
    let end = needed.unwrap_or(i64::MAX).min(tables.derived()? as i64 + 1);
    tables
        .connection()
        .prepare_cached(
            "DELETE FROM commits WHERE id IN
             (SELECT id FROM (SELECT id, received_ms FROM commits ORDER BY id LIMIT ?3) WHERE received_ms < ?1 AND id < ?2)",
        )?
        .execute(params![cutoff as i64, end, CHUNK / 4])
}

fn sweep_turns(tables: &Tables, cutoff: UnixMillis) -> rusqlite::Result<usize> {
    let old = "SELECT id FROM (SELECT id, state, stored_ms FROM turns ORDER BY id LIMIT ?2)
               WHERE state = 1 AND stored_ms < ?1";
    let last: Option<i64> = tables.connection().query_row("SELECT max(id) FROM turns", [], |r| r.get(0))?;
    if let Some(last) = last {
        tables.set_last_turn(last)?;
    }
    let connection = tables.connection();
    connection
        .prepare_cached(&format!("DELETE FROM replies WHERE turn IN ({old})"))?
        .execute(params![cutoff as i64, CHUNK])?;
    connection
        .prepare_cached(&format!("DELETE FROM turns WHERE id IN ({old})"))?
        .execute(params![cutoff as i64, CHUNK])
}
