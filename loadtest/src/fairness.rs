//! Who waits how long: latencies for each business, so that one which starves the others is seen.

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Businesses that are told apart; 12 KiB each. Of more, the first so many.
pub const BUSINESSES_MAX: u32 = 500;
/// The longest time that is told apart, in microseconds.
const LONGEST_US: u64 = 600_000_000;

/// Records; one lock a business.
pub struct Fairness(Box<[Mutex<Histogram<u32>>]>);

/// What one business got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Which.
    pub business: u32,
    /// Latencies that were counted.
    pub count: u64,
    /// Their median, in microseconds.
    pub p50: u64,
    /// 99 of 100 are below, in microseconds.
    pub p99: u64,
}

impl Fairness {
    /// Empty ones.
    pub fn new(businesses: u32) -> Self {
        let empty = |_| {
            Mutex::new(Histogram::new_with_bounds(1, LONGEST_US, 2).expect("fixed bounds that are valid"))
        };
        Self((0..businesses.min(BUSINESSES_MAX)).map(empty).collect())
    }

    /// Enters one, if the business is told apart.
    pub fn record(&self, business: u32, us: u64) {
        if let Some(of) = self.0.get(business as usize) {
            of.lock().saturating_record(us.max(1));
        }
    }

    /// All that had any.
    pub fn shares(&self) -> Vec<Share> {
        let share = |(business, of): (usize, &Mutex<Histogram<u32>>)| {
            let of = of.lock();
            (!of.is_empty()).then(|| Share {
                business: business as u32,
                count: of.len(),
                p50: of.value_at_quantile(0.5),
                p99: of.value_at_quantile(0.99),
            })
        };
        self.0.iter().enumerate().filter_map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_business_has_its_own_and_those_above_the_limit_are_left_out() {
        let fairness = Fairness::new(10_000);
        fairness.record(3, 1_000);
        fairness.record(9_999, 1_000);
        let shares = fairness.shares();
        assert_eq!(shares.len(), 1);
        assert_eq!((shares[0].business, shares[0].count), (3, 1));
    }
}
