//! The durable inbox: what was answered 200 is here, until it ends in a state with a reason.
//!
//! `append` returns once the body is on disk; everything else that changes rides in the same group commits.
//! Nothing outside this module may assume that there is only one process.
//!
//! What must be on disk before the 200 is the body; its items can be derived from it. So a commit is one row with all
//! the bodies of all who waited (`committer`), and the items go into the transaction that is open after it (`derive`):
//! one insert decides whether an item is new, and at a crash the newest commits are derived again (insert or ignore).
//!
//! Why it is cheap (500 connections, a closed loop of one 690 B status each, two shared cores of a VM on which the load
//! generator costs 9.5 us a request and nginx 8.5 for a `return 200`): a durable 200 costs 19.5 us of CPU, all that follows
//! it included. 13.7 us of it are the workers' (7 of them the kernel's, two recv and one send), 5 the committer's, 0.8 the
//! fold's. One row a commit, its items in bulk and sorted, thousands at a time (`deferred`), made 17.5 of 22.2 us: a commit
//! writes a few pages instead of one page an item. All who waited are told with one wake-up a worker, by the worker that
//! polls their connection (`waker`): 19.9 instead of 23.0 us, since what belongs to a connection stays in one core's
//! cache. Bodies of a group of 16 KiB or more are compressed (`frames`): 2.5 KiB were written a status at full load, log
//! and file together, instead of 3.4, and that pays for the compressing. 8,000 statuses a bulk instead of 2,000 made 1.25
//! of those 2.5 and a tenth less CPU, with no more memory, since their bodies are not held until then. Besides, commits are
//! 1 ms apart under load and at once otherwise.
//!
//! Why its tail is short: the committer never stands still. A bulk goes in slices, one a commit (`bulk`; 2,000 items at
//! once took 6 ms every 30), the log is folded beside (`fold`; inside it took 7 ms every 40), a group of large bodies is
//! committed in parts of 4 MiB, and retention removes 0.25 ms at a time (`retention`). What is left at a few thousand a
//! second (p99 9 ms at 5,000/s, p50 0.24) is the machine's: traced, it is syncs that take 2 to 9 ms and threads that get no
//! core for as long, and a plain axum server with the same store has the same.
//!
//! Tried without a gain beyond the noise of 3 %: a log of 16 MiB instead of 4, a larger page cache, 16,000 items at a time
//! (and 4 MiB more), bodies copied to a shared buffer by the worker (and 17 MiB more), counters apart for each thread,
//! workers that offer their core to others every millisecond, other congestion control than BBR.

mod bulk;
mod committer;
mod compare;
mod counters;
mod deferred;
mod derive;
mod eager;
pub mod embedded;
mod flights;
mod fold;
mod frames;
mod insert;
mod promise;
mod queue;
mod reader;
mod retention;
mod tables;
mod waker;

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

pub use self::retention::Keep;
use crate::event::{Item, ItemId, Kind, Path, Recipient, Said};
use crate::failure::{Failure, Reason};
use crate::ops::metrics::{Counter, Family, Histogram, Metric};

/// Bodies committed a group.
pub static COMMITS: Counter = Counter::new("inbox_commits_total", "Transactions that were synced to disk.");
/// How long a commit took, sync included.
pub static COMMIT_SECONDS: Histogram =
    Histogram::new("inbox_commit_seconds", "Time of a commit, sync included.");
/// Items by kind, duplicates included.
pub static ITEMS: Family<12> = Family::new(
    "inbox_items_total",
    "Items received by kind, duplicates included.",
    "kind",
    [
        "message",
        "status",
        "reaction",
        "system",
        "unsupported",
        "edit",
        "revoke",
        "unknown_type",
        "error",
        "other_field",
        "unparsed",
        "welcome",
    ],
);
/// Items that were there already.
pub static DUPLICATES: Counter =
    Counter::new("inbox_duplicates_total", "Items that had been received before.");
/// Different keys of one hash.
pub static COLLISIONS: Counter =
    Counter::new("inbox_collisions_total", "Different items whose keys hash alike.");
