//! Meta's limits on accepted messages, where they are switched on: per pair, per number, and the 24 hours.
//!
//! Sources: <https://developers.facebook.com/documentation/business-messaging/whatsapp/about-the-platform> (one message in
//! 6 s to one user, 45 in a burst) and `.../throughput` (80 a second and number).

use std::collections::HashMap;

use parking_lot::Mutex;

use super::rules::Refused;
use crate::clock::UnixMillis;
use crate::event::hash64;

/// One message to one user in this time, in ms.
const PAIR_EVERY_MS: u64 = 6_000;
/// How many at once.
const PAIR_BURST: u64 = 45;
/// How long free text is taken after the user's last message, in ms.
const WINDOW_MS: u64 = 24 * 3_600_000;
/// Pairs that are remembered; above it all are forgotten.
const PAIRS_MAX: usize = 200_000;

pub(super) struct Limits {
    pair: bool,
    throughput: Option<u32>,
    window: bool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When a pair's flow is even again.
    pairs: HashMap<u64, UnixMillis>,
    /// The second, and how many went out in it.
    numbers: HashMap<u64, (u64, u32)>,
    /// When somebody wrote last.
    heard: HashMap<u64, UnixMillis>,
}

impl Limits {
    pub fn new(pair: bool, throughput: Option<u32>, window: bool) -> Self {
        Self { pair, throughput, window, known: Mutex::default() }
    }

    pub fn heard(&self, number: &str, from: &str, now: UnixMillis) {
        if self.window {
            bounded(&mut self.known.lock().heard).insert(pair(number, from), now);
        }
    }

    /// Whether one more message may go out now; counts it if so.
    pub fn admit(&self, number: &str, to: &str, is_template: bool, now: UnixMillis) -> Result<(), Refused> {
        if !self.pair && !self.window && self.throughput.is_none() {
            return Ok(());
        }
        let (pair, number) = (pair(number, to), hash64(&[number.as_bytes()]));
        let mut known = self.known.lock();
        if self.window && !is_template {
            let last = known.heard.get(&pair).copied();
            if last.is_none_or(|last| now.saturating_sub(last) > WINDOW_MS) {
                let what = "Message failed to send because more than 24 hours have passed since the customer last \
                            replied to this number.";
                return Err(Refused::new(131_047, what));
            }
        }
        if let Some(most) = self.throughput {
            let (second, count) = bounded(&mut known.numbers).entry(number).or_default();
            if *second != now / 1000 {
                (*second, *count) = (now / 1000, 0);
            }
            if *count >= most {
                return Err(Refused::new(
                    130_429,
                    "Message failed to send because there were too many messages sent \
                                                 from this phone number in a short period of time",
                ));
            }
            *count += 1;
        }
        if self.pair {
            let even_at = bounded(&mut known.pairs).entry(pair).or_insert(now);
            let at = (*even_at).max(now);
            if at - now > PAIR_EVERY_MS * (PAIR_BURST - 1) {
                return Err(Refused::new(
                    131_056,
                    "Message failed to send because there were too many messages sent \
                                                 from the sender phone number to the same recipient phone number in \
                                                 a short period of time",
                ));
            }
            *even_at = at + PAIR_EVERY_MS;
        }
        Ok(())
    }
}

fn pair(number: &str, peer: &str) -> u64 {
    hash64(&[number.as_bytes(), peer.as_bytes()])
}

fn bounded<V>(map: &mut HashMap<u64, V>) -> &mut HashMap<u64, V> {
    if map.len() >= PAIRS_MAX {
        map.clear();
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<(), Refused>) -> i64 {
        result.expect_err("refused").code
    }

    #[test]
    fn a_pair_has_a_burst_and_then_one_in_six_seconds() {
        let limits = Limits::new(true, None, false);
        let now = 1_000_000;
        for _ in 0..45 {
            assert_eq!(limits.admit("7", "1", false, now), Ok(()));
        }
        assert_eq!(code(limits.admit("7", "1", false, now)), 131_056);
        assert_eq!(limits.admit("7", "2", false, now), Ok(()));
        assert_eq!(limits.admit("7", "1", false, now + 6_000), Ok(()));
        assert_eq!(code(limits.admit("7", "1", false, now + 6_000)), 131_056);
    }

    #[test]
    fn a_number_has_so_many_a_second() {
        let limits = Limits::new(false, Some(2), false);
        assert_eq!(limits.admit("7", "1", false, 1_000), Ok(()));
        assert_eq!(limits.admit("7", "2", false, 1_999), Ok(()));
        assert_eq!(code(limits.admit("7", "3", false, 1_999)), 130_429);
        assert_eq!(limits.admit("8", "3", false, 1_999), Ok(()));
        assert_eq!(limits.admit("7", "3", false, 2_000), Ok(()));
    }

    #[test]
    fn free_text_needs_a_message_within_24_hours() {
        let limits = Limits::new(false, None, true);
        assert_eq!(code(limits.admit("7", "1", false, 0)), 131_047);
        assert_eq!(limits.admit("7", "1", true, 0), Ok(()));
        limits.heard("7", "1", 0);
        assert_eq!(limits.admit("7", "1", false, WINDOW_MS), Ok(()));
        assert_eq!(code(limits.admit("7", "1", false, WINDOW_MS + 1)), 131_047);
    }
}
