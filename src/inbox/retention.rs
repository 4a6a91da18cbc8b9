//! Removing what is finished and old, a little at a time, in the transaction that is open anyway: it costs no sync of
//! its own, and nobody waits for it longer than [`BUDGET`] and one step.
//!
//! Items go by range of their timestamp, commits by range of their number once no item in them is open. A round walks
//! over all that is old once, and each step visits a bounded number of rows, whether they can go or not: changes without
//! a time (timestamp 0) are the oldest of all for as long as they are kept.

mod rows;
mod steady;

use std::time::Duration;

use self::rows::{COMMITS, TURNS};
use self::steady::Steady;
use super::committer::Committer;
use super::tables::Tables;
use crate::clock::{self, UnixMillis};

/// How long a sweep may take; it ends with the step that goes beyond.
const BUDGET: Duration = Duration::from_micros(250);
/// How long after a sweep the next one starts, while a round is under way.
const EVERY: Duration = Duration::from_millis(25);
/// From the end of a round to the next one.
const PAUSE: Duration = Duration::from_secs(60);
/// The conversations' memory lies by conversation and not by time: a round over it reads all of it.
const MEMORY_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long it is believed which commit is the first that an open item needs: to find it takes longer the more items are
/// parked. What is put back meanwhile is at least as old as what may go.
const NEEDED_FOR: Duration = Duration::from_secs(5);

/// How long what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Finished items, their bodies and turns.
    pub finished: Duration,
    /// What was said, for the agent.
    pub memory: Duration,
}

/// Where a walk over a table stands.
#[derive(Default)]
enum Walk<K> {
    #[default]
    Begin,
    /// After this row.
    After(K),
    End,
}

impl<K> Walk<K> {
    fn is_over(&self) -> bool {
        matches!(self, Self::End)
    }

    /// A step ended at this row; `None`: with the last one.
    fn go_on(&mut self, last: Option<K>) {
        *self = last.map_or(Self::End, Self::After);
    }
}

/// Where the round stands.
pub struct Retention {
    keep: Keep,
    next: Duration,
    busy: bool,
    clock: Steady,
    items: Walk<(i64, i64)>,
    turns: Walk<i64>,
    memory: Walk<(String, i64)>,
    memory_next: Duration,
    /// See [`NEEDED_FOR`]: until when, and the commit.
    needed: Option<(Duration, i64)>,
}

impl Retention {
    pub fn new(keep: Keep) -> Self {
        Self {
            keep,
            next: Duration::ZERO,
            busy: false,
            clock: Steady::default(),
            items: Walk::Begin,
            turns: Walk::Begin,
            memory: Walk::Begin,
            memory_next: Duration::ZERO,
            needed: None,
        }
    }

    /// Whether a sweep is due.
    pub fn is_due(&self, at: Duration) -> bool {
        at >= self.next
    }

    /// When the next one is, if a round is under way.
    pub fn busy_at(&self) -> Option<Duration> {
        self.busy.then_some(self.next)
    }

    /// Removes what a moment is enough for. In a transaction.
    pub fn sweep(&mut self, tables: &Tables, now: UnixMillis) -> rusqlite::Result<()> {
        let at = clock::monotonic();
        if !self.clock.allows(now, at) {
            (self.busy, self.next) = (false, at + PAUSE);
            return Ok(());
        }
        let cutoff = |keep: Duration| now.saturating_sub(keep.as_millis() as u64) as i64;
        let (finished, memory) = (cutoff(self.keep.finished), cutoff(self.keep.memory));
        let commits = rows::newest_before(tables, &COMMITS, finished)?;
        let turns = rows::newest_before(tables, &TURNS, finished)?;
        let until = clock::monotonic() + BUDGET;
        let mut removed = 0;
        // one step at least, however long it took to find out what is old
        let is_over = loop {
            let of_items = self.sweep_items(tables, finished, commits)?;
            let (of_commits, is_more) = self.sweep_commits(tables, commits)?;
            let of_turns = self.sweep_turns(tables, turns)?;
            let of_memory = self.sweep_memory(tables, memory, at)?;
            removed += of_items + of_commits + of_turns + of_memory;
            let is_over = !is_more && self.items.is_over() && self.turns.is_over() && self.memory.is_over();
            if is_over || clock::monotonic() >= until {
                break is_over;
            }
        };
        super::REMOVED.add(removed as u64);
        self.busy = !is_over;
        self.next = clock::monotonic() + if is_over { PAUSE } else { EVERY };
        if is_over {
            (self.items, self.turns, self.memory) = (Walk::Begin, Walk::Begin, Walk::Begin);
        }
        Ok(())
    }

    fn sweep_items(&mut self, tables: &Tables, cutoff: i64, newest: i64) -> rusqlite::Result<usize> {
        let after = match &self.items {
            Walk::End => return Ok(0),
            Walk::Begin => (-1, 0),
            Walk::After(row) => *row,
        };
        let (removed, last) = rows::items(tables, after, cutoff / 1000, newest)?;
        self.items.go_on(last);
        Ok(removed)
    }

    /// Up to the first that an open item needs or whose items are not in their table yet.
    fn sweep_commits(&mut self, tables: &Tables, newest: i64) -> rusqlite::Result<(usize, bool)> {
        let now = clock::monotonic();
        let needed = match self.needed {
            Some((until, needed)) if now < until => needed,
            _ => {
                let needed = rows::needed(tables)?;
                self.needed = Some((now + NEEDED_FOR, needed));
                needed
            }
        };
        rows::commits(tables, newest.min(needed - 1).min(tables.derived()? as i64))
    }

    fn sweep_turns(&mut self, tables: &Tables, newest: i64) -> rusqlite::Result<usize> {
        let after = match &self.turns {
            Walk::End => return Ok(0),
            Walk::Begin => i64::MIN,
            Walk::After(turn) => *turn,
        };
        let (removed, last) = rows::turns(tables, after, newest)?;
        self.turns.go_on(last);
        Ok(removed)
    }

    fn sweep_memory(&mut self, tables: &Tables, cutoff: i64, at: Duration) -> rusqlite::Result<usize> {
        let after = match &self.memory {
            Walk::End => return Ok(0),
            Walk::Begin if at < self.memory_next => {
                self.memory = Walk::End;
                return Ok(0);
            }
            Walk::Begin => (String::new(), i64::MIN),
            Walk::After(row) => row.clone(),
        };
        let (removed, last) = rows::memory(tables, &after, cutoff)?;
        if last.is_none() {
            self.memory_next = at + MEMORY_EVERY;
        }
        self.memory.go_on(last);
        Ok(removed)
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