/// Sends of unknown outcome that a status webhook named.
pub static EVIDENCE: Counter =
    Counter::new("inbox_evidence_total", "Replies under way that a status webhook named.");
/// Accepted replies that were not delivered.
pub static UNDELIVERED: Counter = Counter::new(
    "inbox_undelivered_total",
    "Replies that were accepted and that a later status reports as failed.",
);
/// Bodies whose commit took too long.
pub static LATE: Counter =
    Counter::new("inbox_late_total", "Requests refused because their commit took too long.");
/// Rows that retention removed.
pub static REMOVED: Counter =
    Counter::new("inbox_removed_total", "Items, commits and turns that retention removed.");

/// All of the above.
pub static METRICS: &[&dyn Metric] =
    &[&COMMITS, &COMMIT_SECONDS, &ITEMS, &DUPLICATES, &COLLISIONS, &EVIDENCE, &UNDELIVERED, &LATE, &REMOVED];

/// Why a body was not taken: the edge answers 503 and Meta sends it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A commit failed: this process accepts nothing more and ends.
    Poisoned,
    /// The queue in front of the committer is full.
    Full,
    /// The commit took longer than the edge waits; the body may be stored later (a duplicate then).
    Late,
    /// The service is stopping.
    Draining,
}

/// One connection's way into the inbox. Its buffers are reused from request to request.
pub trait Ticket: Send {
    /// The empty body buffer: fill it with the request's body, at most [`crate::event::BODY_MAX`] bytes.
    fn body(&mut self) -> &mut Vec<u8>;
    /// The body and the list to fill with its items.
    fn body_and_items(&mut self) -> (&[u8], &mut Vec<Item>);
    /// Waits (the coroutine) until body and items are durable. `app`: [`crate::event::hash64`] of the Meta app's name
    /// that signed it, 0 for an app without a name or an unsigned body. Empties the buffers, whatever the result.
    fn append(&mut self, app: u64) -> Result<(), Refusal>;
}

/// Where an item stands in the order of arrival. `commit` starts at 1 and only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The group commit.
    pub commit: u64,
    /// Index of the body in it.
    pub body: u32,
    /// Where in the body.
    pub path: Path,
}

/// An answerable item with its body.
#[derive(Clone)]
pub struct Work {
    /// Its identity.
    pub id: ItemId,
    /// Its place in the order of arrival.
    pub position: Position,
    /// Hash of the phone_number_id.
    pub number: u64,
    /// Hash of the conversation: one lane each.
    pub conversation: u64,
    /// When it was received, milliseconds since the Unix epoch.
    pub received_ms: u64,
    /// Which app signed it, see [`Ticket::append`].
    pub app: u64,
    /// The whole body it came in (shared by the items of a body).
    pub body: Arc<[u8]>,
}

/// Without what the customer wrote.
impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("id", &self.id)
            .field("position", &self.position)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Takes fresh work from the committer, in order of arrival. Called on the committer's thread: must not block.
pub trait Feed: Send + Sync + 'static {
    /// Each work is either taken into memory or left on disk (then read with [`Inbox::pending`] later).
    fn offer(&self, works: Vec<Work>);
    /// Another process changed states (a replay): open items may stand before the cursors.
    fn rewind(&self);
}

/// A page of open work of one number.
#[derive(Debug)]
pub struct Page {
    /// In order of arrival.
    pub works: Vec<Work>,
    /// Every open item up to here was considered: if `works` is shorter than the limit there is none left before it.
    pub covered: Position,
}

/// Identity of a turn, in order of creation.
pub type TurnId = i64;

/// One reply message of a turn.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Our reply id: unique for ever, at most 64 characters; goes out as `biz_opaque_callback_data`.
    pub id: String,
    /// Message body without addressing.
    pub body: Box<RawValue>,
    /// How far it is.
    pub state: ReplyState,
    /// It is to be sent once more only. In memory: a new process does not know.
    pub is_last_try: bool,
}

/// How far a reply is. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyState {
    /// Stored, not tried: sending it is safe.
    Stored = 0,
    /// A send was begun and its outcome is not known: evidence first.
    Sending = 1,
    /// Accepted by Graph, or named by a status webhook.
    Sent = 2,
    /// Will not be sent.
    Dead = 3,
}

