//! Runs a thing and its floor: criterion's figures of the thing first, then both in turns for the ratio.
//!
//! What runs, and how long, is criterion's to decide (filter, `--quick`, `--list`, `--test`, ..): a pair that
//! criterion does not run is not judged, and nothing is judged where each runs only once.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use whatsapp_webhook::clock;

use crate::judge::{self, Band, Row};

/// What a round takes at least, if one call does not take longer.
const ROUND: Duration = Duration::from_millis(2);
/// Rounds of each with `--quick`, and without.
const ROUNDS: (u32, u32) = (12, 60);

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
    rounds: u32,
    is_judged: bool,
    rows: Vec<Row>,
}

impl Pairs {
    /// As the command line wants it.
    pub fn from_args() -> Self {
        let has = |wanted: &str| std::env::args().any(|arg| arg.split('=').next() == Some(wanted));
        let is_quick = has("--quick");
        // with --quick this is how long a noisy one may take to settle
        let most = Duration::from_millis(if is_quick { 300 } else { 2000 });
        let criterion = Criterion::default()
            .sample_size(30)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(most);
        Self {
            criterion: criterion.configure_from_args(),
            rounds: if is_quick { ROUNDS.0 } else { ROUNDS.1 },
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
        let (ns, floor_ns) = in_turns(&mut ours, &mut floor, self.rounds);
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

/// How long two threads at once need for so many calls each. `work` is told which of them it is on.
pub fn at_once(calls: u64, work: impl Fn(usize, u64) + Sync) -> Duration {
    let barrier = Barrier::new(2);
    let run = |thread| {
        barrier.wait();
        let start = clock::monotonic();
        work(thread, calls);
        clock::monotonic() - start
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        run(0).max(other.join().expect("no call panics"))
    })
}

type Timed<'a> = &'a mut dyn FnMut(u64) -> Duration;

/// Nanoseconds of a call of each: the best of their rounds.
fn in_turns(ours: Timed<'_>, floor: Timed<'_>, rounds: u32) -> (f64, f64) {
    let (calls, floor_calls) = (fill_a_round(ours), fill_a_round(floor));
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        best.0 = best.0.min(ours(calls).as_nanos() as f64 / calls as f64);
        best.1 = best.1.min(floor(floor_calls).as_nanos() as f64 / floor_calls as f64);
    }
    best
}

/// So many calls that they take a [`ROUND`].
fn fill_a_round(timed: Timed<'_>) -> u64 {
    let mut calls = 1;
    while timed(calls) < ROUND {
        calls *= 2;
    }
    calls
}
