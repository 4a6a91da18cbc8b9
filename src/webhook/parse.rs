//! What a body holds, as items: numbers only. Runs inside the request, so it takes about as long as reading
//! the body.
//!
//! Never fails: what is not understood becomes one [`Kind::Unparsed`] item, so that every body that is stored
//! ends in a state. Every entry, change, message, status and error becomes an item; `field` decides before
//! `messages` does. simd-json checks the body and lays out a tape in buffers that are kept; `scan` takes over
//! where the tape is of no use, with the same items. Neither recurses or builds a value; what they hold is
//! bounded by the body's size.
//!
//! Of a key that comes twice in one object the last counts. A `messages` change, or an entry, in which
//! nothing is found gives one [`Kind::OtherField`] item; a body without any entry gives one `Unparsed` item.

use std::cell::RefCell;

use simd_json::{Buffers, Node, StaticNode, Tape};

use super::facts::{
    CONTACTS_MAX, Change, Contact, Key, MessageFacts, StatusFacts, Value, is_known_field, seconds,
};
use super::{SCANNED, TOO_MANY, UNKNOWN_FIELDS, UNKNOWN_TYPES, UNPARSED, scan};
use crate::event::{Item, Kind, Path};

/// The most items of one body. Meta batches at most 1,000 updates; a body with more is kept as `unparsed`.
pub const ITEMS_MAX: usize = 10_000;

/// Bodies that may have more nodes than this are scanned: a tape takes 24 bytes for each. Meta's largest have about 200,000.
pub const TAPE_NODES_MAX: usize = 512 << 10;

/// Buffers whose tape grew beyond this many nodes, of 24 bytes, are given back: Meta's batches of 1,000 updates stay below,
/// and fresh memory for each of them would cost a twentieth of what they cost.
const KEPT_NODES_MAX: usize = 128 << 10;
/// The same for a body's copy, in bytes.
const KEPT_BODY_MAX: usize = 1 << 20;
/// The same for a body that is no JSON, in bytes.
const KEPT_REFUSED_MAX: usize = 64 << 10;

/// Whether a body was understood. In both cases there is at least one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its items are what it holds.
    Understood,
    /// It is one item of [`Kind::Unparsed`].
    Unparsed(NotUnderstood),
}

/// Why a body was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotUnderstood {
    /// Not one JSON text in UTF-8 (a byte order mark and trailing bytes are not JSON either).
    NotJson,
    /// JSON, but no object with entries in it.
    NoEntry,
    /// More than [`ITEMS_MAX`] items.
    TooMany,
}

/// Fills `items` (cleared first) with what `body` holds, in its order: per change messages, statuses, errors.
pub fn parse(body: &[u8], items: &mut Vec<Item>) -> Outcome {
    let mut sink = Sink::new(items);
    let read = match on_tape(body, &mut sink) {
        Err(Stop::Tape) => {
            SCANNED.inc();
            sink = Sink::new(items);
            scan::items(body, &mut sink)
        }
        read => read,
    };
    let reason = match read {
        Ok(()) if sink.len() > 0 => {
            sink.count();
            return Outcome::Understood;
        }
        Ok(()) => NotUnderstood::NoEntry,
        Err(Stop::TooMany) => NotUnderstood::TooMany,
        Err(Stop::Tape | Stop::NotJson) => NotUnderstood::NotJson,
    };
    let counter = if reason == NotUnderstood::TooMany { &TOO_MANY } else { &UNPARSED };
    counter.inc();
    items.clear();
    items.push(unparsed(body));
    Outcome::Unparsed(reason)
}

fn unparsed(body: &[u8]) -> Item {
    let key = Key::of_body(body).hash();
    Item { kind: Kind::Unparsed, path: Path::default(), timestamp: 0, key, number: 0, conversation: 0 }
}

/// Why a way to read a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The tape is of no use: refused, too large, or the bytes of a part are its key.
    Tape,
    /// Not JSON.
    NotJson,
    /// More than [`ITEMS_MAX`] items.
    TooMany,
}

/// Where the items go, whichever way they are found.
pub(super) struct Sink<'i> {
    items: &'i mut Vec<Item>,
    unknown_fields: u64,
    unknown_types: u64,
}

