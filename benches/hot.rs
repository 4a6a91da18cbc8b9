//! The hot paths. Each module prints its time beside a floor or a peer; `cargo bench -- webhook` runs one of
//! them.

mod webhook;

fn main() {
    let mut criterion = criterion::Criterion::default().configure_from_args();
    webhook::bench(&mut criterion);
    criterion.final_summary();
}
