//! What is at which path, and who may ask how often.
//!
//! The webhook's POST comes first and is the only hot one: verify over the raw bytes, parse, append, 200. It takes no
//! lock and makes no string; an address is only looked up when something is wrong.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ring::hmac;

use super::guard::Guard;
use super::head::{Head, Method};
use super::rate::{Class, Limiter};
use super::reply::{Answer, Form, retry_after};
use super::service::Connection;
use super::{ACK_SECONDS, BODY_BYTES, REQUESTS};
use crate::clock;
use crate::config;
use crate::inbox::Inbox;
use crate::ops::Console;
use crate::secret::Secret;
use crate::webhook::handshake;
use crate::webhook::parse::{NotUnderstood, Outcome, parse};
use crate::webhook::signature::Verifier;

/// How long a sender waits after a 503.
const RETRY_STORE: &str = "Retry-After: 5";

/// Shared by all connections.
pub struct Edge {
    pub guard: Guard,
    pub inbox: Arc<dyn Inbox>,
    console: Arc<dyn Console>,
    verifier: Verifier,
    verify_tokens: Vec<Secret>,
    allow_unsigned: bool,
    admin_token: Option<Secret>,
    trusted: Vec<ipnet::IpNet>,
    rates: config::Rates,
    limiter: Mutex<Limiter>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Webhook,
    Handshake(Vec<u8>),
    Health,
    Ready,
    Metrics {
        text: bool,
    },
    ClearCache,
    WarmUp,
    NotFound,
    /// With the `Allow` line.
    NotAllowed(&'static str),
}

impl Route {
    /// By path (without query, one slash at the end is ignored) and method.
    pub fn of(target: &str, method: Method) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(path);
        let reads = matches!(method, Method::Get | Method::Head);
        let read_only = |route| if reads { route } else { Self::NotAllowed("Allow: GET, HEAD") };
        let post_only = |route| if method == Method::Post { route } else { Self::NotAllowed("Allow: POST") };
        match path {
            "/whatsapp_response" | "/webhook" => match method {
                Method::Post => Self::Webhook,
                Method::Get | Method::Head => Self::Handshake(query.as_bytes().to_vec()),
                Method::Other => Self::NotAllowed("Allow: GET, HEAD, POST"),
            },
            "/health" => read_only(Self::Health),
            "/ready" => read_only(Self::Ready),
            "/metrics" => read_only(Self::Metrics { text: false }),
            "/metrics/prometheus" => read_only(Self::Metrics { text: true }),
            "/admin/cache/clear" => post_only(Self::ClearCache),
            "/admin/cache/warmup" => post_only(Self::WarmUp),
            _ => Self::NotFound,
        }
    }

    fn index(&self) -> usize {
        match self {
            Self::Webhook => 0,
            Self::Handshake(_) => 1,
            Self::Health => 2,
            Self::Ready => 3,
            Self::Metrics { .. } => 4,
            Self::ClearCache | Self::WarmUp => 5,
            Self::NotFound | Self::NotAllowed(_) => 6,
        }
    }
}

impl Edge {
    pub fn new(
        http: &config::Http,
        webhook: &config::Webhook,
        inbox: Arc<dyn Inbox>,
        console: Arc<dyn Console>,
    ) -> Self {
        Self {
            guard: Guard::new(http),
            inbox,
            console,
            verifier: Verifier::new(&webhook.apps, webhook.allow_unsigned),
            verify_tokens: webhook.verify_tokens.clone(),
            allow_unsigned: webhook.allow_unsigned,
            admin_token: http.admin_token.clone(),
            trusted: http.trusted_proxies.clone(),
            rates: http.rates,
            limiter: Mutex::default(),
        }
    }

    /// The last hop of X-Forwarded-For that is no trusted proxy, if the peer is one; else the peer.
    pub fn client(&self, peer: IpAddr, forwarded_for: &str) -> IpAddr {
        let is_trusted = |address: &IpAddr| self.trusted.iter().any(|net| net.contains(address));
        let mut client = peer;
        let mut hops = forwarded_for.rsplit(',').map(str::trim);
        while is_trusted(&client) {
            let Some(hop) = hops.next().filter(|hop| !hop.is_empty()) else { break };
            match parse_hop(hop) {
                Some(address) => client = address,
                None => break,
            }
        }
        client
    }

