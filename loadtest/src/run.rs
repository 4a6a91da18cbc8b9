//! One run, from the start of the server to the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use may::coroutine::JoinHandle;
use whatsapp_webhook::clock;
use whatsapp_webhook::directory::tokens::Keys;
use whatsapp_webhook::secret::Secret;

use crate::args::Args;
use crate::drive::{Load, Plan};
use crate::figures::{self, Asked, Directory, Figures};
use crate::flood::{FLOODS, Flood};
use crate::large::Large;
use crate::ledger::{Ledger, OPEN_MAX};
use crate::machine::Machine;
use crate::meta::{self, Behaviour, Meta};
use crate::mongodb::{self, Mongodb};
use crate::proc::{self, Look};
use crate::sample::{HEAT_US, Sampler, Where};
use crate::scrape::Metrics;
use crate::server::{self, Data, Server, Setup};
use crate::stalls::QuietCpu;
use crate::timing::Quantiles;
use crate::{names, sys};

/// The server's app secret.
pub const APP_SECRET: &str = "loadtest-app-secret";
const ENCRYPTION_SECRET: &str = "loadtest-encryption-secret";
/// How often the server is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long all users may take to connect.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// After the last answer, how long a doubled one is waited for.
const LINGER: Duration = Duration::from_secs(2);
/// After an interrupt, how long requests under way may still take.
const HASTE: Duration = Duration::from_secs(2);
/// How long the users' descriptors may take to go.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How long the statuses of the last replies may take to their 200.
const RECEIPTS_MAX: Duration = Duration::from_secs(20);
/// With faults: the server's SEND_SETTLE.
const SETTLE: &str = "3s";

/// What has been started, in the order in which it ends: the server, the simulated Meta, the data.
struct Bench<'a> {
    args: &'a Args,
    interrupts: &'a AtomicUsize,
    server: Server,
    meta: Meta,
    load: Arc<Load>,
    trouble: Vec<String>,
    fds_peak: u64,
    machine: Machine,
    mongodb: Option<Mongodb>,
    _data: Data,
}

/// Starts everything, loads, waits for the answers, stops everything.
///
/// # Errors
/// Something could not be started; the reason.
pub fn run(args: &Args, interrupts: &AtomicUsize) -> Result<Figures, String> {
    let path = server::locate(args.server.as_deref())?;
    let parent = args.data_dir.clone().map_or_else(server::own_folder, Ok)?;
    let data = Data::new(&parent)?;
    if sys::is_in_memory(data.path()) {
        eprintln!(
            "loadtest: {} is in memory, where durable costs nothing; take --data-dir on a disk",
            parent.display()
        );
    }
    let epoch_us = sys::monotonic_us();
    sys::set_epoch(epoch_us);
    let mut meta = Meta::start(&Behaviour {
        epoch_us,
        app_secret: APP_SECRET.to_owned(),
        businesses: args.businesses as u32,
        receipts: args.has_receipts(),
        agent_delay_ms: args.agent_delay,
        faults: args.faults,
    })?;
    let mongodb = args.mongodb.as_deref().map(|uri| Mongodb::start(uri, data.path())).transpose()?;
    let mut settings = settings(args, &meta);
    let of_mongodb = mongodb.iter().flat_map(Mongodb::settings);
    settings.extend(of_mongodb.map(|(name, value)| (name.to_owned(), value)));
    let setup = Setup { path: &path, data: data.path(), settings };
    let keys = Keys::new(Some(&Secret::new(ENCRYPTION_SECRET)), None);
    let encrypted = |token: &str| {
        keys.encrypt(&Secret::new(token)).map_or_else(String::new, |stored| stored.reveal().to_owned())
    };
    setup.run(&["business", "import"], &names::import_lines(args.businesses as u32, encrypted))?;
    let server = setup.serve(|| interrupts.load(Relaxed) > 0)?;
    if args.has_receipts() {
        meta.post_to(&format!("http://{}/webhook", server.address()));
    }
    let plan = plan(args, &server);
    let flooded = args.flood.unwrap_or(0) as u32;
    let ledger = Ledger::with_flood(plan.conversations, args.businesses as u32, flooded);
    let every = Duration::from_secs(args.duration) / (FLOODS + 1);
    let flood = Flood::new(flooded, plan.conversations, every);
    let load = Arc::new(Load::new(plan, ledger, flood, Large::new(args.large_bodies.unwrap_or(0) as u32)));
    meta.follow(&load);
    let machine = Machine::look(&path, data.path());
    let trouble = Vec::new();
    let bench =
        Bench { args, interrupts, server, meta, load, trouble, fds_peak: 0, machine, mongodb, _data: data };
    bench.measure()
}

