//! `loadtest`: signed load on the real server with a simulated Graph, every message followed by its id to its answer.
//!
//! Exit codes: 0 all as it should be, 1 a line is red or nothing could be started, 64 options that make no sense, 130
//! interrupted.

mod answer;
mod apart;
mod args;
mod client;
mod compose;
mod counts;
mod digits;
mod disk;
mod drive;
mod fairness;
mod figures;
mod flood;
mod judge;
mod large;
mod ledger;
mod machine;
mod meta;
mod mongodb;
mod names;
mod page;
mod peers;
mod proc;
mod ratios;
mod report;
mod run;
mod sample;
mod scrape;
mod server;
mod simulate;
mod stalls;
mod sys;
mod timing;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use whatsapp_webhook::ops::process;

use args::{Args, Special};
use figures::Figures;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: u8 = 64;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let open_files_max = sys::open_files_max();
    let faults = match &args.command {
        Some(Special::SimulatedMeta { .. }) => Vec::new(),
        Some(Special::Compare(compare)) => compare.faults(open_files_max),
        None => args.faults(open_files_max),
    };
    if !faults.is_empty() {
        faults.iter().for_each(|fault| eprintln!("loadtest: {fault}"));
        return ExitCode::from(USAGE);
    }
    process::configure_coroutines(0);
    match &args.command {
        Some(Special::SimulatedMeta { behaviour }) => simulate::run(behaviour),
        Some(Special::Compare(compare)) => {
            ended(count_interrupts().and_then(|interrupts| peers::run(compare, &interrupts)))
        }
        None => run(&args),
    }
}

fn ended(outcome: Result<bool, String>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("loadtest: not every post got its 200");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("loadtest: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> ExitCode {
    let old = match ratios::read(&args.compare) {
        Ok(old) => old,
        Err(why) => {
            eprintln!("loadtest: {why}");
            return ExitCode::from(USAGE);
        }
    };
    let outcome = count_interrupts().and_then(|interrupts| {
        let outcome = run::run(args, &interrupts);
        if interrupts.load(Relaxed) > 0 && outcome.is_err() {
            return Ok(None);
        }
        outcome.map(Some)
    });
    match outcome {
        Ok(Some(figures)) => print(args, &figures, &old),
        Ok(None) => ExitCode::from(INTERRUPTED),
        Err(why) => {
            eprintln!("loadtest: {why}");
            ExitCode::FAILURE
        }
    }
}

/// SIGINT and SIGTERM end the run in order; a second one ends it at once, and the kernel then kills the server.
fn count_interrupts() -> Result<Arc<AtomicUsize>, String> {
    let interrupts = Arc::new(AtomicUsize::new(0));
    let once = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // in this order: the second signal finds the flag that the first has set
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&once))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&once)))
            .and_then(|_| signal_hook::flag::register_usize(signal, Arc::clone(&interrupts), 1))
            .map_err(|e| format!("signals: {e}"))?;
    }
    Ok(interrupts)
}

fn print(args: &Args, figures: &Figures, old: &[Figures]) -> ExitCode {
    let lines = report::lines(figures);
    let mut out = io::stdout().lock();
    for line in &lines {
        let mark = if line.red { "RED" } else { "ok " };
        let _ = writeln!(out, "{mark} {:<11} {}", line.name, line.text);
    }
    for line in ratios::lines(figures, old) {
        let _ = writeln!(out, "    {line}");
    }
    let written = page::write(args.out.as_deref(), figures, &lines, old);
    match &written {
        Ok(path) => drop(writeln!(out, "    report      {}", path.display())),
        Err(why) => eprintln!("loadtest: the report: {why}"),
    }
    match (lines.iter().any(|line| line.red) || written.is_err(), figures.interrupted) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(INTERRUPTED),
        (false, false) => ExitCode::SUCCESS,
    }
}
