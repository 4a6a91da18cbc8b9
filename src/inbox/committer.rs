//! The one thread that writes: it drains the queue, puts all bodies into one row of one transaction, syncs once, and
//! wakes all who waited.
//!
//! A transaction stays open after the wake-up for what nobody waits for (items, sent marks); the next bodies join it,
//! or it is committed after [`OPEN_MAX`]. A failed commit poisons the inbox: what the file holds is not known any more,
//! so nothing is accepted until a new process has opened it.

mod book;
mod poison;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;

use super::bulk::Bulk;
use super::counters::Counters;
use super::deferred::Deferred;
use super::embedded::Tuning;
use super::flights::Flights;
use super::frames::Frames;
use super::promise::Keeper;
use super::queue::{self, Append, Order, Queue};
use super::retention::{Keep, Retention};
use super::tables::{self, Change, REPLAYS, ReplyKey, Tables};
use super::waker::Waker;
use super::{Feed, Parser, ReplyState, State, TurnId};
use crate::event::ItemId;
use crate::failure::Reason;
use crate::store::Gate;
use crate::{clock, store};

/// How long a transaction that nobody waits for stays open.
pub const OPEN_MAX: Duration = Duration::from_millis(200);
/// A group of this many bodies is load: commits are [`Tuning::pace`] apart.
pub const PACED_GROUP_MIN: usize = 8;
/// A group of this many bodies is full load: twice as far. Who waits then waits for a core and not for the commit, and
/// half the commits cost half.
const FULL_GROUP_MIN: usize = 48;
/// So many bytes are as much load as a body.
const LOAD_BYTES: usize = 64 << 10;
/// Bodies of one commit, in bytes, unless the first one alone has more: who waits for a small body does not wait for all
/// the large ones that came with it, and a row can be read without walking through much else.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// How long an idle committer sleeps between its chores.
const IDLE: Duration = Duration::from_millis(500);
/// Chores come this often under load too.
const CHORES_EVERY: Duration = Duration::from_secs(1);
/// How long it steps aside for a guest at a time.
const ASIDE_MAX: Duration = Duration::from_millis(250);

/// Shared with the outside of the thread.
pub struct Shared {
    pub queue: Arc<Queue>,
    pub flights: Arc<Flights>,
    pub counters: Arc<Counters>,
    pub feed: Mutex<Option<Arc<dyn Feed>>>,
    /// The bodies of the commit under way, for the look-out for late ones.
    pub in_commit: Mutex<Vec<Append>>,
    /// Those that left the queue and are not in a commit yet.
    pub behind: Mutex<Vec<Append>>,
    /// Called once, from the committer, when a commit failed.
    pub on_poison: Box<dyn Fn(String) + Send + Sync>,
}

/// An open turn in the committer's book.
struct Open {
    items: Vec<ItemId>,
    unsettled: usize,
    dead: Option<(Reason, String)>,
}

/// The thread's state.
pub struct Committer {
    pub(super) tables: Tables,
    pub(super) flights: Arc<Flights>,
    pub(super) counters: Arc<Counters>,
    pub(super) parser: Parser,
    pub(super) instance: u64,
    pub(super) shared: Arc<Shared>,
    open_turns: HashMap<TurnId, Open>,
    pub(super) retention: Retention,
    waker: Waker,
    gate: Gate,
    next_commit: u64,
    /// A transaction is open since then.
    open_since: Option<Duration>,
    last_commit_at: Duration,
    /// How much load the last group was: its bodies and orders, or more if the bodies are large.
    pub(super) last_group: usize,
    frames: Frames,
    pub(super) deferred: Deferred,
    pub(super) bulk: Bulk,
    last_chores: Duration,
    data_version: i64,
    replays: i64,
    presence: store::Presence,
    pace: Duration,
}

/// What `run` collects until the commit.
#[derive(Default)]
struct Group {
    appends: Vec<Append>,
    orders: Vec<Order>,
    keepers: Vec<Keeper<()>>,
    flushes: Vec<Keeper<u64>>,
    close: Option<Keeper<()>>,
}

