//! `loadtest compare`: other servers under the same load, one after the other and round after round (A B C A B C), so
//! that what the machine does meanwhile meets all of them.
//!
//! All get the same signed bodies (delivery statuses, which nobody answers: the 200 alone is measured), from the same
//! number of connections, as fast as they answer or at a rate. CPU is that of all processes of a peer, from /proc.

mod start;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Serialize;
use whatsapp_webhook::clock;

use crate::args::rate_fault;
use crate::client;
use crate::compose::{self, Composer, Said};
use crate::drive::{Load, Plan};
use crate::flood::Flood;
use crate::judge::REACHED;
use crate::large::Large;
use crate::ledger::Ledger;
use crate::run::APP_SECRET;
use crate::stalls::QuietCpu;
use crate::timing::Quantiles;
use crate::{proc, sys};
use start::Peer;

/// Load that is not counted: connections, caches, a store that has its first pages.
const WARM_UP: Duration = Duration::from_secs(2);
/// After the load, how long what was put off until then is still counted.
const AFTER: Duration = Duration::from_secs(3);
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Businesses and conversations that the bodies name.
const BUSINESSES: u32 = 20;

/// The peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// This server
    Ours,
    /// axum, a row per body, unique (timestamp, hash)
    Hash,
    /// axum, a row per body, unique (phone_number_id, wamid)
    Items,
    /// FastAPI under gunicorn: 200 before anything is stored
    Original,
    /// nginx `return 200`: the floor
    Nginx,
}

/// Options of `compare`.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Keep-alive connections, each posting one request after the other
    #[arg(long, default_value_t = 500)]
    pub users: u64,
    /// Open loop: bodies a second, latency from the intended time; without it a closed loop
    #[arg(long)]
    pub rate: Option<u64>,
    /// Seconds of load for each peer and round, after 2 that are not counted
    #[arg(long, default_value_t = 10)]
    pub duration: u64,
    /// How often each peer has its turn
    #[arg(long, default_value_t = 3)]
    pub rounds: u64,
    /// Which, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::value_variants().to_vec())]
    pub peers: Vec<Kind>,
    /// Repeats the ids of an earlier comparison
    #[arg(long)]
    pub seed: Option<u32>,
    /// Our executable; by default the one beside this program, built first if need be
    #[arg(long, env = "LOADTEST_SERVER")]
    pub server: Option<PathBuf>,
    /// A folder on a real disk for the peers' data; by default beside this program; removed at the end
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where compare.md and compare.json are written; by default target/loadtest
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Args {
    /// Everything that makes no sense.
    pub fn faults(&self, open_files_max: u64) -> Vec<String> {
        const SPARE: u64 = 100;
        let mut faults = Vec::new();
        if !(1..=10_000).contains(&self.users) {
            faults.push(format!("--users {}: must be 1 to 10000", self.users));
        }
        if self.users.saturating_add(SPARE) > open_files_max {
            faults.push(format!(
                "--users {}: `ulimit -n` is {open_files_max}; set it to {} or take fewer",
                self.users,
                self.users.saturating_add(SPARE)
            ));
        }
        if !(1..=600).contains(&self.duration) {
            faults.push(format!("--duration {}: must be 1 to 600 seconds", self.duration));
        }
        if !(1..=100).contains(&self.rounds) {
            faults.push(format!("--rounds {}: must be 1 to 100", self.rounds));
        }
        faults.extend(rate_fault(self.rate));
        if self.peers.is_empty() {
            faults.push("--peers: name at least one".to_owned());
        }
        faults
    }
}

/// One turn of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Turn {
    /// 200s a second.
    pub rate: f64,
    /// CPU for a 200 while loaded, in microseconds.
    pub cpu: f64,
    /// The same in the parts without a stall of the machine; 0 if there were none.
    pub quiet_cpu: f64,
    /// CPU for a 200 with what was put off until after the load.
    pub cpu_in_all: f64,
    /// Request to 200.
    pub ack: Quantiles,
    /// Those that met no stall of the machine.
    pub quiet: Quantiles,
    /// The most that was resident over all its processes, in bytes.
    pub rss: u64,
    /// Posts without a 200.
    pub failed: u64,
}

/// All turns of one peer.
#[derive(Clone, Debug, Serialize)]
pub struct Turns {
    /// Whose.
    pub kind: Kind,
    /// In their order.
    pub turns: Vec<Turn>,
}

