//! The Graph API over HTTP: one call a method, each answer read into what it means.
//!
//! `POST {url}/{version}/{phone_number_id}/messages` with the business's own token
//! (<https://developers.facebook.com/documentation/business-messaging/whatsapp/messages/send-messages>).
//! Nothing is sent twice from here: whether to try again is for who calls.

use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::pacing::Pacing;
use super::{Graph, Send, body, errors};
use crate::clock;
use crate::config;
use crate::event::{Business, Recipient, hash64};
use crate::failure::{Failure, Reason, Source, Verdict};
use crate::net;
use crate::ops::metrics::{Counter, Family, Histogram};
use crate::secret::Secret;
use crate::turnstile::places::Rule;
use crate::turnstile::{Place, Turnstile};

/// Connecting, at most; a whole call is bounded by GRAPH_TIMEOUT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a number's calls at once are made for, at the fastest send with its commit: four times the 1,000 messages a second
/// that Meta allows one (<https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput>), since each
/// has its read receipt, and the usual call is slower.
const CALLS_PER_SECOND: usize = 4_000;
/// A number may have so many calls at once however fast they are, while others are active too.
const CALLS_MIN: usize = 4;
/// Longer ids are not Meta's.
const WAMID_MAX: usize = 512;
/// Longer ids are not Meta's.
const PHONE_NUMBER_ID_MAX: usize = 64;

const OUTCOMES: [&str; 5] = ["ok", "retry", "park", "unknown", "dead"];

pub(super) static SENDS: Family<5> =
    Family::new("graph_sends_total", "Messages given to the Graph API, by outcome.", "outcome", OUTCOMES);
pub(super) static READS: Family<5> = Family::new(
    "graph_reads_total",
    "Read receipts and typing indicators given to the Graph API, by outcome.",
    "outcome",
    OUTCOMES,
);
pub(super) static SECONDS: Histogram =
    Histogram::new("graph_call_seconds", "Calls of the Graph API, from begin to end.");
pub(super) static PACED: Counter =
    Counter::new("graph_paced_total", "Messages that had to wait for the number's or the pair's pace.");
pub(super) static PACED_SECONDS: Histogram =
    Histogram::new("graph_paced_seconds", "How long messages had to wait for their pace.");
pub(super) static UNPACED: Counter =
    Counter::new("graph_unpaced_total", "Messages that were not paced since a table was full.");
pub(super) static QUEUED: Counter =
    Counter::new("graph_queued_total", "Calls that had to wait for one of GRAPH_POOL_SIZE's places.");

/// The Graph API at one URL and version.
#[derive(Debug)]
pub struct Client {
    http: net::client::Client,
    /// `{url}/{version}`.
    base: String,
    timeout: Duration,
    pacing: Mutex<Pacing>,
    /// As many calls at once as connections are kept: more would open and drop a connection each, which costs more than
    /// waiting for one.
    turnstile: Turnstile,
}

/// `{"messages":[{"id":"wamid.."}]}`; a `message_status` of `held_for_quality_assessment` is an acceptance
/// too.
#[derive(Deserialize)]
struct Accepted {
    messages: Vec<AcceptedMessage>,
}

#[derive(Deserialize)]
struct AcceptedMessage {
    id: String,
}

#[derive(Deserialize)]
struct Done {
    success: bool,
}

impl Client {
    /// Connects to nothing yet. Reads the system's certificates: call from a thread.
    pub fn new(config: &config::Graph) -> Self {
        let options = net::Options {
            pool_size: config.pool_size,
            connect_timeout: CONNECT_TIMEOUT.min(config.timeout),
            is_patient: false,
        };
        Self {
            http: net::client::Client::new(options),
            base: format!("{}/{}", config.url, config.version),
            timeout: config.timeout,
            pacing: Mutex::new(Pacing::new(config.rate_per_number)),
            turnstile: Turnstile::new(Rule {
                least: config.pool_size,
                most: config.pool_size,
                per_second: 0,
                window: CALLS_MIN,
                window_per_second: CALLS_PER_SECOND,
            }),
        }
    }

