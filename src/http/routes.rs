//! What is where, and the answers of everything but the webhook's POST. Bodies of these requests are never
//! looked at.
//!
//! Paths are exact (no trailing slash, no decoding); a query is ignored but for the handshake's. HEAD is
//! answered like GET, without the body; may_minihttp can't leave a body out, so the guard writes that answer
//! itself and closes.

use std::net::IpAddr;

use super::access::{self, Admission};
use super::answer::{Answer, Body, content, retry_after};
use super::counters::LIMITED;
use super::rate::Class;
use super::{Shared, fd};
use crate::clock;
use crate::webhook::handshake;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Route {
    /// `/whatsapp_response` and `/webhook`.
    Webhook,
    /// `/health`.
    Health,
    /// `/ready`.
    Ready,
    /// `/metrics` and `/metrics/prometheus`.
    Metrics,
    /// `/admin/cache/clear`.
    CacheClear,
    /// `/admin/cache/warmup`.
    CacheWarmup,
    /// Anything else.
    Unknown,
    /// Was no request at all; only for counting.
    Malformed,
}

impl Route {
    /// How many there are.
    pub const COUNT: usize = 8;
    /// Their labels.
    pub const NAMES: [&str; Self::COUNT] =
        ["webhook", "health", "ready", "metrics", "cache_clear", "cache_warmup", "unknown", "malformed"];

    /// Of a path without its query.
    pub fn of(path: &str) -> Self {
        match path {
            "/whatsapp_response" | "/webhook" => Self::Webhook,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/metrics" | PROMETHEUS => Self::Metrics,
            "/admin/cache/clear" => Self::CacheClear,
            "/admin/cache/warmup" => Self::CacheWarmup,
            _ => Self::Unknown,
        }
    }

    fn allow(self) -> &'static str {
        match self {
            Self::Webhook => "Allow: GET, HEAD, POST",
            Self::CacheClear | Self::CacheWarmup => "Allow: POST",
            _ => "Allow: GET, HEAD",
        }
    }
}

const PROMETHEUS: &str = "/metrics/prometheus";

/// The path and the query of a request target; a proxy may ask for `http://host/path`.
pub fn split(target: &str) -> (&str, &str) {
    let scheme = target.get(..8).map_or(0, |start| {
        let start = start.to_ascii_lowercase();
        if start.starts_with("http://") {
            7
        } else if start == "https://" {
            8
        } else {
            0
        }
    });
    let target = match scheme {
        0 => target,
        n => target[n..].find(['/', '?']).map_or("/", |at| &target[n + at..]),
    };
    target.split_once('?').unwrap_or((target, ""))
}

/// A request beside the webhook's POST.
pub struct Ask<'r> {
    /// Its method.
    pub method: &'r str,
    /// Without the query.
    pub path: &'r str,
    /// After the question mark.
    pub query: &'r str,
    /// The value of Accept.
    pub accept: Option<&'r [u8]>,
    /// The value of Authorization; `None` if there are several.
    pub authorization: Option<&'r [u8]>,
    /// A proxy has been here.
    pub forwarded: bool,
    /// Whose connection it is.
    pub peer: Option<IpAddr>,
    /// Who asks.
    pub client: IpAddr,
}

