//! Bodies that are on disk and whose items are not in their table yet.
//!
//! An item costs a third as much when thousands of them go into the table together, sorted, as when each commit
//! brings its own few: they share pages of the index, and each page is written twice (log and file). What nobody waits
//! for can wait: statuses up to [`OPEN_MAX`], messages up to [`FRESH_MAX`] under load and not at all otherwise, since
//! the dispatcher gets them once they are known to be new. Their bodies are held meanwhile, those of statuses not: few are
//! asked for again, and are read back then. Bounded by items and bytes; what a crash loses of it is derived again from the
//! bodies.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

use memchr::memmem::Finder;

use super::committer::OPEN_MAX;
use super::derive::Body;
use super::frames;
use super::queue::Append;
use crate::clock::UnixMillis;
use crate::event::{Item, Kind};

/// So many items go into their table at the latest: the more at once, the more share a page. At 90,000 statuses a second
/// 8,000 write half of what 2,000 do.
const ITEMS_MAX: usize = 8_000;
/// Beyond so many, what is under way is hurried.
const ITEMS_FULL: usize = 2 * ITEMS_MAX;
/// Bodies of so many bytes are held at most (one commit more).
const BYTES_MAX: usize = 8 << 20;
/// Under load, how long an answerable item waits for others, from the begin of its commit.
const FRESH_MAX: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Default)]
pub struct Deferred {
    /// Small bodies that are held, end to end.
    bytes: Vec<u8>,
    bodies: Vec<Placed>,
    items: Vec<Item>,
    /// Bytes of all bodies that are held.
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
    mentions_failed: bool,
    items: Range<usize>,
}

/// Where a body's bytes are.
enum Bytes {
    /// In the store only: nothing in it goes to the dispatcher, and what else is asked of it is seldom asked.
    Stored,
    /// Among [`Deferred::bytes`].
    Shared(Range<usize>),
    /// A large body's own: nobody copies it.
    Own(Vec<u8>),
}

impl Deferred {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// Whether more waits than should.
    pub fn is_full(&self) -> bool {
        self.held >= BYTES_MAX || self.items.len() >= ITEMS_FULL
    }

    /// Whether something in it is to be answered.
    pub fn has_answerable(&self) -> bool {
        self.has_answerable
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

    /// Adds a body of a commit that is stored. Takes its bytes if they are many and to be held.
    pub fn add(&mut self, commit: u64, nth: usize, append: &mut Append, received_ms: UnixMillis) {
        let of_body = Placed::new(commit, nth, append.app, received_ms, &append.body, &append.items);
        let is_held = append.items.iter().any(|item| item.kind.is_answered());
        let bytes = match is_held {
            false => Bytes::Stored,
            true if frames::is_large(&append.body) => Bytes::Own(std::mem::take(&mut append.body)),
            true => self.share(&append.body),
        };
        self.place(Placed { bytes, ..of_body }, &append.items);
    }

    /// The same for a body that was read back.
    pub fn add_read(
        &mut self,
        commit: u64,
        nth: usize,
        app: u64,
        received_ms: UnixMillis,
        body: &[u8],
        items: &[Item],
    ) {
        let of_body = Placed::new(commit, nth, app, received_ms, body, items);
        let bytes = self.share(body);
        self.place(Placed { bytes, ..of_body }, items);
    }

    fn share(&mut self, body: &[u8]) -> Bytes {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(body);
        Bytes::Shared(start..self.bytes.len())
    }

    fn place(&mut self, placed: Placed, items: &[Item]) {
        self.held += match &placed.bytes {
            Bytes::Stored => 0,
            Bytes::Shared(range) => range.len(),
            Bytes::Own(bytes) => bytes.capacity(),
        };
        let first = self.items.len();
        self.items.extend_from_slice(items);
        self.has_answerable |= items.iter().any(|item| item.kind.is_answered());
        self.bodies.push(Placed { items: first..self.items.len(), ..placed });
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
                Bytes::Stored => None,
                Bytes::Shared(range) => Some(&self.bytes[range.clone()]),
                Bytes::Own(bytes) => Some(bytes),
            },
            mentions_failed: placed.mentions_failed,
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

impl Placed {
    /// Without its bytes and its items.
    fn new(commit: u64, nth: usize, app: u64, received_ms: UnixMillis, body: &[u8], items: &[Item]) -> Self {
        let names_reply = items.iter().any(|item| item.kind == Kind::Status && item.conversation != 0);
        Self {
            commit,
            nth: nth as u32,
            app,
            received_ms,
            bytes: Bytes::Stored,
            mentions_failed: names_reply && mentions_failed(body),
            items: 0..0,
        }
    }
}

/// Cheap: whether it pays to read the statuses of a body that names a reply which is not in flight.
fn mentions_failed(body: &[u8]) -> bool {
    static FAILED: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"failed\""));
    FAILED.find(body).is_some()
}
