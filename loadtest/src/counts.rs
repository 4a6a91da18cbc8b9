//! What is counted while the load runs. What every request counts, each user counts for itself, and who wants to know
//! adds it up a few times a second: a counter that all share would pass from core to core with each request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Counted while the load runs.
pub struct Counts {
    users: Box<[Own]>,
    /// Of the requests that got their 200, duplicates.
    pub duplicates: AtomicU64,
    /// Answers with another status.
    pub refused: AtomicU64,
    /// 503 among them.
    pub busy: AtomicU64,
    /// Connections that broke, were refused or timed out.
    pub broken: AtomicU64,
    /// Requests that never got a 200.
    pub given_up: AtomicU64,
    /// Why a post had no 200, and how often.
    pub reasons: Mutex<BTreeMap<String, u64>>,
}

/// Of one user, written by nobody else, in cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Own {
    begun: AtomicU64,
    acked: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    /// For so many users.
    pub fn new(users: u32) -> Self {
        Self {
            users: (0..users).map(|_| Own::default()).collect(),
            duplicates: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            reasons: Mutex::default(),
        }
    }

    /// Those of a user.
    pub fn of(&self, user: u32) -> &Own {
        &self.users[user as usize]
    }

    /// Requests that were begun.
    pub fn begun(&self) -> u64 {
        self.sum(|own| &own.begun)
    }

    /// Requests that got their 200, duplicates included.
    pub fn acked(&self) -> u64 {
        self.sum(|own| &own.acked)
    }

    /// Bytes of all bodies that got their 200, duplicates not included.
    pub fn bytes(&self) -> u64 {
        self.sum(|own| &own.bytes)
    }

    fn sum(&self, of: impl Fn(&Own) -> &AtomicU64) -> u64 {
        self.users.iter().map(|own| of(own).load(Relaxed)).sum()
    }

    /// A post had no 200.
    pub fn because(&self, reason: &str) {
        let mut reasons = self.reasons.lock();
        match reasons.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(reasons.insert(reason.to_owned(), 1)),
        }
    }
}

impl Own {
    /// A request was begun. These three are for the user alone: they would lose what another adds meanwhile.
    pub fn begin(&self) {
        add(&self.begun, 1);
    }

    /// It got its 200, with a body of so many bytes.
    pub fn ack(&self, bytes: usize) {
        add(&self.acked, 1);
        add(&self.bytes, bytes as u64);
    }

    /// A duplicate got its 200.
    pub fn ack_duplicate(&self) {
        add(&self.acked, 1);
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Relaxed) + more, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_user_counts_adds_up() {
        let counts = Counts::new(3);
        std::thread::scope(|scope| {
            for user in 0..3 {
                let own = counts.of(user);
                scope.spawn(move || {
                    for _ in 0..1000 {
                        own.begin();
                        own.ack(7);
                    }
                    own.ack_duplicate();
                });
            }
        });
        assert_eq!((counts.begun(), counts.acked(), counts.bytes()), (3000, 3003, 21_000));
    }

    #[test]
    fn reasons_are_counted_each() {
        let counts = Counts::new(1);
        for reason in ["reset", "status 503", "reset"] {
            counts.because(reason);
        }
        let reasons: Vec<_> = counts.reasons.lock().clone().into_iter().collect();
        assert_eq!(reasons, [("reset".to_owned(), 2), ("status 503".to_owned(), 1)]);
    }
}
