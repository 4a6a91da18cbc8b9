//! The table of connections and the sweeper: what may_minihttp lacks, done from outside with `shutdown(2)`.
//!
//! One entry a descriptor. The connection's service sets its state (a store each, no lock); the sweeper, a thread, looks at all once
//! in a while and shuts what is late or surplus; the connection's coroutine wakes, ends and drops the service, which
//! takes the entry's lock and leaves. The sweeper holds that lock while it shuts, so it never hits a reused number.
//!
//! A header in progress can't be seen from the crate: it is there when bytes arrived (TCP_INFO) in a connection that
//! waits for a request. For a connection's first request that is exact; later ones are noticed by a sweep that sees the count grow.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;

use parking_lot::Mutex;

use super::fd::{self, Half};
use super::{CUT, Cut, OPEN, reply};
use crate::clock;
use crate::config;

/// A header is cut off beyond this, in bytes.
pub const HEAD_MAX: u64 = 64 << 10;
/// The sweeper looks at least this often.
const SWEEP_MAX: Duration = Duration::from_secs(1);
const SWEEP_MIN: Duration = Duration::from_millis(20);
/// Descriptors that stay free for the store, Graph, the agent and the directory.
const RESERVE: usize = 512;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No connection has this number.
    Free = 0,
    /// Accepted, nothing answered yet.
    First = 1,
    /// Waits for its next request.
    Idle = 2,
    /// Sends a body.
    Body = 3,
    /// Waits for us.
    Busy = 4,
    /// Was shut; ends.
    Closing = 5,
}

struct Entry {
    /// `since` in milliseconds << 8 | state.
    word: AtomicU64,
    /// Taken to shut and to leave.
    shut: Mutex<Seen>,
}

/// What the sweeper saw of a connection that waits for a request.
#[derive(Default)]
struct Seen {
    word: u64,
    received: u64,
    header_since_ms: Option<u64>,
}

/// Deadlines and the table.
pub struct Guard {
    entries: Box<[Entry]>,
    open: AtomicUsize,
    pub max: usize,
    header: u64,
    body: u64,
    idle: u64,
    every: Duration,
    pub draining: AtomicBool,
}

impl Guard {
    /// Raises the open-file limit and sizes the table to it.
    pub fn new(config: &config::Http) -> Self {
        let files = fd::raise_open_files().min(1 << 20);
        let most = files.saturating_sub(RESERVE.min(files / 4)).max(1);
        if config.max_connections > most {
            log::warn!(
                "edge: MAX_CONNECTIONS {} is more than the open-file limit {files} allows; using {most}",
                config.max_connections
            );
        }
        let shortest = config.header_timeout.min(config.body_timeout).min(config.idle_timeout);
        let entry = |_| Entry { word: AtomicU64::new(0), shut: Mutex::default() };
        Self {
            entries: (0..files).map(entry).collect(),
            open: AtomicUsize::new(0),
            max: config.max_connections.min(most),
            header: config.header_timeout.as_millis() as u64,
            body: config.body_timeout.as_millis() as u64,
            idle: config.idle_timeout.as_millis() as u64,
            every: (shortest / 4).clamp(SWEEP_MIN, SWEEP_MAX),
            draining: AtomicBool::new(false),
        }
    }

    /// A connection enters. False: it is surplus (or a drain has begun) and was shut.
    pub fn enter(&self, fd: i32) -> bool {
        let open = self.open.fetch_add(1, AcqRel) + 1;
        OPEN.set(open as i64);
        self.set(fd, State::First);
        let refused = open > self.max || self.draining.load(Acquire) || fd as usize >= self.entries.len();
        if refused {
            self.close(fd, Cut::Surplus, Some(reply::SURPLUS));
        }
        !refused
    }

    /// The connection's service is dropped; its socket is still open until this returns.
    pub fn leave(&self, fd: i32) {
        if let Some(entry) = self.entry(fd) {
            let mut seen = entry.shut.lock();
            entry.word.store(State::Free as u64, Release);
            *seen = Seen::default();
        }
        OPEN.set(self.open.fetch_sub(1, AcqRel) as i64 - 1);
    }

    pub fn open(&self) -> usize {
        self.open.load(Acquire)
    }

