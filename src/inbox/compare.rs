//! Whether two items of one hash are the same item: their bodies are the same, or the texts of their keys are.
//!
//! A redelivered body of 1,000 items asks 1,000 times, so each body is read, compared and taken apart once in a
//! derivation.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Parser;
use super::derive::Body;
use super::tables::{self, Place, Tables};
use crate::event::{Item, Kind, Path};

/// Bytes of stored bodies that are kept for the next question; one more body than that.
const BYTES_MAX: usize = 8 << 20;

type ByItem = HashMap<(Kind, Path), Option<Vec<u8>>>;

/// What was read so far; for one derivation.
#[derive(Default)]
pub struct Compare {
    /// Of the bodies that are derived, by their number.
    ours: HashMap<u32, Ours>,
    /// By commit and body; `None`: retention removed it.
    stored: HashMap<(u64, u32), Option<Stored>>,
    bytes: usize,
}

struct Ours {
    /// If they were in the store only.
    read: Option<Vec<u8>>,
    keys: Option<ByItem>,
}

struct Stored {
    bytes: Vec<u8>,
    /// The number of the body that it was compared with last, and whether they are equal.
    equals: Option<(u32, bool)>,
    keys: Option<ByItem>,
}

impl Compare {
    /// Whether `item` of `body`, which is number `nth`, is the one that is stored at `place`. If one of the bodies is
    /// gone, the hash decides.
    pub fn is_same(
        &mut self,
        tables: &Tables,
        parser: &Parser,
        (nth, body): (u32, &Body<'_>),
        item: &Item,
        place: Place,
    ) -> rusqlite::Result<bool> {
        let Some(kind) = place.kind.filter(|kind| *kind == item.kind) else { return Ok(false) };
        self.read(tables, (nth, body), place)?;
        let stored = self.stored.get_mut(&(place.commit, place.body)).and_then(Option::as_mut);
        let (Some(ours), Some(stored)) = (self.ours.get_mut(&nth), stored) else { return Ok(true) };
        let Some(bytes) = body.bytes.or(ours.read.as_deref()) else { return Ok(true) };
        if place.path == item.path && stored.equals(nth, bytes) {
            return Ok(true);
        }
        let theirs = stored.key(parser, kind, place.path);
        let ours = ours.keys.get_or_insert_with(|| keys_of(parser, bytes, body.items));
        let ours = ours.get(&(item.kind, item.path)).and_then(Option::as_ref);
        Ok(ours.is_none() || theirs.is_none() || ours == theirs)
    }

    /// Reads both bodies, if they are not in memory.
    fn read(&mut self, tables: &Tables, (nth, body): (u32, &Body<'_>), place: Place) -> rusqlite::Result<()> {
        if self.bytes > BYTES_MAX {
            self.stored.clear();
            self.ours.clear();
            self.bytes = 0;
        }
        if let Entry::Vacant(vacant) = self.ours.entry(nth) {
            let read = if body.bytes.is_some() { None } else { body.read(tables)?.map(Cow::into_owned) };
            self.bytes += read.as_ref().map_or(0, Vec::len);
            vacant.insert(Ours { read, keys: None });
        }
        if let Entry::Vacant(vacant) = self.stored.entry((place.commit, place.body)) {
            let found = tables::body(tables.connection(), place.commit, place.body)?;
            let stored = found.map(|(bytes, _, _)| Stored { bytes, equals: None, keys: None });
            self.bytes += stored.as_ref().map_or(0, |stored| stored.bytes.len());
            vacant.insert(stored);
        }
        Ok(())
    }
}

impl Stored {
    fn equals(&mut self, nth: u32, bytes: &[u8]) -> bool {
        match self.equals {
            Some((of, equal)) if of == nth => equal,
            _ => {
                let equal = self.bytes == bytes;
                self.equals = Some((nth, equal));
                equal
            }
        }
    }

    fn key(&mut self, parser: &Parser, kind: Kind, path: Path) -> Option<&Vec<u8>> {
        let keys = self.keys.get_or_insert_with(|| {
            let mut items = Vec::new();
            (parser.items)(&self.bytes, &mut items);
            keys_of(parser, &self.bytes, &items)
        });
        keys.get(&(kind, path)).and_then(Option::as_ref)
    }
}

fn keys_of(parser: &Parser, body: &[u8], items: &[Item]) -> ByItem {
    let places: Vec<(Kind, Path)> = items.iter().map(|item| (item.kind, item.path)).collect();
    let keys = (parser.keys)(body, &places);
    places.into_iter().zip(keys).collect()
}
