//! When a worker has looked at its sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::bell::Bell;
use crate::clock::{self, nanos};

/// So long after a worker looked, places go from hand to hand.
const EVERY: Duration = Duration::from_micros(200);
/// Workers that are asked at once: the first that looks counts. It has nothing ready then, and could steal nothing.
const ASKED: usize = 2;
/// Who does not look within this is off its core, and not waited for: others are asked next time. More than all that may be
/// ready takes, or nobody would ever look.
const PATIENCE: Duration = Duration::from_millis(20);

/// What to do with places that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A worker looked lately: hand them out.
    Go,
    /// Somebody looks soon, and hands them out; what was done before this call is seen then.
    Wait,
    /// The same after [`Breath::ask`].
    Ask,
}

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

    /// At `now`.
    pub fn next(&self, now: Duration) -> Next {
        let now = nanos(now);
        if now < self.times.looked.load(SeqCst).saturating_add(nanos(EVERY)) {
            return Next::Go;
        }
        match self.times.asked.compare_exchange(0, now.max(1), SeqCst, SeqCst) {
            Ok(_) => Next::Ask,
            Err(since) if now > since.saturating_add(nanos(PATIENCE)) => {
                self.times.looked.store(now, SeqCst);
                self.times.asked.store(0, SeqCst);
                Next::Go
            }
            Err(_) => Next::Wait,
        }
    }

    /// Asks, or all of them if `all`. False: nobody hears it, so nobody is to be waited for.
    pub fn ask(&self, all: bool) -> bool {
        let count = if all { self.bells.len() } else { ASKED.min(self.bells.len()) };
        let first = self.next.fetch_add(count, SeqCst);
        let heard =
            (first..first + count).filter(|nth| self.bells[nth % self.bells.len()].ring()).count() > 0;
        if !heard {
            self.times.asked.store(0, SeqCst);
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn who_does_not_look_is_not_waited_for_and_asked_again_later() {
        let breath = Breath { bells: vec![Bell::broken()], next: AtomicUsize::new(0), times: Arc::default() };
        let at = us(1_000_000);
        assert_eq!((breath.next(at), breath.next(at + us(20_000))), (Next::Ask, Next::Wait));
        let late = at + us(20_001);
        assert_eq!((breath.next(late), breath.next(late + us(199))), (Next::Go, Next::Go));
        assert_eq!(breath.next(late + us(200)), Next::Ask);
        assert!(!breath.ask(false));
        assert_eq!(breath.next(late + us(201)), Next::Ask, "nobody is waited for");
    }
}
