//! Drives the lanes: offers in, turns out, timers, pages, drain.
//!
//! One mutex around the pure state, held for a decision and never across a yield. One coroutine, the
//! scheduler, starts what offers, timers and pages made possible, in batches; a turn that ends starts what
//! that made possible itself, on its own coroutine first. So an offer costs the committer a lock and at most
//! one wake-up, and under load there is neither a spawn nor a hop in a turn.
//!
//! A wake-up can't be lost: the flag is set before the scheduler is unparked and cleared before it looks, and
//! an unpark before the park makes the park return at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::Mutex;

use super::lanes::{Gauges, Lanes, Limits, Start};
use super::load::Loaded;
use super::workers::Idle;
use super::{BEHIND, BYTES, HELD, LANES, LEFT, OPENS, RUNNING, Runner, SCHEDULER_PANICS, WAITING};
use crate::clock::{self, nanos};
use crate::failure::Failure;
use crate::inbox::{Feed, Inbox, Work};

/// Turns started under one lock by the scheduler.
const BATCH: usize = 64;
/// Between two full batches.
const BETWEEN_BATCHES: Duration = Duration::from_millis(1);
/// How often it is looked for a timer that is overdue by as much.
const OVERDUE_LOOK: Duration = Duration::from_millis(500);
/// How often a drain looks.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Between the inbox and the runner. Lives as long as the process.
pub struct Dispatcher {
    pub(super) state: Mutex<Lanes>,
    pub(super) inbox: Arc<dyn Inbox>,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) idle: Idle,
    pub(super) is_draining: AtomicBool,
    pub(super) is_rewinding: AtomicBool,
    is_rewind_wanted: AtomicBool,
    wake: Wake,
    /// When the scheduler wakes up by itself, nanoseconds of the monotonic clock.
    armed: std::sync::atomic::AtomicU64,
}

impl Dispatcher {
    /// Takes over the inbox's open work: first the turns whose replies are not all sent, then what has no
    /// answer yet, then what comes. At most `max_turns` turns run at once (at least 1). Reads the store;
    /// blocks the caller.
    ///
    /// # Errors
    /// What the inbox said to a read; nothing was started then.
    pub fn start(
        inbox: Arc<dyn Inbox>,
        runner: Arc<dyn Runner>,
        max_turns: usize,
    ) -> Result<Arc<Self>, Failure> {
        Self::start_with(inbox, runner, Limits::new(max_turns.max(1)))
    }

    /// The same with other bounds, for tests.
    ///
    /// # Errors
    /// See [`Dispatcher::start`].
    pub fn start_with(
        inbox: Arc<dyn Inbox>,
        runner: Arc<dyn Runner>,
        limits: Limits,
    ) -> Result<Arc<Self>, Failure> {
        let seed = clock::now() ^ u64::from(std::process::id()) << 32;
        let this = Arc::new(Self {
            state: Mutex::new(Lanes::new(limits, seed)),
            inbox,
            runner,
            idle: Idle::default(),
            is_draining: AtomicBool::new(false),
            is_rewinding: AtomicBool::new(false),
            is_rewind_wanted: AtomicBool::new(false),
            wake: Wake::default(),
            armed: std::sync::atomic::AtomicU64::new(u64::MAX),
        });
        // before the store's head is read, so that no item falls between what it holds and what is offered
        this.inbox.feed(this.clone());
        let loaded = this.load()?;
        this.watch_timers();
        let scheduler = this.clone();
        may::go!(move || scheduler.live(loaded));
        Ok(this)
    }

    /// Starts no more jobs, waits for those that run, at most `within`, and returns how many still do. What
    /// was not run is on disk. Blocks the caller (a coroutine or a thread).
    pub fn drain(&self, within: Duration) -> usize {
        self.state.lock().drain();
        self.is_draining.store(true, SeqCst);
        self.wake();
        let until = clock::monotonic() + within;
        loop {
            let running = self.state.lock().gauges().running;
            let left = until.saturating_sub(clock::monotonic());
            if running == 0 || left.is_zero() {
                self.idle.dismiss();
                return running;
            }
            clock::sleep(DRAIN_LOOK.min(left));
        }
    }

    /// Credentials changed: what a business's token held goes on at once; limits of numbers and apps stay.
    pub fn lift(&self) {
        self.state.lock().lift();
        self.wake();
    }

    /// Every hold ends and every retry is due now.
    pub fn wake_all(&self) {
        self.state.lock().wake_all();
        self.wake();
    }

