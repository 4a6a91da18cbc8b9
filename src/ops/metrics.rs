//! Counters that any module may own: `static X: Counter = Counter::new(name, help)`, listed in the module's
//! `METRICS` and rendered as Prometheus text by `ops`.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Prefix of every metric's name.
pub const PREFIX: &str = "whatsapp_webhook_";

/// Something that can be rendered in the Prometheus text format (version 0.0.4).
pub trait Metric: Sync {
    /// Appends HELP, TYPE and samples.
    fn render(&self, out: &mut String);
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
}

/// Only grows. `name` ends in `_total` and has no prefix.
pub struct Counter {
    name: &'static str,
    help: &'static str,
    value: AtomicU64,
}

impl Counter {
    /// Const, so that it can be a static.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, value: AtomicU64::new(0) }
    }
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.value.fetch_add(n, Relaxed);
    }
    /// The value now.
    pub fn value(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

impl Metric for Counter {
    fn render(&self, out: &mut String) {
        head(out, self.name, self.help, "counter");
        let _ = writeln!(out, "{PREFIX}{} {}", self.name, self.value());
    }
}

/// Goes up and down.
pub struct Gauge {
    name: &'static str,
    help: &'static str,
    value: AtomicI64,
}

impl Gauge {
    /// Const, so that it can be a static.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, value: AtomicI64::new(0) }
    }
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.value.fetch_add(n, Relaxed);
    }
    /// Sets it.
    pub fn set(&self, n: i64) {
        self.value.store(n, Relaxed);
    }
    /// The value now.
    pub fn value(&self) -> i64 {
        self.value.load(Relaxed)
    }
}

impl Metric for Gauge {
    fn render(&self, out: &mut String) {
        head(out, self.name, self.help, "gauge");
        let _ = writeln!(out, "{PREFIX}{} {}", self.name, self.value());
    }
}

/// One counter for each of a fixed set of label values.
pub struct Family<const N: usize> {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Family<N> {
    /// Const, so that it can be a static.
    pub const fn new(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: [&'static str; N],
    ) -> Self {
        Self { name, help, label, values, counts: [const { AtomicU64::new(0) }; N] }
    }
    /// Adds one to the value at `index`; an index out of range counts as the last ("other").
    pub fn inc(&self, index: usize) {
        self.counts[index.min(N - 1)].fetch_add(1, Relaxed);
    }
    /// The count at `index`.
    pub fn value(&self, index: usize) -> u64 {
        self.counts[index.min(N - 1)].load(Relaxed)
    }
}

impl<const N: usize> Metric for Family<N> {
    fn render(&self, out: &mut String) {
        head(out, self.name, self.help, "counter");
        for (value, count) in self.values.iter().zip(&self.counts) {
            let _ =
                writeln!(out, "{PREFIX}{}{{{}=\"{value}\"}} {}", self.name, self.label, count.load(Relaxed));
        }
    }
}

/// Upper bounds of a [`Histogram`]'s buckets, in microseconds: 100 us to 60 s.
const BOUNDS_US: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 25_000_000, 60_000_000,
];

/// Latencies, in seconds. `name` ends in `_seconds`.
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    buckets: [AtomicU64; 19],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Const, so that it can be a static.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, buckets: [const { AtomicU64::new(0) }; 19], sum_us: AtomicU64::new(0) }
    }
    /// Adds one observation.
    pub fn observe(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }
}

impl Metric for Histogram {
    fn render(&self, out: &mut String) {
        head(out, self.name, self.help, "histogram");
        let mut count = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let bound = BOUNDS_US.get(i).map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            let _ = writeln!(out, "{PREFIX}{}_bucket{{le=\"{bound}\"}} {count}", self.name);
        }
        let sum = self.sum_us.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{PREFIX}{name}_sum {sum}\n{PREFIX}{name}_count {count}", name = self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_cumulatively() {
        let h = Histogram::new("x_seconds", "help");
        h.observe(Duration::from_micros(100));
        h.observe(Duration::from_secs(100));
        let mut out = String::new();
        h.render(&mut out);
        assert!(out.contains("whatsapp_webhook_x_seconds_bucket{le=\"0.0001\"} 1\n"), "{out}");
        assert!(out.contains("whatsapp_webhook_x_seconds_bucket{le=\"+Inf\"} 2\n"), "{out}");
        assert!(out.contains("whatsapp_webhook_x_seconds_count 2\n"), "{out}");
    }

    #[test]
    fn an_unknown_label_counts_as_the_last() {
        let f = Family::new("f_total", "help", "kind", ["a", "other"]);
        f.inc(17);
        assert_eq!(f.value(1), 1);
    }
}
