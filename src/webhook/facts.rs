//! What the parts of a body mean, decided once for every way to read one: kinds, keys, senders,
//! conversations.
//!
//! A reader hands over members as (name, [`Value`]) in the order of the body; of a name that comes twice the
//! last counts. A text that is empty, or is neither a string nor a plain integer, is the same as one that is
//! not there.

use std::borrow::Cow;

use crate::event::{Item, Kind, Path, hash64};

/// Contacts of one change that are looked at. Meta batches at most 1,000 updates.
pub const CONTACTS_MAX: usize = 1024;

/// Meta's timestamps lie between these, in seconds since the Unix epoch: WhatsApp began in 2009; 2100.
const SANE_TIME: std::ops::Range<u64> = 1_230_768_000..4_102_444_800;

/// One member's value, as far as it matters.
#[derive(Debug)]
pub enum Value<'a> {
    /// A string, decoded, or the digits of an integer that is not negative.
    Text(Cow<'a, str>),
    /// `{..}`.
    Object,
    /// `[..]`.
    Array,
    /// Anything else.
    Other,
}

impl<'a> Value<'a> {
    /// The text, or the empty one.
    pub fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text,
            _ => Cow::Borrowed(""),
        }
    }
}

/// Seconds of a timestamp's text; 0 where it makes no sense.
pub fn seconds(text: &str) -> u64 {
    // not `str::parse` alone: it takes a leading plus
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    text.parse().ok().filter(|seconds| SANE_TIME.contains(seconds)).unwrap_or(0)
}

/// Whether an id is shaped like a business-scoped user id: `US.13491208655302741918`, `US.ENT.118..`.
///
/// `from` and `wa_id` are seen to hold one; a phone number has no dot.
pub fn is_user_id(id: &str) -> bool {
    match id.as_bytes() {
        [a, b, b'.', rest @ ..] => {
            a.is_ascii_uppercase()
                && b.is_ascii_uppercase()
                && !rest.is_empty()
                && rest.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'.')
        }
        _ => false,
    }
}

/// The first that is there.
fn first<const N: usize>(ids: [&str; N]) -> &str {
    ids.into_iter().find(|id| !id.is_empty()).unwrap_or("")
}

/// The message types that are known, each with its kind; the content stands under the same name.
///
/// <https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages>
const TYPES: [(&str, Kind); 20] = [
    ("text", Kind::Message),
    ("image", Kind::Message),
    ("video", Kind::Message),
    ("audio", Kind::Message),
    ("voice", Kind::Message),
    ("document", Kind::Message),
    ("sticker", Kind::Message),
    ("location", Kind::Message),
    ("contacts", Kind::Message),
    ("interactive", Kind::Message),
    ("button", Kind::Message),
    ("order", Kind::Message),
    ("reaction", Kind::Reaction),
    ("system", Kind::System),
    ("edit", Kind::Edit),
    ("revoke", Kind::Revoke),
    ("unsupported", Kind::Unsupported),
    ("unknown", Kind::Unsupported),
    ("media_placeholder", Kind::Unsupported),
    ("request_welcome", Kind::Welcome),
];

/// Every `field` but `messages` that the documentation names; others are counted.
const FIELDS: [&str; 33] = [
    "account_alerts",
    "account_review_update",
    "account_settings_update",
    "account_update",
    "automatic_events",
    "business_capability_update",
    "business_username_update",
    "business_username_updates",
    "calls",
    "consumer_profile",
    "flows",
    "group_lifecycle_update",
    "group_participants_update",
    "group_settings_update",
    "group_status_update",
    "history",
    "message_echoes",
    "message_template_components_update",
    "message_template_quality_update",
    "message_template_status_update",
    "messaging_handovers",
    "partner_solutions",
    "payment_configuration_update",
    "phone_number_name_update",
    "phone_number_quality_update",
    "security",
    "smb_app_state_sync",
    "smb_message_echoes",
    "standby",
    "template_category_update",
    "template_performance_metrics",
    "user_id_update",
    "user_preferences",
];

/// Whether the documentation names this `field`.
pub fn is_known_field(field: &str) -> bool {
    field == "messages" || FIELDS.contains(&field)
}

