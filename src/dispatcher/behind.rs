//! PURE: how far one number's work was considered; which offers are taken, which are left on disk.
//!
//! The problem: the committer offers fresh work at any moment, pages of the same work are read from disk at
//! any moment, and every item must be taken exactly once and in order, while memory is bounded. The protocol:
//!
//! 1. A number is *live* or *behind*. `cursor`: every item up to it was considered (taken, or not open).
//!    While live, fresh offers are taken; while behind, only pages are. So there is one source of work at a
//!    time.
//! 2. Falling behind at an offer `p`: all earlier offers of the number were taken (it was live, and offers
//!    come in order), none from `p` on is. So `cursor = before(p)`, `target = p`. Later offers are refused
//!    and raise `target`; they are stored already.
//! 3. A page after `cursor` is taken as a whole (room for it was set aside before it was read). Then `cursor`
//!    is the page's `covered` if it was short, else its last item.
//! 4. Back to live exactly when `cursor >= target`: everything refused so far was considered. (A full page
//!    can bring that about too: what is open after its last item was never offered.) This is decided under
//!    the lock under which offers are decided: an offer comes wholly before it (raises `target`) or wholly
//!    after it (is taken).
//! 5. The store is ahead of the offers: a page may hold an item whose offer is still on its way. Therefore
//!    `cursor` outlives the page: an offer at or before it is *known* and dropped, live or behind.
//! 6. `rewind` (items were put back behind the cursor): behind again, `cursor` = the start, `target` = how
//!    far the store reached (or what it was, if later). `seen` = positions of the works in memory now; pages
//!    skip them. A page that was being read is thrown away when it arrives. An item that ended before the
//!    rewind is not open in a page read after it ([`Inbox::pending`](crate::inbox::Inbox::pending) sees every
//!    change recorded before the call); one that ends later was in memory, so it is in `seen`. `seen` shrinks
//!    as the cursor passes.
//! 7. A start is a rewind with nothing in memory. Before it, every number is behind.
//!
//! Relies on: offers of a number come in order, pages are in order, `covered` never exceeds what was
//! considered.

use std::collections::VecDeque;

use crate::event::Path;
use crate::inbox::{Position, Work};

/// What becomes of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Into memory.
    Take,
    /// Left on disk; a page will bring it.
    Refuse,
    /// A page brought it already.
    Known,
}

/// One number's place between memory and disk. The default is live, nothing considered.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    is_behind: bool,
    cursor: Position,
    target: Position,
    seen: VecDeque<Position>,
    /// The limit of the page that is being read, and whether a rewind made it worthless.
    reading: Option<(usize, bool)>,
}

