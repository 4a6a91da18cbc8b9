//! Latencies from many coroutines at once, in microseconds.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Parts that are written to independently.
const SHARDS: usize = 8;
/// The longest time that is told apart; longer ones count as this, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Records; see the module's head.
pub struct Recorder([Mutex<Histogram<u64>>; SHARDS]);

impl Recorder {
    /// An empty one.
    pub fn new() -> Self {
        let empty = || Histogram::new_with_bounds(1, LONGEST_US, 3).expect("fixed bounds that are valid");
        Self(std::array::from_fn(|_| Mutex::new(empty())))
    }

    /// Enters one; `who` spreads the writers.
    pub fn record(&self, who: usize, us: u64) {
        self.0[who % SHARDS].lock().saturating_record(us.max(1));
    }

    /// All of them.
    pub fn quantiles(&self) -> Quantiles {
        let mut all = self.0[0].lock().clone();
        for shard in &self.0[1..] {
            all.add(&*shard.lock()).expect("all have the same bounds");
        }
        let at = |quantile| Duration::from_micros(all.value_at_quantile(quantile));
        Quantiles { count: all.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// What is told of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// How many there were.
    pub count: u64,
    /// The median.
    pub p50: Duration,
    /// 99 of 100 are below.
    pub p99: Duration,
    /// 999 of 1,000 are below.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let (p50, p99, p999, max) = (ms(self.p50), ms(self.p99), ms(self.p999), ms(self.max));
        write!(f, "p50 {p50:.1}  p99 {p99:.1}  p99.9 {p999:.1}  max {max:.1} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_all_shards() {
        let recorder = Recorder::new();
        for us in 1..=1000 {
            recorder.record(us as usize, us);
        }
        let quantiles = recorder.quantiles();
        assert_eq!((quantiles.count, quantiles.p50.as_micros(), quantiles.p99.as_micros()), (1000, 500, 990));
        assert_eq!(quantiles.max.as_micros(), 1000);
    }
}
