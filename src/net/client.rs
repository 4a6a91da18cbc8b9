//! The HTTP client: one call, one answer, by its deadline.
//!
//! ureq speaks HTTP/1.1 and TLS (see `exchange`); under it are our sockets and resolver, so that a call suspends
//! its coroutine and never a worker. No redirect is followed and no status is an error. TLS is verified
//! against the system's roots, or Mozilla's where the system has none. A call works from a coroutine with a
//! 128 KiB stack and from a plain thread.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, RustlsConnector};
use ureq::{Agent, Error};

use super::exchange::{Dialer, Idle, exchange};
use super::resolve::{self, Names};
use super::socket::{Complete, Tcp};
use super::trace;
use super::{Answer, Call, CallError, Options};
use crate::clock;
use crate::ops::metrics::Counter;

/// ureq's buffers of one connection: of an answer, whose header must fit in; and of a request, which goes out in pieces.
/// Thousands of connections may wait for an agent.
const INPUT_BYTES: usize = 8 << 10;
const OUTPUT_BYTES: usize = 4 << 10;

pub(super) static CALLS: Counter = Counter::new("net_calls_total", "Outgoing HTTP calls.");
pub(super) static FAILED: Counter =
    Counter::new("net_calls_failed_total", "Outgoing HTTP calls without an answer.");
pub(super) static REPEATED: Counter = Counter::new(
    "net_calls_repeated_total",
    "Calls made again because a kept connection was closed before the request was through.",
);
pub(super) static TOO_LARGE: Counter =
    Counter::new("net_answers_too_large_total", "Answers larger than ANSWER_MAX.");

/// Roots of trust: the system's, else Mozilla's. Read once, at the first client.
static ROOTS: LazyLock<Vec<Certificate<'static>>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        log::info!("no system certificates found, using the built-in ones");
        return Vec::new();
    }
    found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
});

/// A client with its own pool of connections. Cheap to share behind a reference; dropping it closes idle
/// connections.
#[derive(Debug)]
pub struct Client {
    dialer: Dialer,
    idle: Idle,
}

impl Client {
    /// Reads the certificates, so it blocks for a moment: call at start, from a thread.
    pub fn new(options: Options) -> Self {
        Self::with_roots(options, roots(&[]))
    }

    /// As `new`, trusting these roots (DER) besides: for a private certificate authority, and for tests.
    pub fn with_extra_roots(options: Options, der: &[&[u8]]) -> Self {
        Self::with_roots(options, roots(der))
    }

    fn with_roots(options: Options, roots: RootCerts) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .input_buffer_size(INPUT_BYTES)
            .output_buffer_size(OUTPUT_BYTES)
            .timeout_connect(Some(options.connect_timeout))
            .build();
        let names = Names::new(resolve::system);
        let tcp = Tcp { names: names.clone(), is_patient: options.is_patient };
        let connector = ().chain(tcp).chain(RustlsConnector::default()).chain(Complete);
        let dialer = Dialer { config, names, connector: Box::new(connector) };
        Self { dialer, idle: Idle::new(options.pool_size) }
    }

    /// Makes the call and reads the whole answer. Suspends. It is made again where a kept connection turns
    /// out to be closed before the request was through, and only there: that is certain to have had no
    /// effect.
    pub fn call(&self, call: &Call<'_>) -> Result<Answer, CallError> {
        CALLS.inc();
        let deadline = clock::monotonic() + call.timeout;
        let mut ended = self.attempt(call, deadline);
        // a burst of dead connections is worked off; each attempt takes one from the pool
        while ended.is_err() && trace::now().may_be_repeated() && clock::monotonic() < deadline {
            REPEATED.inc();
            ended = self.attempt(call, deadline);
        }
        ended.inspect_err(|_| FAILED.inc())
    }

    /// Connects to the URL's host, TLS included, and asks for nothing.
    pub fn reach(&self, url: &str, within: Duration) -> Result<(), CallError> {
        trace::begin(clock::monotonic() + within);
        let uri: Uri = url.parse().map_err(|_| refused("the URL can't be used"))?;
        let failed = |e: Error| CallError {
            may_have_arrived: false,
            timed_out: is_timeout(&e),
            detail: format!("{}: {}", uri.host().unwrap_or_default(), said(&e)),
        };
        self.dialer.connect(&uri).map(drop).map_err(failed)
    }

    fn attempt(&self, call: &Call<'_>, deadline: Duration) -> Result<Answer, CallError> {
        trace::begin(deadline);
        let uri: Uri = call.url.parse().map_err(|_| refused("the URL can't be used"))?;
        let host = uri.host().unwrap_or_default();
        exchange(&self.dialer, &self.idle, call, &uri).map_err(|e| {
            if matches!(e, Error::BodyExceedsLimit(_)) {
                TOO_LARGE.inc();
            }
            let trace = trace::now();
            CallError {
                may_have_arrived: trace.may_have_arrived(),
                timed_out: is_timeout(&e),
                detail: format!("{} {host}: {}", call.method, said(&e)),
            }
        })
    }
}

/// The system's roots, or Mozilla's, and these.
fn roots(extra: &[&[u8]]) -> RootCerts {
    if ROOTS.is_empty() && extra.is_empty() {
        return RootCerts::WebPki;
    }
    let extra = extra.iter().map(|der| Certificate::from_der(der).to_owned());
    RootCerts::new_with_certs(&ROOTS.iter().cloned().chain(extra).collect::<Vec<_>>())
}

fn refused(detail: impl Display) -> CallError {
    CallError { may_have_arrived: false, timed_out: false, detail: detail.to_string() }
}

fn is_timeout(e: &Error) -> bool {
    match e {
        Error::Timeout(_) => true,
        Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => true,
        Error::Io(e) => e.get_ref().and_then(|e| e.downcast_ref()).is_some_and(is_timeout),
        _ => false,
    }
}

/// What went wrong in words that hold nothing of the request or the answer.
fn said(e: &Error) -> String {
    match e {
        Error::Timeout(what) => format!("timed out ({what})"),
        Error::HostNotFound => "the name has no address".to_owned(),
        Error::BodyExceedsLimit(max) => format!("the answer is larger than {max} bytes"),
        Error::Protocol(_) => "the answer is not HTTP/1.1".to_owned(),
        Error::Rustls(e) => format!("TLS: {e}"),
        Error::Tls(e) => format!("TLS: {e}"),
        Error::Io(e) => match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            Some(inner) => said(inner),
            None => e.to_string(),
        },
        Error::BadUri(_) | Error::Http(_) => "the request can't be used".to_owned(),
        other => other.to_string(),
    }
}
