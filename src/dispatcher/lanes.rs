//! PURE: who runs next. One lane a conversation, fair between numbers, bounded; no clock (time is an argument
//! since any fixed start), no coroutine, no socket.
//!
//! - Of a lane at most one job runs. What arrives meanwhile is one turn together, at most [`TURN_ITEMS_MAX`]
//!   works. A retry keeps its works; what arrived later waits behind it. Idle lanes are dropped.
//! - Numbers take turns: each starts at most [`QUANTUM`] turns before the next number is looked at. Of
//!   `max_turns` a part is kept free for numbers that run less than their share (see [`Lanes::start`]).
//! - What doesn't fit in memory stays on disk and is read in pages; `behind.rs` has the protocol, `paging.rs`
//!   its use.
//! - What is held stands still until a probe gets through: `holding.rs`.

mod holding;
mod lane;
#[cfg(test)]
mod model;
mod paging;
#[cfg(test)]
mod tests;
mod turns;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::behind::{Cursor, Verdict};
use super::holds::Hold;
use super::{Job, Outcome};
use crate::inbox::{Position, Work};
pub use lane::Lost;
use lane::{Lane, Stand};
pub use paging::Read;

/// Works in one turn, at most; more of a burst become the next turn.
pub const TURN_ITEMS_MAX: usize = 50;
/// Turns of one number started before the next number is looked at.
pub const QUANTUM: u32 = 8;
/// Works of one number that wait in memory, at most; running ones are bounded by MAX_TURNS.
pub const NUMBER_ITEMS_MAX: usize = 2_000;
/// What any number may keep waiting in memory, however full it is with the works of others.
pub const NUMBER_ITEMS_MIN: usize = 64;
/// Works that wait in memory, over all numbers. Near it the share of a number shrinks to
/// [`NUMBER_ITEMS_MIN`]; at twice this value (possible only with more than 700 numbers behind at once)
/// a number that has none takes one.
pub const ITEMS_MAX: usize = 50_000;
/// Bytes of bodies in memory, waiting or running, over all numbers; above it a number keeps one work at a
/// time.
pub const BYTES_MAX: u64 = 256 << 20;
/// Bytes of bodies of one number in memory, above which it is read from disk.
pub const NUMBER_BYTES_MAX: u64 = BYTES_MAX / 4;
/// Works read from disk in one page.
pub const PAGE_ITEMS_MAX: usize = 256;
/// Pages that are read at once.
pub const READS_MAX: usize = 4;
/// Open turns of an earlier run in memory.
pub const OPENS_MAX: usize = 5_000;
/// Turns kept free for numbers below their share, at most (an eighth of MAX_TURNS if that is less).
pub const RESERVE_MAX: usize = 256;

/// After so many panics in a row the works of a turn are run one by one.
pub const PANICS_ALONE: u32 = 4;
/// How often numbers behind are looked at for room that others made.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A lane: one conversation of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Hash of the phone_number_id.
    pub number: u64,
    /// Hash of the conversation.
    pub conversation: u64,
}

/// The bounds, so that tests can set small ones. See the constants of the same names.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each is the constant of its name")]
pub struct Limits {
    pub max_turns: usize,
    pub turn_items_max: usize,
    pub number_items_max: usize,
    pub number_items_min: usize,
    pub items_max: usize,
    pub bytes_max: u64,
    pub number_bytes_max: u64,
    pub page_items_max: usize,
    pub opens_max: usize,
}

impl Limits {
    /// The constants, and `max_turns` turns at once.
    pub const fn new(max_turns: usize) -> Self {
        Self {
            max_turns,
            turn_items_max: TURN_ITEMS_MAX,
            number_items_max: NUMBER_ITEMS_MAX,
            number_items_min: NUMBER_ITEMS_MIN,
            items_max: ITEMS_MAX,
            bytes_max: BYTES_MAX,
            number_bytes_max: NUMBER_BYTES_MAX,
            page_items_max: PAGE_ITEMS_MAX,
            opens_max: OPENS_MAX,
        }
    }
}

/// Something to do on a coroutine now; ends with [`Lanes::done`] or [`Lanes::panicked`] of the same lane.
#[derive(Debug)]
pub struct Start {
    /// Whose.
    pub key: Key,
    /// What.
    pub task: Task,
}

