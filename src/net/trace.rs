//! What is known about the call under way on this coroutine: its deadline, and how far its request got.
//!
//! ureq has no place for either, so they travel beside it, local to the coroutine (or thread), which makes
//! one call at a time: the resolver, the connector and the transport are called on it and read and write them
//! here.

use std::cell::Cell;
use std::time::Duration;

use ureq::{Error, Timeout};

use crate::clock;

/// The call under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trace {
    /// By `clock::monotonic`.
    pub(super) deadline: Duration,
    /// A new connection was begun for it.
    pub(super) fresh: bool,
    /// That connection is complete, TLS included.
    pub(super) ready: bool,
    /// Something of the request was given to the socket.
    pub(super) written: bool,
    /// The socket refused a part of the request.
    pub(super) write_failed: bool,
    /// Something came back.
    pub(super) answered: bool,
}

impl Trace {
    /// False only if the other side certainly did not get the whole request: there was no connection yet, or
    /// the socket did not take all of it.
    pub(super) fn may_have_arrived(self) -> bool {
        let connected = self.ready || !self.fresh;
        connected && self.written && (self.answered || !self.write_failed)
    }

    /// A kept connection turned out to be dead before the request was through: another attempt is safe.
    pub(super) fn may_be_repeated(self) -> bool {
        !self.fresh && self.written && self.write_failed && !self.answered
    }
}

may::coroutine_local!(static TRACE: Cell<Trace> = Cell::new(Trace::default()));

/// Begins a call (or its second attempt).
pub(super) fn begin(deadline: Duration) {
    TRACE.with(|trace| trace.set(Trace { deadline, ..Trace::default() }));
}

/// As it is now.
pub(super) fn now() -> Trace {
    TRACE.with(Cell::get)
}

/// Notes something.
pub(super) fn note(change: impl FnOnce(&mut Trace)) {
    TRACE.with(|cell| {
        let mut trace = cell.get();
        change(&mut trace);
        cell.set(trace);
    });
}

/// What is left of the call, at most `limit`; never zero, then it is a timeout.
pub(super) fn left(limit: Duration) -> Result<Duration, Error> {
    let left = now().deadline.saturating_sub(clock::monotonic()).min(limit);
    if left.is_zero() { Err(Error::Timeout(Timeout::Global)) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_that_is_not_through_has_certainly_not_arrived() {
        let whole = Trace { fresh: true, ready: true, written: true, ..Trace::default() };
        assert!(whole.may_have_arrived());
        assert!(!Trace { ready: false, ..whole }.may_have_arrived());
        assert!(!Trace { write_failed: true, ..whole }.may_have_arrived());
        assert!(Trace { write_failed: true, answered: true, ..whole }.may_have_arrived());
        let kept = Trace { written: true, ..Trace::default() };
        assert!(kept.may_have_arrived() && !kept.may_be_repeated());
        assert!(Trace { write_failed: true, ..kept }.may_be_repeated());
    }
}
