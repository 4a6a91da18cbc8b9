//! Takes single things out of a stored body again, by their [`Path`]: after the 200, so with owned texts.
//!
//! Reads with `scan`, like the parser where its tape is of no use; what the parser named is found here. A
//! body is gone through once for all messages that are wanted from it, however many it holds.

use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;

use super::facts::{Change, Contact, Key, MessageFacts, Sender, Value, seconds};
use super::scan::{self, Entry, MessagesValue, OpenChange, RawChange, members, value_of};
use crate::event::{Customer, Kind, Message, Path, Recipient};

/// Why something can't be taken out of a body. It holds for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The body is not JSON.
    Body,
    /// Nothing stands at this place.
    NotThere(Path),
    /// The message at this place names nobody who could be answered.
    NoSender(Path),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |path: &Path| format!("entry {} change {} index {}", path.entry, path.change, path.index);
        match self {
            Self::Body => f.write_str("the body is not JSON"),
            Self::NotThere(path) => write!(f, "nothing at {}", at(path)),
            Self::NoSender(path) => write!(f, "no sender at {}", at(path)),
        }
    }
}

impl std::error::Error for Unreadable {}

/// A delivery status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Meta's id of what was sent.
    pub wamid: String,
    /// `sent`, `delivered`, `read`, `failed`, `played`, or what comes next.
    pub status: String,
    /// Seconds since the Unix epoch; 0 where it makes no sense.
    pub timestamp: u64,
    /// The number it was sent from.
    pub phone_number_id: String,
    /// The participant of a group, else the recipient: phone number, else user id.
    pub recipient: String,
    /// `biz_opaque_callback_data`: our reply id.
    pub callback_data: Option<String>,
    /// `errors[0].code`.
    pub error_code: Option<i64>,
    /// `errors[0].title`.
    pub error_title: Option<String>,
}

/// What an operator is shown of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Empty where there is none; of a status: of what was sent.
    pub wamid: String,
    /// User id, else phone number; of a status: the recipient. Empty where there is none.
    pub sender: String,
    /// The other id of the same person; empty where there is only one.
    pub sender_too: String,
    /// The change's `field`.
    pub field: String,
    /// Of a message its type, of a status its status; else empty.
    pub type_name: String,
    /// The number it is about; empty where there is none.
    pub phone_number_id: String,
}

impl Description {
    /// Whether `id` is its wamid or one of its sender's ids.
    pub fn has(&self, id: &str) -> bool {
        !id.is_empty() && [&self.wamid, &self.sender, &self.sender_too].into_iter().any(|own| own == id)
    }
}

/// The messages at `paths`, in their order: each must be one that is answered.
pub fn messages(body: &[u8], paths: &[Path]) -> Result<Vec<Message>, Unreadable> {
    let entries = scan::entries(body).map_err(|_| Unreadable::Body)?;
    let mut order: Vec<usize> = (0..paths.len()).collect();
    order.sort_unstable_by_key(|nth| paths[*nth]);
    let mut found: Vec<Option<Message>> = paths.iter().map(|_| None).collect();
    for same in order.chunk_by(|a, b| change_of(paths[*a]) == change_of(paths[*b])) {
        let (change, value) = place(&entries, paths[same[0]]).ok_or(Unreadable::NotThere(paths[same[0]]))?;
        let mut contacts = Contacts::new(value);
        let mut wanted = same.iter().peekable();
        let (mut index, mut failed) = (0, None);
        value.each(Kind::Message, |raw| {
            while let Some(nth) = wanted.next_if(|nth| paths[**nth].index == index) {
                match message(raw, &change, &mut contacts, paths[*nth]) {
                    Ok(message) => found[*nth] = Some(message),
                    Err(unreadable) => failed = Some(unreadable),
                }
            }
            index += 1;
            failed.is_none() && wanted.peek().is_some()
        });
        if let Some(unreadable) = failed {
            return Err(unreadable);
        }
    }
    let missing = |nth: usize| Unreadable::NotThere(paths[nth]);
    found.into_iter().enumerate().map(|(nth, message)| message.ok_or_else(|| missing(nth))).collect()
}

