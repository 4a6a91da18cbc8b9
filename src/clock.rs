//! The one file that reads the clock and the one that sleeps. Everything else takes time as an argument.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

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

/// For what is kept in an atomic; more than 584 years are as many.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
    linger();
}

/// Keeps the record of the calling coroutine for [`LINGER`], even if the coroutine ends now.
///
/// may 0.3.51 writes into that record after it has put a coroutine to sleep. When the timer (or whoever unparks it) is
/// faster than the worker, because the kernel took the worker off its core in between, the coroutine may be over
/// by then and the record freed: heap corruption. So every sleep is followed by this, and it belongs at the end of
/// a coroutine that waits on may's Semphore, SyncFlag, channels or Mutex and ends soon after.
pub fn linger() {
    if !may::coroutine::is_coroutine() {
        return;
    }
    let (now, record) = (monotonic(), may::coroutine::current());
    let gone = {
        let mut kept = LINGERING.lock();
        kept.push_back((now, record));
        let late = kept.iter().take_while(|(since, _)| now.saturating_sub(*since) > LINGER).count();
        let count = late.max(kept.len().saturating_sub(LINGERING_MAX));
        kept.drain(..count).collect::<Vec<_>>()
    };
    // outside of the lock: a record waits for may before it goes
    drop(gone);
}

/// Longer than any worker is off its core.
const LINGER: Duration = Duration::from_secs(2);
/// Records that are kept; about 200 bytes each.
const LINGERING_MAX: usize = 65_536;

static LINGERING: Mutex<VecDeque<(Duration, may::coroutine::Coroutine)>> = Mutex::new(VecDeque::new());

/// Call after a park or a receive that timed out: moves the coroutine off the timer thread.
pub fn back_to_worker() {
    if may::coroutine::is_coroutine() {
        may::coroutine::yield_now();
    }
}