/// Runs all turns and prints the table; the words, and whether each turn was clean.
///
/// # Errors
/// A peer is missing or can't be started; which, and what to do.
pub fn run(args: &Args, interrupts: &AtomicUsize) -> Result<bool, String> {
    sys::set_epoch(sys::monotonic_us());
    let seed = args.seed.unwrap_or(clock::now() as u32);
    let starter = start::Starter::prepare(args)?;
    let mut all: Vec<Turns> =
        args.peers.iter().map(|kind| Turns { kind: *kind, turns: Vec::new() }).collect();
    for round in 1..=args.rounds {
        for turns in &mut all {
            let peer = starter.start(turns.kind)?;
            let turn = turn(args, peer, seed.wrapping_add(round as u32), interrupts)?;
            eprintln!(
                "loadtest: round {round} of {}, {}: {:.0}/s, CPU {:.1} us a 200, p99 {} ms",
                args.rounds,
                table::name(turns.kind),
                turn.rate,
                turn.cpu,
                crate::timing::ms(turn.ack.p99)
            );
            if let Some(rate) = args.rate
                && turn.rate < rate as f64 * REACHED
            {
                eprintln!("loadtest: {rate}/s were asked for and not reached");
            }
            turns.turns.push(turn);
        }
    }
    table::write(args, seed, starter.machine(), &all)
}

fn turn(args: &Args, mut peer: Peer, seed: u32, interrupts: &AtomicUsize) -> Result<Turn, String> {
    check(&peer, seed)?;
    let plan = Plan {
        server: peer.address(),
        app_secret: APP_SECRET.to_owned(),
        users: args.users as u32,
        conversations: args.users as u32,
        businesses: BUSINESSES,
        batch: 1,
        duplicates: 0,
        statuses: true,
        every: args.rate.map(|rate| Duration::from_secs(1).div_f64(rate as f64)),
        seed,
    };
    let load = Arc::new(Load::new(plan, Ledger::new(0, BUSINESSES), Flood::none(), Large::new(0)));
    let users = load.start().map_err(|e| format!("the users: {e}"))?;
    let wait = |peer: &mut Peer, time: Duration| {
        let until = clock::monotonic() + time;
        while clock::monotonic() < until {
            clock::sleep(LOOK_EVERY.min(until.saturating_sub(clock::monotonic())));
            peer.is_up()?;
            if interrupts.load(Relaxed) > 0 {
                return Err("interrupted".to_owned());
            }
        }
        Ok(())
    };
    while load.ready() < args.users {
        wait(&mut peer, LOOK_EVERY)?;
    }
    load.go();
    wait(&mut peer, WARM_UP)?;
    drop((load.acks.take_interval(), load.quiet_acks.take_interval()));
    let count = || load.counts.acked();
    let (begun, before, cpu_before) = (clock::monotonic(), count(), proc::tree(peer.pid()).cpu);
    let mut quiet_cpu = QuietCpu::new(cpu_before, count());
    while clock::monotonic() < begun + Duration::from_secs(args.duration) {
        wait(&mut peer, LOOK_EVERY)?;
        if quiet_cpu.is_due() {
            quiet_cpu.look(&load.stalls, proc::tree(peer.pid()).cpu, count());
        }
    }
    let (elapsed, acked) = (clock::monotonic() - begun, count() - before);
    let look = proc::tree(peer.pid());
    let ack = Quantiles::of(&load.acks.take_interval());
    let quiet = Quantiles::of(&load.quiet_acks.take_interval());
    load.stop.store(true, Relaxed);
    users.into_iter().for_each(|user| drop(user.join()));
    wait(&mut peer, AFTER)?;
    let (after, all) = (proc::tree(peer.pid()), count() - before);
    let each =
        |cpu: Duration, count: u64| cpu.saturating_sub(cpu_before).as_secs_f64() * 1e6 / count.max(1) as f64;
    Ok(Turn {
        rate: acked as f64 / elapsed.as_secs_f64(),
        cpu: each(look.cpu, acked),
        quiet_cpu: quiet_cpu.per_ack(),
        cpu_in_all: each(after.cpu, all),
        ack,
        quiet,
        rss: look.rss_peak_bytes,
        failed: load.counts.refused.load(Relaxed) + load.counts.broken.load(Relaxed),
    })
}

/// A peer that takes what it should not, or refuses what it should take, is none.
fn check(peer: &Peer, seed: u32) -> Result<(), String> {
    let name = table::name(peer.kind());
    let post = |secret: &str| {
        let mut composer = Composer::new(compose::key(secret), seed);
        let said = [Said { conversation: 0, nth: u32::MAX, business: 0 }];
        let request = composer.statuses(&said, clock::now() / 1000);
        client::post_once(peer.address(), Duration::from_secs(5), request).map_err(|e| format!("{name}: {e}"))
    };
    match post(APP_SECRET)? {
        200 => {}
        status => return Err(format!("{name} answers {status} to a signed body")),
    }
    match post("another secret")? {
        200 if peer.kind() != Kind::Nginx => {
            Err(format!("{name} answers 200 to a body with a wrong signature"))
        }
        _ => Ok(()),
    }
}
