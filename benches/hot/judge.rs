//! What a ratio is worth: the verdict on a row, and the table of all. Pure, so that a test can show that it
//! fails what must fail.

use std::fmt::Write as _;

/// Lowest and highest ratio to the floor that were measured.
#[derive(Clone, Copy, Debug)]
pub struct Band(pub f64, pub f64);

/// A ratio may leave its band by less than this factor.
pub const LEEWAY: f64 = 2.0;

/// One pair that ran.
#[derive(Debug)]
pub struct Row {
    /// Group and name.
    pub name: String,
    /// Nanoseconds of one item.
    pub ns: f64,
    /// What the floor does.
    pub floor: &'static str,
    /// Nanoseconds of the floor for the same item.
    pub floor_ns: f64,
    /// Where the ratio belongs.
    pub band: Band,
}

/// What a ratio is, seen from its band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the band.
    Ok,
    /// Outside, by less than [`LEEWAY`].
    Near,
    /// Above by more, or not measured.
    Slow,
    /// Below by more.
    Fast,
}

impl Row {
    /// Time divided by the floor's.
    pub fn ratio(&self) -> f64 {
        self.ns / self.floor_ns
    }

    /// See [`Verdict`].
    pub fn verdict(&self) -> Verdict {
        let (ratio, Band(low, high)) = (self.ratio(), self.band);
        if (low..=high).contains(&ratio) {
            Verdict::Ok
        } else if ratio > 0.0 && ratio * LEEWAY <= low {
            Verdict::Fast
        } else if ratio > 0.0 && ratio < high * LEEWAY {
            Verdict::Near
        } else {
            Verdict::Slow
        }
    }
}

impl Verdict {
    /// Whether it is one of those that fail the run.
    pub fn is_out(self) -> bool {
        matches!(self, Self::Slow | Self::Fast)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Near => "near",
            Self::Slow => "OUT: slower than the band",
            Self::Fast => "OUT: faster than the band: tighten it",
        }
    }
}

/// The table, and the names of those that are out.
pub fn table(rows: &[Row]) -> (String, Vec<&str>) {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let floor_width = rows.iter().map(|row| row.floor.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut line = |name: &str, ns: &str, ratio: &str, band: &str, floor_ns: &str, floor: &str, end: &str| {
        let _ = writeln!(
            text,
            "{name:width$} {ns:>10} {ratio:>8}  {band:<13} {floor_ns:>10}  {floor:floor_width$}  {end}"
        );
    };
    line("", "ns", "ratio", "band", "floor's ns", "floor", "");
    for row in rows {
        let (Band(low, high), ratio) = (row.band, row.ratio());
        let band = format!("{low}..{high}");
        let (ns, floor_ns) = (format!("{:.1}", row.ns), format!("{:.1}", row.floor_ns));
        line(&row.name, &ns, &format!("{ratio:.2}"), &band, &floor_ns, row.floor, row.verdict().words());
    }
    let out = rows.iter().filter(|row| row.verdict().is_out()).map(|row| row.name.as_str()).collect();
    (text, out)
}
