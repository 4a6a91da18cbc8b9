//! Metrics, health, admin, signals, sd_notify, drain: at the side of the flow.

pub mod console;
pub mod lifecycle;
pub mod machine;
pub mod metrics;
pub mod process;
pub mod stderr;

/// What the edge's routes beside the webhook show and do. No call blocks a worker.
pub trait Console: Send + Sync + 'static {
    /// Whether the inbox accepts; the error goes into `{"status":"unhealthy","error":..}`.
    fn health(&self) -> Result<(), &'static str>;
    /// Whether the directory's store answers.
    fn database_connected(&self) -> bool;
    /// Started, not draining, and the inbox accepts; else why not.
    fn ready(&self) -> Result<(), &'static str>;
    /// The JSON of GET /metrics.
    fn metrics_json(&self) -> String;
    /// The Prometheus text.
    fn metrics_text(&self) -> String;
    /// POST /admin/cache/clear.
    fn clear_cache(&self);
    /// POST /admin/cache/warmup.
    fn warm_up_cache(&self) -> Result<(), String>;
}