/// A turn whose replies are stored and not all settled.
#[derive(Clone, Debug)]
pub struct OpenTurn {
    /// Its id.
    pub id: TurnId,
    /// Its items.
    pub items: Vec<ItemId>,
    /// Hash of the phone_number_id.
    pub number: u64,
    /// Hash of the conversation.
    pub conversation: u64,
    /// From which number.
    pub phone_number_id: String,
    /// To whom.
    pub to: Recipient,
    /// When it was stored, milliseconds since the Unix epoch.
    pub stored_ms: u64,
    /// In order.
    pub replies: Vec<Reply>,
}

/// An answer to be stored before it is sent.
#[derive(Debug)]
pub struct NewTurn {
    /// What it answers; all become `answered`.
    pub items: Vec<ItemId>,
    /// Hash of the phone_number_id.
    pub number: u64,
    /// Hash of the conversation.
    pub conversation: u64,
    /// From which number.
    pub phone_number_id: String,
    /// To whom.
    pub to: Recipient,
    /// Under which the memory keeps it: one for each customer of each business.
    pub session: String,
    /// Message bodies without addressing.
    pub replies: Vec<Box<RawValue>>,
    /// Lines for the memory.
    pub remember: Vec<Said>,
    /// Lines of memory to keep for the session.
    pub history_max: usize,
    /// Its first reply is sent next: marks it as [`Inbox::sending`] does, in the same commit.
    pub is_sending: bool,
}

/// The state in which an item ends or waits. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Waits for its turn.
    Pending = 0,
    /// Waits for something to be mended or for a limit to pass; goes on by itself or by `inbox replay`.
    Parked = 1,
    /// Its reply is stored and not all sent.
    Answered = 2,
    /// Replied to.
    Sent = 3,
    /// Never to be answered, by its kind or a rule (reason code).
    Kept = 4,
    /// Can't be answered (reason code); `inbox replay` tries again.
    Dead = 5,
}

impl State {
    /// As shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Parked => "parked",
            Self::Answered => "answered",
            Self::Sent => "sent",
            Self::Kept => "kept",
            Self::Dead => "dead",
        }
    }
}

/// What a status webhook said about a reply of unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It went out, with this wamid.
    Sent(String),
    /// Meta took it and could not deliver it: this error code.
    Failed(String, i64),
}

/// Counts for /metrics and health; no I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Items that wait for their turn, or whose reply is not sent yet.
    pub pending: u64,
    /// Items that wait for a mend.
    pub parked: u64,
    /// Items that can't be answered.
    pub dead: u64,
    /// Receive time of the oldest open item, milliseconds since the Unix epoch.
    pub oldest_ms: Option<u64>,
}