    fn post(&self, business: &Business, phone_number_id: &str, body: &[u8]) -> Result<net::Answer, Failure> {
        if !is_id(phone_number_id) {
            return Err(refused("graph_bad_number", "the phone_number_id is not one of Meta's"));
        }
        let url = format!("{}/{phone_number_id}/messages", self.base);
        let bearer = Zeroizing::new(format!("Bearer {}", business.token.reveal()));
        let begun = clock::monotonic();
        let answer = self.http.call(&net::Call {
            method: "POST",
            url: &url,
            headers: &[("authorization", bearer.as_str()), ("content-type", "application/json")],
            body,
            timeout: self.timeout,
        });
        SECONDS.observe(clock::monotonic() - begun);
        answer.map_err(|e| errors::no_answer(&e, &business.token))
    }
}

impl Graph for Client {
    fn reserve(&self, phone_number_id: &str, to: &Recipient) -> Duration {
        let place = self.pacing.lock().reserve(phone_number_id, to, clock::monotonic());
        if place.full {
            UNPACED.inc();
        }
        if !place.wait.is_zero() {
            PACED.inc();
            PACED_SECONDS.observe(place.wait);
        }
        place.wait
    }

    fn enter(&self, phone_number_id: &str) -> Place<'_> {
        let place = self.turnstile.enter(hash64(&[phone_number_id.as_bytes()]));
        QUEUED.add(u64::from(place.waited));
        place
    }

    fn enter_within(&self, phone_number_id: &str, within: Duration) -> Option<Place<'_>> {
        let place = self.turnstile.enter_within(hash64(&[phone_number_id.as_bytes()]), within);
        QUEUED.add(u64::from(place.as_ref().is_none_or(|place| place.waited)));
        place
    }

    fn try_enter(&self, phone_number_id: &str) -> Option<Place<'_>> {
        self.turnstile.try_enter(hash64(&[phone_number_id.as_bytes()]))
    }

    fn send(&self, send: &Send<'_>, place: Place<'_>) -> Result<String, Failure> {
        let sent = body::message(send)
            .map_err(|body::NotAMessage| refused("graph_bad_body", "the message is no JSON object"))
            .and_then(|body| self.post(send.business, send.phone_number_id, &body))
            .and_then(|answer| wamid(answer, &send.business.token));
        if sent.is_ok() {
            self.turnstile.saw(place.age());
        }
        SENDS.inc(outcome(&sent));
        sent
    }

    fn read(
        &self,
        business: &Business,
        phone_number_id: &str,
        wamid: &str,
        typing: bool,
        _place: Place<'_>,
    ) -> Result<(), Failure> {
        let done = self
            .post(business, phone_number_id, &body::read(wamid, typing))
            .and_then(|answer| success(answer, &business.token));
        READS.inc(outcome(&done));
        done
    }
}

/// The wamid of the first message of a success; anything else is a failure, see [`errors::classify`]. Pure.
pub fn wamid(answer: net::Answer, token: &Secret) -> Result<String, Failure> {
    let accepted = is_2xx(&answer).then(|| serde_json::from_slice::<Accepted>(&answer.body).ok()).flatten();
    let first = accepted.and_then(|accepted| accepted.messages.into_iter().next());
    match first {
        Some(message) if (1..=WAMID_MAX).contains(&message.id.len()) => Ok(message.id),
        _ => Err(errors::classify(answer.status, &answer.headers, &answer.body, token)),
    }
}

fn success(answer: net::Answer, token: &Secret) -> Result<(), Failure> {
    let done = is_2xx(&answer).then(|| serde_json::from_slice::<Done>(&answer.body).ok()).flatten();
    match done {
        Some(Done { success: true }) => Ok(()),
        _ => Err(errors::classify(answer.status, &answer.headers, &answer.body, token)),
    }
}

pub(super) fn is_2xx(answer: &net::Answer) -> bool {
    (200..300).contains(&answer.status)
}

/// Goes into a path: nothing that could lead elsewhere.
pub(super) fn is_id(text: &str) -> bool {
    (1..=PHONE_NUMBER_ID_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

pub(super) fn refused(reason: &'static str, detail: &str) -> Failure {
    let reason = Reason::fixed(reason);
    Failure { source: Source::Graph, verdict: Verdict::Dead, reason, detail: detail.to_owned() }
}

/// Index in [`OUTCOMES`].
fn outcome<T>(result: &Result<T, Failure>) -> usize {
    match result.as_ref().err().map(|failure| failure.verdict) {
        None => 0,
        Some(Verdict::Retry { .. }) => 1,
        Some(Verdict::Park { .. }) => 2,
        Some(Verdict::Unknown) => 3,
        Some(Verdict::Dead) => 4,
    }
}
