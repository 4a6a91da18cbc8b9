//! The pieces of the hot path, each beside a floor that does the least of the same work on the same machine.
//!
//! `cargo bench` takes minutes and keeps criterion's history; `cargo bench -- --quick` takes less than one;
//! `cargo bench -- webhook` runs and judges only what has that in its name.
//!
//! At the end comes one table. `ns` is the time of one item (a body, a message, a call): of many short rounds one of
//! the quickest, hardly disturbed. `floor` is what stands beside it, measured in turns with it, so that noise meets
//! both. `ratio` is the one divided by the other: what the design costs, whatever the machine. `band` is where the
//! ratio was on an idle and on a busy machine; it stands beside its bench as a constant. `ok`: within it. `near`:
//! outside, by less than two times. `OUT`: by two times or more, in either direction, and the program ends with exit
//! code 1: it got slower, or it got faster and the band is to be tightened, so that the gain is not lost unseen.
//!
//! "by 2 threads at once" is the time that each of them needs for one call, on a shared thing; the floor's
//! threads have one each. `inbox/append` writes to the disk that holds the target folder.

use std::process::ExitCode;

#[path = "hot/bodies.rs"]
mod bodies;
#[path = "hot/directory.rs"]
mod directory;
#[path = "hot/graph.rs"]
mod graph;
#[path = "hot/inbox.rs"]
mod inbox;
#[path = "hot/judge.rs"]
mod judge;
#[path = "hot/lanes.rs"]
mod lanes;
#[path = "hot/pair.rs"]
mod pair;
#[path = "../tests/it/stub_inbox.rs"]
mod stub_inbox;
#[path = "hot/turnstile.rs"]
mod turnstile;
#[path = "hot/wake.rs"]
mod wake;
#[path = "hot/webhook.rs"]
mod webhook;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    whatsapp_webhook::ops::process::configure_coroutines(2);
    let mut pairs = pair::Pairs::from_args();
    webhook::bench(&mut pairs);
    directory::bench(&mut pairs);
    lanes::bench(&mut pairs);
    inbox::bench(&mut pairs);
    wake::bench(&mut pairs);
    graph::bench(&mut pairs);
    turnstile::bench(&mut pairs);
    pairs.end()
}