/// The inbox as the rest of the program sees it.
pub trait Inbox: Send + Sync + 'static {
    /// For one connection. `home`: its descriptor, which says where its coroutine runs (see `waker`).
    fn ticket(&self, home: usize) -> Box<dyn Ticket>;
    /// Why nothing can be accepted, if so; no I/O.
    fn unhealthy(&self) -> Option<Refusal>;
    /// For /metrics.
    fn counts(&self) -> Counts;

    /// From now on fresh work goes to `feed`.
    fn feed(&self, feed: Arc<dyn Feed>);
    /// The numbers that have open items (pending or parked), and how far the store reaches.
    fn open_numbers(&self) -> Result<(Vec<u64>, Position), Failure>;
    /// Open items of `number` after `after`, at most `limit`. Blocks the coroutine, not the worker.
    fn pending(&self, number: u64, after: Position, limit: usize) -> Result<Page, Failure>;
    /// Turns with replies that are not settled, after `after`, oldest first.
    fn open_turns(&self, after: TurnId, limit: usize) -> Result<Vec<OpenTurn>, Failure>;

    /// The conversation's memory, oldest first, at most `limit` lines.
    fn history(&self, session: &str, limit: usize) -> Result<Vec<Said>, Failure>;
    /// Stores an answer; durable on return.
    fn answered(&self, turn: NewTurn) -> Result<OpenTurn, Failure>;
    /// Marks a reply as being sent from the number whose id hashes to `number`; durable on return. With evidence of an
    /// earlier try it is settled, and must not be sent.
    fn sending(&self, reply_id: &str, number: u64) -> Result<Option<Evidence>, Failure>;
    /// It went out. Rides in a later commit; once the last reply of the turn is settled its items are `sent`.
    fn sent(&self, reply_id: &str, wamid: &str);
    /// Graph refused it before it took effect, or no status named it: may be sent again. A status that names it until then
    /// settles it. Rides in a later commit.
    fn unsent(&self, reply_id: &str);
    /// It will not be sent; the turn's items end `dead` with the reason. Rides in a later commit.
    fn reply_dead(&self, reply_id: &str, reason: &Reason, detail: &str);
    /// Waits until a status webhook names the reply, at most `within`; `None` if none did.
    fn evidence(&self, reply_id: &str, within: Duration) -> Option<Evidence>;
    /// The evidence was seen: it need not be kept for another wait.
    fn forget(&self, reply_id: &str);
    /// Sets state and reason of items. Rides in a later commit.
    fn settle(&self, items: &[ItemId], state: State, reason: &Reason, detail: &str);
    /// Commits what rides in later commits, and stops accepting. Blocks the thread; for the end of a drain.
    fn close(&self) -> Result<(), Failure>;
}

/// One body of a group commit, for the `inbox` commands; `None` if retention removed it.
///
/// # Errors
/// SQLite's.
pub fn stored_body(
    connection: &rusqlite::Connection,
    commit: u64,
    nth: u32,
) -> rusqlite::Result<Option<Vec<u8>>> {
    Ok(tables::body(connection, commit, nth)?.map(|(bytes, _, _)| bytes))
}

/// All bodies of a group commit, read.
#[derive(Debug, Default)]
pub struct StoredBodies {
    /// End to end.
    pub bytes: Vec<u8>,
    /// Where each is.
    pub bodies: Vec<std::ops::Range<usize>>,
    /// Whether the disk has changed what was written: some are not what they were, or not there.
    pub is_damaged: bool,
}

/// All bodies of a group commit, from its columns `bounds` and `bodies`.
pub fn stored_bodies(bounds: &[u8], bodies: Vec<u8>) -> StoredBodies {
    let Some(bounds) = frames::Bounds::read(bounds) else {
        return StoredBodies { is_damaged: true, ..StoredBodies::default() };
    };
    let (bytes, damaged) = bounds.unpack(bodies);
    let bodies = bounds.bodies().map(|(body, _)| body).collect();
    StoredBodies { bytes, bodies, is_damaged: !damaged.is_empty() }
}

/// The items of a turn, from the `items` column.
pub fn stored_items(blob: &[u8]) -> Vec<ItemId> {
    tables::items_from(blob)
}

/// See [`Parser::keys`].
pub type Keys = fn(&[u8], &[(Kind, Path)]) -> Vec<Option<Vec<u8>>>;

/// How the inbox reads a body: given by the composition root, so that this module knows no format.
#[derive(Clone, Copy)]
pub struct Parser {
    /// Fills the list, cleared first, with the items of a body; never fails (a body that is not understood is one item).
    pub items: fn(&[u8], &mut Vec<Item>),
    /// The dedupe keys of items as texts, unambiguous, in their order; `None` where nothing can be read. Goes through the
    /// body once, as the next one does: a body may hold thousands of items.
    pub keys: Keys,
    /// Status entries, in their order.
    pub statuses: fn(&[u8], &[Path]) -> Vec<Option<StatusSaid>>,
}

/// What the inbox needs of a status entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSaid {
    /// The wamid of what was sent.
    pub wamid: String,
    /// `biz_opaque_callback_data`.
    pub callback_data: Option<String>,
    /// The number it was sent from.
    pub phone_number_id: String,
    /// The first error's code, if the status is `failed` (0 if it has none).
    pub failed: Option<i64>,
}