/// The status at `path`.
pub fn status(body: &[u8], path: Path) -> Result<Status, Unreadable> {
    let entries = scan::entries(body).map_err(|_| Unreadable::Body)?;
    let mut found = None;
    visit(&entries, &[(Kind::Status, path)], |_, raw, change| found = Some(status_of(raw, change)));
    found.ok_or(Unreadable::NotThere(path))
}

/// The statuses at `paths`, in their order; `None` where there is none.
pub fn statuses(body: &[u8], paths: &[Path]) -> Vec<Option<Status>> {
    let entries = scan::entries(body).unwrap_or_default();
    let wanted: Vec<(Kind, Path)> = paths.iter().map(|path| (Kind::Status, *path)).collect();
    let mut found = vec![None; paths.len()];
    visit(&entries, &wanted, |nth, raw, change| found[nth] = Some(status_of(raw, change)));
    found
}

fn status_of(raw: &RawValue, change: &Change<'_>) -> Status {
    let facts = scan::status_facts(raw.get());
    let (mut error_code, mut error_title) = (None, None);
    scan::elements(member(raw.get(), "errors"), |error| {
        members(error.get(), |name, value| match name {
            "code" => error_code = value_of(value).into_text().parse().ok(),
            "title" => error_title = some(value_of(value).into_text()),
            _ => {}
        });
        false
    });
    Status {
        timestamp: seconds(&facts.timestamp),
        phone_number_id: change.phone_number_id.clone().into_owned(),
        recipient: facts.recipient().to_owned(),
        callback_data: some(facts.callback_data),
        wamid: facts.id.into_owned(),
        status: facts.status.into_owned(),
        error_code,
        error_title,
    }
}

/// The whole dedupe key of an item: the parts of which [`Item::key`](crate::event::Item::key) is the hash,
/// each behind its length. Two items are the same exactly if theirs are. `None`: nothing stands there.
pub fn key(body: &[u8], kind: Kind, path: Path) -> Option<Vec<u8>> {
    keys(body, &[(kind, path)]).pop().flatten()
}

/// The keys of several items, in their order.
pub fn keys(body: &[u8], wanted: &[(Kind, Path)]) -> Vec<Option<Vec<u8>>> {
    let mut keys = vec![None; wanted.len()];
    let is = |kind| move |(of, _): &&(Kind, Path)| *of == kind;
    if wanted.iter().any(|one| is(Kind::Unparsed)(&one)) {
        let whole = Key::of_body(body).bytes();
        let unparsed = keys.iter_mut().zip(wanted).filter(|(_, one)| is(Kind::Unparsed)(one));
        unparsed.for_each(|(key, _)| *key = Some(whole.clone()));
    }
    if wanted.iter().any(|one| is(Kind::OtherField)(&one)) {
        let entries = scan::entries::<RawChange<'_>>(body).unwrap_or_default();
        let others = keys.iter_mut().zip(wanted).filter(|(_, one)| is(Kind::OtherField)(one));
        for (key, (_, path)) in others {
            let change = entries.get(path.entry as usize).map(|entry| entry.change(path.change as usize));
            *key = change.map(|(change, value)| change.key(value.as_bytes()).bytes());
        }
    }
    if wanted.iter().all(|(kind, _)| matches!(kind, Kind::Unparsed | Kind::OtherField)) {
        return keys;
    }
    let entries = scan::entries(body).unwrap_or_default();
    visit(&entries, wanted, |nth, raw, change| {
        let bytes = raw.get().as_bytes();
        keys[nth] = match wanted[nth].0 {
            Kind::Error => Some(change.error_key(bytes).bytes()),
            Kind::Status => scan::status_facts(raw.get()).key(Some(bytes)).map(|key| key.bytes()),
            _ => scan::message_facts(raw.get()).key(change, Some(bytes)).map(|key| key.bytes()),
        };
    });
    keys
}

