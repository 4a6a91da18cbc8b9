//! PURE but for writing files. The turns of the peers as a table: medians, and ratios to ours.

use std::fs;
use std::io::Write;

use serde::Serialize;

use super::{Args, Kind, Turn, Turns};
use crate::machine::Machine;
use crate::page;
use crate::timing::ms;

/// A peer in words.
pub fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "whatsapp-webhook",
        Kind::Hash => "axum, unique (timestamp, hash)",
        Kind::Items => "axum, unique (phone, wamid)",
        Kind::Original => "FastAPI + gunicorn, nothing stored",
        Kind::Nginx => "nginx `return 200`, nothing read",
    }
}

/// The same as an option.
pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "ours",
        Kind::Hash => "hash",
        Kind::Items => "items",
        Kind::Original => "original",
        Kind::Nginx => "nginx",
    }
}

#[derive(Serialize)]
struct Comparison<'a> {
    command: String,
    seed: u32,
    users: u64,
    rate: Option<u64>,
    duration: u64,
    machine: &'a Machine,
    peers: &'a [Turns],
}

/// Prints and writes it; whether every post got its 200.
///
/// # Errors
/// A file can't be written.
pub fn write(args: &Args, seed: u32, machine: &Machine, all: &[Turns]) -> Result<bool, String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("cargo run --release -p loadtest -- {}", words.join(" "));
    let pace = match args.rate {
        None => "closed loop".to_owned(),
        Some(rate) => format!("open loop of {rate}/s, latencies from the intended time"),
    };
    let mut text = format!("`{command}`\n\n");
    text.push_str(&format!(
        "{} cores ({}), {} (before the load: {}), kernel {}; {} connections, {pace}, medians of {} rounds of {} s; seed {seed}\n\n",
        machine.cores,
        machine.processor,
        machine.disk,
        machine.sync_in_words(),
        machine.kernel,
        args.users,
        args.rounds,
        args.duration
    ));
    text.push_str(&table(all));
    print!("{text}");
    let _ = std::io::stdout().flush();
    let folder = page::folder(args.out.as_deref())?;
    let comparison = Comparison {
        command,
        seed,
        users: args.users,
        rate: args.rate,
        duration: args.duration,
        machine,
        peers: all,
    };
    let json = serde_json::to_string(&comparison).map_err(|e| e.to_string())?;
    for (name, text) in [("compare.md", &text), ("compare.json", &json)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    eprintln!("loadtest: {}", folder.join("compare.json").display());
    Ok(all.iter().flat_map(|peer| &peer.turns).all(|turn| turn.failed == 0))
}

fn median(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    let mut values: Vec<f64> = turns.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// Of those that are not 0.
fn median_of_known(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    let known: Vec<Turn> = turns.iter().filter(|turn| of(turn) > 0.0).copied().collect();
    median(&known, of)
}

/// The peers' CPU is divided through that of the first, turn by turn: both had the same machine.
fn ratio(first: &[Turn], turns: &[Turn]) -> f64 {
    let ratios: Vec<Turn> = first
        .iter()
        .zip(turns)
        .map(|(first, turn)| Turn { cpu: first.cpu_in_all / turn.cpu_in_all.max(1e-9), ..*turn })
        .collect();
    median(&ratios, |turn| turn.cpu)
}

fn table(all: &[Turns]) -> String {
    let Some(first) = all.first() else { return String::new() };
    let mut text = format!(
        "| server | 200s/s | CPU us a 200 | without stalls | with what came after | {} to it | p50 ms | p99 ms | p99.9 ms | p99 without stalls | MiB | no 200 |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        word(first.kind)
    );
    for Turns { kind, turns } in all {
        let of = |of: fn(&Turn) -> f64| median(turns, of);
        let (least, most) = turns.iter().fold((f64::MAX, 0.0_f64), |(l, m), t| (l.min(t.cpu), m.max(t.cpu)));
        text.push_str(&format!(
            "| {} | {:.0} | {:.1} ({least:.1}-{most:.1}) | {:.1} | {:.1} | {:.2} | {} | {} | {} | {} | {:.0} | {} |\n",
            name(*kind),
            of(|t| t.rate),
            of(|t| t.cpu),
            median_of_known(turns, |t| t.quiet_cpu),
            of(|t| t.cpu_in_all),
            ratio(&first.turns, turns),
            ms(of(|t| t.ack.p50 as f64) as u64),
            ms(of(|t| t.ack.p99 as f64) as u64),
            ms(of(|t| t.ack.p999 as f64) as u64),
            ms(of(|t| t.quiet.p99 as f64) as u64),
            of(|t| t.rss as f64) / f64::from(1 << 20),
            turns.iter().map(|t| t.failed).sum::<u64>()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_ratios_of_the_same_round() {
        let turn = |cpu: f64| Turn { cpu, cpu_in_all: cpu, rate: 1000.0, ..Turn::default() };
        let quiet = Turn { quiet_cpu: 9.0, ..turn(12.0) };
        let all = [
            Turns { kind: Kind::Ours, turns: vec![turn(10.0), turn(20.0), quiet] },
            Turns { kind: Kind::Items, turns: vec![turn(20.0), turn(40.0), turn(30.0)] },
        ];
        let table = table(&all);
        assert!(table.contains("| 12.0 (10.0-20.0) | 9.0 | 12.0 | 1.00 |"), "{table}");
        assert!(table.contains("| 30.0 (20.0-40.0) | 0.0 | 30.0 | 0.50 |"), "{table}");
        assert_eq!(median(&[turn(1.0), turn(3.0)], |t| t.cpu), 2.0);
    }
}
