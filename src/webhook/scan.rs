//! Reads a body with serde_json without building anything: members and elements are slices of the body.
//!
//! It takes what simd-json refuses though nothing is lost by it (half a surrogate pair in somebody's text, a
//! number beyond any machine's), and it knows the bytes of each part. Nothing recurses: what is skipped is
//! skipped by serde_json's loop, and what is entered is five levels deep. A pass over a body costs about as
//! much as one over its values, so `entries` goes through once, a change's value is gone through twice more.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::facts::{CONTACTS_MAX, Change, Contact, MessageFacts, StatusFacts, Value, seconds};
use super::parse::{ITEMS_MAX, Sink, Stop};
use crate::event::{Kind, Path};

/// An entry of `entry`: nothing where it is no object.
#[derive(Debug, Default)]
pub struct Entry<'a, C = RawChange<'a>> {
    id: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    /// Empty where `changes` is no array.
    pub changes: Vec<C>,
}

/// An entry of `changes` with the bytes of its value: nothing where it is no object.
#[derive(Debug, Default)]
pub struct RawChange<'a> {
    field: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
}

/// An entry of `changes` with its value taken apart in the same pass: nothing where it is no object.
#[derive(Debug, Default)]
pub struct OpenChange<'a> {
    field: Option<&'a RawValue>,
    /// As if `field` were `messages`.
    pub value: MessagesValue<'a>,
}

impl<'a, C> Entry<'a, C> {
    fn head(&self, field: Option<&'a RawValue>) -> Change<'a> {
        Change {
            entry_id: text(self.id),
            time: seconds(&text(self.time)),
            field: text(field),
            ..Change::default()
        }
    }
}

impl<'a> Entry<'a> {
    /// What its change number `nth` is keyed by, and the bytes of that change's value; empty where there is
    /// none.
    pub fn change(&self, nth: usize) -> (Change<'a>, &'a str) {
        let raw = self.changes.get(nth);
        (self.head(raw.and_then(|raw| raw.field)), raw.and_then(|raw| raw.value).map_or("", RawValue::get))
    }
}

impl<'a> Entry<'a, OpenChange<'a>> {
    /// Its change number `nth`.
    pub fn open(&self, nth: usize) -> Option<(Change<'a>, &MessagesValue<'a>)> {
        let open = self.changes.get(nth)?;
        let mut change = self.head(open.field);
        change.set_phone_number_id(open.value.phone_number_id());
        Some((change, &open.value))
    }
}

/// The arrays and the number of a `value` under `field` = `messages`; empty where they are not as they should
/// be.
#[derive(Debug, Default)]
pub struct MessagesValue<'a> {
    metadata: &'a str,
    contacts: &'a str,
    messages: &'a str,
    statuses: &'a str,
    errors: &'a str,
}

impl<'a> MessagesValue<'a> {
    /// Takes apart the bytes of a value.
    pub fn read(value: &'a str) -> Self {
        serde_json::from_str(value).map_or_else(|_| Self::default(), |Lenient(this)| this)
    }

    /// `metadata.phone_number_id`.
    pub fn phone_number_id(&self) -> Cow<'a, str> {
        let mut id = Cow::Borrowed("");
        members(self.metadata, |name, value| {
            if name == "phone_number_id" {
                id = value_of(value).into_text();
            }
        });
        id
    }

    /// The bytes of the first [`CONTACTS_MAX`] contacts.
    pub fn contacts(&self) -> Vec<&'a str> {
        let mut raws = Vec::new();
        elements(self.contacts, |raw| {
            raws.push(raw.get());
            raws.len() < CONTACTS_MAX
        });
        raws
    }

    /// Calls `each` with the bytes of each message, status or error, until it returns false.
    pub fn each(&self, kind: Kind, each: impl FnMut(&'a RawValue) -> bool) {
        let array = match kind {
            Kind::Status => self.statuses,
            Kind::Error => self.errors,
            _ => self.messages,
        };
        elements(array, each);
    }
}