    fn rate(&self, class: Class) -> u32 {
        match class {
            Class::Health => self.rates.health,
            Class::Ready => self.rates.ready,
            Class::Metrics => self.rates.metrics,
            Class::Admin => self.rates.admin,
            Class::Unverified => self.rates.unverified,
            Class::Webhook => self.rates.webhook,
        }
    }

    fn health(&self) -> Answer {
        let database = if self.console.database_connected() { "healthy" } else { "disconnected" };
        let at = seconds();
        match self.console.health() {
            Ok(()) => json(
                200,
                format!(
                    "{{\"status\":\"healthy\",\"timestamp\":{at},\"database\":\"{database}\",\"service\":\"whatsapp-webhook\"}}"
                ),
            ),
            Err(why) => json(
                503,
                format!(
                    "{{\"status\":\"unhealthy\",\"error\":\"{why}\",\"timestamp\":{at},\"service\":\"whatsapp-webhook\"}}"
                ),
            ),
        }
    }

    fn ready(&self) -> Answer {
        match self.console.ready() {
            Ok(()) => json(200, format!("{{\"ready\":true,\"timestamp\":{}}}", seconds())),
            Err(why) => json(503, format!("{{\"ready\":false,\"reason\":\"{why}\"}}")),
        }
    }

    fn metrics(&self, text: bool) -> Answer {
        if text {
            Answer::made(200, Form::Prometheus, self.console.metrics_text().into_bytes())
        } else {
            json(200, self.console.metrics_json())
        }
    }

    /// Bearer in constant time; without an ADMIN_TOKEN only this machine, and not through a proxy.
    fn admit_admin(&self, peer: IpAddr, head: &Head) -> Result<(), Answer> {
        let Some(token) = &self.admin_token else {
            let local = peer.is_loopback() && !head.has_forwarding;
            let refusal = "{\"error\":\"without ADMIN_TOKEN this is for a loopback client without forwarding headers\"}";
            return if local { Ok(()) } else { Err(Answer::fixed(403, refusal)) };
        };
        let given = head.authorization().and_then(|a| {
            let (scheme, rest) = a.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(rest.trim())
        });
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"admin token");
        let ours = hmac::sign(&key, token.reveal().as_bytes());
        let fits = given.is_some_and(|g| hmac::verify(&key, g.as_bytes(), ours.as_ref()).is_ok());
        let refusal = "{\"error\":\"this needs Authorization: Bearer and the ADMIN_TOKEN\"}";
        if fits { Ok(()) } else { Err(Answer::with(401, refusal, "WWW-Authenticate: Bearer")) }
    }
}

impl Connection {
    /// Answers a request whose body is read.
    pub(super) fn answer(&mut self, route: Route, begun: Duration) -> Answer {
        REQUESTS.inc(route.index());
        match route {
            Route::Webhook => self.webhook(begun),
            Route::Handshake(query) => self.limited(Class::Unverified, |this| this.handshake(&query)),
            Route::Health => self.limited(Class::Health, |this| this.edge.health()),
            Route::Ready => self.limited(Class::Ready, |this| this.edge.ready()),
            Route::Metrics { text } => self.limited(Class::Metrics, |this| {
                let text = text || this.head.text_preferred;
                this.edge.metrics(text)
            }),
            Route::ClearCache => self.admin(|edge| {
                edge.console.clear_cache();
                Answer::fixed(200, "{\"status\":\"success\",\"message\":\"Cache cleared\"}")
            }),
            Route::WarmUp => self.admin(|edge| match edge.console.warm_up_cache() {
                Ok(()) => Answer::fixed(200, "{\"status\":\"success\",\"message\":\"Cache warmed up\"}"),
                Err(why) => {
                    log::warn!("warm-up: {why}");
                    Answer::with(
                        503,
                        "{\"status\":\"error\",\"message\":\"the directory does not answer\"}",
                        RETRY_STORE,
                    )
                }
            }),
            Route::NotFound => Answer::fixed(404, "{\"error\":\"there is nothing at this path\"}"),
            Route::NotAllowed(allow) => Answer::with(405, "{\"error\":\"not with this method\"}", allow),
        }
    }

