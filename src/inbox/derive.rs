//! From bodies to items: which are new, what statuses prove, and what goes to the dispatcher.
//!
//! Runs in transactions after the one that stored the bodies. A key that is there already is a duplicate, once the
//! texts of the keys are compared: two keys of one hash get two rows (the second one's key is counted up).

use std::borrow::Cow;
use std::sync::Arc;

use super::bulk::Bulk;
use super::committer::{Committer, PACED_GROUP_MIN};
use super::compare::Compare;
use super::deferred::Deferred;
use super::frames::Bounds;
use super::insert::{self, Insert, Row};
use super::tables::{self, ReplyKey, Tables};
use super::{Evidence, Position, ReplyState, StatusSaid, Work};
use crate::clock::{self, UnixMillis};
use crate::event::{Item, ItemId, Kind, Path, hash64};
use crate::failure::Reason;

/// Keys of one hash in one second that are told apart. More would take a search for collisions of XXH3.
const COLLISIONS_MAX: u64 = 16;

/// A body of a stored commit.
pub struct Body<'a> {
    pub commit: u64,
    pub nth: u32,
    pub app: u64,
    pub received_ms: UnixMillis,
    /// `None`: they are in the store only, see [`Body::read`].
    pub bytes: Option<&'a [u8]>,
    /// It names a reply, and says `failed` somewhere.
    pub mentions_failed: bool,
    pub items: &'a [Item],
}

impl<'a> Body<'a> {
    /// Its bytes, from the store if need be; `None`: they can't be read, which the log tells.
    pub fn read(&self, tables: &Tables) -> rusqlite::Result<Option<Cow<'a, [u8]>>> {
        if let Some(bytes) = self.bytes {
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        let stored = tables::body(tables.connection(), self.commit, self.nth)?;
        Ok(stored.map(|(bytes, _, _)| Cow::Owned(bytes)))
    }
}

impl Committer {
    /// Puts the next of the items that wait into their table, if it is time; whether new answerable ones were offered.
    pub fn derive_if_due(&mut self) -> rusqlite::Result<Option<bool>> {
        if self.bulk.is_empty() {
            if !self.deferred.is_due(clock::monotonic(), self.last_group < PACED_GROUP_MIN) {
                return Ok(None);
            }
            self.bulk.take(&mut self.deferred);
        }
        self.step_aside()?;
        self.derive_next(self.bulk.slice(&self.deferred)).map(Some)
    }

    /// The same for all that waits.
    pub fn derive_all(&mut self) -> rusqlite::Result<()> {
        while !self.bulk.is_empty() || !self.deferred.is_empty() {
            if self.bulk.is_empty() {
                self.bulk.take(&mut self.deferred);
            }
            self.step_aside()?;
            self.derive_next(usize::MAX)?;
        }
        Ok(())
    }

    fn derive_next(&mut self, count: usize) -> rusqlite::Result<bool> {
        self.ensure_open()?;
        let mut bulk = std::mem::take(&mut self.bulk);
        let is_done = self.derive_some(&mut bulk, count)?;
        let fresh = if is_done { self.derived(&mut bulk)? } else { Vec::new() };
        if is_done {
            bulk.clear();
        }
        self.bulk = bulk;
        let feed = self.shared.feed.lock().clone();
        let is_fresh = !fresh.is_empty();
        if let Some(feed) = feed
            && is_fresh
        {
            feed.offer(fresh);
        }
        Ok(is_fresh)
    }

