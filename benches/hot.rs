//! The pieces of the hot path, each beside a floor or a peer. `cargo bench`; `cargo bench -- webhook` runs one of them.

#[path = "hot/directory.rs"]
mod directory;
#[path = "hot/lanes.rs"]
mod lanes;
#[path = "hot/webhook.rs"]
mod webhook;

fn main() {
    let mut criterion = criterion::Criterion::default().configure_from_args();
    webhook::bench(&mut criterion);
    directory::bench(&mut criterion);
    lanes::bench(&mut criterion);
    criterion.final_summary();
}
