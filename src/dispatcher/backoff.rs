//! PURE: how long to wait before the next try. Exponential, capped, with jitter from a seed that is an
//! argument.
//!
//! Promises: a wait is never zero, never above its cap, and never shrinks by more than its jitter as tries go
//! on. Equal jitter (half fixed, half random) where a quick second try would only hit the same limit; full
//! jitter would let some tries go at once.

use std::time::Duration;

use crate::clock::nanos;
use crate::failure::Scope;

/// A job that failed: first wait.
pub const RETRY_BASE: Duration = Duration::from_secs(1);
/// A job that failed: longest wait.
pub const RETRY_CAP: Duration = Duration::from_secs(5 * 60);
/// A pair over its limit waits 4^X seconds, X = 0, 1, 2, .. (Meta, "Pair rate limits"): longest wait, 4^5.
pub const PAIR_CAP: Duration = Duration::from_secs(1024);
/// A number, business or app that is held: shortest wait.
pub const HOLD_BASE: Duration = Duration::from_secs(30);
/// A number, business or app that is held: longest wait.
pub const HOLD_CAP: Duration = Duration::from_secs(5 * 60);
/// The other side's own wish (Retry-After and the like) is followed up to here.
pub const WISH_CAP: Duration = Duration::from_secs(60 * 60);
/// A page that did not get further: first wait.
pub const READ_BASE: Duration = Duration::from_millis(20);
/// A page that did not get further: longest wait.
pub const READ_CAP: Duration = Duration::from_secs(1);

/// Before try `attempt` + 1 of a job (`attempt` tries failed, counted from 1).
pub fn retry(attempt: u32, seed: u64) -> Duration {
    equal_jitter(grown(RETRY_BASE, 2, attempt.saturating_sub(1), RETRY_CAP), seed)
}

/// Before a pair is tried again: 4^X seconds and up to a quarter more, so that it is never too early.
pub fn pair(attempt: u32, seed: u64) -> Duration {
    let wait = grown(Duration::from_secs(1), 4, attempt.saturating_sub(1), PAIR_CAP);
    wait + random(wait / 4, seed)
}

/// Before what is held is probed; `level` probes failed. A number's limit is one of messages a second, so it is tried
/// after a second; a token, an account or an app's limit needs longer.
pub fn hold(scope: Scope, level: u32, seed: u64) -> Duration {
    let base = if scope == Scope::Number { RETRY_BASE } else { HOLD_BASE };
    let wait = grown(base, 2, level, HOLD_CAP * 2 / 3);
    wait + random(wait / 2, seed)
}

/// Before a number is read again whose last `attempt` pages did not get further.
pub fn read(attempt: u32, seed: u64) -> Duration {
    equal_jitter(grown(READ_BASE, 2, attempt, READ_CAP), seed)
}

/// The wish, capped; else what backoff says.
pub fn wish_or(wish: Option<Duration>, backoff: Duration) -> Duration {
    wish.map_or(backoff, |wish| wish.clamp(Duration::from_millis(1), WISH_CAP))
}

/// The next seed (splitmix64): good enough to spread tries, no secret.
pub fn next_seed(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*seed)
}

fn grown(base: Duration, factor: u32, steps: u32, cap: Duration) -> Duration {
    factor.checked_pow(steps).and_then(|f| base.checked_mul(f)).map_or(cap, |wait| wait.min(cap))
}

fn equal_jitter(wait: Duration, seed: u64) -> Duration {
    wait / 2 + random(wait / 2, seed)
}

/// Evenly from 0 to `most`.
fn random(most: Duration, seed: u64) -> Duration {
    Duration::from_nanos(((u128::from(mix(seed)) * u128::from(nanos(most))) >> 64) as u64)
}

const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pair_waits_four_to_the_x_seconds() {
        for (attempt, least) in [(1, 1), (2, 4), (3, 16), (4, 64), (5, 256), (6, 1024), (7, 1024), (99, 1024)]
        {
            let wait = pair(attempt, 7);
            assert!(wait >= Duration::from_secs(least), "attempt {attempt}: {wait:?}");
            assert!(wait <= Duration::from_secs(least) * 5 / 4, "attempt {attempt}: {wait:?}");
        }
    }

    #[test]
    fn a_wish_is_followed_but_not_for_days() {
        assert_eq!(wish_or(Some(Duration::from_secs(7)), RETRY_CAP), Duration::from_secs(7));
        assert_eq!(wish_or(Some(Duration::from_secs(1 << 30)), RETRY_CAP), WISH_CAP);
        assert_eq!(wish_or(None, RETRY_CAP), RETRY_CAP);
    }

    #[test]
    fn a_thousand_that_failed_together_do_not_come_back_together() {
        let mut seed = 1;
        let mut slots = [0_u32; 10];
        for _ in 0..1000 {
            let wait = retry(4, next_seed(&mut seed));
            slots[((wait - Duration::from_secs(4)).as_millis() / 401) as usize] += 1;
        }
        assert!(slots.iter().all(|n| (50..200).contains(n)), "{slots:?}");
    }

    proptest! {
        #[test]
        fn a_wait_is_never_zero_nor_above_its_cap(attempt in any::<u32>(), seed in any::<u64>()) {
            for (wait, least, most) in [
                (retry(attempt, seed), RETRY_BASE / 2, RETRY_CAP),
                (pair(attempt, seed), Duration::from_secs(1), PAIR_CAP * 5 / 4),
                (hold(Scope::Business, attempt, seed), HOLD_BASE, HOLD_CAP),
                (read(attempt, seed), READ_BASE / 2, READ_CAP),
            ] {
                prop_assert!(wait >= least && wait <= most, "{wait:?} not in {least:?}..={most:?}");
            }
        }

        #[test]
        fn a_later_try_waits_at_least_half_as_long(attempt in 1_u32..40, (a, b) in any::<(u64, u64)>()) {
            prop_assert!(retry(attempt + 1, a) >= retry(attempt, b) / 2);
        }
    }
}
