//! One lane per conversation, fair between businesses, bounded.
//!
//! PURE: `lanes` (who runs next), `behind` (what is in memory and what is left on disk: every item exactly
//! once), `holds` and `backoff`. On coroutines: `run` (the scheduler), `workers` (the turns), `load` (reads
//! of the store). Promises: at most one turn of a conversation at a time, in order of arrival, what arrives
//! meanwhile together; a flood of one number does not delay another; memory has a bound, however long the
//! backlog is.

pub mod backoff;
mod behind;
mod holds;
pub mod lanes;
mod load;
mod run;
mod workers;

use std::time::Duration;

use crate::failure::Scope;
use crate::inbox::{OpenTurn, Work};
use crate::ops::metrics::{Counter, Gauge, Metric};
pub use run::Dispatcher;
pub use workers::spawn;

/// What a lane has to do.
#[derive(Debug)]
pub enum Job {
    /// Messages without an answer yet: one turn together. A retry keeps the same messages.
    Fresh {
        /// In order of arrival; one conversation; never empty.
        works: Vec<Work>,
        /// Earlier tries.
        attempt: u32,
    },
    /// A stored answer that is not all sent.
    Open {
        /// The turn.
        turn: OpenTurn,
        /// Earlier tries of the send that comes next.
        attempt: u32,
    },
}

impl Job {
    /// Hash of the phone_number_id whose it is.
    pub fn number(&self) -> u64 {
        match self {
            Self::Fresh { works, .. } => works.first().map_or(0, |work| work.number),
            Self::Open { turn, .. } => turn.number,
        }
    }

    /// Earlier tries.
    pub const fn attempt(&self) -> u32 {
        match self {
            Self::Fresh { attempt, .. } | Self::Open { attempt, .. } => *attempt,
        }
    }
}

/// What a turn came to. Everything about the items is recorded in the inbox already.
#[derive(Debug)]
pub enum Outcome {
    /// The lane goes on with what arrived meanwhile.
    Done,
    /// The same for what was too old to begin with: nobody was asked, so a hold stays.
    Expired,
    /// The job again, not before `after` (else by backoff).
    Again {
        /// With its attempt counted up, if it was one: what came before the job's own work is none.
        job: Job,
        /// The other side's wish.
        after: Option<Duration>,
    },
    /// The job again, and until then nothing else of the scope either.
    Hold {
        /// With its attempt counted up.
        job: Job,
        /// What stands still. `Business` and `App` as seen from this number.
        scope: Scope,
        /// For how long (else by backoff).
        after: Option<Duration>,
    },
}

/// Runs one job to its outcome, on a coroutine of its own.
pub trait Runner: Send + Sync + 'static {
    /// Must not panic; if it does, the dispatcher counts it and tries the job again by backoff.
    fn run(&self, job: Job) -> Outcome;
}

static TURNS: Counter = Counter::new("turns_begun_total", "Turns begun, tries included");
static PANICS: Counter = Counter::new("turn_panics_total", "Turns that panicked and are tried again");
static LOST: Counter =
    Counter::new("turns_given_up_total", "Turns given up after panics in a row; their items are dead");
static LEFT: Counter =
    Counter::new("works_left_on_disk_total", "Fresh works not taken into memory, read later");
static PAGES: Counter = Counter::new("work_pages_total", "Pages of open work read from the store");
static READ_FAILURES: Counter = Counter::new("work_page_failures_total", "Reads of open work that failed");
static SCHEDULER_PANICS: Counter =
    Counter::new("dispatcher_panics_total", "Panics of the scheduler itself: a bug");
static SPAWN_FAILURES: Counter =
    Counter::new("turn_spawn_failures_total", "No memory for a coroutine's stack; tried again");
static HOLDS: Counter = Counter::new("holds_total", "Turns that came back held");
static RUNNING: Gauge = Gauge::new("turns_running", "Turns under way");
static WAITING: Gauge = Gauge::new("works_waiting", "Works that wait in memory");
static BYTES: Gauge = Gauge::new("works_bytes", "Bytes of bodies in memory for turns");
static LANES: Gauge = Gauge::new("lanes", "Conversations with something to do");
static BEHIND: Gauge = Gauge::new("numbers_behind", "Numbers whose fresh work stays on disk for now");
static HELD: Gauge = Gauge::new("held", "Numbers and apps that stand still");
static OPENS: Gauge = Gauge::new("open_turns_in_memory", "Open turns of an earlier run that wait in memory");

/// The dispatcher's metrics; the gauges are those of the last [`Dispatcher::gauges`].
pub static METRICS: &[&dyn Metric] = &[
    &TURNS,
    &PANICS,
    &LOST,
    &LEFT,
    &PAGES,
    &READ_FAILURES,
    &SPAWN_FAILURES,
    &SCHEDULER_PANICS,
    &HOLDS,
    &RUNNING,
    &WAITING,
    &BYTES,
    &LANES,
    &BEHIND,
    &HELD,
    &OPENS,
];
