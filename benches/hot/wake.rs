//! A coroutine that waits, as a connection waits for its commit, and is woken by a thread that then waits for
//! it: may's `Blocker`, which the inbox is built on. Beside it two threads that park and unpark each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use may::sync::Blocker;
use whatsapp_webhook::clock;

use crate::judge::Band;
use crate::pair::{Case, Pairs};

/// Wide: on a busy machine it is the scheduler that is measured.
const BAND: Band = Band(0.4, 4.0);

/// There and back: two wake-ups.
pub fn bench(pairs: &mut Pairs) {
    let name = "a coroutine by a thread, and back";
    let case = Case { group: "wake", name, per: 1, floor: "two threads, park and unpark", band: BAND };
    pairs.timed(case, coroutine, threads);
}

fn coroutine(rounds: u64) -> Duration {
    let turn = Arc::new(AtomicU64::new(0));
    let mine = Blocker::current();
    let (made, wait) = sync_channel(1);
    let other = {
        let (turn, mine) = (turn.clone(), mine.clone());
        may::go!(move || {
            let blocker = Blocker::current();
            made.send(blocker.clone()).expect("the thread waits for it");
            for round in 0..rounds {
                until(&turn, 2 * round + 1, || park(&blocker));
                turn.store(2 * round + 2, SeqCst);
                mine.unpark();
            }
            clock::linger();
        })
    };
    let blocker = wait.recv().expect("the coroutine sends it first");
    let start = clock::monotonic();
    for round in 0..rounds {
        turn.store(2 * round + 1, SeqCst);
        blocker.unpark();
        until(&turn, 2 * round + 2, || park(&mine));
    }
    let took = clock::monotonic() - start;
    other.join().expect("it does not panic");
    took
}

fn threads(rounds: u64) -> Duration {
    let turn = AtomicU64::new(0);
    let mine = std::thread::current();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for round in 0..rounds {
                until(&turn, 2 * round + 1, std::thread::park);
                turn.store(2 * round + 2, SeqCst);
                mine.unpark();
            }
        });
        let start = clock::monotonic();
        for round in 0..rounds {
            turn.store(2 * round + 1, SeqCst);
            other.thread().unpark();
            until(&turn, 2 * round + 2, std::thread::park);
        }
        clock::monotonic() - start
    })
}

/// Parks until it is its turn: a wake-up may have come for an earlier one.
fn until(turn: &AtomicU64, mine: u64, mut park: impl FnMut()) {
    while turn.load(SeqCst) != mine {
        park();
    }
}

/// Why it returns does not matter: [`until`] looks.
fn park(blocker: &Blocker) {
    let _ = blocker.park(None);
}
