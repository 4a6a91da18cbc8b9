//! The composition root: built right to left, drained left to right.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::agent::{self, Agent};
use crate::config::Config;
use crate::directory::{self, Directory};
use crate::dispatcher::Dispatcher;
use crate::event::{Item, Path};
use crate::graph::{self, Graph};
use crate::inbox::embedded::{Embedded, Tuning};
use crate::inbox::{self, Inbox, Keep, Parser, StatusSaid};
use crate::ops::console::Desk;
use crate::ops::lifecycle::Lifecycle;
use crate::ops::{Console, metrics::Metric};
use crate::turn::Turns;
use crate::webhook::{parse, unpack};
use crate::{clock, dispatcher, http, store, turn, webhook};

/// How much of DRAIN_TIMEOUT the edge gets before turns are waited for.
const EDGE_SHARE: u32 = 3;

/// How often the directory's store is asked whether it answers.
const DIRECTORY_LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same while it is away.
const DIRECTORY_LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How the running service ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Asked to stop: drain, exit 0.
    Stop,
    /// The store failed: exit 1, the service manager starts it again.
    Failed(String),
}

/// Why it did not start.
#[derive(Debug)]
pub struct StartError(pub String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// The running service.
pub struct App {
    server: http::Server,
    inbox: Arc<Embedded>,
    dispatcher: Arc<Dispatcher>,
    directory: Arc<dyn Directory>,
    console: Arc<Desk>,
    lifecycle: Arc<Lifecycle>,
    draining: Arc<AtomicBool>,
    drain_timeout: Duration,
    end: (Sender<End>, Receiver<End>),
    _lock: store::Lock,
}

impl App {
    /// Opens the store, takes over what it holds, and listens. Blocks; call from a thread.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let fail = |e: &dyn std::fmt::Display| StartError(e.to_string());
        let lock = store::lock(&config.inbox.data_dir).map_err(|e| fail(&e))?;
        let end = bounded(4);
        let poisoned = end.0.clone();
        let on_poison = move |detail: String| drop(poisoned.try_send(End::Failed(detail)));
        let of_inbox = &config.inbox;
        let tuning = Tuning { pace: of_inbox.commit_pace, log_bytes: of_inbox.checkpoint_bytes };
        let keep = Keep { finished: of_inbox.retention, memory: config.agent.history_max_age };
        let inbox = Embedded::open_tuned(&of_inbox.data_dir, keep, tuning, PARSER, on_poison)
            .map_err(|e| fail(&e))?;
        let graph: Arc<dyn Graph> = Arc::new(graph::client::Client::new(&config.graph));
        let agent: Arc<dyn Agent> = agent::build(&config.agent).map_err(|e| fail(&e))?;
        let directory =
            directory::open_for(&config.directory, config.turn.max_turns).map_err(|e| fail(&e))?;
        let draining = Arc::new(AtomicBool::new(false));
        let turns = Turns {
            inbox: Arc::clone(&inbox) as Arc<dyn Inbox>,
            directory: Arc::clone(&directory),
            agent,
            graph,
            config: config.turn.clone(),
            agent_config: config.agent.clone(),
            draining: Arc::clone(&draining),
            unpacked: turn::unpacked::Unpacked::default(),
            busy: turn::busy(may::config().get_workers()).map_err(|e| fail(&e))?,
        };
        let dispatcher =
            Dispatcher::start(Arc::clone(&inbox) as Arc<dyn Inbox>, Arc::new(turns), config.turn.max_turns)
                .map_err(|e| fail(&e))?;
        let lifecycle = Arc::new(Lifecycle::default());
        let lifted = Arc::downgrade(&dispatcher);
        let sized = Arc::downgrade(&dispatcher);
        let console = Arc::new(Desk {
            lifecycle: Arc::clone(&lifecycle),
            inbox: Arc::clone(&inbox) as Arc<dyn Inbox>,
            directory: Arc::clone(&directory),
            pool: config.directory.pool,
            metrics: metrics(),
            on_clear: Box::new(move || lifted.upgrade().into_iter().for_each(|d| d.lift())),
            before_metrics: Box::new(move || {
                sized.upgrade().into_iter().for_each(|d| {
                    let _ = d.gauges();
                })
            }),
        });
        let server = http::serve(
            config.http.clone(),
            config.webhook.clone(),
            Arc::clone(&inbox) as Arc<dyn Inbox>,
            Arc::clone(&console) as Arc<dyn Console>,
        )
        .map_err(|e| StartError(format!("LISTEN {}: {e}", config.http.listen)))?;
        let app = Self {
            server,
            inbox,
            dispatcher,
            directory,
            console,
            lifecycle,
            draining,
            drain_timeout: config.turn.drain_timeout,
            end,
            _lock: lock,
        };
        app.watch_directory(config.directory.warmup);
        app.lifecycle.ready();
        Ok(app)
    }

    /// Where it listens; the real port where LISTEN has 0.
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// For counts and health.
    pub fn inbox(&self) -> Arc<dyn Inbox> {
        Arc::clone(&self.inbox) as Arc<dyn Inbox>
    }

    /// What /health and /metrics show.
    pub fn console(&self) -> Arc<Desk> {
        Arc::clone(&self.console)
    }

    /// Sends the end from another thread.
    pub fn stopper(&self) -> Sender<End> {
        self.end.0.clone()
    }

    /// Two counters that grow as long as the edge and the committer make progress, for a watchdog.
    pub fn progress(&self) -> (u64, u64) {
        (self.server.progress(), self.inbox.progress())
    }

    /// Waits for the end, at most `within`.
    pub fn wait(&self, within: Duration) -> Option<End> {
        self.end.1.recv_timeout(within).ok()
    }

    /// Loads businesses in the background, and looks now and then whether the directory's store answers: a slow or
    /// absent directory delays nothing, and is used again once it is there.
    fn watch_directory(&self, warm_up: bool) {
        let directory = Arc::downgrade(&self.directory);
        let mut is_warm = !warm_up;
        let _detached = may::go!(move || {
            loop {
                let Some(directory) = directory.upgrade() else { break };
                // the warm-up asks too, and first: who misses meanwhile waits for it
                if is_warm {
                    directory.check();
                } else {
                    match directory.warm_up() {
                        Ok(loaded) => {
                            log::info!("directory: {loaded} businesses loaded into the cache");
                            is_warm = true;
                        }
                        Err(failure) => log::debug!("directory: not warmed up: {failure}"),
                    }
                }
                let is_there = directory.is_connected();
                drop(directory);
                clock::sleep(if is_there { DIRECTORY_LOOK_EVERY } else { DIRECTORY_LOOK_AGAIN });
            }
            clock::linger();
        });
    }

    /// Stops accepting, answers what was begun, finishes turns, closes the store. What could not be finished within
    /// DRAIN_TIMEOUT is on disk and goes on at the next start.
    pub fn drain(self) -> Result<(), String> {
        let begun = clock::monotonic();
        let left = || self.drain_timeout.saturating_sub(clock::monotonic() - begun);
        self.lifecycle.drain();
        self.server.stop_accepting();
        let cut = self.server.drain(self.drain_timeout / EDGE_SHARE);
        self.draining.store(true, Ordering::Relaxed);
        let running = self.dispatcher.drain(left());
        if cut + running > 0 {
            log::warn!("drain: {cut} connection(s) cut, {running} turn(s) left for the next start");
        }
        self.inbox.close().map_err(|failure| failure.to_string())?;
        log::info!("drained");
        Ok(())
    }
}

fn metrics() -> Vec<&'static [&'static dyn Metric]> {
    vec![
        http::METRICS,
        webhook::METRICS,
        inbox::METRICS,
        dispatcher::METRICS,
        turn::METRICS,
        directory::METRICS,
        agent::METRICS,
        graph::METRICS,
        crate::blocking::METRICS,
        crate::net::METRICS,
        crate::ops::stderr::METRICS,
    ]
}

/// How the inbox reads bodies.
pub const PARSER: Parser = Parser { items, keys: unpack::keys, statuses };

fn items(body: &[u8], items: &mut Vec<Item>) {
    parse::parse(body, items);
}

fn statuses(body: &[u8], paths: &[Path]) -> Vec<Option<StatusSaid>> {
    let said = |status: unpack::Status| StatusSaid {
        failed: (status.status == "failed").then(|| status.error_code.unwrap_or(0)),
        wamid: status.wamid,
        callback_data: status.callback_data,
        phone_number_id: status.phone_number_id,
    };
    unpack::statuses(body, paths).into_iter().map(|status| status.map(said)).collect()
}
