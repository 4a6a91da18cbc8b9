//! Removing what is finished and old, a little at a time, in the transaction that is open anyway: it costs no sync of
//! its own, and nobody waits for it longer than [`BUDGET`] and one step.
//!
//! Items go by range of their timestamp, commits by range of their number once no item in them is open.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::committer::Committer;
use super::tables::Tables;
use crate::clock::{self, UnixMillis};

/// How long a sweep may take; it ends with the step that goes beyond.
const BUDGET: Duration = Duration::from_micros(250);
/// How long after a sweep the next one starts, if it removed something.
const EVERY: Duration = Duration::from_millis(25);
/// And if it found nothing.
const PAUSE: Duration = Duration::from_secs(60);
/// Items of a step.
const ITEMS: i64 = 32;
/// Commits of a step, and their bytes, one commit aside: each page of a body is visited.
const COMMITS: i64 = 16;
const COMMITS_BYTES: i64 = 64 << 10;
/// Turns of a step.
const TURNS: i64 = 16;

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

    /// Whether a sweep is due.
    pub fn is_due(&self, at: Duration) -> bool {
        at >= self.next
    }

    /// When the next one is, if the last one removed something, so that more may be due.
    pub fn busy_at(&self) -> Option<Duration> {
        self.busy.then_some(self.next)
    }

    /// Removes what a moment is enough for. In a transaction.
    pub fn sweep(&mut self, tables: &Tables, now: UnixMillis) -> rusqlite::Result<()> {
        let cutoff = now.saturating_sub(self.keep.as_millis() as u64);
        let until = clock::monotonic() + BUDGET;
        let newest = newest_before(tables, cutoff)?;
        let mut removed = 0;
        loop {
            let items = newest.map_or(Ok(0), |newest| sweep_items(tables, cutoff, newest))?;
            let step = items + sweep_commits(tables, cutoff)? + sweep_turns(tables, cutoff)?;
            removed += step;
            if step == 0 || clock::monotonic() >= until {
                break;
            }
        }
        super::REMOVED.add(removed as u64);
        self.busy = removed > 0;
        self.next = clock::monotonic() + if self.busy { EVERY } else { PAUSE };
        Ok(())
    }
}

impl Committer {
    /// Retention, if nothing else is under way.
    pub fn sweep_if_due(&mut self) -> rusqlite::Result<()> {
        if !self.bulk.is_empty() || !self.retention.is_due(clock::monotonic()) {
            return Ok(());
        }
        self.step_aside()?;
        self.ensure_open()?;
        self.retention.sweep(&self.tables, clock::now())
    }
}

/// The newest commit that is older than the cutoff; commits grow with time.
fn newest_before(tables: &Tables, cutoff: UnixMillis) -> rusqlite::Result<Option<i64>> {
    let connection = tables.connection();
    let end = |sql: &str| {
        connection
            .prepare_cached(sql)?
            .query_row([], |r| r.get::<_, Option<i64>>(0))
            .map(Option::unwrap_or_default)
    };
    let first = end("SELECT min(id) FROM commits")?;
    let (mut below, mut from) = (first - 1, end("SELECT max(id) FROM commits")? + 1);
    let mut at =
        connection.prepare_cached("SELECT received_ms FROM commits WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    while from - below > 1 {
        let middle = below + (from - below) / 2;
        let received: Option<i64> = at.query_row([middle], |r| r.get(0)).optional()?;
        if received.is_some_and(|received| received < cutoff as i64) {
            below = middle;
        } else {
            from = middle;
        }
    }
    Ok((below >= first).then_some(below))
}

fn sweep_items(tables: &Tables, cutoff: UnixMillis, newest: i64) -> rusqlite::Result<usize> {
    tables
        .connection()
        .prepare_cached(
            "DELETE FROM items WHERE (timestamp, key) IN
             (SELECT timestamp, key FROM items WHERE timestamp < ?1 AND state > 2 AND commit_id <= ?2 LIMIT ?3)",
        )?
        .execute(params![cutoff as i64 / 1000, newest, ITEMS])
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
    let mut oldest = tables.connection().prepare_cached(
        "SELECT id, received_ms, length(bodies) FROM commits WHERE id < ?1 ORDER BY id LIMIT ?2",
    )?;
    let mut rows = oldest.query(params![end, COMMITS])?;
    let (mut last, mut bytes) = (None, 0);
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? >= cutoff as i64 || bytes >= COMMITS_BYTES {
            break;
        }
        last = Some(row.get::<_, i64>(0)?);
        bytes += row.get::<_, i64>(2)?;
    }
    drop(rows);
    let Some(last) = last else { return Ok(0) };
    tables.connection().prepare_cached("DELETE FROM commits WHERE id <= ?1")?.execute([last])
}

fn sweep_turns(tables: &Tables, cutoff: UnixMillis) -> rusqlite::Result<usize> {
    let old = "SELECT id FROM (SELECT id, state, stored_ms FROM turns ORDER BY id LIMIT ?2)
               WHERE state = 1 AND stored_ms < ?1";
    let connection = tables.connection();
    let last: Option<i64> =
        connection.prepare_cached("SELECT max(id) FROM turns")?.query_row([], |r| r.get(0))?;
    if let Some(last) = last {
        tables.set_last_turn(last)?;
    }
    connection
        .prepare_cached(&format!("DELETE FROM replies WHERE turn IN ({old})"))?
        .execute(params![cutoff as i64, TURNS])?;
    connection
        .prepare_cached(&format!("DELETE FROM turns WHERE id IN ({old})"))?
        .execute(params![cutoff as i64, TURNS])
}
