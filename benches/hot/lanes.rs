//! What the dispatcher adds to a turn. Pure lanes (offer, start, done) beside a plain `VecDeque` push and pop of
//! the same works; then whole turns on coroutines, beside a coroutine spawned for each.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use whatsapp_webhook::clock;
use whatsapp_webhook::dispatcher::lanes::{Lanes, Limits, Start};
use whatsapp_webhook::dispatcher::{Dispatcher, Job, Outcome, Runner};
use whatsapp_webhook::event::{ItemId, Path};
use whatsapp_webhook::inbox::{Feed, Position, Ticket, Work};

use crate::judge::Band;
use crate::pair::{Case, Pairs};
use crate::stub_inbox::StubInbox;

/// Works in a group commit.
const BATCH: u64 = 100;
/// Numbers that the works are for, with the ratio.
const PURE: [(u64, Band); 3] = [(1, Band(25.0, 50.0)), (10, Band(30.0, 55.0)), (1000, Band(35.0, 60.0))];
/// Wide: on a busy machine it is the scheduler that is measured.
const TURN: Band = Band(0.3, 6.0);

/// All of them.
pub fn bench(pairs: &mut Pairs) {
    for (numbers, band) in PURE {
        pure(pairs, numbers, band);
    }
    coroutines(pairs);
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

/// Times what is done to the works of each commit, not the making of them.
fn each_commit(numbers: u64, mut of: impl FnMut(Vec<Work>)) -> impl FnMut(u64) -> Duration {
    let mut commit = 0;
    move |commits| {
        let mut took = Duration::ZERO;
        for _ in 0..commits {
            commit += 1;
            let works = works(commit, numbers);
            let start = clock::monotonic();
            of(works);
            took += clock::monotonic() - start;
        }
        took
    }
}

fn pure(pairs: &mut Pairs, numbers: u64, band: Band) {
    let name = format!("for {numbers} numbers");
    let case = Case { group: "lanes", name: &name, per: BATCH, floor: "VecDeque, push and pop", band };
    let mut lanes = Lanes::new(Limits::new(10_000), 1);
    lanes.opened(&[], Position::default());
    let mut out: Vec<Start> = Vec::new();
    let mut queue = VecDeque::new();
    pairs.timed(
        case,
        each_commit(numbers, |works| {
            let now = clock::monotonic();
            lanes.offer(works);
            lanes.start(&mut out, usize::MAX, now);
            for Start { key, task } in out.drain(..) {
                black_box(task);
                lanes.done(key, Outcome::Done, now);
            }
        }),
        each_commit(numbers, |works| {
            queue.extend(works);
            while let Some(work) = queue.pop_front() {
                black_box(work);
            }
        }),
    );
}

fn coroutines(pairs: &mut Pairs) {
    let (turns, spawned) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let inbox = StubInbox(|| -> Box<dyn Ticket> { unreachable!("nothing arrives") });
    let dispatcher = Dispatcher::start(Arc::new(inbox), Arc::new(Count(turns.clone())), 1_000)
        .expect("an empty inbox can be read");
    let (mut turns_due, mut spawned_due) = (0, 0);
    pairs.timed(
        Case { group: "lanes", name: "turns on coroutines", per: BATCH, floor: "a spawn each", band: TURN },
        each_commit(10, |works| {
            turns_due += BATCH;
            dispatcher.offer(works);
            wait_for(&turns, turns_due);
        }),
        each_commit(10, |works| {
            spawned_due += BATCH;
            for work in works {
                let spawned = spawned.clone();
                drop(may::go!(move || {
                    black_box(work);
                    spawned.fetch_add(1, SeqCst)
                }));
            }
            wait_for(&spawned, spawned_due);
        }),
    );
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
