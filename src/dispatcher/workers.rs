//! The coroutines on which turns run. One that has nothing more to do waits for the next turn instead of
//! ending: waking it is a push to a local queue, where a spawn is a system call and six allocations.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use may::sync::Blocker;
use parking_lot::Mutex;

use super::lanes::{Key, Lost, Start, Task};
use super::run::Dispatcher;
use super::{HOLDS, Job, LOST, Outcome, PANICS, SPAWN_FAILURES, TURNS};
use crate::clock;
use crate::failure::{Failure, Reason};
use crate::inbox::{OpenTurn, Page, State, Work};
use crate::stack;

/// Coroutines that wait for a turn, at most; more of them end. Each keeps the pages of stack that it touched.
const IDLE_MAX: usize = 256;
/// Turns that one end may start: the first on the same coroutine. If there are more the scheduler goes on.
const HAND_ON: usize = 4;
/// A turn without an answer that panicked so often in a row is given up: its items end dead, `inbox replay`
/// tries again.
const PANICS_MAX: u32 = 8;
/// Rows a page while looking for what a panic lost.
const SEARCH_PAGE: usize = 500;

/// Coroutines that wait for a turn.
#[derive(Default)]
pub(super) struct Idle {
    slots: Mutex<Vec<Arc<Slot>>>,
}

struct Slot {
    blocker: Blocker,
    next: Mutex<Option<Start>>,
}

impl Idle {
    /// All end.
    pub(super) fn dismiss(&self) {
        for slot in std::mem::take(&mut *self.slots.lock()) {
            slot.blocker.unpark();
        }
    }
}

impl Dispatcher {
    /// Runs it on a coroutine that waits, else on a new one.
    pub(super) fn hand_out(self: &Arc<Self>, start: Start) {
        let slot = self.idle.slots.lock().pop();
        if let Some(slot) = slot {
            *slot.next.lock() = Some(start);
            return slot.blocker.unpark();
        }
        let this = self.clone();
        let key = start.key;
        if !spawn(move || this.work(start)) {
            self.state.lock().unrecovered(key, clock::monotonic());
        }
    }

    /// A coroutine's life: turn after turn.
    fn work(self: Arc<Self>, first: Start) {
        let slot = Arc::new(Slot { blocker: Blocker::new(true), next: Mutex::new(None) });
        let mut next = Some(first);
        while let Some(start) = next.take() {
            next = self.turn(start);
            if next.is_some() {
                continue;
            }
            {
                let mut slots = self.idle.slots.lock();
                if slots.len() >= IDLE_MAX || self.is_draining.load(SeqCst) {
                    return;
                }
                slots.push(slot.clone());
            }
            // no timeout, and cancelling is ignored: it returns because someone took the slot
            let _ = slot.blocker.park(None);
            next = slot.next.lock().take();
        }
    }

    /// One turn to its end; returns what to do next.
    fn turn(self: &Arc<Self>, start: Start) -> Option<Start> {
        let Start { key, task } = start;
        TURNS.inc();
        let result = catch_unwind(AssertUnwindSafe(|| match task {
            Task::Run(job) => Ok(self.runner.run(job)),
            Task::Recover(lost) => match self.recover(key, &lost)? {
                Some(job) => Ok(self.runner.run(job)),
                None => Ok(Outcome::Done),
            },
        }));
        let mut started = Vec::new();
        let now = clock::monotonic();
        let (must_wake, timer) = {
            let mut state = self.state.lock();
            match result {
                Ok(Ok(outcome)) => {
                    if matches!(outcome, Outcome::Hold { .. }) {
                        HOLDS.inc();
                    }
                    state.done(key, outcome, now);
                }
                Ok(Err(Unread)) => state.unrecovered(key, now),
                Err(panic) => {
                    PANICS.inc();
                    state.panicked(key, now);
                    // the hook has printed where; what it says may hold what a customer wrote
                    drop::<Box<dyn Any + Send>>(panic);
                }
            }
            state.start(&mut started, HAND_ON, now);
            let must_wake = started.len() == HAND_ON || state.has_reads() || state.wants_turns();
            (must_wake, state.next_timer())
        };
        if must_wake || self.is_early(timer) {
            self.wake();
        }
        let mut started = started.into_iter();
        let own = started.next();
        for start in started {
            self.hand_out(start);
        }
        own
    }

    /// Looks up what of a panicked job is still open: it may have stored its answer before the panic, and
    /// then must not ask for another.
    fn recover(&self, key: Key, lost: &Lost) -> Result<Option<Job>, Unread> {
        let opens = self.open_turns_of(key).map_err(unread)?;
        let mut works = Vec::new();
        if let (Some(first), Some(last)) = (lost.positions.first(), lost.positions.last()) {
            let mut after = super::behind::before(*first);
            while after < *last {
                let Page { works: page, covered } =
                    self.inbox.pending(key.number, after, SEARCH_PAGE).map_err(unread)?;
                let is_short = page.len() < SEARCH_PAGE;
                let end = page.last().map_or(after, |work| work.position);
                works.extend(page.into_iter().filter(|work| is_of(work, lost, key)));
                let end = if is_short { end.max(covered) } else { end };
                if end <= after {
                    return Err(Unread);
                }
                after = end;
            }
        }
        if lost.attempt >= PANICS_MAX && opens.is_empty() && !works.is_empty() {
            let ids: Vec<_> = works.iter().map(|work| work.id).collect();
            log::error!("a turn panicked {} times in a row: its {} items end dead", lost.attempt, ids.len());
            LOST.inc();
            self.inbox.settle(&ids, State::Dead, &Reason::fixed("turn_panicked"), "");
            return Ok(None);
        }
        Ok(self.state.lock().recovered(key, lost.attempt, opens, works))
    }

    fn open_turns_of(&self, key: Key) -> Result<Vec<OpenTurn>, Failure> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            let page = self.inbox.open_turns(after, SEARCH_PAGE)?;
            let Some(last) = page.last().map(|turn| turn.id).filter(|id| *id > after) else {
                return Ok(found);
            };
            let is_short = page.len() < SEARCH_PAGE;
            after = last;
            let is_of = |turn: &OpenTurn| turn.number == key.number && turn.conversation == key.conversation;
            found.extend(page.into_iter().filter(is_of));
            if is_short {
                return Ok(found);
            }
        }
    }
}

/// Runs `f` on a new coroutine. False: there is no memory for its stack (`may` panics then), and `f` is gone.
pub fn spawn(f: impl FnOnce() + Send + 'static) -> bool {
    let is_spawned = catch_unwind(AssertUnwindSafe(|| {
        drop(may::go!(move || {
            stack::begin();
            f();
            crate::clock::linger();
        }))
    }))
    .is_ok();
    if !is_spawned {
        SPAWN_FAILURES.inc();
    }
    is_spawned
}

fn is_of(work: &Work, lost: &Lost, key: Key) -> bool {
    work.conversation == key.conversation && lost.positions.binary_search(&work.position).is_ok()
}

/// The store did not say what is left of a job.
struct Unread;

fn unread(failure: Failure) -> Unread {
    log::warn!("reading what a panic lost: {failure}");
    super::READ_FAILURES.inc();
    Unread
}