    /// Inserts the next items of `bulk`, about so many; whether that were the last ones.
    fn derive_some(&mut self, bulk: &mut Bulk, count: usize) -> rusqlite::Result<bool> {
        let Bulk { deferred, order, at, new, statuses, compare } = bulk;
        let end = order.len().min(at.saturating_add(count));
        let already = new.len();
        let mut insert = Insert::new(self.tables.connection())?;
        for some in order[*at..end].chunks(insert::TOGETHER) {
            let rows = some.iter().map(|(id, b, i)| {
                let body = deferred.body(*b);
                Row { id: *id, item: &body.items[*i as usize], commit: body.commit, body: body.nth }
            });
            let all_new = some.len() == insert::TOGETHER && insert.items(rows.clone())?;
            for ((id, b, i), row) in some.iter().zip(rows) {
                super::ITEMS.inc(row.item.kind as usize - 1);
                let inserted = if all_new {
                    Some(*id)
                } else {
                    self.insert(&mut insert, compare, (*b, &deferred.body(*b)), row)?
                };
                match inserted {
                    Some(id) if row.item.kind.is_answered() => new.push((*b, *i, id)),
                    Some(_) if row.item.kind == Kind::Status && row.item.conversation != 0 => {
                        statuses.push((*b, *i));
                    }
                    Some(_) => {}
                    None => super::DUPLICATES.inc(),
                }
            }
        }
        drop(insert);
        *at = end;
        self.counters.add_pending((new.len() - already) as u64);
        Ok(end == order.len())
    }

    /// What follows once all items of `bulk` are in their table: what its statuses prove, and the new answerable items in
    /// order of arrival.
    fn derived(&mut self, bulk: &mut Bulk) -> rusqlite::Result<Vec<Work>> {
        let Bulk { deferred, new, statuses, .. } = bulk;
        statuses.sort_unstable();
        for of_body in statuses.chunk_by(|a: &(u32, u32), b| a.0 == b.0) {
            self.statuses(&deferred.body(of_body[0].0), of_body)?;
        }
        new.sort_unstable();
        let mut fresh = Vec::with_capacity(new.len());
        let mut shared: Option<(u32, Arc<[u8]>)> = None;
        for (b, i, id) in new.drain(..) {
            let body = deferred.body(b);
            let item = &body.items[i as usize];
            let bytes = match &shared {
                Some((of, bytes)) if *of == b => Arc::clone(bytes),
                _ => Arc::from(body.read(&self.tables)?.unwrap_or_default()),
            };
            shared = Some((b, Arc::clone(&bytes)));
            fresh.push(Work {
                id,
                position: Position { commit: body.commit, body: body.nth, path: item.path },
                number: item.number,
                conversation: item.conversation,
                received_ms: body.received_ms,
                app: body.app,
                body: bytes,
            });
        }
        if let Some(last) = deferred.bodies().last() {
            self.tables.set_derived(last.commit)?;
        }
        Ok(fresh)
    }

