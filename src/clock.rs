//! The one file that reads the clock and the one that sleeps. Everything else takes time as an argument.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub type UnixMillis = u64;

/// Milliseconds since the Unix epoch, by the wall clock; it can jump.
pub fn now() -> UnixMillis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Time since the process started, by a clock that never goes back: for deadlines and latencies.
#[allow(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
pub fn monotonic() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// A park or socket timeout below this can hang for ever: may 0.3.51 sets the timer before it stores the coroutine, and
/// a timer that fires in between wakes nobody. (`sleep` stores first.)
pub const TIMER_MIN: Duration = Duration::from_millis(50);

/// Suspends the coroutine (or the thread) for `duration`.
///
/// A coroutine that `may` wakes by a timer runs on the single timer thread until its next yield,
/// so this yields once more to get back on a worker.
#[allow(clippy::disallowed_methods, reason = "this is the file that sleeps")]
pub fn sleep(duration: Duration) {
    may::coroutine::sleep(duration);
    back_to_worker();
}

/// Call after a park or a receive that timed out: moves the coroutine off the timer thread.
pub fn back_to_worker() {
    if may::coroutine::is_coroutine() {
        may::coroutine::yield_now();
    }
}
