//! Runs a thing and its floor: criterion's figures of the thing first, then both in turns for the ratio.
//!
//! What runs, and how long, is criterion's to decide (filter, `--quick`, `--list`, `--test`, ..): a pair that
//! criterion does not run is not judged, and nothing is judged where each runs only once.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use criterion::{Criterion, Throughput};
use whatsapp_webhook::clock;

use crate::judge::{self, Band, Row};

/// What a round takes at least. So short that on a busy machine many still have their core to themselves.
const ROUND: Duration = Duration::from_micros(200);
/// Rounds of each.
const ROUNDS_MIN: u32 = 10;
const ROUNDS_MAX: u32 = 1_000;

/// How long both are measured in turns, with `--quick` and without; of criterion's measurement the most.
const QUICK: Duration = Duration::from_millis(200);
const FULL: Duration = Duration::from_secs(2);

/// What is compared with what.
pub struct Case<'a> {
    /// Which benches it belongs to.
    pub group: &'a str,
    /// What it is.
    pub name: &'a str,
    /// Items of one call.
    pub per: u64,
    /// What the floor does.
    pub floor: &'static str,
    /// Where the ratio belongs.
    pub band: Band,
}

/// All that ran.
pub struct Pairs {
    criterion: Criterion,
    patience: Duration,
    is_judged: bool,
    rows: Vec<Row>,
}

impl Pairs {
    /// As the command line wants it.
    pub fn from_args() -> Self {
        let has = |wanted: &str| std::env::args().any(|arg| arg.split('=').next() == Some(wanted));
        let patience = if has("--quick") { QUICK } else { FULL };
        let criterion = Criterion::default()
            .sample_size(30)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(patience);
        Self {
            criterion: criterion.configure_from_args(),
            patience,
            is_judged: has("--bench") && !has("--test") && !has("--profile-time"),
            rows: Vec::new(),
        }
    }

    /// A call beside a call.
    pub fn calls<T, F>(&mut self, case: Case<'_>, ours: impl FnMut() -> T, floor: impl FnMut() -> F) {
        self.timed(case, each(ours), each(floor));
    }

    /// The same for what measures itself: both are given a number of calls and return how long these took.
    pub fn timed(
        &mut self,
        case: Case<'_>,
        mut ours: impl FnMut(u64) -> Duration,
        mut floor: impl FnMut(u64) -> Duration,
    ) {
        let mut ran = false;
        let mut group = self.criterion.benchmark_group(case.group);
        group.throughput(Throughput::Elements(case.per));
        group.bench_function(case.name, |b| {
            ran = true;
            b.iter_custom(&mut ours);
        });
        group.finish();
        if !ran {
            return;
        }
        if !self.is_judged {
            black_box(floor(1));
            return;
        }
        let (ns, floor_ns) = in_turns(&mut ours, &mut floor, self.patience);
        self.rows.push(Row {
            name: format!("{}/{}", case.group, case.name),
            ns: ns / case.per as f64,
            floor: case.floor,
            floor_ns: floor_ns / case.per as f64,
            band: case.band,
        });
    }

    /// Prints the table. Success, unless a ratio has left its band.
    pub fn end(self) -> ExitCode {
        self.criterion.final_summary();
        if self.rows.is_empty() {
            return ExitCode::SUCCESS;
        }
        let (table, out) = judge::table(&self.rows);
        println!("\n{table}");
        if out.is_empty() {
            return ExitCode::SUCCESS;
        }
        eprintln!("{} of {} left their band by {} times:", out.len(), self.rows.len(), judge::LEEWAY);
        out.iter().for_each(|name| eprintln!("  {name}"));
        ExitCode::FAILURE
    }
}

/// How long so many calls take.
pub fn each<T>(mut call: impl FnMut() -> T) -> impl FnMut(u64) -> Duration {
    move |calls| {
        let start = clock::monotonic();
        for _ in 0..calls {
            black_box(call());
        }
        clock::monotonic() - start
    }
}

/// How long the slower of two threads at once needs for so many calls. `work` is told which of them it is on.
/// Where other processes keep one of them off its core they hardly meet: then it is what one alone needs.
pub fn at_once(calls: u64, work: impl Fn(usize, u64) + Sync) -> Duration {
    let there = AtomicUsize::new(0);
    let run = |thread| {
        there.fetch_add(1, SeqCst);
        while there.load(SeqCst) < 2 {
            std::thread::yield_now();
        }
        each(|| work(thread, calls))(1)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        run(0).max(other.join().expect("no call panics"))
    })
}

type Timed<'a> = &'a mut dyn FnMut(u64) -> Duration;

/// Nanoseconds of a call of each: the best of their rounds.
fn in_turns(ours: Timed<'_>, floor: Timed<'_>, patience: Duration) -> (f64, f64) {
    let (calls, floor_calls) = (fill_a_round(ours), fill_a_round(floor));
    let mut best = (f64::INFINITY, f64::INFINITY);
    let end = clock::monotonic() + patience;
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS_MIN && clock::monotonic() > end {
            break;
        }
        best.0 = best.0.min(ours(calls).as_nanos() as f64 / calls as f64);
        best.1 = best.1.min(floor(floor_calls).as_nanos() as f64 / floor_calls as f64);
    }
    best
}

/// So many calls that they take a [`ROUND`], and not only since something came in between.
fn fill_a_round(timed: Timed<'_>) -> u64 {
    let mut calls = 1;
    while (0..4).any(|_| timed(calls) < ROUND) {
        calls *= 2;
    }
    calls
}
