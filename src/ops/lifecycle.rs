//! Starting, ready, draining: one latch that health, edge and watchdog read.

use std::sync::atomic::{AtomicU8, Ordering};

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// Only goes forward.
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8);

impl Lifecycle {
    /// Everything runs.
    pub fn ready(&self) {
        let _ = self.0.compare_exchange(STARTING, READY, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The end has begun.
    pub fn drain(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    /// Why it is not ready, if so.
    pub fn unready(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            STARTING => Some("starting"),
            READY => None,
            _ => Some("draining"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_never_undone() {
        let life = Lifecycle::default();
        assert_eq!(life.unready(), Some("starting"));
        life.ready();
        assert_eq!(life.unready(), None);
        life.drain();
        life.ready();
        assert_eq!(life.unready(), Some("draining"));
    }
}