impl Committer {
    /// Opens the book and derives what the last process left; blocks.
    pub fn open(
        data_dir: &std::path::Path,
        keep: Keep,
        tuning: Tuning,
        parser: Parser,
        shared: Arc<Shared>,
    ) -> Result<Self, store::OpenError> {
        let connection = store::open(data_dir)?;
        let path = data_dir.join(store::FILE);
        let gate = Gate::open(data_dir).map_err(|e| store::OpenError::Io(data_dir.to_owned(), e))?;
        let tables = Tables::new(connection, tuning.log_bytes)
            .map_err(|e| store::OpenError::Sqlite(path.clone(), e))?;
        let mut committer = Self {
            tables,
            flights: Arc::clone(&shared.flights),
            counters: Arc::clone(&shared.counters),
            parser,
            instance: 0,
            shared,
            open_turns: HashMap::new(),
            retention: Retention::new(keep),
            waker: Waker::start(may::config().get_workers())
                .map_err(|e| store::OpenError::Io(data_dir.to_owned(), e))?,
            gate,
            next_commit: 1,
            open_since: None,
            last_commit_at: Duration::ZERO,
            last_group: 0,
            frames: Frames::default(),
            deferred: Deferred::default(),
            bulk: Bulk::default(),
            last_chores: Duration::ZERO,
            data_version: 0,
            replays: 0,
            presence: store::Presence::new(data_dir),
            pace: tuning.pace,
        };
        committer.read_book().map_err(|e| store::OpenError::Sqlite(path, e))?;
        Ok(committer)
    }

    /// The id that the next turn gets.
    pub fn next_turn(&self) -> rusqlite::Result<TurnId> {
        Ok(self.tables.last_turn()? + 1)
    }

    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// The thread's life: until `Close`, or until a commit fails (or it panics, which is a bug, and must not leave
    /// requests waiting for ever).
    pub fn run(mut self) {
        super::eager::ask_for_short_slices();
        let mut group = Group::default();
        let why = match catch_unwind(AssertUnwindSafe(|| self.live(&mut group))) {
            Ok(Ok(())) => return,
            Ok(Err(e)) => format!("the store failed ({e})"),
            Err(_) => "the committer panicked".to_owned(),
        };
        self.poison(&mut group, &why);
        self.refuse_all(group);
    }

    fn live(&mut self, group: &mut Group) -> rusqlite::Result<()> {
        let queue = Arc::clone(&self.shared.queue);
        loop {
            self.counters.passes.fetch_add(1, Relaxed);
            let open_until = self.open_since.map(|since| since + OPEN_MAX);
            let others = self.deferred.due_at().into_iter().chain(self.retention.busy_at());
            let until = open_until.into_iter().chain(others).min();
            let patience = match until {
                _ if !self.bulk.is_empty() => Duration::ZERO,
                Some(until) => until.saturating_sub(clock::monotonic()),
                None => IDLE,
            };
            if self.last_group >= PACED_GROUP_MIN {
                let pace = if self.last_group >= FULL_GROUP_MIN { 2 * self.pace } else { self.pace };
                clock::sleep((self.last_commit_at + pace).saturating_sub(clock::monotonic()));
            }
            queue.drain(&mut group.appends, &mut group.orders, patience);
            // before they are written much may take its time: they wait where the look-out for late ones finds them
            self.swap_behind(group);
            self.pass(group)?;
            while self.is_anything_behind() {
                self.pass(group)?;
            }
            if let Some(keeper) = group.close.take() {
                self.derive_all()?;
                self.end()?;
                queue.close();
                self.tables.checkpoint();
                keeper.keep(());
                return Ok(());
            }
        }
    }

    fn swap_behind(&self, group: &mut Group) {
        std::mem::swap(&mut *self.shared.behind.lock(), &mut group.appends);
    }

    fn is_anything_behind(&self) -> bool {
        !self.shared.behind.lock().is_empty()
    }

    fn pass(&mut self, group: &mut Group) -> rusqlite::Result<()> {
        if group.orders.is_empty() && !self.is_anything_behind() {
            return self.idle_pass();
        }
        let is_chores_time = clock::monotonic() >= self.last_chores + CHORES_EVERY;
        if group.orders.iter().any(|order| matches!(order, Order::Flush(_))) {
            self.derive_all()?;
        }
        if is_chores_time {
            self.end()?;
            self.chores()?;
        }
        self.step_aside()?;
        self.ensure_open()?;
        self.swap_behind(group);
        let received_ms = clock::now();
        let stored = self.store_bodies(&mut group.appends, received_ms)?;
        for order in group.orders.drain(..) {
            match order {
                Order::Change(change, keeper) => {
                    self.apply(change)?;
                    group.keepers.extend(keeper);
                }
                Order::Flush(keeper) => group.flushes.push(keeper),
                Order::Close(keeper) => group.close = Some(keeper),
            }
        }
        let waited_for = stored.is_some()
            || !group.keepers.is_empty()
            || !group.flushes.is_empty()
            || group.close.is_some();
        if waited_for {
            self.end()?;
            self.tell(group, stored, received_ms);
            self.tables.checkpoint_if_due();
        }
        self.derive_if_due()?;
        self.sweep_if_due()?;
        self.end_if_due()
    }

