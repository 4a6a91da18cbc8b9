//! Reads that the lanes ask for: the start, pages of numbers that fell behind, replays, open turns of an
//! earlier run.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::lanes::Read;
use super::run::Dispatcher;
use super::workers::spawn;
use super::{PAGES, READ_FAILURES, backoff};
use crate::clock;
use crate::failure::Failure;
use crate::inbox::{Feed, TurnId};

/// Open turns read in one page.
const TURNS_PAGE: usize = 500;

/// Which open turns of the earlier run are in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    /// All up to this one.
    after: TurnId,
    /// The newest of them; later ones are this run's own.
    last: TurnId,
}

impl Dispatcher {
    /// The start. Every open turn is looked at once, so that fresh work of any other conversation can go at
    /// once; what doesn't fit in memory is only noted.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        let mut loaded = Loaded { after: 0, last: 0 };
        loop {
            let page = self.inbox.open_turns(loaded.last, TURNS_PAGE)?;
            let is_short = page.len() < TURNS_PAGE;
            let mut state = self.state.lock();
            for turn in page {
                loaded.last = loaded.last.max(turn.id);
                let id = turn.id;
                if state.note_turn(turn) {
                    loaded.after = id;
                }
            }
            drop(state);
            if is_short {
                break;
            }
        }
        let (numbers, head) = self.inbox.open_numbers()?;
        self.state.lock().opened(&numbers, head);
        Ok(loaded)
    }

    /// Reads the noted turns on a coroutine of its own, as there is room for them. Once: `loaded` is empty
    /// then.
    pub(super) fn begin_loading(self: &Arc<Self>, loaded: &mut Option<Loaded>) {
        let Some(Loaded { mut after, last }) = *loaded else { return };
        let this = self.clone();
        let is_spawned = spawn(move || {
            let mut tries = 0;
            while !this.is_draining.load(SeqCst) {
                if !this.state.lock().wants_turns() {
                    clock::sleep(Duration::from_millis(50));
                    continue;
                }
                match this.inbox.open_turns(after, TURNS_PAGE) {
                    Ok(page) => {
                        tries = 0;
                        let is_short = page.len() < TURNS_PAGE;
                        let mut state = this.state.lock();
                        for turn in page {
                            after = after.max(turn.id);
                            if turn.id <= last {
                                state.load_turn(turn);
                            }
                        }
                        let is_all = is_short || after >= last;
                        if is_all {
                            state.all_turns_loaded();
                        }
                        drop(state);
                        this.wake();
                        if is_all {
                            return;
                        }
                    }
                    Err(failure) => this.wait_after(&failure, &mut tries),
                }
            }
        });
        if is_spawned {
            *loaded = None;
        }
    }

    /// Reads a page on a coroutine of its own.
    pub(super) fn begin_read(self: &Arc<Self>, read: Read) {
        let this = self.clone();
        let is_spawned = spawn(move || {
            let result = this.inbox.pending(read.number, read.after, read.limit);
            let now = clock::monotonic();
            match result {
                Ok(page) => {
                    PAGES.inc();
                    this.state.lock().page(read.number, page, now);
                }
                Err(failure) => {
                    READ_FAILURES.inc();
                    log::warn!("reading open work: {failure}");
                    this.state.lock().page_failed(read.number, now);
                }
            }
            this.wake();
        });
        if !is_spawned {
            self.state.lock().page_failed(read.number, clock::monotonic());
        }
    }

    /// Finds out which numbers are to be read again, on a coroutine of its own; one at a time.
    pub(super) fn begin_rewind(self: &Arc<Self>) {
        self.is_rewinding.store(true, SeqCst);
        let this = self.clone();
        let is_spawned = spawn(move || {
            let mut tries = 0;
            while !this.is_draining.load(SeqCst) {
                match this.inbox.open_numbers() {
                    Ok((numbers, head)) => {
                        let mut state = this.state.lock();
                        state.rewind(&numbers, head);
                        // who puts items back has mended what held them
                        state.lift();
                        break;
                    }
                    Err(failure) => this.wait_after(&failure, &mut tries),
                }
            }
            this.is_rewinding.store(false, SeqCst);
            this.wake();
        });
        if !is_spawned {
            self.is_rewinding.store(false, SeqCst);
            self.rewind();
        }
    }

    fn wait_after(&self, failure: &Failure, tries: &mut u32) {
        READ_FAILURES.inc();
        log::warn!("reading open work: {failure}");
        let mut seed = clock::now();
        clock::sleep(backoff::read(*tries, backoff::next_seed(&mut seed)));
        *tries = tries.saturating_add(1);
    }
}
