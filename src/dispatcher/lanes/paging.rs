//! What comes from disk: the start, pages of numbers that fell behind, a replay, open turns of an earlier
//! run.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::lane::{Lane, Stand};
use super::{Key, Lanes, READS_MAX, Share, Stage, Timer};
use crate::dispatcher::backoff;
use crate::inbox::{OpenTurn, Page, Position};

/// A page to read with [`Inbox::pending`](crate::inbox::Inbox::pending); ends with [`Lanes::page`] or
/// [`Lanes::page_failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Of which number.
    pub number: u64,
    /// Items after this.
    pub after: Position,
    /// At most so many.
    pub limit: usize,
}

impl Lanes {
    /// The start: `numbers` have open items, the store reaches to `head`. From now on turns start.
    pub fn opened(&mut self, numbers: &[u64], head: Position) {
        if self.stage == Stage::Starting {
            self.stage = Stage::Running;
        }
        self.rewind(numbers, head);
        let all: Vec<u64> = self.numbers.keys().copied().collect();
        for id in all {
            self.refresh(id);
        }
    }

    /// Open items may stand before the cursors: `numbers` have open items, the store reaches to `head`. They
    /// are read again from the start, but for the works that are in memory now.
    pub fn rewind(&mut self, numbers: &[u64], head: Position) {
        let mut seen: HashMap<u64, Vec<Position>, super::Mixed> =
            numbers.iter().map(|number| (*number, Vec::new())).collect();
        for (key, lane) in &self.lanes {
            if let Some(seen) = seen.get_mut(&key.number) {
                seen.extend(lane.positions());
            }
        }
        for (id, mut positions) in seen {
            positions.sort_unstable();
            let number = self.numbers.entry(id).or_default();
            self.behind += usize::from(!number.cursor.is_behind());
            number.cursor.rewind(head, VecDeque::from(positions));
            number.page_at = None;
            number.page_tries = 0;
            self.refresh(id);
        }
    }

    /// The next page to read, if there is one to read and room for it.
    pub fn next_read(&mut self) -> Option<Read> {
        if self.stage != Stage::Running {
            return None;
        }
        for _ in 0..self.reads.len() {
            if self.reading >= READS_MAX {
                return None;
            }
            let id = self.reads.pop_front()?;
            let limit = self.room(id).min(self.limits.page_items_max);
            let Some(number) = self.numbers.get_mut(&id) else { continue };
            number.is_asking = false;
            if !number.cursor.is_behind() || number.cursor.is_reading() || number.page_at.is_some() {
                continue;
            }
            if limit == 0 {
                // with works in memory, their end asks again
                if number.waiting == 0 && number.running == 0 {
                    number.is_asking = true;
                    self.reads.push_back(id);
                }
                continue;
            }
            number.page_limit = limit;
            self.reading += 1;
            self.reserved += limit;
            return Some(Read { number: id, after: number.cursor.begin(limit), limit });
        }
        None
    }

    /// Whether [`Lanes::next_read`] may have something.
    pub fn has_reads(&self) -> bool {
        !self.reads.is_empty() && self.reading < READS_MAX && self.stage == Stage::Running
    }

    /// A page arrived. Returns how many of its works were taken.
    pub fn page(&mut self, id: u64, page: Page, now: Duration) -> usize {
        let Page { mut works, covered } = page;
        let Some(number) = self.numbers.get_mut(&id).filter(|n| n.cursor.is_reading()) else { return 0 };
        self.reading -= 1;
        self.reserved -= std::mem::take(&mut number.page_limit);
        let got_further = number.cursor.page(&mut works, covered);
        if !number.cursor.is_behind() {
            self.behind -= 1;
            if number.cursor.position() > self.offered {
                self.ahead.push(Reverse((number.cursor.position(), id)));
            }
        }
        let taken = works.len();
        let mut works = works.into_iter();
        let mut share = Share::default();
        while let Some(work) = works.next() {
            let bytes = share.of(&work, works.as_slice());
            self.enqueue(work, bytes);
        }
        self.pace(id, taken > 0, got_further, now);
        self.let_go(id, now);
        self.refresh(id);
        taken
    }

    /// A page could not be read: again by backoff.
    pub fn page_failed(&mut self, id: u64, now: Duration) {
        let Some(number) = self.numbers.get_mut(&id).filter(|n| n.cursor.is_reading()) else { return };
        self.reading -= 1;
        self.reserved -= std::mem::take(&mut number.page_limit);
        number.cursor.failed();
        self.pace(id, false, false, now);
        self.refresh(id);
    }

