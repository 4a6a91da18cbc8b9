//! Business by phone_number_id or subdomain: TTL cache (DashMap) -> single flight -> store -> decrypt (memoized).

use std::sync::Arc;

use crate::event::Business;
use crate::failure::Failure;

/// Counters for /metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStats {
    /// Entries.
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
    /// Errors: `no_business` (Dead: kept, can be replayed), `business_disabled` (Dead), `business_ambiguous` (Dead),
    /// `token_invalid` (Park Business until mended), `directory_unavailable` (Retry).
    fn by_number(&self, phone_number_id: &str) -> Result<Arc<Business>, Failure>;
    /// The active business of that subdomain.
    fn by_subdomain(&self, sub_domain: &str) -> Result<Arc<Business>, Failure>;
    /// Forgets everything that is cached, negative entries and decrypted tokens included.
    fn clear(&self);
    /// Loads businesses up to the cache's size; the number loaded.
    fn warm_up(&self) -> Result<usize, Failure>;
    /// For /metrics.
    fn stats(&self) -> CacheStats;
    /// Whether the store answered last time; no I/O.
    fn is_connected(&self) -> bool;
}