/// The parts of a dedupe key, in order: what is hashed, and what a hit is confirmed against.
#[derive(Clone, Copy, Debug)]
pub struct Key<'k> {
    parts: [&'k [u8]; 4],
    len: usize,
}

impl<'k> Key<'k> {
    fn new<const N: usize>(given: [&'k [u8]; N]) -> Self {
        let mut parts: [&[u8]; 4] = [b""; 4];
        parts[..N].copy_from_slice(&given);
        Self { parts, len: N }
    }

    /// Of a whole body.
    pub fn of_body(body: &'k [u8]) -> Self {
        Self::new([b"body", body])
    }

    /// As [`Item::key`] has it.
    pub fn hash(&self) -> u64 {
        hash64(&self.parts[..self.len])
    }

    /// The bytes that are hashed: each part behind its length, so that no two keys share them.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.parts[..self.len] {
            bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// What the items of a change share.
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// `entry[].id`: the WABA.
    pub entry_id: Cow<'a, str>,
    /// `entry[].time`, seconds; 0 where it makes no sense.
    pub time: u64,
    /// `field`.
    pub field: Cow<'a, str>,
    /// `value.metadata.phone_number_id`.
    pub phone_number_id: Cow<'a, str>,
    /// See [`Item::number`].
    pub number: u64,
}

impl<'a> Change<'a> {
    /// Sets the number that the change is about.
    pub fn set_phone_number_id(&mut self, id: Cow<'a, str>) {
        self.number = if id.is_empty() { 0 } else { hash64(&[id.as_bytes()]) };
        self.phone_number_id = id;
    }

    /// Key of the whole change. `value`: its bytes, empty where it has none.
    pub fn key<'k>(&'k self, value: &'k [u8]) -> Key<'k> {
        Key::new([b"change", self.entry_id.as_bytes(), self.field.as_bytes(), value])
    }

    /// Key of an entry of `value.errors`, by its bytes.
    pub fn error_key<'k>(&'k self, error: &'k [u8]) -> Key<'k> {
        Key::new([b"error", self.entry_id.as_bytes(), self.phone_number_id.as_bytes(), error])
    }

    /// The item that stands for a whole change.
    pub fn item(&self, path: Path, value: &[u8]) -> Item {
        self.keyed(Kind::OtherField, path, self.key(value))
    }

    /// An item for an entry of `value.errors`.
    pub fn error_item(&self, path: Path, error: &[u8]) -> Item {
        self.keyed(Kind::Error, path, self.error_key(error))
    }

    fn keyed(&self, kind: Kind, path: Path, key: Key<'_>) -> Item {
        Item { kind, path, timestamp: self.time, key: key.hash(), number: self.number, conversation: 0 }
    }
}

/// An entry of `value.contacts`.
#[derive(Debug, Default)]
pub struct Contact<'a> {
    /// The phone number, or what stands in its place.
    pub wa_id: Cow<'a, str>,
    /// The business-scoped user id.
    pub user_id: Cow<'a, str>,
}

impl<'a> Contact<'a> {
    /// Takes a member.
    pub fn set(&mut self, name: &str, value: Value<'a>) {
        match name {
            "wa_id" => self.wa_id = value.into_text(),
            "user_id" => self.user_id = value.into_text(),
            _ => {}
        }
    }
}

/// Who wrote a message; empty where it is not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender<'s> {
    /// The business-scoped user id.
    pub user_id: &'s str,
    /// The phone number.
    pub wa_id: &'s str,
    /// Index of the contact that was found for it.
    pub contact: Option<usize>,
}

/// What matters of an entry of `value.messages`.
#[derive(Debug, Default)]
pub struct MessageFacts<'a> {
    /// The wamid.
    pub id: Cow<'a, str>,
    /// As it is written.
    pub timestamp: Cow<'a, str>,
    /// `type`.
    pub declared: Cow<'a, str>,
    /// Phone number, or a user id in its place.
    pub from: Cow<'a, str>,
    /// The business-scoped user id.
    pub from_user_id: Cow<'a, str>,
    /// The group it was written in.
    pub group_id: Cow<'a, str>,
    /// Bit n: a content stands under the name of `TYPES[n]`.
    contents: u32,
    has_interactive: bool,
}

