//! What /health, /ready, /metrics and /admin show and do.

use std::fmt::Write;
use std::sync::Arc;

use super::Console;
use super::lifecycle::Lifecycle;
use super::metrics::{Metric, PREFIX};
use crate::clock;
use crate::directory::Directory;
use crate::inbox::{Inbox, Refusal};

/// See [`Console`].
pub struct Desk {
    /// Started or draining.
    pub lifecycle: Arc<Lifecycle>,
    /// For its counts and health.
    pub inbox: Arc<dyn Inbox>,
    /// For its cache.
    pub directory: Arc<dyn Directory>,
    /// MONGODB_MAX_POOL_SIZE, MONGODB_MIN_POOL_SIZE.
    pub pool: (usize, usize),
    /// Every module's metrics.
    pub metrics: Vec<&'static [&'static dyn Metric]>,
    /// Called after the cache was cleared: whatever waits for new credentials may try again.
    pub on_clear: Box<dyn Fn() + Send + Sync>,
    /// Called before metrics are rendered: sets gauges that nobody keeps up to date.
    pub before_metrics: Box<dyn Fn() + Send + Sync>,
}

impl Desk {
    fn unhealthy(&self) -> Option<&'static str> {
        self.inbox.unhealthy().map(|refusal| match refusal {
            Refusal::Poisoned => "the store failed",
            Refusal::Full => "the store's queue is full",
            Refusal::Late => "the store is slow",
            Refusal::Draining => "draining",
        })
    }
}

impl Console for Desk {
    fn health(&self) -> Result<(), &'static str> {
        self.unhealthy().map_or(Ok(()), Err)
    }

    fn database_connected(&self) -> bool {
        self.directory.is_connected()
    }

    fn ready(&self) -> Result<(), &'static str> {
        self.lifecycle.unready().or_else(|| self.unhealthy()).map_or(Ok(()), Err)
    }

    fn metrics_json(&self) -> String {
        let cache = self.directory.stats();
        let counts = self.inbox.counts();
        let now = clock::now();
        let asked = cache.hits + cache.misses;
        let hit_rate = if asked == 0 { 0.0 } else { cache.hits as f64 / asked as f64 };
        let age = counts.oldest_ms.map_or(0.0, |at| now.saturating_sub(at) as f64 / 1000.0);
        let (max_pool, min_pool) = self.pool;
        format!(
            "{{\"cache\":{{\"size\":{},\"max_size\":{},\"ttl_seconds\":{},\"hits\":{},\"misses\":{},\"hit_rate\":{hit_rate:.4}}},\
             \"connection_pool\":{{\"max_pool_size\":{max_pool},\"min_pool_size\":{min_pool}}},\
             \"inbox\":{{\"pending\":{},\"parked\":{},\"dead\":{},\"oldest_age_seconds\":{age:.3}}},\
             \"timestamp\":{:.3}}}",
            cache.size,
            cache.max_size,
            cache.ttl_seconds,
            cache.hits,
            cache.misses,
            counts.pending,
            counts.parked,
            counts.dead,
            now as f64 / 1000.0
        )
    }

    fn metrics_text(&self) -> String {
        (self.before_metrics)();
        let mut out = String::with_capacity(16 << 10);
        let cache = self.directory.stats();
        let counts = self.inbox.counts();
        let age = counts.oldest_ms.map_or(0.0, |at| clock::now().saturating_sub(at) as f64 / 1000.0);
        let gauges: [(&str, &str, f64); 6] = [
            (
                "inbox_pending",
                "Items that wait for their turn or whose reply is not sent.",
                counts.pending as f64,
            ),
            ("inbox_parked", "Items that wait for a mend.", counts.parked as f64),
            ("inbox_dead", "Items that can't be answered.", counts.dead as f64),
            ("inbox_oldest_age_seconds", "Age of the oldest item that waits.", age),
            ("cache_size", "Businesses in the cache.", cache.size as f64),
            ("ready", "1 while the service is ready.", f64::from(u8::from(self.ready().is_ok()))),
        ];
        for (name, help, value) in gauges {
            let _ = writeln!(
                out,
                "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} gauge\n{PREFIX}{name} {value}"
            );
        }
        for (name, help, value) in [
            ("cache_hits_total", "Businesses found in the cache.", cache.hits),
            ("cache_misses_total", "Businesses not found in the cache.", cache.misses),
        ] {
            let _ = writeln!(
                out,
                "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} counter\n{PREFIX}{name} {value}"
            );
        }
        for metric in self.metrics.iter().copied().flatten() {
            metric.render(&mut out);
        }
        out
    }

    fn clear_cache(&self) {
        self.directory.clear();
        (self.on_clear)();
        log::info!("directory: cache cleared");
    }

    fn warm_up_cache(&self) -> Result<(), String> {
        let loaded = self.directory.warm_up().map_err(|failure| failure.to_string())?;
        log::info!("directory: {loaded} businesses loaded into the cache");
        Ok(())
    }
}
