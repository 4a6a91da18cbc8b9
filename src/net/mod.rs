//! Outgoing HTTP from coroutines: ureq over `may` sockets, and a caching resolver.
//!
//! Contract (see `Client`): a call never blocks a worker, ends by its deadline, reuses connections, verifies
//! TLS.

pub mod client;
mod exchange;
mod resolve;
mod socket;
mod trace;
mod watch;

use std::time::Duration;

use crate::ops::metrics::Metric;

/// What this module counts.
pub static METRICS: &[&dyn Metric] = &[
    &client::CALLS,
    &client::FAILED,
    &client::REPEATED,
    &client::TOO_LARGE,
    &socket::CONNECTED,
    &socket::CONNECT_FAILED,
    &watch::FIRINGS,
    &resolve::LOOKUPS,
    &resolve::LOOKUPS_FAILED,
];

/// A call's answer, whatever its status. Non-2xx is not an error here.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header names in lower case.
    pub headers: Vec<(String, String)>,
    /// At most [`ANSWER_MAX`] bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The largest answer that is read, in bytes; a longer one is an error.
pub const ANSWER_MAX: usize = 4 << 20;

/// Why there is no answer. What matters to the caller is whether the request can have had an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// False only if it is certain that the other side did not get the whole request (DNS, connect, TLS
    /// handshake).
    pub may_have_arrived: bool,
    /// The deadline passed.
    pub timed_out: bool,
    /// Without the URL's query, without headers or bodies.
    pub detail: String,
}

/// One request.
#[derive(Debug)]
pub struct Call<'a> {
    /// `GET`, `POST` or `DELETE`.
    pub method: &'static str,
    /// Absolute, http or https.
    pub url: &'a str,
    /// Besides those that the client sets itself (Host, Content-Length, User-Agent).
    pub headers: &'a [(&'a str, &'a str)],
    /// Empty: none.
    pub body: &'a [u8],
    /// The whole call, name lookup and connect included.
    pub timeout: Duration,
}

/// Options of a client; each module that calls out has its own client and so its own pool.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Idle connections kept, in all and per host.
    pub pool_size: usize,
    /// Connecting (TCP and TLS), at most.
    pub connect_timeout: Duration,
    /// Answers may take seconds and thousands wait for them: what a wait holds counts more than what it costs to begin.
    pub is_patient: bool,
}
