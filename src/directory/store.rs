//! The seam between the directory and where its businesses are kept: the embedded store, or MongoDB's
//! `businesses` collection.
//!
//! A [`Record`] mirrors the document, token as stored. Calls may be made from a coroutine or a thread; they
//! suspend the caller, never a worker, and come back within a deadline of the implementation.

use crate::secret::Secret;

/// The longest text of a business's field, in bytes; tokens aside.
pub const TEXT_MAX: usize = 4096;
/// Numbers of one business.
pub const NUMBERS_MAX: usize = 1_000;

/// One business as the store keeps it. The names in quotes are the document's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `_id` as text; empty for one that has not been stored yet.
    pub id: String,
    /// `name`.
    pub name: String,
    /// `subDomain`: what the operator calls it by.
    pub sub_domain: String,
    /// `wabaId`; may be empty.
    pub waba_id: String,
    /// `whatsappPhoneNumberIds`.
    pub phone_number_ids: Vec<String>,
    /// `whatsappAccessToken` as stored (see `tokens`): a secret, because old ones are plaintext.
    pub access_token: Option<Secret>,
    /// `whatsappRefreshToken` as stored.
    pub refresh_token: Option<Secret>,
    /// `whatsappTokenExpiresAt` as text; kept, not used.
    pub token_expires_at: Option<String>,
    /// `whatsappEnabled`.
    pub enabled: bool,
    /// `isActive`.
    pub active: bool,
    /// `metaApp`, if it is bound to one.
    pub meta_app: Option<String>,
    /// What is wrong with the document: which `_id`, which fields. Such a business is not answered for.
    pub fault: Option<String>,
}

impl Record {
    /// A live business of that subdomain that has nothing else yet.
    pub fn new(sub_domain: impl Into<String>) -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            sub_domain: sub_domain.into(),
            waba_id: String::new(),
            phone_number_ids: Vec::new(),
            access_token: None,
            refresh_token: None,
            token_expires_at: None,
            enabled: true,
            active: true,
            meta_app: None,
            fault: None,
        }
    }

    /// Whether its numbers are answered: enabled and active.
    pub const fn is_live(&self) -> bool {
        self.enabled && self.active
    }
}

/// A number that two live businesses would own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose.
    pub phone_number_id: String,
    /// The subdomains that claim it.
    pub sub_domains: Vec<String>,
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let who = self.sub_domains.join(", ");
        write!(f, "phone_number_id {} would belong to several live businesses: {who}", self.phone_number_id)
    }
}

/// Why the store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It can't be reached, failed, or took too long: the same question may be answered later.
    Unavailable(String),
    /// A write was not confirmed in time: it may have been done, or may still be. Doing it again does no
    /// harm.
    Unknown(String),
    /// Nothing was written: these numbers would be ambiguous.
    Claimed(Vec<Claim>),
    /// Nothing was written: what the store holds already forbids it.
    Refused(String),
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(detail) | Self::Refused(detail) => write!(f, "business store: {detail}"),
            Self::Unknown(detail) => {
                write!(f, "business store: {detail}; it may have been written, or may still be: run it again")
            }
            Self::Claimed(claims) => {
                let claims: Vec<String> = claims.iter().map(Claim::to_string).collect();
                f.write_str(&claims.join("; "))
            }
        }
    }
}

impl std::error::Error for StoreError {}

/// Some of the businesses, in the store's own order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most as many as were asked for.
    pub records: Vec<Record>,
    /// Where the next page begins; `None` at the end. Means something to the store only.
    pub next: Option<String>,
}

/// Which of a business's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    /// `whatsappAccessToken`.
    Access,
    /// `whatsappRefreshToken`.
    Refresh,
}

/// One stored token that takes another one's place, if it is still there.
#[derive(Clone, Debug)]
pub struct Swap {
    /// The business's `_id`.
    pub id: String,
    /// Which token.
    pub field: TokenField,
    /// As stored now.
    pub from: Secret,
    /// As to be stored.
    pub to: Secret,
}

/// What became of an index that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// It was made now.
    Created,
    /// It was there.
    There,
    /// An index of another name has the same keys: that serves as well.
    ThereAs(String),
    /// An index of that name has other keys or options: these. It was left alone.
    Differs(String),
}

/// Where businesses are kept.
pub trait Store: Send + Sync + 'static {
    /// The live businesses that list the number; if there are none, the others that do: who is answered for is
    /// decided by the caller. At most [`CLAIMANTS_MAX`].
    fn by_number(&self, phone_number_id: &str) -> Result<Vec<Record>, StoreError>;
    /// Every business of that subdomain (at most one, unless others write to the store too).
    fn by_subdomain(&self, sub_domain: &str) -> Result<Vec<Record>, StoreError>;
    /// At most `limit` businesses from `from` on (`None`: the first ones): for warm-up, `list` and `export`.
    fn page(&self, from: Option<&str>, limit: usize) -> Result<Page, StoreError>;
    /// Adds each, or replaces the one of the same subdomain (which keeps its id). All or nothing where the
    /// store has transactions. Refused with [`StoreError::Claimed`] where a number would belong to two live
    /// businesses.
    fn upsert(&self, records: Vec<Record>) -> Result<(), StoreError>;
    /// Removes it; false if there is none.
    fn remove(&self, sub_domain: &str) -> Result<bool, StoreError>;
    /// Stores each token in place of the other, if that is still there; the number that were.
    fn swap_tokens(&self, swaps: Vec<Swap>) -> Result<usize, StoreError>;
    /// Makes the indexes that lookups need, by name; what is there already is left as it is. None where the
    /// store's own schema has them.
    fn ensure_indexes(&self) -> Result<Vec<(&'static str, IndexState)>, StoreError> {
        Ok(Vec::new())
    }
    /// Asks for next to nothing: whether it answers.
    fn check(&self) -> Result<(), StoreError>;
}

/// Businesses that claim one number, of which a lookup tells.
pub const CLAIMANTS_MAX: usize = 5;
/// Records that [`all`] asks for at once.
pub const PAGE: usize = 500;

/// Hands every record of the store to `each`, page by page, until it returns false.
pub fn all(store: &dyn Store, mut each: impl FnMut(Record) -> bool) -> Result<(), StoreError> {
    let mut from: Option<String> = None;
    loop {
        let page = store.page(from.as_deref(), PAGE)?;
        for record in page.records {
            if !each(record) {
                return Ok(());
            }
        }
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(()),
        }
    }
}
