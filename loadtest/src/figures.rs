//! Everything that a run counted and measured: what the report is made of, and what is written as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fairness::Share;
use crate::flood::Flooded;
use crate::large::LargeBodies;
use crate::ledger::Tally;
use crate::machine::Machine;
use crate::meta::Stats;
use crate::sample::Tick;
use crate::timing::Quantiles;

/// Version of the JSON.
pub const VERSION: u32 = 1;

/// A run. Times are microseconds where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// See [`VERSION`].
    pub version: u32,
    /// What was done, in words.
    pub what: String,
    /// The command that repeats it.
    pub command: String,
    /// The seed that it repeats.
    pub seed: u32,
    /// When it began, in milliseconds since the Unix epoch.
    pub began: u64,
    /// On what.
    pub machine: Machine,
    /// How it was asked for.
    pub asked: Asked,
    /// Stopped before the end.
    pub interrupted: bool,
    /// Why the load or the drain ended early, if it did.
    pub trouble: Vec<String>,
    /// How long the load ran.
    pub elapsed: u64,
    /// 200s within that time, duplicates included.
    pub acked: u64,
    /// 200s over all.
    pub acked_in_all: u64,
    /// Duplicates among them.
    pub duplicates: u64,
    /// Duplicates among those of the load's time.
    pub duplicates_loaded: u64,
    /// Requests that were due within the load's time; 0 in a closed loop.
    pub due: u64,
    /// Other statuses than 200.
    pub refused: u64,
    /// 503 among them.
    pub busy: u64,
    /// Broken connections.
    pub broken: u64,
    /// Requests that never got a 200.
    pub given_up: u64,
    /// Every post without a 200, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Average body, in bytes.
    pub body_bytes: u64,
    /// Intended time of the request to its 200.
    pub ack: Quantiles,
    /// Request written to its 200: raw service time.
    pub service: Quantiles,
    /// Message to answer.
    pub answer: Quantiles,
    /// Those of `ack` that met no stall of the machine.
    pub quiet_ack: Quantiles,
    /// Those of `answer` that met none.
    pub quiet_answer: Quantiles,
    /// How late this program woke up.
    pub lag: Quantiles,
    /// From the end of the load to the last answer.
    pub drained: u64,
    /// The server.
    pub server: Server,
    /// CPU of this process while loaded.
    pub own_cpu: u64,
    /// CPU of the simulated Meta while loaded.
    pub meta_cpu: u64,
    /// CPU of a FerretDB that was started for the run, while loaded.
    pub mongodb_cpu: u64,
    /// CPU of all other processes of the machine while loaded.
    pub others_cpu: u64,
    /// What the simulated Meta counted.
    pub meta: Stats,
    /// The ids.
    pub tally: Tally,
    /// How the server ended, if not well.
    pub bad_end: Option<String>,
    /// The directory, if the server tells of one.
    pub directory: Option<Directory>,
    /// Over time.
    pub ticks: Vec<Tick>,
    /// Upper bounds of the heat map's rows.
    pub heat_us: Vec<u64>,
    /// By business.
    pub shares: Vec<Share>,
    /// What the others noticed of a flood.
    pub flooded: Option<Flooded>,
    /// What the others noticed of large bodies.
    pub large: Option<LargeBodies>,
}

/// How the run was asked for, as far as figures are judged by it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// Connections.
    pub users: u64,
    /// Seconds.
    pub duration: u64,
    /// Messages a second, in an open loop.
    pub rate: Option<u64>,
    /// Messages in a request.
    pub batch: u64,
    /// How many.
    pub businesses: u64,
    /// Statuses only: nothing is answered.
    pub statuses: bool,
    /// Whether sent, delivered and read follow each reply.
    pub receipts: bool,
    /// Of 100 sends to Graph, how many go wrong.
    pub faults: u64,
    /// The agent's time, in ms.
    pub agent_delay: Option<u64>,
    /// 200s a second, at least.
    pub min_rate: Option<u64>,
    /// p99 to the 200 in ms, at most.
    pub max_p99: Option<u64>,
    /// p99 to the answer in ms, at most.
    pub max_answer_p99: Option<u64>,
    /// What a flood may make of the others' p99, at most, in times of it.
    pub max_flood_ratio: Option<f64>,
    /// What large bodies may make of the others' p99 to the 200, at most, in ms.
    pub max_large_p99: Option<u64>,
    /// Resident, in MiB, at most.
    pub max_rss: Option<u64>,
}