/// What matters of a contact.
pub fn contact(raw: &str) -> Contact<'_> {
    let mut contact = Contact::default();
    members(raw, |name, value| contact.set(name, value_of(value)));
    contact
}

/// What matters of a message.
pub fn message_facts(raw: &str) -> MessageFacts<'_> {
    let mut facts = MessageFacts::default();
    members(raw, |name, value| facts.set(name, value_of(value)));
    facts
}

/// What matters of a status.
pub fn status_facts(raw: &str) -> StatusFacts<'_> {
    let mut facts = StatusFacts::default();
    members(raw, |name, value| facts.set(name, value_of(value)));
    facts
}

/// The entries of a body.
pub fn entries<'a, C: Part<'a>>(body: &'a [u8]) -> Result<Vec<Entry<'a, C>>, Stop> {
    let body = std::str::from_utf8(body).map_err(|_| Stop::NotJson)?;
    let read: Result<Lenient<Body<'a, C>>, _> = serde_json::from_str(body);
    read.map(|body| body.0.0).map_err(|_| Stop::NotJson)
}

/// Every item of a body into `sink`.
pub fn items(body: &[u8], sink: &mut Sink<'_>) -> Result<(), Stop> {
    for (e, entry) in entries::<RawChange<'_>>(body)?.iter().enumerate() {
        let path = Path { entry: e as u32, ..Path::default() };
        if entry.changes.is_empty() {
            sink.change(&entry.head(None), path, Some(b""))?;
        }
        for c in 0..entry.changes.len() {
            let (change, value) = entry.change(c);
            change_items(change, value, Path { change: c as u32, ..path }, sink)?;
        }
    }
    Ok(())
}

fn change_items<'a>(
    mut change: Change<'a>,
    raw: &'a str,
    path: Path,
    sink: &mut Sink<'_>,
) -> Result<(), Stop> {
    let value = MessagesValue::read(raw);
    change.set_phone_number_id(value.phone_number_id());
    let before = sink.len();
    if change.field == "messages" {
        let contacts: Vec<_> = value.contacts().into_iter().map(contact).collect();
        for kind in [Kind::Message, Kind::Status, Kind::Error] {
            let mut result = Ok(());
            let mut index = 0;
            value.each(kind, |raw| {
                let path = Path { index, ..path };
                let bytes = Some(raw.get().as_bytes());
                result = match kind {
                    Kind::Message => sink.message(&message_facts(raw.get()), &change, &contacts, path, bytes),
                    Kind::Status => sink.status(&status_facts(raw.get()), &change, path, bytes),
                    _ => sink.error(&change, path, bytes),
                };
                index += 1;
                result.is_ok()
            });
            result?;
        }
    }
    if sink.len() == before { sink.change(&change, path, Some(raw.as_bytes())) } else { Ok(()) }
}

/// Calls `each` with the members of an object in their order; false where `raw` is none.
pub fn members<'a>(raw: &'a str, each: impl FnMut(&str, &'a RawValue)) -> bool {
    raw.starts_with('{') && serde_json::Deserializer::from_str(raw).deserialize_map(Members(each)).is_ok()
}

/// Calls `each` with the elements of an array in their order, until it returns false; false where `raw` is
/// none.
pub fn elements<'a>(raw: &'a str, each: impl FnMut(&'a RawValue) -> bool) -> bool {
    raw.starts_with('[') && serde_json::Deserializer::from_str(raw).deserialize_seq(Elements(each)).is_ok()
}

/// A value as `facts` takes it.
pub fn value_of(raw: &RawValue) -> Value<'_> {
    let raw = raw.get();
    match raw.as_bytes()[0] {
        b'"' => Value::Text(string(raw)),
        b'{' => Value::Object,
        b'[' => Value::Array,
        b'0'..=b'9' if raw.bytes().all(|b| b.is_ascii_digit()) => Value::Text(Cow::Borrowed(raw)),
        _ => Value::Other,
    }
}

