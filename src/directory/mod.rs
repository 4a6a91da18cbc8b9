//! Business by phone_number_id or subdomain: TTL cache (DashMap) -> single flight -> store -> decrypt
//! (memoized).
//!
//! A hit allocates nothing and yields nowhere. Of many who miss the same number one asks the store. While the
//! store is away, what is known is served for up to [`lookup::STALE_MAX`]. Two live businesses that claim one
//! number are both refused: the directory never guesses whose message it is. No token leaves it but inside an
//! [`event::Business`].
//!
//! [`event::Business`]: crate::event::Business

pub mod cache;
pub mod document;
pub mod embedded;
pub mod flight;
pub mod judge;
pub mod lookup;
pub mod mongo;
pub mod reach;
pub mod store;
pub mod tokens;

use std::sync::Arc;

use crate::config;
use crate::event::Business;
use crate::failure::Failure;
use crate::ops::metrics::Metric;
use crate::store::OpenError;

/// The counters of this module.
pub static METRICS: &[&dyn Metric] = &[
    &lookup::HITS,
    &lookup::MISSES,
    &lookup::JOINED,
    &lookup::EVICTED,
    &lookup::STALE_SERVED,
    &lookup::STORE_FAILED,
    &lookup::ABSENT_EVICTED,
    &lookup::IDS_REFUSED,
    &lookup::CONNECTED,
    &reach::CROWDED,
    &reach::PUT_OFF,
    &judge::MEMO_EVICTED,
    &judge::TOKENS_INVALID,
    &judge::DOCUMENTS_INVALID,
    &judge::TOLD_AGAIN,
];

/// Opens the store that is configured, and the directory over it.
pub fn open(config: &config::Directory) -> Result<Arc<dyn Directory>, OpenError> {
    Ok(Arc::new(lookup::Lookup::new(config, store(config)?)))
}

/// The same for so many turns at once: those that wait for the store leave most of them free.
pub fn open_for(config: &config::Directory, max_turns: usize) -> Result<Arc<dyn Directory>, OpenError> {
    Ok(Arc::new(lookup::Lookup::new(config, store(config)?).for_turns(max_turns)))
}

/// The store that is configured, for the commands that change it.
pub fn store(config: &config::Directory) -> Result<Arc<dyn store::Store>, OpenError> {
    Ok(match &config.mongodb {
        Some(mongodb) => Arc::new(mongo::Mongo::new(mongodb)),
        None => Arc::new(embedded::Embedded::open(config)?),
    })
}

/// Counters for /metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStats {
    /// Numbers that are cached, expired ones that may still be served while the store is away included.
    pub size: usize,
    /// BUSINESS_CACHE_SIZE.
    pub max_size: usize,
    /// BUSINESS_CACHE_TTL.
    pub ttl_seconds: u64,
    /// Since the start.
    pub hits: u64,
    /// Since the start.
    pub misses: u64,
}

/// What the rest of the program sees of the directory.
pub trait Directory: Send + Sync + 'static {
    /// The enabled and active business that owns the number; else the fallback credentials for it.
    ///
    /// Errors: `no_business` (Dead: kept, can be replayed), `business_disabled` (Dead), `business_ambiguous`
    /// (Dead), `token_invalid` and `business_invalid` (Park Business until mended), `directory_unavailable` (Retry
    /// within seconds, so that what waits is answered soon after the store is back).
    fn by_number(&self, phone_number_id: &str) -> Result<Arc<Business>, Failure>;
    /// What [`Directory::by_number`] says at once, without asking the store, if it does.
    fn known(&self, phone_number_id: &str) -> Option<Result<Arc<Business>, Failure>>;
    /// The active business of that subdomain.
    fn by_subdomain(&self, sub_domain: &str) -> Result<Arc<Business>, Failure>;
    /// Forgets everything that is cached, negative entries and decrypted tokens included.
    fn clear(&self);
    /// Loads businesses up to the cache's size; the number loaded.
    fn warm_up(&self) -> Result<usize, Failure>;
    /// For /metrics.
    fn stats(&self) -> CacheStats;
    /// Whether the store answers: not if it failed and answered nothing else lately. No I/O.
    fn is_connected(&self) -> bool;
    /// Asks the store whether it answers, for [`Directory::is_connected`].
    fn check(&self);
}