/// The answer.
pub fn answer(shared: &Shared, route: Route, ask: &Ask<'_>) -> Answer {
    let reads = matches!(ask.method, "GET" | "HEAD");
    match route {
        Route::Unknown | Route::Malformed => Answer::fixed(404, r#"{"error":"not found"}"#),
        Route::Webhook | Route::Health | Route::Ready | Route::Metrics if !reads => not_allowed(route),
        Route::CacheClear | Route::CacheWarmup if ask.method != "POST" => not_allowed(route),
        Route::Webhook => limited(shared, Class::Unverified, ask, |shared| handshake(shared, ask.query)),
        Route::Health => limited(shared, Class::Health, ask, health),
        Route::Ready => limited(shared, Class::Ready, ask, ready),
        Route::Metrics => limited(shared, Class::Metrics, ask, |shared| metrics(shared, ask)),
        Route::CacheClear | Route::CacheWarmup => {
            limited(shared, Class::Admin, ask, |shared| admin(shared, route, ask))
        }
    }
}

fn not_allowed(route: Route) -> Answer {
    Answer::fixed(405, r#"{"error":"method not allowed"}"#).with(route.allow())
}

/// 429, to be sent again after `wait_us`.
pub fn too_many(wait_us: u64) -> Answer {
    LIMITED.inc();
    Answer::fixed(429, r#"{"error":"too many requests"}"#).with(retry_after(wait_us))
}

fn limited(shared: &Shared, class: Class, ask: &Ask<'_>, then: impl FnOnce(&Shared) -> Answer) -> Answer {
    match shared.take(class, ask.client, fd::micros(clock::monotonic())) {
        Ok(()) => then(shared),
        Err(wait_us) => too_many(wait_us),
    }
}

fn handshake(shared: &Shared, query: &str) -> Answer {
    match handshake::challenge(query.as_bytes(), &shared.webhook.verify_tokens) {
        Ok(challenge) => {
            Answer { code: 200, content: content::TEXT, line: None, body: Body::Made(challenge) }
        }
        Err(_) => Answer::fixed(403, r#"{"error":"verification failed"}"#),
    }
}

fn seconds() -> f64 {
    clock::now() as f64 / 1000.0
}

fn health(shared: &Shared) -> Answer {
    match shared.console.health() {
        Ok(()) => {
            let database = if shared.console.database_connected() { "healthy" } else { "disconnected" };
            Answer::made(
                200,
                format!(
                    r#"{{"status":"healthy","timestamp":{:.3},"database":"{database}","service":"whatsapp-webhook"}}"#,
                    seconds()
                ),
            )
        }
        Err(error) => {
            Answer::made(503, format!(r#"{{"status":"unhealthy","error":{}}}"#, quoted(error))).with(SOON)
        }
    }
}

fn ready(shared: &Shared) -> Answer {
    match shared.console.ready() {
        Ok(()) => Answer::made(200, format!(r#"{{"ready":true,"timestamp":{:.3}}}"#, seconds())),
        Err(why) => Answer::made(503, format!(r#"{{"ready":false,"reason":{}}}"#, quoted(why))).with(SOON),
    }
}

/// For what passes by itself.
pub const SOON: &str = "Retry-After: 5";

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn metrics(shared: &Shared, ask: &Ask<'_>) -> Answer {
    if ask.path == PROMETHEUS || ask.accept.is_some_and(access::prefers_text) {
        let text = shared.console.metrics_text().into_bytes();
        return Answer { code: 200, content: content::PROMETHEUS, line: None, body: Body::Made(text) };
    }
    Answer::made(200, shared.console.metrics_json())
}

fn admin(shared: &Shared, route: Route, ask: &Ask<'_>) -> Answer {
    match access::admit(shared.http.admin_token.as_ref(), ask.authorization, ask.peer, ask.forwarded) {
        Admission::Granted => {}
        Admission::Unauthorized => {
            return Answer::fixed(401, r#"{"error":"a right bearer token is needed"}"#)
                .with("WWW-Authenticate: Bearer");
        }
        Admission::Forbidden => {
            return Answer::fixed(403, r#"{"error":"only from this machine, or set ADMIN_TOKEN"}"#);
        }
    }
    if route == Route::CacheClear {
        shared.console.clear_cache();
        return Answer::fixed(200, r#"{"status":"success","message":"Cache cleared"}"#);
    }
    match shared.console.warm_up_cache() {
        Ok(()) => Answer::fixed(200, r#"{"status":"success","message":"Cache warmed up"}"#),
        Err(cause) => {
            log::warn!("cache not warmed up: {cause}");
            Answer::fixed(503, r#"{"status":"error","message":"the directory can't be read"}"#).with(SOON)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_exact() {
        assert_eq!(Route::of("/webhook"), Route::Webhook);
        assert_eq!(Route::of("/metrics/prometheus"), Route::Metrics);
        for other in ["", "/", "/webhook/", "//webhook", "/Webhook", "/webhook%20", "/health/x", "*"] {
            assert_eq!(Route::of(other), Route::Unknown, "{other}");
        }
        assert_eq!(Route::NAMES[Route::Malformed as usize], "malformed");
    }

    #[test]
    fn a_target_may_be_absolute() {
        assert_eq!(split("/webhook?a=b?c"), ("/webhook", "a=b?c"));
        assert_eq!(split("http://host:80/webhook?x"), ("/webhook", "x"));
        assert_eq!(split("HTTPS://host/health"), ("/health", ""));
        assert_eq!(split("http://host"), ("/", ""));
        assert_eq!(split("http://h"), ("/", ""));
        assert_eq!(split("/é"), ("/é", ""));
        assert_eq!(split(""), ("", ""));
    }
}