/// What to do.
#[derive(Debug)]
pub enum Task {
    /// Run it.
    Run(Job),
    /// A run panicked, its job is gone: read from disk what is left of it, then [`Lanes::recovered`].
    Recover(Lost),
}

/// Sizes for /metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Turns under way.
    pub running: usize,
    /// Works that wait in memory.
    pub waiting: usize,
    /// Bytes of bodies in memory.
    pub bytes: u64,
    /// Lanes in memory.
    pub lanes: usize,
    /// Numbers whose fresh work stays on disk for now.
    pub behind: usize,
    /// Numbers and apps held.
    pub holds: usize,
    /// Open turns of an earlier run in memory.
    pub opens: usize,
}

/// All lanes.
pub struct Lanes {
    limits: Limits,
    seed: u64,
    stage: Stage,
    lanes: HashMap<Key, Lane, Mixed>,
    numbers: HashMap<u64, Number, Mixed>,
    apps: HashMap<u64, App, Mixed>,
    /// Numbers with a ready lane, in turn; the first has started `burst` turns.
    ring: VecDeque<u64>,
    burst: u32,
    timers: BinaryHeap<Reverse<(Duration, Timer)>>,
    /// Numbers to read, in turn.
    reads: VecDeque<u64>,
    reading: usize,
    /// Works that pages under way may bring.
    reserved: usize,
    /// Conversations whose open turns are still on disk, with how many: no fresh work of theirs starts.
    unloaded: HashMap<Key, u32, Mixed>,
    opens: usize,
    /// The newest offer.
    offered: Position,
    /// Live numbers whose pages were ahead of the offers, by how far: they can be forgotten after that offer.
    ahead: BinaryHeap<Reverse<(Position, u64)>>,
    running: usize,
    waiting: usize,
    bytes: u64,
    /// Numbers with a running turn or a ready lane.
    active: usize,
    behind: usize,
    is_looking: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Draining,
}

#[derive(Debug, Default)]
struct Number {
    cursor: Cursor,
    lanes: usize,
    /// Conversations whose lane stands `Ready`, each once.
    ready: VecDeque<u64>,
    running: usize,
    waiting: usize,
    bytes: u64,
    /// The app its newest work came through.
    app: Option<u64>,
    hold: Option<Hold>,
    is_active: bool,
    /// In the ring.
    is_queued: bool,
    /// Left the ring because of a hold.
    is_shut: bool,
    /// In `reads`.
    is_asking: bool,
    page_limit: usize,
    /// Pages in a row that brought nothing.
    page_tries: u32,
    page_at: Option<Duration>,
}

/// A held app and the numbers that left the ring because of it.
#[derive(Debug)]
struct App {
    hold: Hold,
    shut: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lane(Key),
    Number(u64),
    App(u64),
    Page(u64),
    Look,
}

