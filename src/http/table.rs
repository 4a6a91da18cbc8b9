//! Every open connection: what it is at and since when, and the lock that keeps its descriptor's number true.
//!
//! A connection's coroutine changes its entry with one atomic swap at each step and takes no lock. The
//! sweeper reads it, and cuts only by a compare-and-swap of exactly what it judged: a request that begins at
//! that instant wins. The entry's lock is taken by the sweeper around every system call on the number, and by
//! the end of the connection to take the number away; may_minihttp closes the descriptor only after that, so
//! a number that was given to another connection can't be hit.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::counters::Cut;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// may_minihttp waits for a request, reads a header or writes an answer.
    Wait = 0,
    /// The body is read.
    Body = 1,
    /// The request is answered; whoever does that has deadlines of his own.
    Work = 2,
    /// It ends; its coroutine says the last word.
    Cut = 3,
}

/// Phase, since when in milliseconds, and a number that the next step does not share, as one word; for
/// [`Phase::Cut`] the reason instead of the time. The number: two steps of one millisecond must not look like
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(u64);

impl Step {
    fn new(phase: Phase, since_ms: u64, number: u64) -> Self {
        Self((since_ms << 16) | ((number & 0x3fff) << 2) | phase as u64)
    }

    fn number(self) -> u64 {
        (self.0 >> 2) & 0x3fff
    }

    fn of_cut(reason: Cut) -> Self {
        Self::new(Phase::Cut, reason as u64, 0)
    }

    /// What it is at.
    pub fn phase(self) -> Phase {
        match self.0 & 3 {
            0 => Phase::Wait,
            1 => Phase::Body,
            2 => Phase::Work,
            _ => Phase::Cut,
        }
    }

    /// Since when, in milliseconds.
    pub fn since_ms(self) -> u64 {
        self.0 >> 16
    }
}

/// What the sweeper knows of a connection; behind the entry's lock.
#[derive(Debug)]
pub struct Watch {
    /// The number; `None` once the connection ends.
    pub fd: Option<RawFd>,
    /// The step that the rest is about.
    pub step: Step,
    /// Bytes that had been read when the step began (or was first looked at).
    pub read_before: u64,
    /// When the first byte of the next header was noticed.
    pub partial_since_ms: Option<u64>,
    /// When to look at the kernel's counters again.
    pub look_at_ms: u64,
    /// How long until the look after that.
    pub pause_ms: u64,
}

/// An open connection.
#[derive(Debug)]
pub struct Entry {
    step: AtomicU64,
    /// Bytes of answers so far, written or not.
    pub answered: AtomicU64,
    /// For the sweeper, and for the end.
    pub watch: Mutex<Watch>,
}

impl Entry {
    fn new(fd: RawFd, now_ms: u64) -> Self {
        let step = Step::new(Phase::Wait, now_ms, 0);
        let watch =
            Watch { fd: Some(fd), step, read_before: 0, partial_since_ms: None, look_at_ms: 0, pause_ms: 0 };
        Self { step: AtomicU64::new(step.0), answered: AtomicU64::new(0), watch: Mutex::new(watch) }
    }

    /// What it is at.
    pub fn step(&self) -> Step {
        Step(self.step.load(Ordering::Acquire))
    }

    /// Goes on to `phase`; false if it was cut meanwhile, which stays.
    pub fn go(&self, phase: Phase, now_ms: u64) -> bool {
        // nobody else takes steps, so the number can be read before
        let number = Step(self.step.load(Ordering::Relaxed)).number() + 1;
        let old = Step(self.step.swap(Step::new(phase, now_ms, number).0, Ordering::AcqRel));
        if old.phase() == Phase::Cut {
            self.step.store(old.0, Ordering::Release);
        }
        old.phase() != Phase::Cut
    }

    /// Ends it for `reason` unless it went on from `seen`; whether it did.
    pub fn cut(&self, seen: Step, reason: Cut) -> bool {
        let cut = Step::of_cut(reason).0;
        self.step.compare_exchange(seen.0, cut, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends it for `reason`, if it was not cut already; for its own coroutine.
    pub fn end(&self, reason: Cut) {
        let old = Step(self.step.swap(Step::of_cut(reason).0, Ordering::AcqRel));
        if old.phase() == Phase::Cut {
            self.step.store(old.0, Ordering::Release);
        }
    }

    /// Why it was cut, if it was.
    pub fn why(&self) -> Option<Cut> {
        let step = self.step();
        (step.phase() == Phase::Cut).then(|| Cut::from_index(step.since_ms() as u8)).flatten()
    }
}

/// All open connections, by descriptor.
#[derive(Debug, Default)]
pub struct Table {
    entries: Mutex<Vec<Option<Arc<Entry>>>>,
    open: AtomicUsize,
}

impl Table {
    /// Adds a connection.
    pub fn add(&self, fd: RawFd, now_ms: u64) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(fd, now_ms));
        let at = usize::try_from(fd).expect("may_minihttp gives an open descriptor, which is not negative");
        let mut entries = self.entries.lock();
        if entries.len() <= at {
            entries.resize(at + 1, None);
        }
        entries[at] = Some(Arc::clone(&entry));
        drop(entries);
        self.open.fetch_add(1, Ordering::AcqRel);
        entry
    }

    /// Takes a connection away. From here on the sweeper does nothing to its descriptor.
    pub fn remove(&self, fd: RawFd, entry: &Arc<Entry>) {
        entry.watch.lock().fd = None;
        let mut entries = self.entries.lock();
        if let Some(place) = usize::try_from(fd).ok().and_then(|at| entries.get_mut(at))
            && place.as_ref().is_some_and(|there| Arc::ptr_eq(there, entry))
        {
            *place = None;
        }
        drop(entries);
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Fills `into` with all of them, so that they can be looked at without the table's lock.
    pub fn copy(&self, into: &mut Vec<Arc<Entry>>) {
        into.clear();
        into.extend(self.entries.lock().iter().flatten().cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_begins_beats_the_sweeper() {
        let table = Table::default();
        let entry = table.add(7, 1000);
        let seen = entry.step();
        assert_eq!((seen.phase(), seen.since_ms()), (Phase::Wait, 1000));
        assert!(entry.go(Phase::Body, 2000));
        assert!(!entry.cut(seen, Cut::Idle));
        assert_eq!(entry.why(), None);
    }

    #[test]
    fn two_steps_of_one_millisecond_are_not_one() {
        let table = Table::default();
        let entry = table.add(7, 1000);
        let seen = entry.step();
        assert!(entry.go(Phase::Body, 1000) && entry.go(Phase::Wait, 1000));
        assert_ne!(entry.step(), seen);
        assert_eq!(entry.step().since_ms(), 1000);
    }

    #[test]
    fn a_cut_stays() {
        let table = Table::default();
        let entry = table.add(7, 1000);
        assert!(entry.cut(entry.step(), Cut::LateHeader));
        assert!(!entry.go(Phase::Body, 2001));
        assert_eq!((entry.step().phase(), entry.why()), (Phase::Cut, Some(Cut::LateHeader)));
    }

    #[test]
    fn a_reused_number_is_another_entry() {
        let table = Table::default();
        let first = table.add(7, 1);
        let second = table.add(7, 2);
        table.remove(7, &first); // late: must not take the second one away
        let mut all = Vec::new();
        table.copy(&mut all);
        assert!(all.len() == 1 && Arc::ptr_eq(&all[0], &second));
        assert!(first.watch.lock().fd.is_none() && second.watch.lock().fd == Some(7));
    }
}