impl<'a> MessageFacts<'a> {
    /// Takes a member.
    pub fn set(&mut self, name: &str, value: Value<'a>) {
        match name {
            "id" => self.id = value.into_text(),
            "timestamp" => self.timestamp = value.into_text(),
            "type" => self.declared = value.into_text(),
            "from" => self.from = value.into_text(),
            "from_user_id" => self.from_user_id = value.into_text(),
            "group_id" => self.group_id = value.into_text(),
            // what else a message holds: nothing to compare with the types
            "context" | "referral" | "identity" | "errors" | "from_parent_user_id" => {}
            _ => self.set_content(name, &value),
        }
    }

    fn set_content(&mut self, name: &str, value: &Value<'_>) {
        let Some(nth) = TYPES.iter().position(|(known, _)| *known == name) else { return };
        let there = matches!(value, Value::Object | Value::Array);
        self.contents = self.contents & !(1 << nth) | u32::from(there) << nth;
        if name == "interactive" {
            self.has_interactive = matches!(value, Value::Object);
        }
    }

    /// Whether its item depends on the change's contacts.
    pub fn needs_contacts(&self) -> bool {
        self.from_user_id.is_empty()
    }

    /// The type: as declared, else by the content (the first of `TYPES` that is there), else empty.
    pub fn type_name(&self) -> &str {
        match self.contents.trailing_zeros() as usize {
            nth if self.declared.is_empty() && nth < TYPES.len() => TYPES[nth].0,
            _ => &self.declared,
        }
    }

    /// Its kind. A message that names no sender can't be answered: [`Kind::UnknownType`], whatever its type.
    pub fn kind(&self, sender: Sender<'_>) -> Kind {
        let name = self.type_name();
        let kind =
            TYPES.iter().find(|(known, _)| *known == name).map_or(Kind::UnknownType, |(_, kind)| *kind);
        if kind != Kind::Message {
            kind
        } else if name == "interactive" && !self.has_interactive {
            Kind::Unsupported
        } else if sender.user_id.is_empty() && sender.wa_id.is_empty() {
            Kind::UnknownType
        } else {
            kind
        }
    }

    /// Who wrote it, from the message and the change's contacts. `nth`: its index, where its contact often
    /// stands too.
    ///
    /// `all`: look for the contact even when the message says it all (its name is wanted).
    pub fn sender<'s>(&'s self, contacts: &'s [Contact<'_>], nth: usize, all: bool) -> Sender<'s> {
        let contact = if all || self.needs_contacts() { self.contact(contacts, nth) } else { None };
        let (wa_id, user_id) = contact.map_or(("", ""), |i| (&*contacts[i].wa_id, &*contacts[i].user_id));
        let user = |id: &'s str| if is_user_id(id) { id } else { "" };
        let phone = |id: &'s str| if is_user_id(id) { "" } else { id };
        Sender {
            user_id: first([&self.from_user_id, user(&self.from), user_id, user(wa_id)]),
            wa_id: first([phone(&self.from), phone(wa_id)]),
            contact,
        }
    }

    /// The contact that belongs to it: the one with its ids, or the only one if nothing speaks against that.
    pub fn contact(&self, contacts: &[Contact<'_>], nth: usize) -> Option<usize> {
        let is_it = |contact: &Contact<'_>| {
            let same = |id: &str| !id.is_empty() && (id == self.from || id == self.from_user_id);
            same(&contact.wa_id) || same(&contact.user_id)
        };
        if contacts.get(nth).is_some_and(is_it) {
            return Some(nth);
        }
        contacts.iter().position(is_it).or_else(|| {
            let [only] = contacts else { return None };
            let open = |a: &str, b: &str| a.is_empty() || b.is_empty();
            (open(&only.wa_id, &self.from) && open(&only.user_id, &self.from_user_id)).then_some(0)
        })
    }

    /// The conversation: group, else user id, else phone number; empty where there is none.
    pub fn conversation<'s>(&'s self, sender: Sender<'s>) -> &'s str {
        first([&self.group_id, sender.user_id, sender.wa_id])
    }

    /// Its key: (phone_number_id, wamid), or its bytes where it has no wamid; `None`: those bytes are needed.
    pub fn key<'k>(&'k self, change: &'k Change<'_>, raw: Option<&'k [u8]>) -> Option<Key<'k>> {
        let number = change.phone_number_id.as_bytes();
        match (self.id.as_bytes(), raw) {
            (b"", None) => None,
            (b"", Some(raw)) => Some(Key::new([b"message", number, raw])),
            (id, _) => Some(Key::new([number, id])),
        }
    }

    /// Its item; `None`: its bytes are needed.
    pub fn item(
        &self,
        change: &Change<'_>,
        contacts: &[Contact<'_>],
        path: Path,
        raw: Option<&[u8]>,
    ) -> Option<Item> {
        let key = self.key(change, raw)?.hash();
        let sender = self.sender(contacts, path.index as usize, false);
        let conversation = match self.conversation(sender) {
            "" => 0,
            id => hash64(&[change.phone_number_id.as_bytes(), id.as_bytes()]),
        };
        let timestamp = seconds(&self.timestamp);
        Some(Item { kind: self.kind(sender), path, timestamp, key, number: change.number, conversation })
    }
}