    /// Nothing came within the patience.
    fn idle_pass(&mut self) -> rusqlite::Result<()> {
        self.last_group = 0;
        let was_open = self.open_since.is_some();
        if let Some(is_fresh) = self.derive_if_due()? {
            // what follows from fresh items is to join the transaction; nothing follows from others
            if self.bulk.is_empty() && !is_fresh && !was_open {
                self.end()?;
            }
        }
        self.end_if_due()?;
        if self.open_since.is_none() && self.deferred.is_empty() && self.bulk.is_empty() {
            self.tables.checkpoint_if_due();
            self.chores()?;
        }
        // also with a transaction open: what is due and not done would keep the thread awake
        self.sweep_if_due()
    }

    /// After the commit: wake all who waited.
    fn tell(&mut self, group: &mut Group, stored: Option<u64>, received_ms: u64) {
        let keepers = group.keepers.len();
        for keeper in group.keepers.drain(..) {
            keeper.keep(());
        }
        for keeper in group.flushes.drain(..) {
            keeper.keep(self.next_commit - 1 - u64::from(stored.is_some()));
        }
        self.last_group = keepers;
        let Some(commit) = stored else { return };
        std::mem::swap(&mut *self.shared.in_commit.lock(), &mut group.appends);
        let was_empty = self.deferred.is_empty();
        let bytes: usize = group.appends.iter().map(|append| append.body.len()).sum();
        for (nth, append) in group.appends.iter_mut().enumerate() {
            self.deferred.add(commit, nth, append, received_ms);
        }
        self.last_group += group.appends.len().max(bytes / LOAD_BYTES);
        self.deferred.began(was_empty, self.last_commit_at);
        self.waker.tell(&mut group.appends);
    }

    /// One row for all of them, or for the first ones if they are too many bytes: its number. Until the commit is done they
    /// are where the look-out for late ones finds them.
    fn store_bodies(&mut self, appends: &mut Vec<Append>, received_ms: u64) -> rusqlite::Result<Option<u64>> {
        if appends.is_empty() {
            return Ok(None);
        }
        let rest = appends.split_off(queue::first_of(appends, GROUP_BYTES_MAX));
        if !rest.is_empty() {
            *self.shared.behind.lock() = rest;
        }
        let bodies = appends.iter().map(|append| (append.body.as_slice(), append.app));
        self.frames.lay_out(bodies);
        std::mem::swap(&mut *self.shared.in_commit.lock(), appends);
        let commit = self.next_commit;
        self.next_commit += 1;
        self.tables.insert_commit(commit, received_ms, self.frames.bounds(), self.frames.bodies())?;
        Ok(Some(commit))
    }

    pub(super) fn ensure_open(&mut self) -> rusqlite::Result<()> {
        if self.open_since.is_some() {
            return Ok(());
        }
        loop {
            match self.tables.begin() {
                Err(e) if store::is_busy(&e) => {
                    log::warn!("inbox: another process holds the store's write lock")
                }
                other => {
                    self.open_since = Some(clock::monotonic());
                    return other;
                }
            }
        }
    }

    fn end_if_due(&mut self) -> rusqlite::Result<()> {
        let due = self.open_since.is_some_and(|since| clock::monotonic() >= since + OPEN_MAX);
        if due { self.end() } else { Ok(()) }
    }

    fn end(&mut self) -> rusqlite::Result<()> {
        if self.open_since.take().is_none() {
            return Ok(());
        }
        let begun = clock::monotonic();
        self.last_commit_at = begun;
        self.tables.commit()?;
        super::COMMITS.inc();
        super::COMMIT_SECONDS.observe(clock::monotonic() - begun);
        Ok(())
    }