/// What is known of the server's process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// CPU while loaded.
    pub cpu_loaded: u64,
    /// CPU for a 200 in the parts of the load's time without a stall of the machine.
    pub cpu_per_quiet_ack: f64,
    /// CPU in all.
    pub cpu: u64,
    /// The most that was resident, in bytes.
    pub rss_peak: u64,
    /// The most descriptors.
    pub fds_peak: u64,
    /// Descriptors after the users left.
    pub fds_after: u64,
    /// Commits in all.
    pub commits: u64,
    /// Items in all, duplicates included.
    pub items: u64,
    /// 99 of 100 commits took at most this; a bucket's bound.
    pub commit_p99: Option<u64>,
    /// Turns in all.
    pub turns: u64,
    /// Replies that Graph accepted, as the server counts them.
    pub replies: u64,
    /// Status webhooks in all.
    pub statuses: u64,
}

/// The directory of businesses, as the server counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Directory {
    /// Where it is.
    pub store: String,
    /// Lookups answered from the cache.
    pub hits: u64,
    /// The others.
    pub misses: u64,
    /// Of those, how many waited for another's question to the store.
    pub joined: u64,
    /// Entries evicted for room.
    pub evicted: u64,
    /// Questions that the store did not answer.
    pub failures: u64,
}

impl Directory {
    /// Of 1 the share that the cache answered.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / (self.hits + self.misses).max(1) as f64
    }

    /// Questions to the store.
    pub fn queries(&self) -> u64 {
        self.misses.saturating_sub(self.joined)
    }
}

impl Figures {
    /// 200s a second while loaded.
    pub fn rate(&self) -> f64 {
        self.acked as f64 / self.seconds()
    }

    /// How long the load ran, never 0.
    pub fn seconds(&self) -> f64 {
        (self.elapsed as f64 / 1e6).max(1e-6)
    }

    /// Messages of first posts that got their 200, a second.
    pub fn messages_a_second(&self) -> f64 {
        (self.acked - self.duplicates_loaded) as f64 * self.asked.batch.max(1) as f64 / self.seconds()
    }

    /// Microseconds of the server's CPU for a 200 while loaded.
    pub fn cpu_per_ack(&self) -> f64 {
        self.server.cpu_loaded as f64 / self.acked.max(1) as f64
    }

    /// Microseconds of the server's CPU for a 200, with all that came after it.
    pub fn cpu_per_ack_in_all(&self) -> f64 {
        self.server.cpu as f64 / self.acked_in_all.max(1) as f64
    }

    /// Messages that were answered a second, from the begin of the load to the last answer.
    pub fn answers_a_second(&self) -> f64 {
        self.tally.answered as f64 / ((self.elapsed + self.drained) as f64 / 1e6).max(1e-6)
    }

    /// Of all cores, the share in percent that a CPU time of the load's time took.
    pub fn share_of_cores(&self, cpu: u64) -> f64 {
        cpu as f64 / 1e4 / self.seconds() / self.machine.cores.max(1) as f64
    }

    /// Largest to median p99 over the businesses, and the largest's business; `None` if there are less than two.
    pub fn unfairness(&self) -> Option<(f64, u32)> {
        let mut p99s: Vec<(u64, u32)> = self.shares.iter().map(|share| (share.p99, share.business)).collect();
        p99s.sort_unstable();
        let (median, (worst, business)) = (p99s.get(p99s.len() / 2)?.0, *p99s.last()?);
        (p99s.len() > 1).then(|| (worst as f64 / median.max(1) as f64, business))
    }
}
