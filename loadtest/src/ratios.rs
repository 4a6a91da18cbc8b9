//! PURE but for reading files. This run beside earlier ones: the ratio of each figure, and how much of it is noise.
//!
//! Noise is the spread of a figure where nothing was changed. Of several earlier runs it is that between them; of one it is
//! that between the thirds of each run, which is less, since it holds no second start.

use std::fs;
use std::path::PathBuf;

use crate::figures::Figures;
use crate::sample::Tick;

/// Parts that a run is cut into, to see its noise.
const PARTS: usize = 3;

#[derive(serde::Deserialize)]
struct Old {
    figures: Figures,
}

/// The reports of earlier runs.
///
/// # Errors
/// A file can't be read, or is none of ours; which and why.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Figures>, String> {
    let read = |path: &PathBuf| {
        let wrong = |e: &dyn std::fmt::Display| format!("--compare {}: {e}", path.display());
        let text = fs::read_to_string(path).map_err(|e| wrong(&e))?;
        let figures = serde_json::from_str::<Old>(&text).map_err(|e| wrong(&e))?.figures;
        let is_ours = figures.version == crate::figures::VERSION;
        if is_ours { Ok(figures) } else { Err(wrong(&"not a report.json of this version")) }
    };
    paths.iter().map(read).collect()
}

/// One figure, and what it is of a part of a run.
struct Figure {
    name: &'static str,
    unit: &'static str,
    of_run: fn(&Figures) -> f64,
    of_part: Option<fn(&[Tick]) -> f64>,
}

fn sum(ticks: &[Tick], of: impl Fn(&Tick) -> u64) -> f64 {
    ticks.iter().map(of).sum::<u64>() as f64
}

fn mean(ticks: &[Tick], of: impl Fn(&Tick) -> u64) -> f64 {
    sum(ticks, of) / ticks.len().max(1) as f64
}

const FIGURES: [Figure; 9] = [
    Figure {
        name: "200s a second",
        unit: "/s",
        of_run: Figures::rate,
        of_part: Some(|ticks| sum(ticks, |t| t.acked) / ticks.iter().map(|t| t.span).sum::<f64>().max(1e-6)),
    },
    Figure {
        name: "CPU a 200",
        unit: " us",
        of_run: Figures::cpu_per_ack,
        of_part: Some(|ticks| sum(ticks, |t| t.cpu) / sum(ticks, |t| t.acked).max(1.0)),
    },
    Figure { name: "CPU a 200 in all", unit: " us", of_run: Figures::cpu_per_ack_in_all, of_part: None },
    Figure {
        name: "p50 to the 200",
        unit: " ms",
        of_run: |f| f.ack.p50 as f64 / 1e3,
        of_part: Some(|ticks| mean(ticks, |t| t.p50) / 1e3),
    },
    Figure {
        name: "p99 to the 200",
        unit: " ms",
        of_run: |f| f.ack.p99 as f64 / 1e3,
        of_part: Some(|ticks| mean(ticks, |t| t.p99) / 1e3),
    },
    Figure { name: "p99.9 to the 200", unit: " ms", of_run: |f| f.ack.p999 as f64 / 1e3, of_part: None },
    Figure { name: "answers a second", unit: "/s", of_run: Figures::answers_a_second, of_part: None },
    Figure {
        name: "p99 to the answer",
        unit: " ms",
        of_run: |f| f.answer.p99 as f64 / 1e3,
        of_part: Some(|ticks| mean(ticks, |t| t.answer_p99) / 1e3),
    },
    Figure {
        name: "resident at most",
        unit: " MiB",
        of_run: |f| f.server.rss_peak as f64 / f64::from(1 << 20),
        of_part: None,
    },
];

/// One figure of this run beside the earlier ones.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// Of what.
    pub name: &'static str,
    /// Now.
    pub new: f64,
    /// Median of the earlier runs.
    pub old: f64,
    /// The unit of both.
    pub unit: &'static str,
    /// New to old.
    pub ratio: f64,
    /// Largest to smallest where nothing was changed, less 1; `None`: not known.
    pub noise: Option<f64>,
}

