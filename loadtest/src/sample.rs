//! The run over time: a thread that looks at everything a few times a second.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::drive::Load;
use crate::proc::{self, Look};
use crate::scrape::Metrics;
use crate::sys;

/// Samples of the load's time; the drain adds some.
const TICKS: u32 = 120;
/// The shortest interval.
const TICK_MIN: Duration = Duration::from_millis(250);
/// The most samples; later ones are dropped.
const TICKS_MAX: usize = 2000;
/// Upper bounds of the heat map's rows, in microseconds; what is above the last is in one more row.
pub const HEAT_US: [u64; 18] = [
    100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// One interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tick {
    /// Its end, in seconds since the load began.
    pub at: f64,
    /// Its length in seconds.
    pub span: f64,
    /// Requests that were due (closed loop: begun).
    pub offered: u64,
    /// 200s.
    pub acked: u64,
    /// Posts without a 200.
    pub refused: u64,
    /// Time to the 200, in microseconds.
    pub p50: u64,
    /// The same.
    pub p99: u64,
    /// 200s by latency, see [`HEAT_US`].
    pub heat: Vec<u64>,
    /// First answers.
    pub answered: u64,
    /// Time to the answer, in microseconds.
    pub answer_p50: u64,
    /// The same.
    pub answer_p99: u64,
    /// Messages with their 200 and without their answer, at its end.
    pub waiting: u64,
    /// The server's CPU time, in microseconds.
    pub cpu: u64,
    /// This program's, in microseconds.
    pub own_cpu: u64,
    /// The simulated Meta's, in microseconds.
    pub meta_cpu: u64,
    /// The server's resident memory, in bytes.
    pub rss: u64,
    /// The server's descriptors.
    pub fds: u64,
    /// Its commits.
    pub commits: u64,
    /// Items that it took in, duplicates included.
    pub items: u64,
    /// 99 of 100 of its commits took less, in microseconds.
    pub commit_p99: Option<u64>,
    /// Turns that it ran.
    pub turns: u64,
    /// Turns under way, at the end.
    pub running: u64,
    /// Status webhooks that it took in.
    pub statuses: u64,
}

/// The thread.
pub struct Sampler {
    stop: SyncSender<()>,
    thread: JoinHandle<Vec<Tick>>,
}

/// Where the thread looks.
pub struct Where {
    /// The load.
    pub load: Arc<Load>,
    /// The server's process.
    pub server: u32,
    /// The simulated Meta's.
    pub meta: u32,
    /// How long the load is to run.
    pub duration: Duration,
}

impl Sampler {
    /// Begins with the load.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(at: Where) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(0);
        let every = (at.duration / TICKS).max(TICK_MIN);
        let run = move || {
            let mut series = Series::new(at);
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                series.tick();
            }
            series.tick();
            series.ticks
        };
        let thread = std::thread::Builder::new().name("sampler".to_owned()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// All samples.
    pub fn finish(self) -> Vec<Tick> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

struct Series {
    at: Where,
    ticks: Vec<Tick>,
    begun_us: u64,
    last_us: u64,
    last: Totals,
    metrics: Metrics,
}

#[derive(Default)]
struct Totals {
    offered: u64,
    acked: u64,
    refused: u64,
    answered: u64,
    cpu: Duration,
    own_cpu: Duration,
    meta_cpu: Duration,
}

impl Series {
    fn new(at: Where) -> Self {
        let begun_us = sys::now_us();
        let metrics = Metrics::fetch(at.load.plan.server).unwrap_or_default();
        let mut series =
            Self { at, ticks: Vec::new(), begun_us, last_us: begun_us, last: Totals::default(), metrics };
        series.last = series.totals(&Look::default(), begun_us);
        series.last.cpu = proc::look(series.at.server).unwrap_or_default().cpu;
        series
    }

    fn totals(&self, look: &Look, now_us: u64) -> Totals {
        let counts = &self.at.load.counts;
        let (acked, begun) = (counts.acked(), counts.begun());
        let is_over = self.at.load.stop.load(Relaxed);
        let due = self.at.load.due(now_us).filter(|_| !is_over);
        Totals {
            offered: due.unwrap_or(begun.max(self.last.offered)),
            acked,
            refused: counts.refused.load(Relaxed) + counts.broken.load(Relaxed),
            answered: self.at.load.ledger.answers(),
            cpu: look.cpu,
            own_cpu: sys::own_cpu(),
            meta_cpu: proc::look(self.at.meta).unwrap_or_default().cpu,
        }
    }

    fn tick(&mut self) {
        let now_us = sys::now_us();
        let look = proc::look(self.at.server).unwrap_or_default();
        let (acks, answers) = (self.at.load.acks.take_interval(), self.at.load.answers.take_interval());
        let now = self.totals(&look, now_us);
        let metrics = Metrics::fetch(self.at.load.plan.server).unwrap_or_else(|_| self.metrics.clone());
        let since = |name: &str| (metrics.value(name) - self.metrics.value(name)).max(0.0) as u64;
        let (old, us) = (&self.last, |a: Duration, b: Duration| a.saturating_sub(b).as_micros() as u64);
        let commit_p99 = metrics.quantile_since(&self.metrics, "inbox_commit_seconds", 0.99);
        let tick = Tick {
            at: (now_us - self.begun_us) as f64 / 1e6,
            span: (now_us - self.last_us) as f64 / 1e6,
            offered: now.offered.saturating_sub(old.offered),
            acked: now.acked - old.acked,
            refused: now.refused - old.refused,
            p50: acks.value_at_quantile(0.5),
            p99: acks.value_at_quantile(0.99),
            heat: heat(&acks),
            answered: now.answered - old.answered,
            answer_p50: answers.value_at_quantile(0.5),
            answer_p99: answers.value_at_quantile(0.99),
            waiting: if self.at.load.plan.statuses { 0 } else { self.at.load.ledger.waiting() },
            cpu: us(now.cpu, old.cpu),
            own_cpu: us(now.own_cpu, old.own_cpu),
            meta_cpu: us(now.meta_cpu, old.meta_cpu),
            rss: look.rss_bytes,
            fds: look.fds,
            commits: since("inbox_commits_total"),
            items: (metrics.sum("inbox_items_total") - self.metrics.sum("inbox_items_total")).max(0.0) as u64,
            commit_p99: commit_p99.filter(|s| s.is_finite()).map(|s| (s * 1e6) as u64),
            turns: since("turns_begun_total"),
            running: metrics.value("turns_running").max(0.0) as u64,
            statuses: since("inbox_items_total{kind=\"status\"}"),
        };
        if self.ticks.len() < TICKS_MAX {
            self.ticks.push(tick);
        }
        (self.last, self.last_us, self.metrics) = (now, now_us, metrics);
    }
}

/// How many are in each row.
fn heat(all: &Histogram<u64>) -> Vec<u64> {
    let mut rows = vec![0; HEAT_US.len() + 1];
    for value in all.iter_recorded() {
        rows[HEAT_US.partition_point(|bound| *bound < value.value_iterated_to())] += value.count_at_value();
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::Recorder;

    #[test]
    fn every_latency_is_in_one_row() {
        let recorder = Recorder::new();
        for us in [1, 90, 150, 1_000_000_000] {
            recorder.record(0, us);
        }
        let rows = heat(&recorder.take_interval());
        assert_eq!((rows[0], rows[1], rows[HEAT_US.len()]), (2, 1, 1));
        assert_eq!(rows.iter().sum::<u64>(), 4);
    }
}
