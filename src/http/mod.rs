//! The edge: HTTP on may_minihttp, its guard, the routes.
//!
//! Why it is shaped so: the one hot path is a signed POST. Its header is read in one pass into fields that the
//! connection keeps, its body goes straight into the inbox's ticket, one HMAC runs over the raw bytes, one pass of the
//! parser fills the ticket's item list, and the coroutine parks until the group commit that has it. Per request the
//! edge makes no allocation, takes no lock (the guard's state is one atomic store) and no system call but the crate's
//! own recv and send. Everything that is rare (client addresses, rate limits, refusals) looks things up only then.
//!
//! What the crate lacks is in `guard`: deadlines, the connection cap, bodies whose length can't be trusted.

mod fd;
mod guard;
mod head;
mod rate;
mod reply;
mod routes;
mod server;
mod service;

pub use server::{Server, serve};

use crate::ops::metrics::{Counter, Family, Gauge, Histogram, Metric};

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Peer,
    Asked,
    Surplus,
    LateHeader,
    LateBody,
    Idle,
    Silent,
    LargeHeader,
    Malformed,
    Refused,
    BodyCut,
    Unread,
    Drain,
}

static OPEN: Gauge = Gauge::new("connections", "Open connections.");
static CUT: Family<13> = Family::new(
    "connections_ended_total",
    "Connections by why they ended.",
    "reason",
    [
        "peer",
        "asked",
        "surplus",
        "late_header",
        "late_body",
        "idle",
        "silent",
        "large_header",
        "malformed",
        "refused",
        "body_cut",
        "unread",
        "drain",
    ],
);
static REQUESTS: Family<7> = Family::new(
    "requests_total",
    "Requests whose header and body were read, by route.",
    "route",
    ["webhook", "handshake", "health", "ready", "metrics", "admin", "other"],
);
static ANSWERS: Family<15> = Family::new(
    "answers_total",
    "Answers by status.",
    "status",
    [
        "200", "400", "401", "403", "404", "405", "408", "411", "413", "429", "431", "500", "501", "503",
        "other",
    ],
);
static BODY_BYTES: Counter = Counter::new("body_bytes_total", "Bytes of webhook bodies.");
static ACK_SECONDS: Histogram = Histogram::new(
    "ack_seconds",
    "From a complete header of a signed webhook to its 200, the commit included.",
);
static CLIENTS_FULL: Counter = Counter::new(
    "rate_limit_clients_full_total",
    "Requests that passed because the table of clients was full.",
);

/// All of the above.
pub static METRICS: &[&dyn Metric] =
    &[&OPEN, &CUT, &REQUESTS, &ANSWERS, &BODY_BYTES, &ACK_SECONDS, &CLIENTS_FULL];

fn answer_index(status: u16) -> usize {
    [200, 400, 401, 403, 404, 405, 408, 411, 413, 429, 431, 500, 501, 503]
        .iter()
        .position(|known| *known == status)
        .unwrap_or(14)
}