/// What matters of an entry of `value.statuses`.
#[derive(Debug, Default)]
pub struct StatusFacts<'a> {
    /// The wamid of what was sent.
    pub id: Cow<'a, str>,
    /// `sent`, `delivered`, `read`, `failed`, `played`, or what comes next.
    pub status: Cow<'a, str>,
    /// As it is written.
    pub timestamp: Cow<'a, str>,
    /// Our reply id.
    pub callback_data: Cow<'a, str>,
    recipient_id: Cow<'a, str>,
    recipient_user_id: Cow<'a, str>,
    /// The docs spell it both ways.
    participant_id: Cow<'a, str>,
    participant_user_id: Cow<'a, str>,
}

impl<'a> StatusFacts<'a> {
    /// Takes a member.
    pub fn set(&mut self, name: &str, value: Value<'a>) {
        match name {
            "id" => self.id = value.into_text(),
            "status" => self.status = value.into_text(),
            "timestamp" => self.timestamp = value.into_text(),
            "biz_opaque_callback_data" => self.callback_data = value.into_text(),
            "recipient_id" => self.recipient_id = value.into_text(),
            "recipient_user_id" => self.recipient_user_id = value.into_text(),
            "recipient_participant_id" | "participant_recipient_id" => {
                self.participant_id = value.into_text()
            }
            "recipient_participant_user_id" => self.participant_user_id = value.into_text(),
            _ => {}
        }
    }

    /// Whom it is about: the participant of a group, else the recipient; the phone number before the user id.
    pub fn recipient(&self) -> &str {
        first(self.recipient_ids())
    }

    /// The phone number and the user id of whom it is about; empty where there is none.
    pub fn recipient_ids(&self) -> [&str; 2] {
        match [&*self.participant_id, &*self.participant_user_id] {
            ["", ""] => [&self.recipient_id, &self.recipient_user_id],
            participant => participant,
        }
    }

    /// Its key: (wamid, status, recipient, timestamp), or its bytes where it has no wamid; `None`: they are
    /// needed.
    pub fn key<'k>(&'k self, raw: Option<&'k [u8]>) -> Option<Key<'k>> {
        match (self.id.as_bytes(), raw) {
            (b"", None) => None,
            (b"", Some(raw)) => Some(Key::new([b"status", raw])),
            (id, _) => {
                let (status, recipient) = (self.status.as_bytes(), self.recipient().as_bytes());
                Some(Key::new([id, status, recipient, self.timestamp.as_bytes()]))
            }
        }
    }

    /// Its item; `None`: its bytes are needed.
    pub fn item(&self, change: &Change<'_>, path: Path, raw: Option<&[u8]>) -> Option<Item> {
        let key = self.key(raw)?.hash();
        let conversation = match self.callback_data.as_bytes() {
            b"" => 0,
            data => hash64(&[data]),
        };
        let timestamp = seconds(&self.timestamp);
        Some(Item { kind: Kind::Status, path, timestamp, key, number: change.number, conversation })
    }
}