impl Cursor {
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Everything up to here was considered by a page.
    pub(super) fn position(&self) -> Position {
        self.cursor
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Nothing would be forgotten with it: live, and the offers (up to `offered`) have passed the cursor.
    pub(super) fn is_forgettable(&self, offered: Position) -> bool {
        !self.is_behind && self.reading.is_none() && self.cursor <= offered
    }

    /// Decides an offer. `has_room`: memory for one more work of the number.
    pub(super) fn offer(&mut self, position: Position, has_room: bool) -> Verdict {
        if position <= self.cursor {
            return Verdict::Known;
        }
        if self.is_behind {
            self.target = self.target.max(position);
            return Verdict::Refuse;
        }
        if has_room {
            return Verdict::Take;
        }
        self.is_behind = true;
        self.cursor = before(position);
        self.target = position;
        Verdict::Refuse
    }

    /// An offer before the start: refused, to be read from the very beginning.
    pub(super) fn offer_before_start(&mut self, position: Position) {
        self.is_behind = true;
        self.target = self.target.max(position);
    }

    /// Everything again from the start up to `head`, but for the works in memory: `seen`, sorted.
    pub(super) fn rewind(&mut self, head: Position, seen: VecDeque<Position>) {
        self.target = if self.is_behind { self.target.max(head) } else { head };
        self.is_behind = true;
        self.cursor = Position::default();
        self.seen = seen;
        if let Some((_, is_stale)) = &mut self.reading {
            *is_stale = true;
        }
    }

    /// Begins a page: read it after the position that this returns. Only while behind and not reading.
    pub(super) fn begin(&mut self, limit: usize) -> Position {
        debug_assert!(self.is_behind && self.reading.is_none(), "one page at a time, only while behind");
        self.reading = Some((limit, false));
        self.cursor
    }

    /// The page could not be read.
    pub(super) fn failed(&mut self) {
        self.reading = None;
    }

    /// The page that `begin` asked for: leaves in `works` what is to be taken. Whether it got the number
    /// further.
    pub(super) fn page(&mut self, works: &mut Vec<Work>, covered: Position) -> bool {
        let Some((limit, is_stale)) = self.reading.take() else {
            works.clear();
            return false;
        };
        if is_stale {
            works.clear();
            return true;
        }
        let is_short = works.len() < limit;
        let last = works.last().map_or(self.cursor, |work| work.position);
        let end = if is_short { covered.max(last) } else { last };
        let start = self.cursor;
        let seen = &mut self.seen;
        let mut previous = start;
        works.retain(|work| {
            // an order that the inbox promises; a page that breaks it must not double anything
            if work.position <= previous {
                return false;
            }
            previous = work.position;
            while seen.front().is_some_and(|seen| *seen < work.position) {
                seen.pop_front();
            }
            seen.front() != Some(&work.position)
        });
        self.cursor = start.max(end);
        if self.cursor >= self.target {
            self.is_behind = false;
            self.seen = VecDeque::new();
        }
        self.cursor > start || !self.is_behind
    }
}

/// The greatest position smaller than `position`.
pub(super) fn before(position: Position) -> Position {
    let Position { commit, body, path: Path { entry, change, index } } = position;
    let path = |entry, change, index| Path { entry, change, index };
    if let Some(index) = index.checked_sub(1) {
        return Position { commit, body, path: path(entry, change, index) };
    }
    if let Some(change) = change.checked_sub(1) {
        return Position { commit, body, path: path(entry, change, u32::MAX) };
    }
    if let Some(entry) = entry.checked_sub(1) {
        return Position { commit, body, path: path(entry, u32::MAX, u32::MAX) };
    }
    let path = path(u32::MAX, u32::MAX, u32::MAX);
    if let Some(body) = body.checked_sub(1) {
        return Position { commit, body, path };
    }
    commit.checked_sub(1).map_or(position, |commit| Position { commit, body: u32::MAX, path })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::ItemId;

    fn at(commit: u64, index: u32) -> Position {
        Position { commit, body: 0, path: Path { entry: 0, change: 0, index } }
    }

    fn work(position: Position) -> Work {
        Work {
            id: ItemId { timestamp: position.commit, key: 0 },
            position,
            number: 1,
            conversation: 1,
            received_ms: 0,
            app: 0,
            body: Arc::from(&b""[..]),
        }
    }

    #[test]
    fn nothing_lies_between_a_position_and_the_one_before() {
        let max = u32::MAX;
        let path = |entry, change, index| Path { entry, change, index };
        let p = |commit, body, path| Position { commit, body, path };
        for (position, expected) in [
            (p(5, 4, path(3, 2, 1)), p(5, 4, path(3, 2, 0))),
            (p(5, 4, path(3, 2, 0)), p(5, 4, path(3, 1, max))),
            (p(5, 4, path(3, 0, 0)), p(5, 4, path(2, max, max))),
            (p(5, 4, path(0, 0, 0)), p(5, 3, path(max, max, max))),
            (p(5, 0, path(0, 0, 0)), p(4, max, path(max, max, max))),
            (Position::default(), Position::default()),
        ] {
            assert_eq!(before(position), expected);
        }
    }

    #[test]
    fn a_number_is_live_again_when_the_newest_refused_offer_was_considered() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.offer(at(1, 0), true), Verdict::Take);
        assert_eq!(cursor.offer(at(2, 0), false), Verdict::Refuse);
        assert_eq!(cursor.offer(at(3, 0), true), Verdict::Refuse, "room or not: it would overtake");
        assert_eq!(cursor.begin(10), before(at(2, 0)));
        let mut works = vec![work(at(2, 0))];
        assert!(cursor.page(&mut works, at(2, 0)));
        assert!(works.len() == 1 && cursor.is_behind(), "the store has not got the third yet");
        assert_eq!(cursor.begin(10), at(2, 0));
        let mut works = vec![work(at(3, 0)), work(at(4, 0))];
        assert!(cursor.page(&mut works, at(4, 0)));
        assert!(works.len() == 2 && !cursor.is_behind());
        assert_eq!(cursor.offer(at(4, 0), true), Verdict::Known, "the page was faster than the offer");
        assert_eq!(cursor.offer(at(5, 0), true), Verdict::Take);
    }

    #[test]
    fn a_rewind_skips_what_is_in_memory_and_throws_away_the_page_under_way() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.offer(at(4, 0), false), Verdict::Refuse);
        cursor.begin(10);
        cursor.rewind(at(3, 0), VecDeque::from([at(2, 0)]));
        let mut works = vec![work(at(4, 0))];
        cursor.page(&mut works, at(4, 0));
        assert!(works.is_empty() && cursor.is_behind());
        assert_eq!(cursor.begin(10), Position::default());
        let mut works = (1..=4).map(|commit| work(at(commit, 0))).collect();
        cursor.page(&mut works, at(4, 0));
        let taken: Vec<u64> = works.iter().map(|work| work.position.commit).collect();
        assert_eq!(taken, [1, 3, 4]);
        assert!(!cursor.is_behind());
    }
}
