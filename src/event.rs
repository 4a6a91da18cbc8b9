//! The nouns that every module shares: what came in, as an item (numbers only, no text) and as a message taken out
//! of its body.

use serde_json::value::RawValue;

use crate::secret::Secret;

/// The largest body that is accepted, in bytes. Meta's own limit is 3 MB; INTERFACE answers 413 above this.
pub const BODY_MAX: usize = 4 << 20;

/// What an item is. Only [`Kind::Message`] is ever answered.
///
/// The numbers are stored; never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A user's message under `field` = `messages` of a type that is answered: text, image, video, audio, voice,
    /// document, sticker, location, contacts, interactive, button, order.
    Message = 1,
    /// Delivery status of something that was sent.
    Status = 2,
    /// A reaction, put or removed.
    Reaction = 3,
    /// A number or an identity changed.
    System = 4,
    /// Meta could not deliver the content (`unsupported`, legacy `unknown`), or an `interactive` without its object.
    Unsupported = 5,
    /// An edit of an earlier message.
    Edit = 6,
    /// A message taken back.
    Revoke = 7,
    /// A message type that this version does not know, or a message without a sender (kept and counted).
    UnknownType = 8,
    /// An entry of `value.errors`.
    Error = 9,
    /// A change of any other `field` (history, smb_message_echoes, standby, account_update, ..): one item a change.
    /// Also a `messages` change, or an entry, in which nothing is found.
    OtherField = 10,
    /// A signed body that could not be understood, kept verbatim: one item a body.
    Unparsed = 11,
    /// `request_welcome` and other openings without content.
    Welcome = 12,
}

impl Kind {
    /// As shown by `inbox` commands and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Status => "status",
            Self::Reaction => "reaction",
            Self::System => "system",
            Self::Unsupported => "unsupported",
            Self::Edit => "edit",
            Self::Revoke => "revoke",
            Self::UnknownType => "unknown_type",
            Self::Error => "error",
            Self::OtherField => "other_field",
            Self::Unparsed => "unparsed",
            Self::Welcome => "welcome",
        }
    }

    /// The kind stored as `number`.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Message,
            2 => Self::Status,
            3 => Self::Reaction,
            4 => Self::System,
            5 => Self::Unsupported,
            6 => Self::Edit,
            7 => Self::Revoke,
            8 => Self::UnknownType,
            9 => Self::Error,
            10 => Self::OtherField,
            11 => Self::Unparsed,
            12 => Self::Welcome,
            _ => return None,
        })
    }

    /// Whether items of this kind go to the dispatcher.
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::Message)
    }
}

/// Where an item stands in its body: `entry[entry].changes[change].value.<messages|statuses|errors>[index]`;
/// `index` 0 for a kind that is a whole change. All 0 for [`Kind::Unparsed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    /// Index in `entry`.
    pub entry: u32,
    /// Index in that entry's `changes`.
    pub change: u32,
    /// Index in the array that the kind names.
    pub index: u32,
}

/// One thing that a body holds, as the ACK path knows it: numbers only.
///
/// The hashes are XXH3-64 of the texts (stable, they are stored); who needs the text takes it from the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub path: Path,
    /// Meta's `timestamp` in seconds, of a change or an error `entry.time`. 0 where there is none or it makes
    /// no sense: the same however often it comes, so that a duplicate is one.
    pub timestamp: u64,
    /// Hash of the dedupe key: message = (phone_number_id, wamid); status = (wamid, status, recipient,
    /// timestamp); anything else, and what has no wamid = its bytes. See `webhook::unpack::key`.
    pub key: u64,
    /// Hash of `phone_number_id`; 0 where the change has none.
    pub number: u64,
    /// Hash of (phone_number_id, conversation): group id, else BSUID, else wa_id. Of a [`Kind::Status`]: hash
    /// of its `biz_opaque_callback_data`, the reply id that it names. 0 where there is none.
    pub conversation: u64,
}

/// The identity of an item: the dedupe key as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemId {
    /// Seconds, see [`Item::timestamp`].
    pub timestamp: u64,
    /// See [`Item::key`].
    pub key: u64,
}

/// The hash that is stored for `parts`; parts are length-delimited, so ("ab","c") differs from ("a","bc").
pub fn hash64(parts: &[&[u8]]) -> u64 {
    // the hasher's state is ten times larger than most keys; in one piece they take a third of the time
    const SHORT: usize = 256;
    if parts.iter().map(|part| part.len() + 4).sum::<usize>() <= SHORT {
        let mut bytes = [0; SHORT];
        let mut end = 0;
        for part in parts {
            bytes[end..end + 4].copy_from_slice(&(part.len() as u32).to_le_bytes());
            bytes[end + 4..end + 4 + part.len()].copy_from_slice(part);
            end += 4 + part.len();
        }
        return xxhash_rust::xxh3::xxh3_64(&bytes[..end]);
    }
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hasher.update(&(part.len() as u32).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

/// Who wrote, as far as the webhook says. At least one of the ids is there for an answered message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Customer {
    /// The phone number in Meta's form; absent for a user with a username (see BSUID).
    pub wa_id: Option<String>,
    /// The business-scoped user id.
    pub user_id: Option<String>,
    /// The profile's name.
    pub name: Option<String>,
}

/// Whom a reply is addressed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Recipient {
    /// `"to": "<wa_id>"`.
    Phone(String),
    /// `"recipient": "<BSUID>"`.
    User(String),
    /// `"recipient_type":"group","to":"<group id>"`.
    Group(String),
}

impl Recipient {
    /// The id itself: the customer part of the session key, and the pair of the pair limit.
    pub fn id(&self) -> &str {
        match self {
            Self::Phone(id) | Self::User(id) | Self::Group(id) => id,
        }
    }
}

/// A message taken out of its body, for the turn.
#[derive(Clone, Debug)]
pub struct Message {
    /// Meta's id of it.
    pub wamid: String,
    /// Seconds since the Unix epoch; 0 where it makes no sense.
    pub timestamp: u64,
    /// `text`, `image`, ..; inferred from the content key where `type` is missing.
    pub kind: String,
    /// The conversation: group id, else BSUID, else wa_id: the customer part of the session.
    pub conversation: String,
    /// Whom to answer: the group, else the wa_id where there is one, else the BSUID.
    pub reply_to: Recipient,
    /// Who wrote it.
    pub customer: Customer,
    /// The number it was written to.
    pub phone_number_id: String,
    /// What was said in words: text body, button text, reply title, caption; `None` where there is none.
    pub text: Option<String>,
    /// The message object as Meta sent it, byte for byte.
    pub raw: Box<RawValue>,
}

/// A business with its credentials, ready for a turn.
#[derive(Debug)]
pub struct Business {
    /// The document's `_id` as text; `default` for the fallback credentials.
    pub id: String,
    /// `name`.
    pub name: String,
    /// `subDomain`.
    pub sub_domain: String,
    /// `wabaId`; may be empty.
    pub waba_id: String,
    /// `whatsappPhoneNumberIds`.
    pub phone_number_ids: Vec<String>,
    /// `metaApp`: only items that came through that app are answered.
    pub meta_app: Option<String>,
    /// The decrypted `whatsappAccessToken`.
    pub token: Secret,
}

/// Who said a remembered line of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The customer.
    User,
    /// The agent.
    Assistant,
}

/// One line of a conversation's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who.
    pub role: Role,
    /// What.
    pub content: String,
}
