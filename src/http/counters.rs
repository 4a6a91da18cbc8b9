//! What the edge counts.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::routes::Route;
use crate::ops::metrics::{Counter, Family, Gauge, Histogram, Metric, PREFIX};

/// Why a connection ended that the client did not end. The numbers are indices of [`CUT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    /// Over MAX_CONNECTIONS, or descriptors are running out.
    Surplus = 0,
    /// Silent for IDLE_TIMEOUT.
    Idle = 1,
    /// A header that took longer than HEADER_TIMEOUT.
    LateHeader = 2,
    /// A body that took longer than BODY_TIMEOUT.
    LateBody = 3,
    /// A header larger than [`super::HEADER_MAX`].
    LargeHeader = 4,
    /// Answers that were not read within BODY_TIMEOUT, or more than [`super::UNREAD_MAX`] bytes of them.
    SlowReader = 5,
    /// No HTTP, or more than 16 header lines.
    Malformed = 6,
    /// Answered with an error after which the connection can't go on.
    Refused = 7,
    /// The service stops.
    Drained = 8,
    /// The client ended its half before the request was read.
    HalfClosed = 9,
    /// A bug: the request's coroutine panicked.
    Panicked = 10,
}

impl Cut {
    /// From the number that [`super::table::Entry`] keeps.
    pub fn from_index(index: u8) -> Option<Self> {
        use Cut::{Drained, HalfClosed, Idle, LargeHeader, LateBody, LateHeader, Malformed};
        use Cut::{Panicked, Refused, SlowReader, Surplus};
        const ALL: [Cut; 11] = [
            Surplus,
            Idle,
            LateHeader,
            LateBody,
            LargeHeader,
            SlowReader,
            Malformed,
            Refused,
            Drained,
            HalfClosed,
            Panicked,
        ];
        ALL.get(usize::from(index)).copied()
    }
}

/// Connections that we ended, by reason.
pub static CUT: Family<11> = Family::new(
    "http_connections_cut_total",
    "Connections that were ended by us.",
    "reason",
    [
        "surplus",
        "idle",
        "late_header",
        "late_body",
        "large_header",
        "slow_reader",
        "malformed",
        "refused",
        "drained",
        "half_closed",
        "panicked",
    ],
);
/// Connections accepted.
pub static ACCEPTED: Counter = Counter::new("http_connections_total", "Connections accepted.");
/// Connections now.
pub static OPEN: Gauge = Gauge::new("http_connections", "Connections open.");
/// Bytes of webhook bodies read.
pub static BODY_BYTES: Counter = Counter::new("http_body_bytes_total", "Bytes of webhook bodies read.");
/// Bodies refused because too many large ones are under way.
pub static CROWDED: Counter = Counter::new(
    "http_bodies_crowded_total",
    "Large bodies refused since others filled the memory for them, or kept their reader busy.",
);
/// Requests refused by a rate limit.
pub static LIMITED: Counter = Counter::new("http_limited_total", "Requests refused by a rate limit.");
/// From the end of the header to the durable 200.
pub static ACK_SECONDS: Histogram =
    Histogram::new("http_ack_seconds", "From the end of a webhook's header to its 200.");
/// Requests by route and class of status.
pub static REQUESTS: Requests = Requests::new();

/// All of the above.
pub static METRICS: &[&dyn Metric] =
    &[&REQUESTS, &ACK_SECONDS, &BODY_BYTES, &ACCEPTED, &OPEN, &CUT, &CROWDED, &LIMITED];

/// A counter for each route and class of status.
pub struct Requests([[AtomicU64; 4]; Route::COUNT]);

impl Requests {
    const fn new() -> Self {
        Self([const { [const { AtomicU64::new(0) }; 4] }; Route::COUNT])
    }

    /// Adds one. `code`: 200 to 599.
    pub fn inc(&self, route: Route, code: u16) {
        let class = usize::from(code / 100).clamp(2, 5) - 2;
        self.0[route as usize][class].fetch_add(1, Relaxed);
    }
}

impl Metric for Requests {
    fn render(&self, out: &mut String) {
        let name = "http_requests_total";
        let _ = writeln!(out, "# HELP {PREFIX}{name} Requests answered.\n# TYPE {PREFIX}{name} counter");
        for (route, classes) in Route::NAMES.iter().zip(&self.0) {
            for (class, count) in classes.iter().enumerate() {
                let (class, count) = (class + 2, count.load(Relaxed));
                let _ = writeln!(out, "{PREFIX}{name}{{route=\"{route}\",class=\"{class}xx\"}} {count}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_class() {
        REQUESTS.inc(Route::Ready, 503);
        let mut out = String::new();
        REQUESTS.render(&mut out);
        assert!(out.contains("http_requests_total{route=\"ready\",class=\"5xx\"} 1\n"), "{out}");
    }

    #[test]
    fn reasons_have_their_index() {
        for index in 0..11 {
            assert_eq!(Cut::from_index(index).map(|cut| cut as u8), Some(index));
        }
        assert_eq!(Cut::from_index(11), None);
    }
}