    /// Leaves the write lock to a guest that asked for it.
    pub(super) fn step_aside(&mut self) -> rusqlite::Result<()> {
        if !self.gate.is_wanted() {
            return Ok(());
        }
        self.end()?;
        let since = clock::monotonic();
        while self.gate.is_wanted() && clock::monotonic() - since < ASIDE_MAX {
            clock::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Between transactions: whether the files are there, and whether another process replayed something.
    fn chores(&mut self) -> rusqlite::Result<()> {
        self.last_chores = clock::monotonic();
        if let Some(path) = self.presence.missing() {
            let what = format!("{} was removed or replaced while it is in use", path.display());
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_VNODE);
            return Err(rusqlite::Error::SqliteFailure(code, Some(what)));
        }
        let version = self.tables.data_version()?;
        if version != self.data_version {
            self.data_version = version;
            let replays = self.tables.meta(REPLAYS)?.unwrap_or(0);
            if replays != self.replays {
                self.replays = replays;
                self.counters.set(self.tables.count()?);
                if let Some(feed) = self.shared.feed.lock().clone() {
                    feed.rewind();
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) -> rusqlite::Result<()> {
        match change {
            Change::Answered(stored) => {
                self.tables.insert_turn(&stored)?;
                self.tables.remember(&stored)?;
                let turn = stored.turn;
                let unsettled = turn.replies.len();
                let state = if unsettled == 0 { State::Kept } else { State::Answered };
                let no_reply = Reason::fixed("no_reply");
                let why = (unsettled == 0).then_some((&no_reply, ""));
                for id in &turn.items {
                    self.move_item(*id, state, Some(turn.id), why)?;
                }
                if unsettled > 0 {
                    self.open_turns.insert(turn.id, Open { items: turn.items, unsettled, dead: None });
                }
                Ok(())
            }
            Change::Sending(key) => {
                self.tables.set_reply(key, ReplyState::Sending, None, None, clock::now()).map(drop)
            }
            Change::Unsent(key) => {
                let tried = Some((&tables::TRIED, ""));
                self.tables.set_reply(key, ReplyState::Stored, None, tried, clock::now()).map(drop)
            }
            Change::Sent(key, wamid) => {
                self.flights.end(&key.id(self.instance));
                self.settle_reply(key, ReplyState::Sent, Some(&wamid), None)
            }
            Change::ReplyDead(key, reason, detail) => {
                self.flights.end(&key.id(self.instance));
                self.settle_reply(key, ReplyState::Dead, None, Some((reason, detail)))
            }
            Change::Settle(items, state, reason, detail) => items.iter().try_for_each(|id| {
                // a late status may have ended what was to be told that it waits
                let is_over = state == State::Answered && self.tables.item_state(*id)? != Some(state as u8);
                if is_over { Ok(()) } else { self.move_item(*id, state, None, Some((&reason, &detail))) }
            }),
        }
    }

    /// Ends a reply, and with the last one its turn and the turn's items.
    pub(super) fn settle_reply(
        &mut self,
        key: ReplyKey,
        state: ReplyState,
        wamid: Option<&str>,
        why: Option<(Reason, String)>,
    ) -> rusqlite::Result<()> {
        let borrowed = why.as_ref().map(|(r, d)| (r, d.as_str()));
        if !self.tables.set_reply(key, state, wamid, borrowed, clock::now())? {
            return Ok(());
        }
        let Some(open) = self.open_turns.get_mut(&key.turn) else { return Ok(()) };
        open.unsettled = open.unsettled.saturating_sub(1);
        open.dead = why.or(open.dead.take());
        if open.unsettled > 0 {
            return Ok(());
        }
        let Some(open) = self.open_turns.remove(&key.turn) else { return Ok(()) };
        self.tables.close_turn(key.turn)?;
        let state = if open.dead.is_some() { State::Dead } else { State::Sent };
        let why = open.dead.as_ref().map(|(r, d)| (r, d.as_str()));
        open.items.iter().try_for_each(|id| self.move_item(*id, state, Some(key.turn), why))
    }

    fn move_item(
        &self,
        id: ItemId,
        state: State,
        turn: Option<TurnId>,
        why: Option<(&Reason, &str)>,
    ) -> rusqlite::Result<()> {
        let Some(from) = self.tables.item_state(id)? else { return Ok(()) };
        self.tables.set_item(id, state, turn, why)?;
        self.counters.moved(from, state);
        Ok(())
    }
}
