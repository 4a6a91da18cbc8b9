//! Latencies from many coroutines at once, in microseconds: of the whole run, and of each interval of it.

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Parts that are written to independently.
const SHARDS: usize = 8;
/// The longest time that is told apart; longer ones count as this, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Records; see the module's head.
pub struct Recorder([Mutex<Shard>; SHARDS]);

struct Shard {
    all: Histogram<u64>,
    interval: Histogram<u64>,
}

fn empty(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, digits).expect("fixed bounds that are valid")
}

impl Recorder {
    /// An empty one.
    pub fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(Shard { all: empty(3), interval: empty(2) })))
    }

    /// Enters one; `who` spreads the writers.
    pub fn record(&self, who: usize, us: u64) {
        let mut shard = self.0[who % SHARDS].lock();
        shard.all.saturating_record(us.max(1));
        shard.interval.saturating_record(us.max(1));
    }

    /// All of them.
    pub fn all(&self) -> Histogram<u64> {
        let mut all = empty(3);
        for shard in &self.0 {
            all.add(&shard.lock().all).expect("all have the same bounds");
        }
        all
    }

    /// Those since the last call.
    pub fn take_interval(&self) -> Histogram<u64> {
        let mut taken = empty(2);
        for shard in &self.0 {
            let interval = &mut shard.lock().interval;
            taken.add(&*interval).expect("all have the same bounds");
            interval.reset();
        }
        taken
    }
}

/// What is told of a distribution, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantiles {
    /// How many there were.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 90 of 100 are below.
    pub p90: u64,
    /// 95 of 100 are below.
    pub p95: u64,
    /// 99 of 100 are below.
    pub p99: u64,
    /// 999 of 1,000 are below.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// Of a million, how many took more than a second.
    pub over_second_ppm: u64,
}

impl Quantiles {
    /// Of these.
    pub fn of(all: &Histogram<u64>) -> Self {
        let count = all.len();
        if count == 0 {
            return Self::default();
        }
        let at = |quantile| all.value_at_quantile(quantile);
        let over = count - all.count_between(0, 1_000_000);
        Self {
            count,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: all.max(),
            over_second_ppm: (u128::from(over) * 1_000_000 / u128::from(count)) as u64,
        }
    }
}

/// Microseconds as milliseconds in words.
pub fn ms(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2}", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1}", us as f64 / 1e3),
        _ => format!("{:.0}", us as f64 / 1e3),
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p90, p99, p999, max, .. } = *self;
        write!(f, "p50 {}  p90 {}  p99 {}  p99.9 {}  max {} ms", ms(p50), ms(p90), ms(p99), ms(p999), ms(max))
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
        let quantiles = Quantiles::of(&recorder.all());
        assert_eq!((quantiles.count, quantiles.p50, quantiles.p99, quantiles.max), (1000, 500, 990, 1000));
        assert_eq!(Quantiles::of(&Recorder::new().all()), Quantiles::default());
    }

    #[test]
    fn an_interval_is_taken_once_and_the_whole_stays() {
        let recorder = Recorder::new();
        recorder.record(0, 10);
        assert_eq!(recorder.take_interval().len(), 1);
        recorder.record(1, 10);
        recorder.record(2, 10);
        assert_eq!((recorder.take_interval().len(), recorder.take_interval().len()), (2, 0));
        assert_eq!(recorder.all().len(), 3);
    }

    #[test]
    fn what_takes_more_than_a_second_is_counted() {
        let recorder = Recorder::new();
        (0..99).for_each(|n| recorder.record(n, 900_000));
        recorder.record(0, 2_000_000);
        assert_eq!(Quantiles::of(&recorder.all()).over_second_ppm, 10_000);
    }
}
