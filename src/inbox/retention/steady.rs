//! Whether the wall clock can be believed: one that jumps ahead makes everything old at once, and what retention removes
//! does not come back when the clock does.

use std::time::Duration;

use crate::clock::UnixMillis;

/// A step forward of more than this, measured against the clock that never jumps, is looked at for a while.
const JUMP: i64 = 3_600_000;
/// And believed after this: the clock was wrong before, or the machine slept.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);

/// See the module. What the clock says first is believed.
#[derive(Default)]
pub struct Steady {
    /// Wall clock less monotonic clock, in ms.
    skew: Option<i64>,
    jumped: Option<Duration>,
}

impl Steady {
    /// Whether it is a time to remove by.
    pub fn allows(&mut self, now: UnixMillis, monotonic: Duration) -> bool {
        let skew = now as i64 - monotonic.as_millis() as i64;
        if self.skew.is_some_and(|known| skew - known > JUMP) {
            if self.jumped.is_none() {
                log::warn!(
                    "inbox: the clock has jumped ahead by {} minutes: nothing old is removed for an hour, in case it jumps back",
                    (skew - self.skew.unwrap_or(skew)) / 60_000
                );
            }
            if monotonic < *self.jumped.get_or_insert(monotonic) + BELIEVED_AFTER {
                return false;
            }
        }
        (self.skew, self.jumped) = (Some(skew), None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: UnixMillis = 1_800_000_000_000;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_believed_after_an_hour() {
        let mut steady = Steady::default();
        assert!(steady.allows(NOW, at(0)) && steady.allows(NOW + 60_000, at(60_000)));
        let ahead = NOW + 9 * 24 * HOUR;
        assert!(!steady.allows(ahead + 120_000, at(120_000)));
        assert!(!steady.allows(ahead + HOUR, at(HOUR)));
        assert!(steady.allows(ahead + HOUR + 120_000, at(HOUR + 120_000)));
        assert!(steady.allows(ahead + HOUR + 180_000, at(HOUR + 180_000)));
    }

    #[test]
    fn one_that_jumps_back_again_has_done_nothing() {
        let mut steady = Steady::default();
        assert!(steady.allows(NOW, at(0)));
        assert!(!steady.allows(NOW + 300 * HOUR, at(60_000)));
        assert!(steady.allows(NOW + 120_000, at(120_000)));
        assert!(!steady.allows(NOW + 300 * HOUR, at(180_000)), "the hour begins again");
    }

    #[test]
    fn backwards_and_small_steps_are_nothing() {
        let mut steady = Steady::default();
        assert!(steady.allows(NOW, at(0)));
        assert!(steady.allows(NOW - 50 * HOUR, at(60_000)));
        assert!(steady.allows(NOW - 50 * HOUR + HOUR / 2, at(120_000)));
    }
}
