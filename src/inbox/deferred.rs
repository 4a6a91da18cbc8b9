//! Bodies that are on disk and whose items are not in their table yet.
//!
//! An item costs a third as much when thousands of them go into the table together, sorted, as when each commit
//! brings its own few: they share pages of the index, and each page is written twice (log and file). What nobody waits
//! for can wait: statuses up to [`OPEN_MAX`], messages up to [`FRESH_MAX`] under load and not at all otherwise, since
//! the dispatcher gets them once they are known to be new. Bounded by items and bytes; what a crash loses of it is
//! derived again from the bodies.

use std::ops::Range;
use std::time::Duration;

use super::committer::OPEN_MAX;
use super::derive::Body;
use super::frames;
use super::queue::Append;
use crate::clock::UnixMillis;
use crate::event::Item;

/// So many items go into their table at the latest.
const ITEMS_MAX: usize = 2_000;
/// Bodies of so many bytes are held at most (one commit more).
const BYTES_MAX: usize = 8 << 20;
/// Under load, how long an answerable item waits for others, from the begin of its commit.
const FRESH_MAX: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Default)]
pub struct Deferred {
    bytes: Vec<u8>,
    bodies: Vec<Placed>,
    items: Vec<Item>,
    /// Of all bodies.
    held: usize,
    /// Since when the oldest waits.
    since: Duration,
    has_answerable: bool,
}

struct Placed {
    commit: u64,
    nth: u32,
    app: u64,
    received_ms: UnixMillis,
    bytes: Bytes,
    items: Range<usize>,
}

/// Where a body's bytes are.
pub enum Bytes {
    /// Among those that [`Deferred::add_bytes`] added.
    Shared(Range<usize>),
    /// A large body's own: nobody copies it.
    Own(Vec<u8>),
}

impl Bytes {
    /// In memory.
    fn len(&self) -> usize {
        match self {
            Self::Shared(range) => range.len(),
            Self::Own(bytes) => bytes.capacity(),
        }
    }
}

impl Deferred {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// Whether more bytes wait than should.
    pub fn is_full(&self) -> bool {
        self.held >= BYTES_MAX
    }

    /// When the oldest has waited long enough.
    pub fn due_at(&self) -> Option<Duration> {
        let patience = if self.has_answerable { FRESH_MAX } else { OPEN_MAX };
        (!self.is_empty()).then(|| self.since + patience)
    }

    /// Whether to derive now. `is_calm`: there is no load, so that nothing is gained by waiting.
    pub fn is_due(&self, now: Duration, is_calm: bool) -> bool {
        self.items.len() >= ITEMS_MAX
            || self.is_full()
            || (is_calm && self.has_answerable)
            || self.due_at().is_some_and(|at| now >= at)
    }

    /// Adds a commit's bodies end to end, before it is stored; returns where they begin. Large ones are none of them.
    pub fn add_bytes<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) -> usize {
        let start = self.bytes.len();
        bodies.for_each(|body| self.bytes.extend_from_slice(body));
        start
    }

    /// What [`Deferred::add_bytes`] added.
    pub fn bytes_from(&self, start: usize) -> &[u8] {
        &self.bytes[start..]
    }

    /// Notes the body of a stored commit whose bytes begin at `start`, unless it is a large one: then it takes them.
    /// Returns where they end.
    pub fn add(
        &mut self,
        commit: u64,
        nth: usize,
        append: &mut Append,
        received_ms: UnixMillis,
        start: usize,
    ) -> usize {
        let (bytes, end) = if frames::is_large(&append.body) {
            (Bytes::Own(std::mem::take(&mut append.body)), start)
        } else {
            let end = start + append.body.len();
            (Bytes::Shared(start..end), end)
        };
        self.place(commit, nth, append.app, received_ms, bytes, &append.items);
        end
    }

    /// The same for a body that was read back.
    pub fn place(
        &mut self,
        commit: u64,
        nth: usize,
        app: u64,
        received_ms: UnixMillis,
        bytes: Bytes,
        items: &[Item],
    ) {
        self.held += bytes.len();
        let first = self.items.len();
        self.items.extend_from_slice(items);
        self.has_answerable |= items.iter().any(|item| item.kind.is_answered());
        let items = first..self.items.len();
        self.bodies.push(Placed { commit, nth: nth as u32, app, received_ms, bytes, items });
    }

    /// The wait begins, if it has not.
    pub fn began(&mut self, was_empty: bool, now: Duration) {
        if was_empty {
            self.since = now;
        }
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// In order of arrival.
    pub fn bodies(&self) -> impl ExactSizeIterator<Item = Body<'_>> {
        self.bodies.iter().map(|placed| self.as_body(placed))
    }

    /// By its place in that order.
    pub fn body(&self, at: u32) -> Body<'_> {
        self.as_body(&self.bodies[at as usize])
    }

    fn as_body<'d>(&'d self, placed: &'d Placed) -> Body<'d> {
        Body {
            commit: placed.commit,
            nth: placed.nth,
            app: placed.app,
            received_ms: placed.received_ms,
            bytes: match &placed.bytes {
                Bytes::Shared(range) => &self.bytes[range.clone()],
                Bytes::Own(bytes) => bytes,
            },
            items: &self.items[placed.items.clone()],
        }
    }

    /// Empties it, and gives back what an unusual commit made it grow by.
    pub fn clear(&mut self) {
        self.held = 0;
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_MAX);
        self.bodies.clear();
        self.bodies.shrink_to(2 * ITEMS_MAX);
        self.items.clear();
        self.items.shrink_to(2 * ITEMS_MAX);
        self.has_answerable = false;
    }
}