/// Messages a second and number. Out of the way, except that nobody's flood is answered faster than Meta lets him: its
/// highest level, see `https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput`.
fn graph_rate(args: &Args) -> u32 {
    if args.flood.is_some() { 1_000 } else { 100_000 }
}

fn settings(args: &Args, meta: &Meta) -> Vec<(String, String)> {
    let mut own = vec![
        ("WHATSAPP_APP_SECRET", APP_SECRET.to_owned()),
        ("WHATSAPP_VERIFY_TOKEN", "loadtest-verify-token".to_owned()),
        ("ENCRYPTION_SECRET", ENCRYPTION_SECRET.to_owned()),
        ("GRAPH_API_URL", meta.graph_url().to_owned()),
        ("LISTEN", "127.0.0.1:0".to_owned()),
        ("GRAPH_RATE", graph_rate(args).to_string()),
        ("RUST_LOG", "warn".to_owned()),
        ("MAX_CONNECTIONS", (args.users + 300).to_string()),
        ("BUSINESS_CACHE_SIZE", args.businesses.max(1000).to_string()),
        ("RATE_LIMIT_METRICS", "0".to_owned()),
    ];
    if args.agent_delay.is_some() {
        own.push(("AGENT", "http".to_owned()));
        own.push(("AGENT_URL", meta.agent_url().to_owned()));
    }
    if args.faults > 0 {
        // a send that never reached Graph is known as such only when no status came for so long
        own.push(("SEND_SETTLE", SETTLE.to_owned()));
    }
    let given = args.settings.iter().filter_map(|setting| setting.split_once('='));
    let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
    own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(given).collect()
}

fn plan(args: &Args, server: &Server) -> Plan {
    Plan {
        server: server.address(),
        app_secret: APP_SECRET.to_owned(),
        users: args.users as u32,
        conversations: args.conversations() as u32,
        businesses: args.businesses as u32,
        batch: args.batch as u32,
        duplicates: args.duplicates,
        statuses: args.statuses,
        every: args.rate.map(|rate| Duration::from_secs(args.batch).div_f64(rate as f64)),
        seed: args.seed.unwrap_or(clock::now() as u32),
    }
}