    /// Before the start: an open turn. Returns false if memory is full: it and those after it were only noted
    /// and are to be given to [`Lanes::load_turn`] later.
    pub fn note_turn(&mut self, turn: OpenTurn) -> bool {
        let key = Key { number: turn.number, conversation: turn.conversation };
        let is_full = self.opens >= self.limits.opens_max || !self.unloaded.is_empty();
        if is_full {
            *self.unloaded.entry(key).or_default() += 1;
        } else {
            self.add_turn(key, turn);
        }
        !is_full
    }

    /// Whether noted turns are on disk and there is room for [`Lanes::load_turn`].
    pub fn wants_turns(&self) -> bool {
        !self.unloaded.is_empty() && self.opens <= self.limits.opens_max / 2 && self.stage == Stage::Running
    }

    /// A noted turn, in order.
    pub fn load_turn(&mut self, turn: OpenTurn) {
        let key = Key { number: turn.number, conversation: turn.conversation };
        let Some(left) = self.unloaded.get_mut(&key) else { return };
        *left -= 1;
        if *left == 0 {
            self.unloaded.remove(&key);
        }
        self.add_turn(key, turn);
        self.refresh(key.number);
    }

    /// All noted turns were given to [`Lanes::load_turn`]; the rest were settled meanwhile.
    pub fn all_turns_loaded(&mut self) {
        self.unloaded = HashMap::default();
        let blocked = self.lanes.iter().filter(|(_, lane)| lane.stand == Stand::Blocked);
        for key in blocked.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.make_ready(key);
            self.refresh(key.number);
        }
    }

    fn add_turn(&mut self, key: Key, turn: OpenTurn) {
        let number = self.numbers.entry(key.number).or_default();
        let lane = self.lanes.entry(key).or_insert_with(|| {
            number.lanes += 1;
            Lane::new(Stand::Blocked)
        });
        lane.opens.push_back(turn);
        self.opens += 1;
        if lane.stand == Stand::Blocked {
            self.make_ready(key);
        }
    }

    /// Works that the number may take into memory now.
    pub(super) fn room(&self, id: u64) -> usize {
        let limits = &self.limits;
        let (waiting, bytes) = self.numbers.get(&id).map_or((0, 0), |n| (n.waiting, n.bytes));
        if bytes >= limits.number_bytes_max || (self.bytes >= limits.bytes_max && bytes > 0) {
            return 0;
        }
        let used = self.waiting + self.reserved;
        // what held numbers keep may fill the memory for hours: whoever has nothing in it takes one work at a time
        let free = (limits.items_max * 2).saturating_sub(used).max(usize::from(waiting == 0));
        self.share().saturating_sub(waiting).min(free)
    }

    /// Works that any one number may keep waiting now: the less is free, the fewer.
    fn share(&self) -> usize {
        let limits = &self.limits;
        let free = limits.items_max.saturating_sub(self.waiting + self.reserved);
        (free / 8).clamp(limits.number_items_min, limits.number_items_max)
    }

    /// Lists the number for a page if it is behind and there is room for a good part of one. A number without
    /// any work in memory is always listed (nothing of its own would ask again); others ask again when theirs
    /// end, and [`Lanes::tick`] looks for room that others made.
    pub(super) fn want_page(&mut self, id: u64) {
        let room = self.room(id);
        let enough = self.limits.page_items_max.min(self.share() / 2).max(1);
        let Some(number) = self.numbers.get_mut(&id) else { return };
        let is_free = number.cursor.is_behind() && !number.cursor.is_reading() && !number.is_asking;
        let is_dry = number.waiting == 0 && number.running == 0;
        if is_free && number.page_at.is_none() && (room >= enough || is_dry) && self.stage == Stage::Running {
            number.is_asking = true;
            self.reads.push_back(id);
        }
    }

    /// Every number behind: is there room now?
    pub(super) fn look_again(&mut self) {
        let behind = self.numbers.iter().filter(|(_, number)| number.cursor.is_behind());
        for id in behind.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.want_page(id);
        }
    }

    /// When to read again: at once after a page that brought something, else a little later each time.
    fn pace(&mut self, id: u64, brought: bool, got_further: bool, now: Duration) {
        let Some(number) = self.numbers.get_mut(&id).filter(|n| n.cursor.is_behind()) else { return };
        if brought {
            number.page_tries = 0;
            return;
        }
        let wait = backoff::read(number.page_tries, backoff::next_seed(&mut self.seed));
        number.page_tries = if got_further { 0 } else { number.page_tries.saturating_add(1) };
        number.page_at = Some(now + wait);
        self.timers.push(Reverse((now + wait, Timer::Page(id))));
    }
}
