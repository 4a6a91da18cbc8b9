//! One run, from the start of the server to the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use may::coroutine::JoinHandle;
use whatsapp_webhook::clock;
use whatsapp_webhook::directory::tokens::Keys;
use whatsapp_webhook::sandbox::Sandbox;
use whatsapp_webhook::secret::Secret;

use crate::args::Args;
use crate::drive::{Load, Plan};
use crate::ledger::{Ledger, OPEN_MAX};
use crate::proc::{self, Look};
use crate::report::{Bounds, Figures};
use crate::server::{self, Data, Server, Setup};
use crate::{meta, names, sys};

const APP_SECRET: &str = "loadtest-app-secret";
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

/// What has been started, in the order in which it ends: the server, the simulated Graph, the data.
struct Bench<'a> {
    args: &'a Args,
    interrupts: &'a AtomicUsize,
    server: Server,
    sandbox: Sandbox,
    load: Arc<Load>,
    trouble: Vec<String>,
    fds_peak: u64,
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
    let sandbox = meta::start(args.businesses as u32, APP_SECRET, args.receipts)?;
    let setup = Setup { path: &path, data: data.path(), settings: settings(args, &sandbox) };
    let keys = Keys::new(Some(&Secret::new(ENCRYPTION_SECRET)), None);
    let encrypted = |token: &str| {
        keys.encrypt(&Secret::new(token)).map_or_else(String::new, |stored| stored.reveal().to_owned())
    };
    setup.run(&["business", "import"], &names::import_lines(args.businesses as u32, encrypted))?;
    let server = setup.serve(|| interrupts.load(Relaxed) > 0)?;
    if args.receipts {
        sandbox.set_webhook_url(&format!("http://{}/webhook", server.address()));
    }
    let plan = plan(args, &server);
    let ledger = Ledger::new(plan.conversations, args.businesses as u32);
    let load = Arc::new(Load::new(plan, ledger));
    meta::follow(&sandbox, &load);
    let bench =
        Bench { args, interrupts, server, sandbox, load, trouble: Vec::new(), fds_peak: 0, _data: data };
    bench.measure()
}

fn settings(args: &Args, sandbox: &Sandbox) -> Vec<(String, String)> {
    let own = [
        ("WHATSAPP_APP_SECRET", APP_SECRET.to_owned()),
        ("WHATSAPP_VERIFY_TOKEN", "loadtest-verify-token".to_owned()),
        ("ENCRYPTION_SECRET", ENCRYPTION_SECRET.to_owned()),
        ("GRAPH_API_URL", sandbox.url()),
        ("LISTEN", "127.0.0.1:0".to_owned()),
        ("GRAPH_RATE", "100000".to_owned()),
        ("RUST_LOG", "warn".to_owned()),
        ("MAX_CONNECTIONS", (args.users + 300).to_string()),
        ("BUSINESS_CACHE_SIZE", args.businesses.max(1000).to_string()),
    ];
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
        batch: args.batch as u32,
        duplicates: args.duplicates,
        statuses: args.statuses,
        every: args.rate.map(|rate| Duration::from_secs(args.batch).div_f64(rate as f64)),
        run: clock::now() as u32,
    }
}

impl Bench<'_> {
    fn measure(mut self) -> Result<Figures, String> {
        let users = self.load.start().map_err(|e| format!("the users: {e}"))?;
        self.connect();
        let (before, own_before) = (self.look(), sys::own_cpu());
        let begun = clock::monotonic();
        self.load.go();
        eprintln!("loadtest: {}", self.what());
        self.loaded(begun);
        self.load.stop.store(true, Relaxed);
        let elapsed = clock::monotonic() - begun;
        let mut figures = Figures {
            acked: self.load.counts.acked.load(Relaxed),
            cpu_loaded: self.look().cpu.saturating_sub(before.cpu),
            own_cpu: sys::own_cpu().saturating_sub(own_before),
            elapsed,
            ..Figures::default()
        };
        self.join(users);
        let ended = clock::monotonic();
        if !self.args.statuses {
            self.drain(ended);
        }
        figures.drained = clock::monotonic() - ended;
        if !self.is_interrupted() && !self.args.statuses {
            clock::sleep(LINGER);
        }
        let after = self.left();
        figures.cpu = after.cpu.saturating_sub(before.cpu);
        figures.rss_peak = after.rss_peak_bytes;
        figures.fds = (self.fds_peak, after.fds);
        if self.is_interrupted() {
            self.server.kill();
        } else if let Err(why) = self.server.stop() {
            figures.bad_end = Some(format!("the server: {why}{}", self.server.said()));
        }
        Ok(self.fill(figures))
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

    /// Until the time is over, or there is a reason to stop before.
    fn loaded(&mut self, begun: Duration) {
        let end = begun + Duration::from_secs(self.args.duration);
        let mut tell_at = begun + TELL_EVERY;
        while clock::monotonic() < end && !self.is_interrupted() {
            clock::sleep(LOOK_EVERY.min(end.saturating_sub(clock::monotonic())));
            if self.is_down() {
                return;
            }
            if self.load.ledger.open() >= OPEN_MAX {
                self.trouble
                    .push(format!("the load ended early: {OPEN_MAX} messages wait for their answers"));
                return;
            }
            if clock::monotonic() >= tell_at {
                tell_at += TELL_EVERY;
                self.look();
                let acked = self.load.counts.acked.load(Relaxed);
                let waiting = self.load.ledger.waiting();
                eprintln!("loadtest: {acked} 200s, {waiting} messages wait for their answers");
            }
        }
        self.look();
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
        while users.iter().any(|user| !user.is_done()) {
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
        if *duplicates > 0 {
            what.push_str(&format!(", {duplicates} % posted twice"));
        }
        if self.args.receipts {
            what.push_str(", with sent, delivered and read for each reply");
        }
        what
    }

    fn fill(self, figures: Figures) -> Figures {
        let counts = &self.load.counts;
        let violations = self.sandbox.violations();
        let first = violations.first().map(|v| format!("code {}: {}", v.code, v.what));
        let acked_in_all = counts.acked.load(Relaxed);
        let first_posts = acked_in_all - counts.duplicates.load(Relaxed);
        Figures {
            what: self.what(),
            statuses: self.args.statuses,
            interrupted: self.is_interrupted(),
            acked_in_all,
            duplicates: counts.duplicates.load(Relaxed),
            refused: (counts.refused.load(Relaxed), counts.busy.load(Relaxed)),
            broken: counts.broken.load(Relaxed),
            given_up: counts.given_up.load(Relaxed),
            body_bytes: counts.bytes.load(Relaxed) / first_posts.max(1),
            ack: self.load.acks.quantiles(),
            answer: self.load.answers.quantiles(),
            graph_sends: self.sandbox.sent_count(),
            graph_connections: self.sandbox.connections(),
            graph_refused: (self.sandbox.violation_count(), first),
            graph_doubled: self.sandbox.doubled(),
            tally: self.load.ledger.tally(),
            bounds: Bounds {
                rate: self.args.min_rate,
                p99: self.args.max_p99,
                answer_p99: self.args.max_answer_p99,
                rss: self.args.max_rss,
            },
            trouble: self.trouble.clone(),
            ..figures
        }
    }
}
