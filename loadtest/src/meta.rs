//! The simulated Meta of the load, in a process of its own: this program once more, with the command [`COMMAND`].
//!
//! Its standard output tells the run's process what happens, a line each: `ready GRAPH-URL AGENT-URL`, then
//! `r NUMBER TO MICROSECONDS WORDS..` for a reply that Graph accepted, and `s JSON` for its counts. Its standard
//! input takes `url WEBHOOK-URL`; at its end the process ends. Times are those of [`sys::now_us`], whose epoch both share.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use whatsapp_webhook::clock;

use crate::drive::Load;
use crate::{names, sys};

/// The command of this program that is the simulated Meta.
pub const COMMAND: &str = "simulated-meta";
/// How long its start may take.
const START_MAX: Duration = Duration::from_secs(20);
/// How long it may take to tell its last counts.
const END_MAX: Duration = Duration::from_secs(10);

/// How it shall behave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Behaviour {
    /// Where the run's time begins; see [`sys::set_epoch`].
    pub epoch_us: u64,
    /// Signs its webhooks.
    pub app_secret: String,
    /// How many there are.
    pub businesses: u32,
    /// Whether sent, delivered and read follow each accepted message.
    pub receipts: bool,
    /// The agent's time for an answer, in ms; without it there is no agent.
    pub agent_delay_ms: Option<u64>,
    /// Of 100 sends, how many go wrong.
    pub faults: u64,
}

/// What it counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Messages that it accepted.
    pub sent: u64,
    /// Read receipts that it accepted, so far as they are kept.
    pub reads: u64,
    /// Connections to it.
    pub connections: u64,
    /// Messages whose reply id had been sent before.
    pub doubled: u64,
    /// Calls that the real Graph would have refused.
    pub violations: u64,
    /// The first of them, in words.
    pub first_violation: Option<String>,
    /// Sends that went wrong on purpose.
    pub faults_hit: u64,
    /// Status webhooks without their 200.
    pub webhooks_pending: u64,
    /// Status webhooks that got it.
    pub webhooks_delivered: u64,
    /// Posts of them that got none.
    pub webhooks_failed: u64,
    /// Calls of the agent.
    pub agent_calls: u64,
    /// Replies that could not be told, since too many were waiting.
    pub untold: u64,
}

/// The process, seen from the run; killed when dropped.
pub struct Meta {
    child: Child,
    stdin: Option<ChildStdin>,
    graph_url: String,
    agent_url: String,
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

#[derive(Default)]
struct Shared {
    load: Mutex<Option<Arc<Load>>>,
    stats: Mutex<Stats>,
}

impl Meta {
    /// Starts it. Call from the main thread: it dies with the caller's.
    ///
    /// # Errors
    /// It can't be started; the reason.
    pub fn start(behaviour: &Behaviour) -> Result<Self, String> {
        let own =
            std::env::current_exe().map_err(|e| format!("where this program lies is not known: {e}"))?;
        let mut command = Command::new(own);
        command.arg(COMMAND).arg(serde_json::to_string(behaviour).expect("numbers and words"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        sys::dies_with_us(&mut command);
        let wrong = |e: &dyn std::fmt::Display| format!("the simulated Meta: {e}");
        let mut child = command.spawn().map_err(|e| wrong(&e))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| wrong(&"no output"))?;
        let (tell_ready, ready) = sync_channel(1);
        let (tell_ended, ended) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let listen = move || {
            for line in BufReader::with_capacity(256 << 10, stdout).lines().map_while(Result::ok) {
                if let Some(urls) = line.strip_prefix("ready ") {
                    let _ = tell_ready.try_send(urls.to_owned());
                } else {
                    of_thread.take(&line);
                }
            }
            let _ = tell_ended.try_send(());
        };
        let named = std::thread::Builder::new().name("meta-stdout".to_owned());
        named.spawn(listen).map_err(|e| wrong(&e))?;
        let mut meta =
            Self { child, stdin, graph_url: String::new(), agent_url: String::new(), shared, ended };
        let urls = ready.recv_timeout(START_MAX).map_err(|e| wrong(&e))?;
        let (graph, agent) = urls.split_once(' ').ok_or_else(|| wrong(&"it told no addresses"))?;
        (meta.graph_url, meta.agent_url) = (graph.to_owned(), agent.to_owned());
        Ok(meta)
    }

    /// What GRAPH_API_URL has to be.
    pub fn graph_url(&self) -> &str {
        &self.graph_url
    }

    /// What AGENT_URL has to be, if there is an agent.
    pub fn agent_url(&self) -> &str {
        &self.agent_url
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From now on replies are entered into the load's ledger.
    pub fn follow(&self, load: &Arc<Load>) {
        *self.shared.load.lock() = Some(Arc::clone(load));
    }

    /// Where status webhooks go.
    pub fn post_to(&mut self, url: &str) {
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "url {url}").and_then(|()| stdin.flush());
        }
    }

    /// Its counts, a fraction of a second old.
    pub fn stats(&self) -> Stats {
        self.shared.stats.lock().clone()
    }

    /// Ends it; its last counts, and what is wrong if it did not end well.
    pub fn finish(&mut self) -> (Stats, Option<String>) {
        drop(self.stdin.take());
        let ended = self.ended.recv_timeout(END_MAX).is_ok();
        let well = ended && self.child.wait().is_ok_and(|status| status.success());
        *self.shared.load.lock() = None;
        (self.stats(), (!well).then(|| "the simulated Meta did not end as it should".to_owned()))
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        *self.shared.load.lock() = None;
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Shared {
    fn take(&self, line: &str) {
        if let Some(json) = line.strip_prefix("s ") {
            if let Ok(stats) = serde_json::from_str(json) {
                *self.stats.lock() = stats;
            }
            return;
        }
        let Some(rest) = line.strip_prefix("r ") else { return };
        let Some(load) = self.load.lock().clone() else { return };
        let mut words = rest.splitn(4, ' ');
        let (Some(number), Some(to), Some(at)) = (words.next(), words.next(), words.next()) else { return };
        let at_us = at.parse().unwrap_or_else(|_| sys::now_us());
        let business = names::business(number);
        load.ledger.replied(number, to, words.next().unwrap_or_default(), at_us, |conversation, us| {
            load.answers.record(at_us as usize, us);
            // told a moment later, so what is slow in that moment counts against it too
            let is_quiet = load.stalls.is_quiet(at_us.saturating_sub(us));
            if is_quiet {
                load.quiet_answers.record(at_us as usize, us);
            }
            load.fairness.record(business, us);
            load.flood.answered(business, conversation, at_us, us, is_quiet);
        });
    }
}

/// Waits for `done`, looking often; false when `within` is over first.
pub fn wait(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    let begun = clock::monotonic();
    while !done() {
        if clock::monotonic() - begun > within {
            return false;
        }
        clock::sleep(Duration::from_millis(50));
    }
    true
}