    /// Sizes now; also sets the gauges of [`super::METRICS`].
    pub fn gauges(&self) -> Gauges {
        let gauges = self.state.lock().gauges();
        RUNNING.set(gauges.running as i64);
        WAITING.set(gauges.waiting as i64);
        BYTES.set(gauges.bytes as i64);
        LANES.set(gauges.lanes as i64);
        BEHIND.set(gauges.behind as i64);
        HELD.set(gauges.holds as i64);
        OPENS.set(gauges.opens as i64);
        gauges
    }

    /// A timer of `may` can be lost (see [`clock::TIMER_MIN`]); this thread notices one that is overdue.
    fn watch_timers(self: &Arc<Self>) {
        let this = Arc::downgrade(self);
        let watch = move || {
            loop {
                clock::sleep(OVERDUE_LOOK);
                let Some(this) = this.upgrade() else { return };
                let armed = this.armed.load(SeqCst);
                if armed.saturating_add(nanos(OVERDUE_LOOK)) < nanos(clock::monotonic()) {
                    this.wake();
                }
            }
        };
        if let Err(e) = std::thread::Builder::new().name("turn-timers".to_owned()).spawn(watch) {
            log::error!("dispatcher: no thread can be started: {e}");
        }
    }

    /// Makes the scheduler look.
    pub(super) fn wake(&self) {
        self.wake.set();
    }

    /// Whether a timer is due before the scheduler wakes up by itself.
    pub(super) fn is_early(&self, timer: Option<Duration>) -> bool {
        timer.is_some_and(|at| nanos(at) < self.armed.load(SeqCst))
    }

    /// The scheduler's life. `loaded`: where the open turns in memory end. A panic in it is a bug, and must
    /// not be the end of all turns: `may` would swallow it and nothing would start any more.
    fn live(self: Arc<Self>, loaded: Loaded) {
        self.wake.arm();
        let mut loaded = Some(loaded);
        while catch_unwind(AssertUnwindSafe(|| self.schedule(&mut loaded))).is_err() {
            SCHEDULER_PANICS.inc();
            log::error!("the dispatcher's scheduler panicked and goes on");
            clock::sleep(DRAIN_LOOK);
        }
    }

    fn schedule(self: &Arc<Self>, loaded: &mut Option<Loaded>) {
        let mut batch: Vec<Start> = Vec::with_capacity(BATCH);
        while !self.is_draining.load(SeqCst) {
            self.wake.clear();
            if !self.is_rewinding.load(SeqCst) && self.is_rewind_wanted.swap(false, SeqCst) {
                self.begin_rewind();
            }
            let now = clock::monotonic();
            let mut reads = Vec::new();
            let (next, wants_turns) = {
                let mut state = self.state.lock();
                state.tick(now);
                state.start(&mut batch, BATCH, now);
                reads.extend(std::iter::from_fn(|| state.next_read()));
                let next = state.next_timer();
                self.armed.store(next.map_or(u64::MAX, nanos), SeqCst);
                (next, state.wants_turns())
            };
            let is_full = batch.len() == BATCH;
            for start in batch.drain(..) {
                self.hand_out(start);
            }
            for read in reads {
                self.begin_read(read);
            }
            if wants_turns {
                self.begin_loading(loaded);
            }
            if is_full {
                // not a yield: a worker looks at its sockets only when nothing is ready to run, and a flood of turns
                // must not keep webhooks waiting
                clock::sleep(BETWEEN_BATCHES);
            } else {
                self.wake.wait(next.map(|at| at.saturating_sub(clock::monotonic())));
            }
        }
    }
}

impl Feed for Dispatcher {
    fn offer(&self, works: Vec<Work>) {
        let left = self.state.lock().offer(works);
        LEFT.add(left as u64);
        self.wake();
    }

    fn rewind(&self) {
        self.is_rewind_wanted.store(true, SeqCst);
        self.wake();
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("gauges", &self.state.lock().gauges()).finish_non_exhaustive()
    }
}

/// The scheduler's bell.
#[derive(Default)]
struct Wake {
    is_set: AtomicBool,
    blocker: OnceLock<Blocker>,
}

impl Wake {
    /// From any thread or coroutine; a system call at most once until the scheduler looked.
    fn set(&self) {
        if !self.is_set.swap(true, SeqCst)
            && let Some(blocker) = self.blocker.get()
        {
            blocker.unpark();
        }
    }

    /// On the scheduler's coroutine, once. What was set before is seen by the first look.
    fn arm(&self) {
        self.blocker.get_or_init(|| Blocker::new(true));
    }

    fn clear(&self) {
        self.is_set.store(false, SeqCst);
    }

    fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.map(|t| t.max(clock::TIMER_MIN));
        if let Some(blocker) = self.blocker.get()
            && !self.is_set.load(SeqCst)
            && blocker.park(timeout).is_err()
        {
            clock::back_to_worker();
        }
    }
}