    /// The id under which it was inserted; `None` for a duplicate.
    fn insert(
        &self,
        insert: &mut Insert<'_>,
        compare: &mut Compare,
        body: (u32, &Body<'_>),
        mut row: Row<'_>,
    ) -> rusqlite::Result<Option<ItemId>> {
        for _ in 0..COLLISIONS_MAX {
            if insert.item(row)? {
                return Ok(Some(row.id));
            }
            let Some(place) = self.tables.place(row.id)? else { return Ok(None) };
            if place.is(row.commit, row.body, row.item.path) {
                // inserted together with others, or by the last process, which had not come to what follows
                return Ok(Some(row.id));
            }
            if compare.is_same(&self.tables, &self.parser, body, row.item, place)? {
                return Ok(None);
            }
            super::COLLISIONS.inc();
            row.id.key = row.id.key.wrapping_add(1);
        }
        Ok(None)
    }

    /// Statuses of one body may settle sends of unknown outcome, or tell that what was accepted was not delivered.
    fn statuses(&mut self, body: &Body<'_>, which: &[(u32, u32)]) -> rusqlite::Result<()> {
        let named = |item: &Item| self.flights.find(item.conversation, item.number);
        let items = which.iter().map(|(_, i)| &body.items[*i as usize]);
        let wanted: Vec<(&Item, Option<ReplyKey>)> = items
            .map(|item| (item, named(item)))
            .filter(|(_, named)| named.is_some() || body.mentions_failed)
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let paths: Vec<Path> = wanted.iter().map(|(item, _)| item.path).collect();
        let Some(bytes) = body.read(&self.tables)? else { return Ok(()) };
        let said = (self.parser.statuses)(&bytes, &paths);
        for ((item, named), said) in wanted.into_iter().zip(said) {
            if let Some(said) = said {
                self.status(item, named, &said)?;
            }
        }
        Ok(())
    }

    fn status(&mut self, item: &Item, named: Option<ReplyKey>, said: &StatusSaid) -> rusqlite::Result<()> {
        let Some(data) = said.callback_data.as_deref() else { return Ok(()) };
        let Some(key) = ReplyKey::parse(data, self.instance) else { return Ok(()) };
        match named {
            Some(flying) if flying == key => {
                let evidence = match said.failed {
                    Some(code) => Evidence::Failed(said.wamid.clone(), code),
                    None => Evidence::Sent(said.wamid.clone()),
                };
                super::EVIDENCE.inc();
                self.settle_reply(key, ReplyState::Sent, Some(&said.wamid), None)?;
                if let Some(code) = said.failed {
                    self.tables.note_undelivered(key, &Reason::graph(code))?;
                }
                self.flights.report(item.conversation, evidence);
            }
            _ => {
                if let Some(code) = said.failed {
                    super::UNDELIVERED.inc();
                    self.tables.note_undelivered(key, &Reason::graph(code))?;
                }
            }
        }
        Ok(())
    }

    /// At the start: derives the commits whose items did not reach their table before the process ended.
    pub fn catch_up(&mut self) -> rusqlite::Result<()> {
        let (from, to) = (self.tables.derived()?, self.tables.last_commit()?);
        for commit in from + 1..=to {
            self.tables.begin()?;
            self.derive_stored(commit)?;
            self.tables.commit()?;
        }
        if to > from {
            log::info!("inbox: derived the items of {} commits that the last stop left", to - from);
        }
        Ok(())
    }

    fn derive_stored(&mut self, commit: u64) -> rusqlite::Result<()> {
        let found = self
            .tables
            .connection()
            .prepare_cached("SELECT bounds, bodies, received_ms FROM commits WHERE id = ?1")?
            .query_row([commit as i64], |r| {
                Ok((r.get::<_, Vec<u8>>(0)?, r.get::<_, Vec<u8>>(1)?, r.get::<_, i64>(2)?))
            });
        let (bounds, blob, at) = match found {
            Ok(row) => row,
            Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(()),
            Err(e) => return Err(e),
        };
        let Some(bounds) = Bounds::read(&bounds) else {
            tables::tell_damaged(commit);
            return Ok(());
        };
        let (blob, damaged) = bounds.unpack(blob);
        if !damaged.is_empty() {
            tables::tell_damaged(commit);
        }
        let mut deferred = Deferred::default();
        let mut items = Vec::new();
        for (nth, (body, app)) in bounds.bodies().enumerate() {
            let body = body.start.min(blob.len())..body.end.min(blob.len());
            items.clear();
            let is_lost = damaged.iter().any(|damaged| damaged.start < body.end && body.start < damaged.end);
            if is_lost {
                items.push(lost(commit, nth as u32, at as u64));
            } else {
                (self.parser.items)(&blob[body.clone()], &mut items);
            }
            deferred.add_read(commit, nth, app, at as u64, &blob[body], &items);
        }
        let mut bulk = Bulk::default();
        bulk.take(&mut deferred);
        self.derive_some(&mut bulk, usize::MAX)?;
        self.derived(&mut bulk).map(drop)
    }
}

/// Stands for a body that can't be read any more, so that it is seen that there was one.
fn lost(commit: u64, nth: u32, received_ms: UnixMillis) -> Item {
    Item {
        kind: Kind::Unparsed,
        path: Path::default(),
        timestamp: received_ms / 1000,
        key: hash64(&[b"lost", &commit.to_le_bytes(), &nth.to_le_bytes()]),
        number: 0,
        conversation: 0,
    }
}
