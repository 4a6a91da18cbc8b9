//! One lane per conversation, fair between businesses, bounded. `lanes` and `backoff` are PURE; `run` drives them.

use std::time::Duration;

use crate::failure::Scope;
use crate::inbox::{OpenTurn, Work};

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

/// What a turn came to. Everything about the items is recorded in the inbox already.
#[derive(Debug)]
pub enum Outcome {
    /// The lane goes on with what arrived meanwhile.
    Done,
    /// The job again, not before `after` (else by backoff).
    Again {
        /// With its attempt counted up.
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
