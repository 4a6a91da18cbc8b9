//! Times of a load, told apart by whether something else was under way beside it.
//!
//! What met a stall of the machine is left out of the comparison, but told beside it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::sys::now_us;
use crate::timing::{Quantiles, Recorder};

/// Counts while it runs.
pub struct Apart {
    /// Parts of what is under way that are not done yet.
    open: AtomicU64,
    /// When the last one was over; 0 before.
    ended_us: AtomicU64,
    beside: Recorder,
    without: Recorder,
    beside_all: Recorder,
    without_all: Recorder,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Of the others while it was under way.
    pub beside: Quantiles,
    /// The same at all other times.
    pub without: Quantiles,
    /// Both with those that met a stall of the machine: while it was under way ..
    pub beside_all: Quantiles,
    /// .. and at all other times.
    pub without_all: Quantiles,
}

impl Apart {
    /// Nothing is under way.
    pub fn new() -> Self {
        let [beside, without, beside_all, without_all] = std::array::from_fn(|_| Recorder::new());
        Self {
            open: AtomicU64::new(0),
            ended_us: AtomicU64::new(0),
            beside,
            without,
            beside_all,
            without_all,
        }
    }

    /// It begins, in so many parts.
    pub fn begin(&self, parts: u64) {
        self.open.store(parts, Relaxed);
    }

    /// One part is done. Never too many: what was given up may still be done.
    pub fn done(&self) {
        if self.open.fetch_update(Relaxed, Relaxed, |open| open.checked_sub(1)) == Ok(1) {
            self.ended_us.store(now_us(), Relaxed);
        }
    }

    /// Whether a part is not done.
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// Somebody else's request ended at `at_us`, after `us`; `is_quiet`: it met no stall of the machine, which would be
    /// taken for what is under way.
    pub fn record(&self, at_us: u64, us: u64, is_quiet: bool) {
        let is_beside = self.is_open() || at_us.saturating_sub(us) < self.ended_us.load(Relaxed);
        let (quiet, all) =
            if is_beside { (&self.beside, &self.beside_all) } else { (&self.without, &self.without_all) };
        all.record(at_us as usize, us);
        if is_quiet {
            quiet.record(at_us as usize, us);
        }
    }

    /// What came of it.
    pub fn times(&self) -> Times {
        Times {
            beside: Quantiles::of(&self.beside.all()),
            without: Quantiles::of(&self.without.all()),
            beside_all: Quantiles::of(&self.beside_all.all()),
            without_all: Quantiles::of(&self.without_all.all()),
        }
    }
}

impl Times {
    /// The others' p99 beside it, in times of their p99 without it; `None` if either is not known.
    pub fn ratio(&self) -> Option<f64> {
        let is_known = self.beside.count > 0 && self.without.count > 0;
        is_known.then(|| self.beside.p99 as f64 / self.without.p99.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_are_told_apart_by_whether_it_was_under_way() {
        let apart = Apart::new();
        apart.record(1_000, 500, true);
        apart.begin(2);
        apart.record(2_000, 700, true);
        apart.record(2_000, 900, false);
        for _ in 0..3 {
            apart.done();
        }
        assert!(!apart.is_open());
        assert_ne!(apart.ended_us.swap(3_000, Relaxed), 0);
        apart.record(4_000, 1_500, true);
        apart.record(5_000, 500, true);
        let times = apart.times();
        assert_eq!((times.beside.count, times.without.count), (2, 2));
        assert_eq!((times.beside_all.count, times.without_all.count), (3, 2));
        assert_eq!((times.beside.max, times.without.max), (1_500, 500));
        assert_eq!(times.ratio(), Some(3.0));
        assert_eq!(Apart::new().times().ratio(), None);
    }
}
