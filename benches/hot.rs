//! Benches of the hot path.

#[path = "hot/lanes.rs"]
mod lanes;

fn main() {
    let mut criterion = criterion::Criterion::default().configure_from_args();
    lanes::bench(&mut criterion);
    criterion.final_summary();
}
