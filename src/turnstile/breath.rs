//! When a worker has looked at its sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::bell::Bell;
use crate::clock;

/// So long after a worker looked, places go from hand to hand.
const EVERY: Duration = Duration::from_micros(200);
/// Workers asked at once: the first that looks counts.
const ASKED: usize = 2;
/// Who does not look within this is off its core, and not waited for: others are asked next time.
const PATIENCE: Duration = Duration::from_millis(1);

/// Asks workers in turn to look, and hears of it. Dropped, it is heard of once more.
#[derive(Debug)]
pub struct Breath {
    bells: Vec<Bell>,
    next: AtomicUsize,
    times: Arc<Times>,
}

/// Nanoseconds of the monotonic clock.
#[derive(Debug, Default)]
struct Times {
    /// The last look.
    looked: AtomicU64,
    /// The first question that has no answer yet; 0: there is none.
    asked: AtomicU64,
}

impl Breath {
    /// `looked` runs after each look that was asked for. Fails where there are no descriptors left.
    pub fn new(workers: usize, looked: impl Fn() + Send + Sync + 'static) -> std::io::Result<Self> {
        let times: Arc<Times> = Arc::default();
        let looked = Arc::new(looked);
        let bell = |worker| {
            let (times, looked) = (Arc::clone(&times), Arc::clone(&looked));
            let heard = move || {
                times.looked.store(nanos(clock::monotonic()), SeqCst);
                times.asked.store(0, SeqCst);
                looked();
            };
            Bell::hang("turnstile", (worker, workers), heard)
        };
        let bells = (0..workers.max(1)).map(bell).collect::<Result<_, _>>()?;
        Ok(Self { bells, next: AtomicUsize::new(0), times })
    }

    /// True: a worker looked lately, or none can. False: `looked` runs soon; what was done before this call it sees.
    pub fn may_go_on(&self, now: Duration) -> bool {
        let now = nanos(now);
        if now < self.times.looked.load(SeqCst).saturating_add(nanos(EVERY)) {
            return true;
        }
        match self.times.asked.compare_exchange(0, now.max(1), SeqCst, SeqCst) {
            Ok(_) => !self.ask(),
            Err(since) if now > since.saturating_add(nanos(PATIENCE)) => {
                self.times.looked.store(now, SeqCst);
                self.times.asked.store(0, SeqCst);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether anybody hears it.
    fn ask(&self) -> bool {
        let asked = ASKED.min(self.bells.len());
        let first = self.next.fetch_add(asked, SeqCst);
        (first..first + asked).filter(|nth| self.bells[nth % self.bells.len()].ring()).count() > 0
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}
