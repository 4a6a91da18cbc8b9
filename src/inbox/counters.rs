//! How many items wait, are parked, are dead: kept in memory, so that /metrics asks no file.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::State;

/// Counts that /metrics shows without asking the file.
#[derive(Default)]
pub struct Counters {
    pending: AtomicU64,
    parked: AtomicU64,
    answered: AtomicU64,
    dead: AtomicU64,
    /// Grows with each pass: the watchdog's food.
    pub passes: AtomicU64,
    /// 0: none.
    pub oldest_ms: AtomicU64,
}

impl Counters {
    pub fn add_pending(&self, n: u64) {
        self.pending.fetch_add(n, Relaxed);
    }

    pub fn set(&self, [pending, parked, answered, dead]: [u64; 4]) {
        self.pending.store(pending, Relaxed);
        self.parked.store(parked, Relaxed);
        self.answered.store(answered, Relaxed);
        self.dead.store(dead, Relaxed);
    }

    /// Pending (answered and unsent included), parked, dead.
    pub fn read(&self) -> (u64, u64, u64) {
        let pending = self.pending.load(Relaxed) + self.answered.load(Relaxed);
        (pending, self.parked.load(Relaxed), self.dead.load(Relaxed))
    }

    pub fn moved(&self, from: u8, to: State) {
        let cell = |state: u8| match state {
            0 => Some(&self.pending),
            1 => Some(&self.parked),
            2 => Some(&self.answered),
            5 => Some(&self.dead),
            _ => None,
        };
        if let Some(cell) = cell(from) {
            let _ = cell.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        }
        if let Some(cell) = cell(to as u8) {
            cell.fetch_add(1, Relaxed);
        }
    }
}