fn text(raw: Option<&RawValue>) -> Cow<'_, str> {
    raw.map_or(Cow::Borrowed(""), |raw| value_of(raw).into_text())
}

/// Decodes a string with its quotes. Half a surrogate pair becomes U+FFFD.
fn string(quoted: &str) -> Cow<'_, str> {
    let inner = &quoted[1..quoted.len() - 1];
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    // as bytes serde_json decodes halves too, to three bytes that are not UTF-8
    let Ok(Wtf8(bytes)) = serde_json::from_str(quoted) else { return Cow::Borrowed(inner) };
    Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|e| {
        String::from_utf8_lossy(e.as_bytes()).replace("\u{fffd}\u{fffd}\u{fffd}", "\u{fffd}")
    }))
}

struct Wtf8(Vec<u8>);

impl<'de> Deserialize<'de> for Wtf8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Wtf8;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Wtf8, E> {
                Ok(Wtf8(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

struct Members<F>(F);

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            (self.0)(&string(name.get()), value);
        }
        Ok(())
    }
}

struct Elements<F>(F);

impl<'de, F: FnMut(&'de RawValue) -> bool> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element()? {
            if !(self.0)(element) {
                return Err(A::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

/// A place in the envelope where an object or an array is expected; whatever else stands there is read as
/// nothing.
pub trait Part<'de>: Default {
    /// Takes the member called `name`.
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let _ = name;
        map.next_value::<IgnoredAny>().map(drop)
    }
    /// Takes the elements.
    fn elements<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

struct Lenient<T>(T);

impl<'de, T: Part<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything(T::default())).map(Lenient)
    }
}

struct Anything<T>(T);

impl<'de, T: Part<'de>> Visitor<'de> for Anything<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<T, A::Error> {
        while let Some(name) = map.next_key::<&RawValue>()? {
            self.0.member(&string(name.get()), &mut map)?;
        }
        Ok(self.0)
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, seq: A) -> Result<T, A::Error> {
        self.0.elements(seq)?;
        Ok(self.0)
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<T, E> {
        Ok(self.0)
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Ok(self.0)
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<T, E> {
        Ok(self.0)
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<T, E> {
        Ok(self.0)
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<T, E> {
        Ok(self.0)
    }
    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(self.0)
    }
}

#[derive(Default)]
struct List<T>(Vec<T>);

impl<'de, T: Part<'de>> Part<'de> for List<T> {
    fn elements<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(Lenient(element)) = seq.next_element()? {
            self.0.push(element);
            if self.0.len() > ITEMS_MAX {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(())
    }
}

struct Body<'a, C>(Vec<Entry<'a, C>>);

impl<C> Default for Body<'_, C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, C: Part<'de>> Part<'de> for Body<'de, C> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "entry" => map.next_value().map(|Lenient(List(entries))| self.0 = entries),
            _ => map.next_value::<IgnoredAny>().map(drop),
        }
    }
}

impl<'de, C: Part<'de>> Part<'de> for Entry<'de, C> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "id" => self.id = Some(map.next_value()?),
            "time" => self.time = Some(map.next_value()?),
            "changes" => {
                let Lenient(List(changes)) = map.next_value()?;
                self.changes = changes;
            }
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Part<'de> for RawChange<'de> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "field" => self.field = Some(map.next_value()?),
            "value" => self.value = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Part<'de> for OpenChange<'de> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "field" => self.field = Some(map.next_value()?),
            "value" => map.next_value().map(|Lenient(value)| self.value = value)?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Part<'de> for MessagesValue<'de> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let place = match name {
            "metadata" => &mut self.metadata,
            "contacts" => &mut self.contacts,
            "messages" => &mut self.messages,
            "statuses" => &mut self.statuses,
            "errors" => &mut self.errors,
            _ => return map.next_value::<IgnoredAny>().map(drop),
        };
        *place = map.next_value::<&RawValue>()?.get();
        Ok(())
    }
}
