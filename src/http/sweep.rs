//! Looks at every connection several times a second and ends what takes too long or takes too much.
//!
//! may_minihttp has no deadlines. What it does between two requests can't be seen from outside, but the
//! kernel counts the bytes: read ones after the last request are a header that has begun; written ones that
//! are not acknowledged are answers that nobody reads. Silent connections are asked less and less often, at
//! least once a second.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::answer::Answer;
use super::counters::Cut;
use super::fd::{self, Half};
use super::table::{Entry, Phase, Step, Watch};
use super::{HEADER_MAX, Shared};
use crate::{clock, config};

/// The longest time between two looks at a connection's counters, in milliseconds.
const PAUSE_MAX_MS: u64 = 1000;

/// What a connection that was cut gets for its last word, besides the time to write it, in milliseconds.
const LAST_WORD_MS: u64 = 5000;

/// Deadlines in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    header: u64,
    body: u64,
    idle: u64,
    tick: u64,
    /// The tick while nobody is there: a machine that waits for webhooks need not wake up for them.
    rest: u64,
}

impl Deadlines {
    /// From the settings; looks are as close as the shortest of them needs.
    pub fn new(http: &config::Http) -> Self {
        let ms = |time: Duration| time.as_millis() as u64;
        let (header, body, idle) = (ms(http.header_timeout), ms(http.body_timeout), ms(http.idle_timeout));
        let quarter = header.min(body).min(idle) / 4;
        Self { header, body, idle, tick: quarter.clamp(10, 100), rest: quarter.clamp(10, 500) }
    }
}

/// The sweeper's life: until the server is gone.
pub fn run(shared: &Shared) {
    let deadlines = Deadlines::new(&shared.http);
    let mut all = Vec::new();
    while !shared.gone.load(Acquire) {
        let is_empty = shared.table.open() == 0;
        clock::sleep(Duration::from_millis(if is_empty { deadlines.rest } else { deadlines.tick }));
        shared.table.copy(&mut all);
        let now = now_ms();
        for entry in all.drain(..) {
            judge(&entry, &deadlines, now);
        }
        // the accept loop ends by cancelling only: if it is gone otherwise, the watchdog must notice
        if shared.stopping.load(Acquire) || !shared.accept_is_dead() {
            shared.progress.fetch_add(1, Relaxed);
        }
    }
}

/// Milliseconds of the monotonic clock.
pub fn now_ms() -> u64 {
    clock::monotonic().as_millis() as u64
}

fn judge(entry: &Arc<Entry>, deadlines: &Deadlines, now: u64) {
    let step = entry.step();
    let age = now.saturating_sub(step.since_ms());
    match step.phase() {
        Phase::Work => {}
        Phase::Cut => see_off(entry, step, deadlines, now),
        Phase::Body if age < deadlines.body => {}
        Phase::Body => end(entry, step, Cut::LateBody, Half::Read),
        Phase::Wait => {
            let mut watch = entry.watch.lock();
            let Some(fd) = watch.fd else { return };
            if watch.step != step {
                // of the first request every byte counts; later ones, those after the first look
                let read_before = read_bytes(fd);
                *watch = Watch {
                    fd: Some(fd),
                    step,
                    read_before,
                    partial_since_ms: None,
                    look_at_ms: now + deadlines.tick,
                    pause_ms: deadlines.tick,
                };
            } else if now < watch.look_at_ms && age < deadlines.idle {
                return;
            }
            if let Some((reason, half)) = late(&mut watch, fd, entry, deadlines, now, age)
                && entry.cut(step, reason)
            {
                if reason == Cut::LargeHeader && fd::written(fd) == Some(entry.answered.load(Relaxed)) {
                    // said here, since reading on (to be told by the end of the stream) is what must end
                    let _ = fd::send(fd, &TOO_LARGE.to_bytes(true));
                }
                fd::shutdown(fd, half);
            }
        }
    }
}