impl<'i> Sink<'i> {
    pub(super) fn new(items: &'i mut Vec<Item>) -> Self {
        items.clear();
        Self { items, unknown_fields: 0, unknown_types: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    fn count(&self) {
        if self.unknown_fields > 0 {
            UNKNOWN_FIELDS.add(self.unknown_fields);
        }
        if self.unknown_types > 0 {
            UNKNOWN_TYPES.add(self.unknown_types);
        }
    }

    fn push(&mut self, item: Option<Item>) -> Result<(), Stop> {
        if self.items.len() == ITEMS_MAX {
            return Err(Stop::TooMany);
        }
        self.items.push(item.ok_or(Stop::Tape)?);
        Ok(())
    }

    /// The bytes are of its value; `None` where they are not known, here and below.
    pub(super) fn change(&mut self, change: &Change<'_>, path: Path, raw: Option<&[u8]>) -> Result<(), Stop> {
        if !is_known_field(&change.field) {
            self.unknown_fields += 1;
        }
        self.push(raw.map(|raw| change.item(path, raw)))
    }

    pub(super) fn error(&mut self, change: &Change<'_>, path: Path, raw: Option<&[u8]>) -> Result<(), Stop> {
        self.push(raw.map(|raw| change.error_item(path, raw)))
    }

    pub(super) fn message(
        &mut self,
        facts: &MessageFacts<'_>,
        change: &Change<'_>,
        contacts: &[Contact<'_>],
        path: Path,
        raw: Option<&[u8]>,
    ) -> Result<(), Stop> {
        let item = facts.item(change, contacts, path, raw);
        if item.is_some_and(|item| item.kind == Kind::UnknownType) {
            self.unknown_types += 1;
        }
        self.push(item)
    }

    pub(super) fn status(
        &mut self,
        facts: &StatusFacts<'_>,
        change: &Change<'_>,
        path: Path,
        raw: Option<&[u8]>,
    ) -> Result<(), Stop> {
        self.push(facts.item(change, path, raw))
    }
}

/// What simd-json works in, kept from body to body on each thread that reads some. Nothing yields while it is borrowed.
struct Scratch {
    body: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Scratch {
    fn new() -> Self {
        Self { body: Vec::new(), buffers: Buffers::default(), tape: Tape(Vec::new()) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// No tape of this body has more nodes. Each but the first stands behind a byte that opens or separates; those in strings
/// are counted too, and those that close, since simd-json makes room for nodes of them as well.
pub(super) fn nodes_max(body: &[u8]) -> usize {
    let precedes = |byte: &u8| u8::from(matches!(byte, b',' | b':' | b'[' | b'{' | b']' | b'}'));
    // so few at once that a byte can count them: then sixteen or more are looked at in one step
    1 + body.chunks(255).map(|some| usize::from(some.iter().map(precedes).sum::<u8>())).sum::<usize>()
}

/// Every item of a body into `sink`, by simd-json's tape.
pub(super) fn on_tape(body: &[u8], sink: &mut Sink<'_>) -> Result<(), Stop> {
    if body.len() > TAPE_NODES_MAX && nodes_max(body) > TAPE_NODES_MAX {
        return Err(Stop::Tape);
    }
    SCRATCH.with_borrow_mut(|scratch| {
        // simd-json decodes strings in place and reads past the end
        scratch.body.clear();
        scratch.body.extend_from_slice(body);
        scratch.body.resize(body.len() + simd_json::INPUT_PADDING, b' ');
        let mut tape = std::mem::replace(&mut scratch.tape, Tape(Vec::new())).reset();
        let filled =
            simd_json::fill_tape_padded(&mut scratch.body, body.len(), &mut scratch.buffers, &mut tape);
        let read = match filled {
            Ok(()) => Walk(&tape.0).body(sink),
            Err(_) => Err(Stop::Tape),
        };
        // of one that was refused the tape says nothing
        let is_kept = tape.0.capacity() <= KEPT_NODES_MAX
            && body.len() <= KEPT_BODY_MAX
            && (filled.is_ok() || body.len() <= KEPT_REFUSED_MAX);
        scratch.tape = tape.reset();
        if !is_kept {
            *scratch = Scratch::new();
        }
        read
    })
}

/// A tape: each object or array is followed by its members' names and values, or its elements, end to end.
#[derive(Clone, Copy)]
struct Walk<'t, 'a>(&'t [Node<'a>]);

impl<'t, 'a> Walk<'t, 'a> {
    /// The index behind the value at `at`.
    fn behind(self, at: usize) -> usize {
        match self.0[at] {
            Node::Object { count, .. } | Node::Array { count, .. } => at + 1 + count,
            Node::String(_) | Node::Static(_) => at + 1,
        }
    }

    /// Name and index of value of each member; none where `at` is no object.
    fn members(self, at: Option<usize>) -> impl Iterator<Item = (&'a str, usize)> + use<'t, 'a> {
        let (mut left, mut next) = match at.map(|at| (self.0[at], at)) {
            Some((Node::Object { len, .. }, at)) => (len, at + 1),
            _ => (0, 0),
        };
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let (name, value) = (self.0[next], next + 1);
            next = self.behind(value);
            match name {
                Node::String(name) => Some((name, value)),
                _ => None,
            }
        })
    }

    /// Index of each element; none where `at` is no array.
    fn elements(self, at: Option<usize>) -> impl Iterator<Item = usize> + use<'t, 'a> {
        let (mut left, mut next) = match at.map(|at| (self.0[at], at)) {
            Some((Node::Array { len, .. }, at)) => (len, at + 1),
            _ => (0, 0),
        };
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let at = next;
            next = self.behind(at);
            Some(at)
        })
    }

    /// The values of the members called `names`; of each the last.
    fn find<const N: usize>(self, at: Option<usize>, names: [&str; N]) -> [Option<usize>; N] {
        let mut found = [None; N];
        for (name, value) in self.members(at) {
            if let Some(nth) = names.iter().position(|wanted| *wanted == name) {
                found[nth] = Some(value);
            }
        }
        found
    }

    fn value(self, at: usize) -> Value<'a> {
        match self.0[at] {
            Node::String(text) => Value::Text(text.into()),
            Node::Object { .. } => Value::Object,
            Node::Array { .. } => Value::Array,
            Node::Static(StaticNode::U64(n)) => Value::Text(n.to_string().into()),
            Node::Static(_) => Value::Other,
        }
    }

    fn text(self, at: Option<usize>) -> std::borrow::Cow<'a, str> {
        at.map_or("".into(), |at| self.value(at).into_text())
    }

