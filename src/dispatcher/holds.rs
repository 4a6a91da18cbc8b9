//! PURE: one thing that stands still (a number, a business as seen from it, an app) until a probe gets
//! through.
//!
//! While a hold lasts nothing of its scope starts. Once its time is over exactly one job goes first, the
//! probe. If that is held again the wait grows; if it is done the hold is lifted and the next one starts
//! small again.

use std::time::Duration;

use super::backoff;
use super::lanes::Key;
use crate::failure::Scope;

/// Whether something of the scope may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gate {
    /// Nothing in the way.
    Open,
    /// One job, as the probe.
    Probe,
    /// Not now.
    Shut,
}

/// A hold.
#[derive(Debug)]
pub(super) struct Hold {
    scope: Scope,
    until: Duration,
    level: u32,
    probe: Option<Key>,
}

impl Hold {
    /// Begins at `now`, for `after` or by backoff.
    pub(super) fn new(scope: Scope, after: Option<Duration>, now: Duration, seed: u64) -> Self {
        let until = now + backoff::wish_or(after, backoff::hold(scope, 0, seed));
        Self { scope, until, level: 0, probe: None }
    }

    pub(super) fn scope(&self) -> Scope {
        self.scope
    }

    pub(super) fn until(&self) -> Duration {
        self.until
    }

    pub(super) fn gate(&self, now: Duration) -> Gate {
        if self.probe.is_some() || now < self.until { Gate::Shut } else { Gate::Probe }
    }

    /// `key` goes as the probe.
    pub(super) fn probe_with(&mut self, key: Key) {
        self.probe = Some(key);
    }

    pub(super) fn is_probe(&self, key: Key) -> bool {
        self.probe == Some(key)
    }

    /// A job was held for the same reason: the probe (then the wait grows), or one that had begun before.
    pub(super) fn held_again(
        &mut self,
        key: Key,
        scope: Scope,
        after: Option<Duration>,
        now: Duration,
        seed: u64,
    ) {
        if self.is_probe(key) {
            self.probe = None;
            self.scope = scope;
            self.level = self.level.saturating_add(1);
            self.until = now + backoff::wish_or(after, backoff::hold(scope, self.level, seed));
        } else if let Some(after) = after {
            self.until = self.until.max(now + backoff::wish_or(Some(after), after));
        }
    }

    /// The probe ended without saying whether the hold is over: the next job is the probe, at once.
    pub(super) fn probe_again(&mut self, now: Duration) {
        self.probe = None;
        self.until = now;
    }
}