impl Lanes {
    /// Empty, before the start: offers stay on disk and nothing starts until [`Lanes::opened`].
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            seed,
            stage: Stage::Starting,
            lanes: HashMap::default(),
            numbers: HashMap::default(),
            apps: HashMap::default(),
            ring: VecDeque::new(),
            burst: 0,
            timers: BinaryHeap::new(),
            reads: VecDeque::new(),
            reading: 0,
            reserved: 0,
            unloaded: HashMap::default(),
            opens: 0,
            offered: Position::default(),
            ahead: BinaryHeap::new(),
            running: 0,
            waiting: 0,
            bytes: 0,
            active: 0,
            behind: 0,
            is_looking: false,
        }
    }

    /// Fresh work, in order of arrival. Returns how many works were left on disk.
    pub fn offer(&mut self, works: Vec<Work>) -> usize {
        if self.stage == Stage::Draining {
            return works.len();
        }
        let mut left = 0;
        let mut works = works.into_iter();
        let mut share = Share::default();
        while let Some(work) = works.next() {
            let bytes = share.of(&work, works.as_slice());
            let id = work.number;
            self.offered = self.offered.max(work.position);
            let room = self.room(id);
            let number = self.numbers.entry(id).or_default();
            let was_behind = number.cursor.is_behind();
            let verdict = if self.stage == Stage::Starting {
                number.cursor.offer_before_start(work.position);
                Verdict::Refuse
            } else {
                number.cursor.offer(work.position, room > 0)
            };
            self.behind += usize::from(number.cursor.is_behind() && !was_behind);
            match verdict {
                Verdict::Take => self.enqueue(work, bytes),
                Verdict::Refuse => left += 1,
                Verdict::Known => {}
            }
            if works.as_slice().first().is_none_or(|next| next.number != id) {
                self.refresh(id);
            }
        }
        while let Some(&Reverse((position, id))) = self.ahead.peek() {
            if position > self.offered {
                break;
            }
            self.ahead.pop();
            self.forget_if_idle(id);
        }
        left
    }

    /// When [`Lanes::tick`] has something to do.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// From now on nothing starts and offers stay on disk.
    pub fn drain(&mut self) {
        self.stage = Stage::Draining;
    }

    /// Sizes now.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            running: self.running,
            waiting: self.waiting,
            bytes: self.bytes,
            lanes: self.lanes.len(),
            behind: self.behind,
            holds: self.apps.len() + self.numbers.values().filter(|n| n.hold.is_some()).count(),
            opens: self.opens,
        }
    }

    fn enqueue(&mut self, work: Work, bytes: u64) {
        let key = Key { number: work.number, conversation: work.conversation };
        let number = self.numbers.entry(key.number).or_default();
        number.app = Some(work.app);
        number.waiting += 1;
        number.bytes += bytes;
        self.waiting += 1;
        self.bytes += bytes;
        let lane = self.lanes.entry(key).or_insert_with(|| {
            number.lanes += 1;
            let is_blocked = !self.unloaded.is_empty() && self.unloaded.contains_key(&key);
            if !is_blocked {
                number.ready.push_back(key.conversation);
            }
            Lane::new(if is_blocked { Stand::Blocked } else { Stand::Ready })
        });
        lane.push(work, bytes);
    }

    /// After anything that concerns the number: its place in the ring, its wish for a page, its right to
    /// exist.
    fn refresh(&mut self, id: u64) {
        let Some(number) = self.numbers.get_mut(&id) else { return };
        let is_active = number.running > 0 || !number.ready.is_empty();
        if is_active != number.is_active {
            number.is_active = is_active;
            self.active = if is_active { self.active + 1 } else { self.active - 1 };
        }
        if !number.ready.is_empty() && !number.is_queued && !number.is_shut {
            number.is_queued = true;
            self.ring.push_back(id);
        }
        if number.cursor.is_behind() {
            self.want_page(id);
        } else {
            self.forget_if_idle(id);
        }
    }

    fn forget_if_idle(&mut self, id: u64) {
        let offered = self.offered;
        if self.numbers.get(&id).is_some_and(|n| n.is_idle() && n.cursor.is_forgettable(offered)) {
            self.numbers.remove(&id);
        }
    }
}

/// Sizes only: the works hold what customers wrote.
impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

impl Number {
    fn is_idle(&self) -> bool {
        self.lanes == 0 && self.hold.is_none() && !self.is_queued && !self.is_asking && !self.is_active
    }
}

/// The part of its body that a work answers for: works of one body stand side by side.
#[derive(Default)]
struct Share {
    left: usize,
    bytes: u64,
}

impl Share {
    fn of(&mut self, work: &Work, rest: &[Work]) -> u64 {
        if self.left == 0 {
            self.left = 1 + rest.iter().take_while(|next| Arc::ptr_eq(&next.body, &work.body)).count();
            self.bytes = (work.body.len() / self.left) as u64 + 1;
        }
        self.left -= 1;
        self.bytes
    }
}

/// The keys are hashes already, but a sender can choose what is hashed: mixed with a random of this process.
type Mixed = BuildHasherDefault<Mix>;

#[derive(Debug)]
struct Mix(u64);

impl Default for Mix {
    fn default() -> Self {
        static SECRET: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
            use std::hash::BuildHasher;
            std::hash::RandomState::new().hash_one(0_u8)
        });
        Self(*SECRET)
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, n: u64) {
        let wide = u128::from(self.0 ^ n) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (wide ^ (wide >> 64)) as u64;
    }
}