impl Bench<'_> {
    fn measure(mut self) -> Result<Figures, String> {
        let users = self.load.start().map_err(|e| format!("the users: {e}"))?;
        self.connect();
        let at = Where {
            load: Arc::clone(&self.load),
            server: self.server.pid(),
            meta: self.meta.pid(),
            duration: Duration::from_secs(self.args.duration),
        };
        let metrics = self.metrics();
        let (before, own_before, meta_before) = (self.look(), sys::own_cpu(), self.meta_cpu());
        let (machine_before, mongodb_before) = (proc::machine_cpu(), self.mongodb_cpu());
        let mut figures = Figures { began: clock::now(), ..Figures::default() };
        let begun = clock::monotonic();
        self.load.go();
        let sampler = Sampler::start(at).map_err(|e| format!("a thread: {e}"))?;
        eprintln!("loadtest: {}", self.what());
        figures.server.cpu_per_quiet_ack = self.loaded(begun, before.cpu);
        self.load.stop.store(true, Relaxed);
        figures.elapsed = (clock::monotonic() - begun).as_micros() as u64;
        figures.due = self.load.due(sys::now_us()).unwrap_or(0);
        figures.acked = self.load.counts.acked();
        figures.duplicates_loaded = self.load.counts.duplicates.load(Relaxed);
        figures.server.cpu_loaded = us(self.look().cpu.saturating_sub(before.cpu));
        figures.own_cpu = us(sys::own_cpu().saturating_sub(own_before));
        figures.meta_cpu = us(self.meta_cpu().saturating_sub(meta_before));
        let all = us(proc::machine_cpu().saturating_sub(machine_before));
        figures.mongodb_cpu = us(self.mongodb_cpu().saturating_sub(mongodb_before));
        let ours = figures.server.cpu_loaded + figures.own_cpu + figures.meta_cpu + figures.mongodb_cpu;
        figures.others_cpu = all.saturating_sub(ours);
        self.join(users);
        let ended = clock::monotonic();
        if !self.args.statuses {
            self.drain(ended);
        }
        figures.drained = us(clock::monotonic() - ended);
        if !self.is_interrupted() && !self.args.statuses {
            clock::sleep(LINGER);
        }
        if self.args.has_receipts() && !self.is_interrupted() {
            // counts come a fraction of a second late; what is missing after this is red
            meta::wait(RECEIPTS_MAX, || self.meta.stats().webhooks_pending == 0);
        }
        figures.ticks = sampler.finish();
        let after = self.left();
        figures.server.cpu = us(after.cpu.saturating_sub(before.cpu));
        figures.server.rss_peak = after.rss_peak_bytes;
        (figures.server.fds_peak, figures.server.fds_after) = (self.fds_peak, after.fds);
        self.told(&metrics, &mut figures);
        if self.is_interrupted() {
            self.server.kill();
        } else if let Err(why) = self.server.stop() {
            figures.bad_end = Some(format!("the server: {why}{}", self.server.said()));
        } else if !self.server.said().is_empty() {
            eprintln!("loadtest: the server's last words:{}", self.server.said());
        }
        let (stats, wrong) = self.meta.finish();
        figures.meta = stats;
        self.trouble.extend(wrong.filter(|_| !self.is_interrupted()));
        Ok(self.fill(figures))
    }

    fn metrics(&self) -> Metrics {
        Metrics::fetch(self.server.address()).unwrap_or_default()
    }

    fn meta_cpu(&self) -> Duration {
        proc::look(self.meta.pid()).unwrap_or_default().cpu
    }

    fn mongodb_cpu(&self) -> Duration {
        let look = self.mongodb.as_ref().and_then(Mongodb::pid).and_then(proc::look);
        look.unwrap_or_default().cpu
    }

    /// What the server tells of itself since `before`.
    fn told(&self, before: &Metrics, figures: &mut Figures) {
        let now = self.metrics();
        let since = |name: &str| (now.value(name) - before.value(name)).max(0.0) as u64;
        let server = &mut figures.server;
        server.commits = since("inbox_commits_total");
        server.items = (now.sum("inbox_items_total") - before.sum("inbox_items_total")).max(0.0) as u64;
        let commit_p99 = now.quantile_since(before, "inbox_commit_seconds", 0.99);
        server.commit_p99 = commit_p99.filter(|s| s.is_finite()).map(|s| (s * 1e6) as u64);
        server.turns = since("turns_begun_total");
        server.replies = since("replies_total");
        server.statuses = since("inbox_items_total{kind=\"status\"}");
        figures.directory = now.has("directory_hits_total").then(|| Directory {
            store: self.mongodb.as_ref().map_or("embedded", Mongodb::store).to_owned(),
            hits: since("directory_hits_total"),
            misses: since("directory_misses_total"),
            joined: since("directory_joined_total"),
            evicted: since("directory_evicted_total"),
            failures: since("directory_store_failures_total"),
        });
    }

    fn is_interrupted(&self) -> bool {
        self.interrupts.load(Relaxed) > 0
    }

    /// All zeros if the server is gone, which is trouble of its own.
    fn look(&mut self) -> Look {
        let look = proc::look(self.server.pid()).unwrap_or_default();
        self.fds_peak = self.fds_peak.max(look.fds);
        look
    }

    fn connect(&self) {
        let until = clock::monotonic() + CONNECT_MAX;
        while self.load.ready() < self.args.users && clock::monotonic() < until && !self.is_interrupted() {
            clock::sleep(LOOK_EVERY);
        }
    }

    /// Until the time is over, or there is a reason to stop before. The CPU for a 200 where the machine did not stall.
    fn loaded(&mut self, begun: Duration, cpu: Duration) -> f64 {
        let end = begun + Duration::from_secs(self.args.duration);
        let mut tell_at = begun + TELL_EVERY;
        let mut quiet = QuietCpu::new(cpu, 0);
        while clock::monotonic() < end && !self.is_interrupted() {
            clock::sleep(LOOK_EVERY.min(end.saturating_sub(clock::monotonic())));
            if self.is_down() {
                return quiet.per_ack();
            }
            if quiet.is_due() {
                let cpu = self.look().cpu;
                quiet.look(&self.load.stalls, cpu, self.load.counts.acked());
            }
            if self.load.ledger.open() >= OPEN_MAX {
                self.trouble
                    .push(format!("the load ended early: {OPEN_MAX} messages wait for their answers"));
                return quiet.per_ack();
            }
            if clock::monotonic() >= tell_at {
                tell_at += TELL_EVERY;
                self.look();
                self.tell(begun);
            }
        }
        self.look();
        quiet.per_ack()
    }

    fn tell(&self, begun: Duration) {
        let acked = self.load.counts.acked();
        let seconds = (clock::monotonic() - begun).as_secs_f64();
        let ack = Quantiles::of(&self.load.acks.all());
        let mut told = format!(
            "{seconds:.0} of {} s: {acked} 200s, {:.0}/s, p99 {} ms so far",
            self.args.duration,
            acked as f64 / seconds,
            crate::timing::ms(ack.p99)
        );
        if !self.args.statuses {
            told.push_str(&format!("; {} messages wait for their answers", self.load.ledger.waiting()));
        }
        let without = self.load.counts.refused.load(Relaxed) + self.load.counts.broken.load(Relaxed);
        if without > 0 {
            told.push_str(&format!("; {without} posts without a 200"));
        }
        eprintln!("loadtest: {told}");
    }

    fn is_down(&mut self) -> bool {
        let is_down = self.server.has_ended();
        if is_down {
            self.load.abandon.store(true, Relaxed);
            self.trouble.push(format!("the server ended in the middle{}", self.server.said()));
        }
        is_down
    }

    fn join(&mut self, users: Vec<JoinHandle<()>>) {
        let mut haste_until = None;
        while users.iter().any(|user| !user.is_done()) || self.load.large.is_under_way() {
            if self.is_interrupted() {
                self.load.abandon.store(true, Relaxed);
                let until = *haste_until.get_or_insert_with(|| clock::monotonic() + HASTE);
                if clock::monotonic() > until {
                    // what waits for an answer gets none
                    self.server.kill();
                }
            } else if !self.load.abandon.load(Relaxed) {
                self.is_down();
            }
            clock::sleep(LOOK_EVERY);
        }
        for user in users {
            if user.join().is_err() {
                self.trouble.push("a user's coroutine panicked".to_owned());
            }
        }
    }

    /// Until everything is answered, or nothing is for too long.
    fn drain(&mut self, begun: Duration) {
        let patience = Duration::from_secs(self.args.patience);
        let (mut answers, mut moved_at, mut tell_at) = (0, begun, begun + TELL_EVERY);
        while self.load.ledger.waiting() > 0 && !self.is_interrupted() {
            let now = clock::monotonic();
            let so_far = self.load.ledger.answers();
            if so_far != answers {
                (answers, moved_at) = (so_far, now);
            } else if now - moved_at > patience {
                self.trouble.push(format!("no answer for {} s; not waited for longer", patience.as_secs()));
                return;
            }
            if self.load.abandon.load(Relaxed) || self.is_down() {
                return;
            }
            if now >= tell_at {
                tell_at += TELL_EVERY;
                eprintln!("loadtest: {} messages wait for their answers", self.load.ledger.waiting());
            }
            clock::sleep(LOOK_EVERY);
        }
    }

    /// The server without its users, as soon as it has let go of them.
    fn left(&mut self) -> Look {
        let until = clock::monotonic() + LEAVE_MAX;
        loop {
            let look = self.look();
            let is_less = look.fds + self.args.users / 2 < self.fds_peak;
            if is_less || clock::monotonic() > until || self.is_interrupted() {
                return look;
            }
            clock::sleep(LOOK_EVERY);
        }
    }

    fn what(&self) -> String {
        let Args { users, businesses, batch, duplicates, duration, .. } = self.args;
        let conversations = self.load.plan.conversations;
        let pace = match self.args.rate {
            None => "closed loop".to_owned(),
            Some(rate) => format!("open loop of {rate}/s, latencies from the intended time"),
        };
        let kind = if self.args.statuses { "delivery statuses (never answered)" } else { "messages" };
        let mut what = format!(
            "{pace}, {kind}: {users} connections, {conversations} conversations, {businesses} businesses, {duration} s"
        );
        if *batch > 1 {
            what.push_str(&format!(", {batch} in a request"));
        }
        if let Some(flood) = self.args.flood {
            what.push_str(&format!(", {FLOODS} floods of {flood} messages to one of them"));
        }
        if let Some(a_second) = self.args.large_bodies {
            what.push_str(&format!(", {a_second} bodies of 3 MB a second beside them"));
        }
        if *duplicates > 0 {
            what.push_str(&format!(", {duplicates} % posted twice"));
        }
        if let Some(mongodb) = &self.mongodb {
            what.push_str(&format!(", the businesses in {}", mongodb.store()));
        }
        if let Some(ms) = self.args.agent_delay {
            what.push_str(&format!(", an agent that takes {ms} ms"));
        }
        if self.args.has_receipts() {
            what.push_str(", with sent, delivered and read for each reply");
        }
        if self.args.faults > 0 {
            what.push_str(&format!(", {} % of the sends go wrong at Graph", self.args.faults));
        }
        what
    }

    fn fill(self, figures: Figures) -> Figures {
        let (args, counts) = (self.args, &self.load.counts);
        let acked_in_all = counts.acked();
        let first_posts = acked_in_all - counts.duplicates.load(Relaxed);
        Figures {
            version: figures::VERSION,
            what: self.what(),
            command: command(self.load.plan.seed, args.seed.is_some()),
            seed: self.load.plan.seed,
            machine: self.machine.clone(),
            asked: Asked {
                users: args.users,
                duration: args.duration,
                rate: args.rate,
                batch: args.batch,
                businesses: args.businesses,
                statuses: args.statuses,
                receipts: args.has_receipts(),
                faults: args.faults,
                agent_delay: args.agent_delay,
                min_rate: args.min_rate,
                max_p99: args.max_p99,
                max_answer_p99: args.max_answer_p99,
                max_flood_ratio: args.max_flood_ratio,
                max_large_p99: args.max_large_p99,
                max_rss: args.max_rss,
            },
            interrupted: self.is_interrupted(),
            acked_in_all,
            duplicates: counts.duplicates.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            busy: counts.busy.load(Relaxed),
            broken: counts.broken.load(Relaxed),
            given_up: counts.given_up.load(Relaxed),
            reasons: counts.reasons.lock().clone(),
            body_bytes: counts.bytes() / first_posts.max(1),
            ack: Quantiles::of(&self.load.acks.all()),
            service: Quantiles::of(&self.load.service.all()),
            answer: Quantiles::of(&self.load.answers.all()),
            quiet_ack: Quantiles::of(&self.load.quiet_acks.all()),
            quiet_answer: Quantiles::of(&self.load.quiet_answers.all()),
            lag: Quantiles::of(&self.load.lag.all()),
            tally: self.load.ledger.tally(),
            heat_us: HEAT_US.to_vec(),
            shares: self.load.fairness.shares(),
            flooded: self.load.flood.flooded(),
            large: self.load.large.bodies(),
            trouble: self.trouble.clone(),
            ..figures
        }
    }
}

fn us(time: Duration) -> u64 {
    time.as_micros() as u64
}

/// What was typed, with the seed.
fn command(seed: u32, has_seed: bool) -> String {
    let mut words: Vec<String> = std::env::args().skip(1).map(|w| mongodb::masked(&w)).collect();
    if !has_seed {
        words.extend(["--seed".to_owned(), seed.to_string()]);
    }
    format!("cargo run --release -p loadtest -- {}", words.join(" "))
}
