//! That the benches fail when a ratio has left its band: what judges them, on ratios that are made up.

#[path = "../../benches/hot/judge.rs"]
mod judge;

use judge::{Band, Row, Verdict, table};

/// The band of all of them.
const BAND: Band = Band(2.0, 3.0);

fn row(name: &str, ns: f64, floor_ns: f64) -> Row {
    Row { name: name.to_owned(), ns, floor: "a copy", floor_ns, band: BAND }
}

fn verdict(ratio: f64) -> Verdict {
    row("any", ratio * 40.0, 40.0).verdict()
}

#[test]
fn a_ratio_is_out_where_it_leaves_its_band_by_two_times() {
    for ratio in [2.0, 2.5, 3.0] {
        assert_eq!(verdict(ratio), Verdict::Ok, "{ratio}");
    }
    for ratio in [1.01, 1.9, 3.1, 5.9] {
        assert_eq!(verdict(ratio), Verdict::Near, "{ratio}");
    }
    for ratio in [6.0, 6.1, 1000.0] {
        assert_eq!(verdict(ratio), Verdict::Slow, "{ratio}");
    }
    for ratio in [1.0, 0.9, 0.001] {
        assert_eq!(verdict(ratio), Verdict::Fast, "{ratio}");
    }
}

#[test]
fn what_was_not_measured_is_not_good() {
    assert_eq!(row("no floor", 10.0, 0.0).verdict(), Verdict::Slow);
    assert_eq!(row("neither", 0.0, 0.0).verdict(), Verdict::Slow);
    assert_eq!(row("no time", 0.0, 10.0).verdict(), Verdict::Slow);
    assert_eq!(row("no end", f64::INFINITY, f64::INFINITY).verdict(), Verdict::Slow);
}

#[test]
fn the_table_names_those_that_are_out_and_only_those() {
    let rows = [row("good", 100.0, 40.0), row("near", 160.0, 40.0), row("slow", 400.0, 40.0)];
    let (text, out) = table(&rows);
    assert_eq!(out, ["slow"]);
    let lines: Vec<&str> = text.lines().skip(1).map(str::trim_end).collect();
    assert!(lines[0].starts_with("good") && lines[0].ends_with(" ok"), "{text}");
    assert!(lines[1].ends_with(" near"), "{text}");
    assert!(lines[2].contains("10.00  2..3") && lines[2].ends_with("OUT: slower than the band"), "{text}");
    let fast = [row("fast", 1.0, 40.0)];
    let (text, out) = table(&fast);
    assert_eq!(out, ["fast"]);
    assert!(text.trim_end().ends_with("OUT: faster than the band: tighten it"), "{text}");
    assert_eq!(table(&rows[..2]).1, [""; 0]);
}
