//! What the dispatcher adds to a turn. Pure lanes (offer, start, done) against a plain `VecDeque` push and
//! pop of the same works; then whole turns on coroutines, against a coroutine spawned per turn.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use whatsapp_webhook::clock;
use whatsapp_webhook::dispatcher::lanes::{Lanes, Limits, Start};
use whatsapp_webhook::dispatcher::{Dispatcher, Job, Outcome, Runner};
use whatsapp_webhook::event::{ItemId, Path, Said};
use whatsapp_webhook::failure::{Failure, Reason};
use whatsapp_webhook::inbox::{
    Counts, Evidence, Feed, Inbox, NewTurn, OpenTurn, Page, Position, Refusal, State, Ticket, TurnId, Work,
};

/// Works in a group commit.
const BATCH: u64 = 100;

/// All of them.
pub fn bench(c: &mut Criterion) {
    pure(c);
    coroutines(c);
}

fn works(commit: u64, numbers: u64) -> Vec<Work> {
    let body: Arc<[u8]> = Arc::from(&[b'x'; 700][..]);
    let work = |index: u64| {
        let conversation = (commit * BATCH + index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Work {
            id: ItemId { timestamp: commit, key: conversation },
            position: Position { commit, body: index as u32, path: Path::default() },
            number: conversation % numbers,
            conversation,
            received_ms: commit,
            app: 0,
            body: body.clone(),
        }
    };
    (0..BATCH).map(work).collect()
}

fn pure(c: &mut Criterion) {
    let mut group = c.benchmark_group("lanes");
    group.throughput(Throughput::Elements(BATCH));
    let mut per_item = Vec::new();
    group.bench_function("vecdeque push and pop", |b| {
        let mut queue = VecDeque::new();
        let mut commit = 0;
        b.iter_custom(|rounds| {
            let took = timed(rounds, || {
                commit += 1;
                let works = works(commit, 10);
                let start = clock::monotonic();
                queue.extend(works);
                while let Some(work) = queue.pop_front() {
                    black_box(work);
                }
                clock::monotonic() - start
            });
            per_item.push(("vecdeque", took.as_nanos() as f64 / (rounds * BATCH) as f64));
            took
        });
    });
    for numbers in [1, 10, 1000] {
        group.bench_with_input(BenchmarkId::new("offer, start, done", numbers), &numbers, |b, numbers| {
            let mut lanes = Lanes::new(Limits::new(10_000), 1);
            lanes.opened(&[], Position::default());
            let mut out: Vec<Start> = Vec::new();
            let mut commit = 0;
            b.iter_custom(|rounds| {
                let took = timed(rounds, || {
                    commit += 1;
                    let works = works(commit, *numbers);
                    let start = clock::monotonic();
                    lanes.offer(works);
                    lanes.start(&mut out, usize::MAX, start);
                    for Start { key, task } in out.drain(..) {
                        black_box(task);
                        lanes.done(key, Outcome::Done, start);
                    }
                    clock::monotonic() - start
                });
                per_item.push(("lanes", took.as_nanos() as f64 / (rounds * BATCH) as f64));
                took
            });
        });
    }
    group.finish();
    let least = |which| {
        per_item.iter().filter(|(name, _)| *name == which).map(|(_, ns)| *ns).fold(f64::INFINITY, f64::min)
    };
    let (lanes, plain) = (least("lanes"), least("vecdeque"));
    println!("lanes {lanes:.0} ns an item, VecDeque {plain:.0} ns: {:.1} times", lanes / plain);
}

fn timed(rounds: u64, mut round: impl FnMut() -> Duration) -> Duration {
    (0..rounds).map(|_| round()).sum()
}

fn coroutines(c: &mut Criterion) {
    may::config().set_workers(2).set_stack_size(64 * 1024);
    let mut group = c.benchmark_group("turns on coroutines");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("a spawn each", |b| {
        let count = Arc::new(AtomicU64::new(0));
        let mut expected = 0;
        b.iter(|| {
            expected += BATCH;
            for _ in 0..BATCH {
                let count = count.clone();
                drop(may::go!(move || count.fetch_add(1, SeqCst)));
            }
            wait_for(&count, expected);
        });
    });
    group.bench_function("dispatcher", |b| {
        let count = Arc::new(AtomicU64::new(0));
        let dispatcher = Dispatcher::start(Arc::new(Empty), Arc::new(Count(count.clone())), 1_000)
            .expect("an empty inbox can be read");
        let mut commit = 0;
        b.iter(|| {
            commit += 1;
            dispatcher.offer(works(commit, 10));
            wait_for(&count, commit * BATCH);
        });
    });
    group.finish();
}

fn wait_for(count: &AtomicU64, expected: u64) {
    while count.load(SeqCst) < expected {
        std::thread::yield_now();
    }
}

struct Count(Arc<AtomicU64>);

impl Runner for Count {
    fn run(&self, job: Job) -> Outcome {
        black_box(job);
        self.0.fetch_add(1, SeqCst);
        Outcome::Done
    }
}

/// An inbox without anything in it.
struct Empty;

impl Inbox for Empty {
    fn forget(&self, _: &str) {}
    fn ticket(&self) -> Box<dyn Ticket> {
        unreachable!("not benched")
    }
    fn unhealthy(&self) -> Option<Refusal> {
        None
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
    fn feed(&self, _: Arc<dyn Feed>) {}
    fn open_numbers(&self) -> Result<(Vec<u64>, Position), Failure> {
        Ok((Vec::new(), Position::default()))
    }
    fn pending(&self, _: u64, after: Position, _: usize) -> Result<Page, Failure> {
        Ok(Page { works: Vec::new(), covered: after })
    }
    fn open_turns(&self, _: TurnId, _: usize) -> Result<Vec<OpenTurn>, Failure> {
        Ok(Vec::new())
    }
    fn history(&self, _: &str, _: usize) -> Result<Vec<Said>, Failure> {
        Ok(Vec::new())
    }
    fn answered(&self, _: NewTurn) -> Result<OpenTurn, Failure> {
        unreachable!("not benched")
    }
    fn sending(&self, _: &str, _: u64) -> Result<(), Failure> {
        Ok(())
    }
    fn sent(&self, _: &str, _: &str) {}
    fn unsent(&self, _: &str) {}
    fn reply_dead(&self, _: &str, _: &Reason, _: &str) {}
    fn evidence(&self, _: &str, _: Duration) -> Option<Evidence> {
        None
    }
    fn settle(&self, _: &[ItemId], _: State, _: &Reason, _: &str) {}
    fn close(&self) -> Result<(), Failure> {
        Ok(())
    }
}