    /// The connection goes on; a connection that was shut stays so.
    pub fn set(&self, fd: i32, state: State) {
        let Some(entry) = self.entry(fd) else { return };
        let word = word(state, clock::monotonic());
        let _ = entry.word.fetch_update(AcqRel, Acquire, |now| {
            (state_of(now) != State::Closing as u8 || state == State::First).then_some(word)
        });
    }

    pub fn is_closing(&self, fd: i32) -> bool {
        self.entry(fd).is_none_or(|entry| state_of(entry.word.load(Acquire)) == State::Closing as u8)
    }

    /// Says `words` if there are any and shuts both ways. By the connection's own service or under its lock.
    pub fn close(&self, fd: i32, why: Cut, words: Option<&[u8]>) {
        CUT.inc(why as usize);
        if let Some(words) = words {
            fd::send(fd, words);
        }
        if let Some(entry) = self.entry(fd) {
            entry.word.store(word(State::Closing, clock::monotonic()), Release);
        }
        fd::shutdown(fd, Half::Both);
    }

    /// As [`Guard::close`], for a peer that may still be sending: it gets the words before the connection goes.
    pub fn mark_closing(&self, fd: i32, why: Cut) {
        CUT.inc(why as usize);
        if let Some(entry) = self.entry(fd) {
            entry.word.store(word(State::Closing, clock::monotonic()), Release);
        }
    }

    fn entry(&self, fd: i32) -> Option<&Entry> {
        self.entries.get(fd as usize)
    }

    /// How long the sweeper sleeps between two looks.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// One look at all connections.
    pub fn sweep(&self) {
        let now = clock::monotonic().as_millis() as u64;
        let mut left = self.open();
        for (fd, entry) in self.entries.iter().enumerate() {
            if left == 0 {
                break;
            }
            let seen_word = entry.word.load(Acquire);
            if state_of(seen_word) == State::Free as u8 {
                continue;
            }
            left -= 1;
            if state_of(seen_word) == State::Busy as u8 || state_of(seen_word) == State::Closing as u8 {
                continue;
            }
            let mut seen = entry.shut.lock();
            let current = entry.word.load(Acquire);
            if let Some((why, words)) = self.verdict(fd as i32, current, &mut seen, now) {
                self.close(fd as i32, why, words);
            }
        }
    }

    fn verdict(&self, fd: i32, word: u64, seen: &mut Seen, now: u64) -> Option<(Cut, Option<&'static [u8]>)> {
        let age = now.saturating_sub(word >> 8);
        let state = state_of(word);
        if state == State::Body as u8 {
            return (age >= self.body).then_some((Cut::LateBody, Some(reply::LATE)));
        }
        if state != State::First as u8 && state != State::Idle as u8 {
            return None;
        }
        if self.draining.load(Acquire) && state == State::Idle as u8 {
            return Some((Cut::Drain, None));
        }
        let (received, _) = fd::traffic(fd)?;
        if seen.word != word {
            let first = state == State::First as u8;
            *seen = Seen { word, received: if first { 0 } else { received }, header_since_ms: None };
        }
        if received > seen.received + HEAD_MAX {
            return Some((Cut::LargeHeader, Some(reply::LARGE_HEADER)));
        }
        if received > seen.received && seen.header_since_ms.is_none() {
            // it began between this look and the last one, or when the connection did
            seen.header_since_ms = Some(if state == State::First as u8 { word >> 8 } else { now });
        }
        match seen.header_since_ms {
            Some(since) if now.saturating_sub(since) >= self.header => {
                Some((Cut::LateHeader, Some(reply::LATE)))
            }
            Some(_) => None,
            None if state == State::First as u8 && age >= self.header => Some((Cut::Silent, None)),
            None if age >= self.idle => Some((Cut::Idle, None)),
            None => None,
        }
    }

    /// Shuts every connection that is still open; how many there were.
    pub fn cut_all(&self) -> usize {
        let mut cut = 0;
        for (fd, entry) in self.entries.iter().enumerate() {
            if state_of(entry.word.load(Acquire)) == State::Free as u8 {
                continue;
            }
            let _held = entry.shut.lock();
            if state_of(entry.word.load(Acquire)) != State::Free as u8 {
                self.close(fd as i32, Cut::Drain, None);
                cut += 1;
            }
        }
        cut
    }
}

fn word(state: State, since: Duration) -> u64 {
    (since.as_millis() as u64) << 8 | state as u64
}

fn state_of(word: u64) -> u8 {
    word as u8
}