    fn webhook(&mut self, begun: Duration) -> Answer {
        let Some(ticket) = &mut self.ticket else { return Answer::fixed(500, "{\"error\":\"internal\"}") };
        let signature = self.head.signature();
        let (body, items) = ticket.body_and_items();
        BODY_BYTES.add(body.len() as u64);
        let Ok(app) = self.edge.verifier.verify(signature, body) else {
            ticket.body().clear();
            let refused = Answer::fixed(401, "{\"error\":\"X-Hub-Signature-256 is missing or wrong\"}");
            return self.limited(Class::Unverified, |_| refused);
        };
        let outcome = parse(body, items);
        if outcome == Outcome::Unparsed(NotUnderstood::NotJson)
            && signature.is_none()
            && self.edge.allow_unsigned
        {
            ticket.body().clear();
            return Answer::fixed(400, "{\"error\":\"the body is not JSON\"}");
        }
        if self.edge.rates.webhook > 0
            && let Some(limit) = self.over_limit(Class::Webhook)
        {
            if let Some(ticket) = &mut self.ticket {
                ticket.body().clear();
            }
            return limit;
        }
        let Some(ticket) = &mut self.ticket else { return Answer::fixed(500, "{\"error\":\"internal\"}") };
        match ticket.append(app) {
            Ok(()) => {
                ACK_SECONDS.observe(clock::monotonic() - begun);
                Answer::fixed(200, "{\"status\":\"success\"}")
            }
            Err(_) => Answer::with(503, "{\"error\":\"can't be stored now, send it again\"}", RETRY_STORE),
        }
    }

    fn handshake(&self, query: &[u8]) -> Answer {
        match handshake::challenge(query, &self.edge.verify_tokens) {
            Ok(challenge) => Answer::made(200, Form::Text, challenge),
            Err(_) => {
                Answer::fixed(403, "{\"error\":\"not a subscription with the verify token of this server\"}")
            }
        }
    }

    fn admin(&mut self, act: impl FnOnce(&Edge) -> Answer) -> Answer {
        self.limited(Class::Admin, |this| {
            let peer = this.peer();
            match this.edge.admit_admin(peer, &this.head) {
                Ok(()) => act(&this.edge),
                Err(refused) => refused,
            }
        })
    }

    /// Counts the request against its client's limit first.
    fn limited(&mut self, class: Class, answer: impl FnOnce(&mut Self) -> Answer) -> Answer {
        match self.over_limit(class) {
            Some(limit) => limit,
            None => answer(self),
        }
    }

    fn over_limit(&mut self, class: Class) -> Option<Answer> {
        let per_minute = self.edge.rate(class);
        if per_minute == 0 {
            return None;
        }
        let client = self.client();
        let passed = self.edge.limiter.lock().pass(class, client, per_minute, clock::monotonic());
        let wait = passed.err()?;
        Some(Answer::with(
            429,
            "{\"error\":\"too many requests from this address\"}",
            retry_after(wait.as_secs() + 1),
        ))
    }
}

/// An address of X-Forwarded-For, with or without a port or brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let plain = hop.parse::<IpAddr>().ok();
    let with_port = || hop.parse::<std::net::SocketAddr>().ok().map(|a| a.ip());
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.or_else(with_port).or_else(bracketed).map(|address| address.to_canonical())
}

fn json(status: u16, text: String) -> Answer {
    Answer::made(status, Form::Json, text.into_bytes())
}

fn seconds() -> String {
    format!("{:.3}", clock::now() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_routes_and_methods_are_named() {
        assert_eq!(Route::of("/webhook", Method::Post), Route::Webhook);
        assert_eq!(Route::of("/whatsapp_response/", Method::Post), Route::Webhook);
        assert_eq!(Route::of("/webhook?a=b", Method::Get), Route::Handshake(b"a=b".to_vec()));
        assert_eq!(Route::of("/webhook", Method::Other), Route::NotAllowed("Allow: GET, HEAD, POST"));
        assert_eq!(Route::of("/health?x", Method::Head), Route::Health);
        assert_eq!(Route::of("/health", Method::Post), Route::NotAllowed("Allow: GET, HEAD"));
        assert_eq!(Route::of("/admin/cache/clear", Method::Get), Route::NotAllowed("Allow: POST"));
        assert_eq!(Route::of("/", Method::Get), Route::NotFound);
        assert_eq!(Route::of("/webhook/x", Method::Post), Route::NotFound);
    }

    #[test]
    fn hops_may_have_ports_and_brackets() {
        for (hop, address) in [
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2a03::1]:443", "2a03::1"),
            ("[2a03::1]", "2a03::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(parse_hop(hop), address.parse().ok(), "{hop}");
        }
        assert_eq!(parse_hop("unknown"), None);
    }
}