/// All figures that both have.
pub fn ratios(figures: &Figures, old: &[Figures]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for figure in &FIGURES {
        let mut olds: Vec<f64> = old.iter().map(figure.of_run).filter(|v| *v > 0.0).collect();
        olds.sort_by(f64::total_cmp);
        let new = (figure.of_run)(figures);
        let Some(&median) = olds.get(olds.len() / 2) else { continue };
        if new <= 0.0 {
            continue;
        }
        let noise = if olds.len() > 1 {
            spread(&olds)
        } else {
            let within = |f: &Figures| figure.of_part.and_then(|of| spread(&parts(f, of)));
            old.iter().chain([figures]).filter_map(within).reduce(f64::max)
        };
        ratios.push(Ratio {
            name: figure.name,
            new,
            old: median,
            unit: figure.unit,
            ratio: new / median,
            noise,
        });
    }
    ratios
}

fn spread(values: &[f64]) -> Option<f64> {
    let (least, most) = (values.iter().copied().reduce(f64::min)?, values.iter().copied().reduce(f64::max)?);
    (values.len() > 1 && least > 0.0).then(|| most / least - 1.0)
}

/// The figure for each third of the load's time, without its first and last interval.
fn parts(figures: &Figures, of: fn(&[Tick]) -> f64) -> Vec<f64> {
    let loaded: Vec<Tick> =
        figures.ticks.iter().filter(|t| t.at * 1e6 <= figures.elapsed as f64).skip(1).cloned().collect();
    if loaded.len() < PARTS * 2 {
        return Vec::new();
    }
    loaded.chunks_exact(loaded.len() / PARTS).take(PARTS).map(of).collect()
}

/// Whether both were asked for the same load, on as many cores.
fn is_alike(one: &Figures, other: &Figures) -> bool {
    let load = |f: &Figures| {
        let a = &f.asked;
        (
            a.users,
            a.rate,
            a.batch,
            a.businesses,
            a.statuses,
            a.receipts,
            a.faults,
            a.agent_delay,
            f.machine.cores,
        )
    };
    load(one) == load(other)
}

/// The ratios in words; nothing without an earlier run.
pub fn lines(figures: &Figures, old: &[Figures]) -> Vec<String> {
    if old.is_empty() {
        return Vec::new();
    }
    let from =
        if old.len() > 1 { format!("between {} earlier runs", old.len()) } else { "within a run".to_owned() };
    let mut lines = vec![format!("compared with {} earlier; noise {from}", old.len())];
    for other in old.iter().filter(|other| !is_alike(other, figures)) {
        lines.push(format!("NOT ALIKE, so ratios say little; the earlier run was: {}", other.what));
    }
    for Ratio { name, new, old, unit, ratio, noise } in ratios(figures, old) {
        let verdict = match noise {
            None => "noise not known".to_owned(),
            Some(noise) if (ratio.max(1.0 / ratio) - 1.0) <= noise => {
                format!("within the noise of {:.0} %", noise * 100.0)
            }
            Some(noise) => format!("beyond the noise of {:.0} %", noise * 100.0),
        };
        lines.push(format!("{name:<18} {old:>9.1} -> {new:>9.1}{unit:<4} {ratio:>5.2}x  {verdict}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rate: u64) -> Figures {
        let tick = |n: u64| Tick { at: n as f64, span: 1.0, acked: rate, ..Tick::default() };
        Figures {
            elapsed: 10_000_000,
            acked: rate * 10,
            ticks: (1..=10).map(tick).collect(),
            ..Figures::default()
        }
    }

    #[test]
    fn a_ratio_is_to_the_median_of_the_earlier_and_noise_is_between_them() {
        let ratios = ratios(&run(220), &[run(100), run(110), run(200)]);
        assert_eq!(ratios.len(), 1, "only what both have");
        assert_eq!((ratios[0].old, ratios[0].new, ratios[0].ratio), (110.0, 220.0, 2.0));
        assert_eq!(ratios[0].noise, Some(1.0));
    }

    #[test]
    fn with_one_earlier_run_noise_is_within_the_runs() {
        let ratios = ratios(&run(200), &[run(100)]);
        assert_eq!((ratios[0].ratio, ratios[0].noise), (2.0, Some(0.0)));
        assert!(lines(&run(200), &[run(100)])[1].ends_with("beyond the noise of 0 %"));
        assert_eq!(lines(&run(200), &[]), [""; 0]);
    }

    #[test]
    fn a_run_that_was_asked_for_otherwise_is_named() {
        let mut other = run(100);
        other.asked.rate = Some(100);
        assert!(lines(&run(200), &[other])[1].starts_with("NOT ALIKE"));
    }
}