    fn body(self, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let [entries] = self.find(Some(0), ["entry"]);
        for (e, entry) in self.elements(entries).enumerate() {
            let path = Path { entry: e as u32, ..Path::default() };
            let [id, time, changes] = self.find(Some(entry), ["id", "time", "changes"]);
            let before = sink.len();
            for (c, raw) in self.elements(changes).enumerate() {
                let mut change =
                    Change { entry_id: self.text(id), time: seconds(&self.text(time)), ..Change::default() };
                self.change(&mut change, raw, Path { change: c as u32, ..path }, sink)?;
            }
            if sink.len() == before {
                let change =
                    Change { entry_id: self.text(id), time: seconds(&self.text(time)), ..Change::default() };
                sink.change(&change, path, Some(b""))?;
            }
        }
        Ok(())
    }

    fn change(
        self,
        change: &mut Change<'a>,
        raw: usize,
        path: Path,
        sink: &mut Sink<'_>,
    ) -> Result<(), Stop> {
        let [field, value] = self.find(Some(raw), ["field", "value"]);
        change.field = self.text(field);
        let before = sink.len();
        if change.field == "messages" {
            let names = ["metadata", "contacts", "messages", "statuses", "errors"];
            let [metadata, contacts, messages, statuses, errors] = self.find(value, names);
            let [number] = self.find(metadata, ["phone_number_id"]);
            change.set_phone_number_id(self.text(number));
            self.messages(change, contacts, messages, path, sink)?;
            for (s, status) in self.elements(statuses).enumerate() {
                let mut facts = StatusFacts::default();
                self.members(Some(status)).for_each(|(name, value)| facts.set(name, self.value(value)));
                sink.status(&facts, change, Path { index: s as u32, ..path }, None)?;
            }
            for (e, _) in self.elements(errors).enumerate() {
                sink.error(change, Path { index: e as u32, ..path }, None)?;
            }
        }
        if sink.len() == before { sink.change(change, path, None) } else { Ok(()) }
    }

    fn messages(
        self,
        change: &Change<'a>,
        contacts: Option<usize>,
        messages: Option<usize>,
        path: Path,
        sink: &mut Sink<'_>,
    ) -> Result<(), Stop> {
        if messages.is_none() {
            return Ok(());
        }
        let contact = |at| {
            let mut contact = Contact::default();
            self.members(Some(at)).for_each(|(name, value)| contact.set(name, self.value(value)));
            contact
        };
        let contacts = || self.elements(contacts).take(CONTACTS_MAX).map(contact).collect();
        let mut read: Option<Vec<_>> = None;
        for (m, message) in self.elements(messages).enumerate() {
            let mut facts = MessageFacts::default();
            self.members(Some(message)).for_each(|(name, value)| facts.set(name, self.value(value)));
            let contacts = match facts.needs_contacts() {
                true => &read.get_or_insert_with(contacts)[..],
                false => &[],
            };
            sink.message(&facts, change, contacts, Path { index: m as u32, ..path }, None)?;
        }
        Ok(())
    }
}