/// Too many header lines, or too much of one.
pub const TOO_LARGE: Answer =
    Answer::fixed(431, r#"{"error":"more than 16 header lines, a line too large, or no proper HTTP/1.1"}"#);

/// A connection that was cut goes by itself, once it has said its last word; one that does not is told again.
fn see_off(entry: &Entry, step: Step, deadlines: &Deadlines, now: u64) {
    let mut watch = entry.watch.lock();
    let Some(fd) = watch.fd else { return };
    if watch.step != step {
        watch.step = step;
        watch.look_at_ms = now + deadlines.body + LAST_WORD_MS;
    } else if now >= watch.look_at_ms {
        watch.look_at_ms = now + LAST_WORD_MS;
        fd::shutdown(fd, Half::Both);
        fd::nudge(fd);
    }
}

fn end(entry: &Entry, seen: Step, reason: Cut, half: Half) {
    let watch = entry.watch.lock();
    if let Some(fd) = watch.fd
        && entry.cut(seen, reason)
    {
        fd::shutdown(fd, half);
    }
}

fn read_bytes(fd: RawFd) -> u64 {
    let unread = fd::unread(fd);
    fd::counted(fd).map_or(0, |counted| counted.received.saturating_sub(unread))
}

/// Why a waiting connection has to end, if it has to.
fn late(
    watch: &mut Watch,
    fd: RawFd,
    entry: &Entry,
    deadlines: &Deadlines,
    now: u64,
    age: u64,
) -> Option<(Cut, Half)> {
    let unread = fd::unread(fd);
    let counted = fd::counted(fd)?;
    if unread > 0 || counted.half_closed {
        // may_minihttp may have used up the report of it while it read the last body, and would wait for ever
        fd::nudge(fd);
    }
    let read = counted.received.saturating_sub(unread).saturating_sub(watch.read_before);
    if read > 0 {
        let since = *watch.partial_since_ms.get_or_insert(now);
        // not before it is a tick old: a request that is just being taken up is none of ours
        if read > HEADER_MAX && age >= deadlines.tick {
            return Some((Cut::LargeHeader, Half::Both));
        }
        if now - since >= deadlines.header {
            return Some((Cut::LateHeader, Half::Read));
        }
        watch.pause_ms = deadlines.tick;
    } else {
        watch.pause_ms = (watch.pause_ms * 2).clamp(deadlines.tick, PAUSE_MAX_MS.max(deadlines.tick));
    }
    watch.look_at_ms = now + watch.pause_ms.min(deadlines.header / 4 + 1);
    let behind = entry.answered.load(Relaxed).saturating_sub(counted.acked);
    if behind > 0 && age >= deadlines.body {
        return Some((Cut::SlowReader, Half::Both));
    }
    (read == 0 && age >= deadlines.idle).then_some((Cut::Idle, Half::Read))
}

/// Ends every connection that has no request under way; for a drain. How many are left.
pub fn end_idle(shared: &Shared, all: &mut Vec<Arc<Entry>>) -> usize {
    shared.table.copy(all);
    for entry in all.drain(..) {
        let step = entry.step();
        if step.phase() != Phase::Wait {
            continue;
        }
        let watch = entry.watch.lock();
        let Some(fd) = watch.fd else { continue };
        let counted = fd::counted(fd).unwrap_or_default();
        let begun = watch.partial_since_ms.is_some() && watch.step == step;
        let first = entry.answered.load(Relaxed) == 0 && counted.received > 0 && !counted.half_closed;
        let behind = entry.answered.load(Relaxed) > counted.acked;
        if !begun && !first && !behind && fd::unread(fd) == 0 && entry.cut(step, Cut::Drained) {
            fd::shutdown(fd, Half::Read);
        }
    }
    shared.table.open()
}

/// Ends all that are left, whatever they do. How many.
pub fn end_all(shared: &Shared, all: &mut Vec<Arc<Entry>>) -> usize {
    shared.table.copy(all);
    let mut ended = 0;
    for entry in all.drain(..) {
        let watch = entry.watch.lock();
        if let Some(fd) = watch.fd {
            entry.end(Cut::Drained);
            fd::shutdown(fd, Half::Both);
            ended += 1;
        }
    }
    ended
}