/// Goes through the body once and hands over what stands at each of the places: its number in `wanted`, its bytes, its
/// change. Kinds that are no messages, statuses or errors are left out.
fn visit<'a>(
    entries: &[Entry<'a, OpenChange<'a>>],
    wanted: &[(Kind, Path)],
    mut take: impl FnMut(usize, &'a RawValue, &Change<'a>),
) {
    let array = |nth: usize| match wanted[nth].0 {
        Kind::Status => Kind::Status,
        Kind::Error => Kind::Error,
        _ => Kind::Message,
    };
    let is_element = |nth: &usize| !matches!(wanted[*nth].0, Kind::Unparsed | Kind::OtherField);
    let mut order: Vec<usize> = (0..wanted.len()).filter(is_element).collect();
    order.sort_unstable_by_key(|nth| (array(*nth), wanted[*nth].1));
    let place_of = |nth: usize| (array(nth), change_of(wanted[nth].1));
    for same in order.chunk_by(|a, b| place_of(*a) == place_of(*b)) {
        let Some((change, value)) = place(entries, wanted[same[0]].1) else { continue };
        let mut left = same.iter().peekable();
        let mut index = 0;
        value.each(array(same[0]), |raw| {
            while let Some(nth) = left.next_if(|nth| wanted[**nth].1.index == index) {
                take(*nth, raw, &change);
            }
            index += 1;
            left.peek().is_some()
        });
    }
}

/// What an item is, for an operator; empty where nothing can be said.
pub fn describe(body: &[u8], kind: Kind, path: Path) -> Description {
    let entries = scan::entries(body).unwrap_or_default();
    let Some((change, value)) = place(&entries, path) else { return Description::default() };
    let mut this = Description {
        field: change.field.clone().into_owned(),
        phone_number_id: change.phone_number_id.clone().into_owned(),
        ..Description::default()
    };
    let raw = match kind {
        Kind::OtherField | Kind::Unparsed | Kind::Error => None,
        _ => element(value, kind, path),
    };
    match raw {
        Some(raw) if kind == Kind::Status => {
            let facts = scan::status_facts(raw);
            let [phone, user] = facts.recipient_ids();
            (this.sender, this.sender_too) = one_and_other(phone, user);
            this.wamid = facts.id.into_owned();
            this.type_name = facts.status.into_owned();
        }
        Some(raw) => {
            let facts = scan::message_facts(raw);
            let contacts: Vec<_> = value.contacts().into_iter().map(scan::contact).collect();
            let sender = facts.sender(&contacts, path.index as usize, true);
            (this.sender, this.sender_too) = one_and_other(sender.user_id, sender.wa_id);
            this.wamid = facts.id.to_string();
            this.type_name = facts.type_name().to_owned();
        }
        None => {}
    }
    this
}

/// The first id that is there, then the one that is left.
fn one_and_other(first: &str, second: &str) -> (String, String) {
    let (one, other) = if first.is_empty() { (second, "") } else { (first, second) };
    (one.to_owned(), other.to_owned())
}

fn change_of(path: Path) -> (u32, u32) {
    (path.entry, path.change)
}

/// The change at `path` and its value.
fn place<'e, 'a>(
    entries: &'e [Entry<'a, OpenChange<'a>>],
    path: Path,
) -> Option<(Change<'a>, &'e MessagesValue<'a>)> {
    entries.get(path.entry as usize)?.open(path.change as usize)
}

/// A change's contacts, of which as few are read as will do: they mostly stand in the order of their
/// messages.
struct Contacts<'a> {
    raws: Vec<&'a str>,
    /// Empty ids where not read yet.
    read: Vec<Contact<'a>>,
    all: bool,
}

impl<'a> Contacts<'a> {
    fn new(value: &MessagesValue<'a>) -> Self {
        let raws = value.contacts();
        Self { read: raws.iter().map(|_| Contact::default()).collect(), raws, all: false }
    }

    /// Reads what `facts`, message number `nth`, needs.
    fn read_for(&mut self, facts: &MessageFacts<'_>, nth: usize) {
        if !self.all {
            if let Some(raw) = self.raws.get(nth) {
                self.read[nth] = scan::contact(raw);
            }
            if facts.contact(&self.read, nth) != Some(nth) {
                self.read = self.raws.iter().map(|raw| scan::contact(raw)).collect();
                self.all = true;
            }
        }
    }
}

fn element<'a>(value: &MessagesValue<'a>, kind: Kind, path: Path) -> Option<&'a str> {
    let (mut index, mut found) = (0, None);
    value.each(kind, |raw| {
        if index == path.index {
            found = Some(raw.get());
        }
        index += 1;
        found.is_none()
    });
    found
}

fn message(
    raw: &RawValue,
    change: &Change<'_>,
    contacts: &mut Contacts<'_>,
    path: Path,
) -> Result<Message, Unreadable> {
    let facts = scan::message_facts(raw.get());
    let nth = path.index as usize;
    contacts.read_for(&facts, nth);
    let sender = facts.sender(&contacts.read, nth, true);
    if sender.user_id.is_empty() && sender.wa_id.is_empty() {
        return Err(Unreadable::NoSender(path));
    }
    let name = sender.contact.and_then(|nth| text_at(contacts.raws[nth], ["profile", "name"]));
    Ok(Message {
        wamid: facts.id.to_string(),
        timestamp: seconds(&facts.timestamp),
        kind: facts.type_name().to_owned(),
        conversation: facts.conversation(sender).to_owned(),
        reply_to: reply_to(&facts, sender),
        customer: Customer { wa_id: some(sender.wa_id.into()), user_id: some(sender.user_id.into()), name },
        phone_number_id: change.phone_number_id.clone().into_owned(),
        text: words(raw.get(), facts.type_name()),
        raw: raw.to_owned(),
    })
}

fn reply_to(facts: &MessageFacts<'_>, sender: Sender<'_>) -> Recipient {
    if !facts.group_id.is_empty() {
        Recipient::Group(facts.group_id.to_string())
    } else if !sender.wa_id.is_empty() {
        Recipient::Phone(sender.wa_id.to_owned())
    } else {
        Recipient::User(sender.user_id.to_owned())
    }
}

/// What a message says in words.
fn words(raw: &str, type_name: &str) -> Option<String> {
    match type_name {
        "text" => text_at(raw, ["text", "body"]),
        "button" => text_at(raw, ["button", "text"]),
        "interactive" => text_at(raw, ["interactive", "button_reply", "title"])
            .or_else(|| text_at(raw, ["interactive", "list_reply", "title"])),
        media => text_at(raw, [media, "caption"]),
    }
}

/// The text at the end of a path of names; `None` where it is empty or not there.
fn text_at<const N: usize>(raw: &str, path: [&str; N]) -> Option<String> {
    let (last, path) = path.split_last()?;
    let mut at = raw;
    for name in path {
        at = member(at, name);
    }
    let mut text = None;
    members(at, |name, value| {
        if name == *last {
            text = match value_of(value) {
                Value::Text(text) => some(text),
                _ => None,
            };
        }
    });
    text
}

/// The bytes of the last member called `name`; empty where there is none.
fn member<'a>(raw: &'a str, name: &str) -> &'a str {
    let mut found = "";
    members(raw, |this, value| {
        if this == name {
            found = value.get();
        }
    });
    found
}

fn some(text: Cow<'_, str>) -> Option<String> {
    (!text.is_empty()).then(|| text.into_owned())
}
