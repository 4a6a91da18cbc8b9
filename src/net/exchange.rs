//! One request and its answer over one connection, and the connections that are kept.
//!
//! `ureq-proto`, ureq's own engine, writes the request and reads the answer; the connections are ureq's transports. What
//! `ureq::run` would do around them is done here in steps, since it keeps 16 KiB of stack while it waits for an answer:
//! thousands of coroutines wait for their agents at once. Here a step's large values are on the heap when it ends.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ureq::config::Config;
use ureq::http::uri::{Authority, Scheme};
use ureq::http::{HeaderName, HeaderValue, Request, Response, Uri};
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::time::{Duration as Within, Instant};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Error, Timeout};
use ureq_proto::BodyMode;
use ureq_proto::client::state::{RecvBody, RecvResponse, SendRequest};
use ureq_proto::client::{Call as Exchange, RecvBodyResult, RecvResponseResult, SendRequestResult};

use super::resolve::Names;
use super::{ANSWER_MAX, Answer, Call};
use crate::clock;

/// Idle connections older than this are not used again: servers close idle ones after 5 s (Node, uvicorn) or
/// more, and a request that meets such a close can't be told from one that was taken and not answered.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// How we call ourselves.
const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
/// The first room for a request's head, and how large it may become.
const HEAD_BYTES: usize = 1 << 10;
const HEAD_MAX: usize = 64 << 10;

/// A connection, in TLS where the URL says so.
pub(super) type Connection = Box<dyn Transport>;

/// What makes connections.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) config: Config,
    pub(super) names: Names,
    pub(super) connector: Box<dyn Connector<Out = Connection>>,
}

impl Dialer {
    #[inline(never)]
    pub(super) fn connect(&self, uri: &Uri) -> Result<Connection, Error> {
        let timeout = |after, reason| NextTimeout { after, reason, ..NextTimeout::default() };
        let addrs = self.names.resolve(uri, &self.config, timeout(Within::NotHappening, Timeout::Resolve))?;
        let within = self.config.timeouts().connect.map_or(Within::NotHappening, Into::into);
        let details = ConnectionDetails {
            uri,
            addrs,
            resolver: &self.names,
            config: &self.config,
            request_level: false,
            now: Instant::now(),
            timeout: timeout(within, Timeout::Connect),
            current_time: Arc::new(Instant::now),
            run_connector: Arc::new(|_| Err(Error::ConnectionFailed)),
            register_shutdown: Arc::new(|_| Ok(())),
        };
        let connection = self.connector.connect(&details, None)?.ok_or(Error::ConnectionFailed)?;
        if details.needs_tls() && !connection.is_tls() { Err(Error::TlsRequired) } else { Ok(connection) }
    }
}

/// What a connection leads to.
type Host = (Scheme, Authority);

/// Connections that wait for their next request, the one used last at the end.
#[derive(Debug)]
pub(super) struct Idle {
    /// Of all hosts, at most.
    most: usize,
    of_hosts: Mutex<HashMap<Host, VecDeque<Waiting>>>,
}

/// A connection, and since when.
type Waiting = (Duration, Connection);

impl Idle {
    pub(super) fn new(most: usize) -> Self {
        Self { most, of_hosts: Mutex::default() }
    }

    /// One that is open.
    fn take(&self, host: &Host) -> Option<Connection> {
        loop {
            let (since, mut connection) = self.of_hosts.lock().get_mut(host)?.pop_back()?;
            if clock::monotonic().saturating_sub(since) < IDLE_MAX && connection.is_open() {
                return Some(connection);
            }
        }
    }

    /// Keeps it if it is open and nothing is left in it.
    fn keep(&self, host: Host, mut connection: Connection) {
        if !connection.buffers().input().is_empty() || !connection.is_open() {
            return;
        }
        let now = clock::monotonic();
        let is_old = |(since, _): &Waiting| now.saturating_sub(*since) >= IDLE_MAX;
        let mut gone = Vec::new();
        let mut of_hosts = self.of_hosts.lock();
        of_hosts.entry(host).or_default().push_back((now, connection));
        for idle in of_hosts.values_mut() {
            while idle.front().is_some_and(is_old) {
                gone.extend(idle.pop_front());
            }
        }
        of_hosts.retain(|_, idle| !idle.is_empty());
        if of_hosts.values().map(VecDeque::len).sum::<usize>() > self.most {
            let oldest = of_hosts.values_mut().min_by_key(|idle| idle.front().map(|(since, _)| *since));
            gone.extend(oldest.and_then(VecDeque::pop_front));
        }
        // closing is a system call each, and the others wait for the lock
        drop(of_hosts);
        drop(gone);
    }
}

/// Makes the call over a kept connection or a new one, and reads the whole answer.
pub(super) fn exchange(dialer: &Dialer, idle: &Idle, call: &Call<'_>, uri: &Uri) -> Result<Answer, Error> {
    let request = begin(call, uri)?;
    let host = host(uri)?;
    let mut connection = match idle.take(&host) {
        Some(connection) => connection,
        None => dialer.connect(uri)?,
    };
    let sent = send(request, &mut connection, call.body)?;
    // the long wait
    let is_begun = connection.maybe_await_input(until(Timeout::RecvResponse))?;
    let (answer, is_reusable) = receive(sent, &mut connection, is_begun)?;
    if is_reusable {
        idle.keep(host, connection);
    }
    Ok(answer)
}

fn host(uri: &Uri) -> Result<Host, Error> {
    let known = |scheme: &&Scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme);
    match (uri.scheme().filter(known), uri.authority()) {
        (Some(scheme), Some(authority)) => Ok((scheme.clone(), authority.clone())),
        _ => Err(Error::BadUri("not an absolute http or https URL".to_owned())),
    }
}

/// The call's own deadline is kept by the transport, see `trace`.
fn until(reason: Timeout) -> NextTimeout {
    NextTimeout { reason, ..NextTimeout::default() }
}

#[inline(never)]
fn begin(call: &Call<'_>, uri: &Uri) -> Result<Box<Exchange<SendRequest>>, Error> {
    let mut builder = Request::builder().method(call.method).uri(uri.clone());
    for (name, value) in call.headers {
        let name = HeaderName::try_from(*name).map_err(ureq::http::Error::from)?;
        let mut value = HeaderValue::try_from(*value).map_err(ureq::http::Error::from)?;
        value.set_sensitive(true);
        builder = builder.header(name, value);
    }
    let has = |name: &str| call.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for (name, value) in [("user-agent", Some(USER_AGENT)), ("accept", Some("*/*"))] {
        if let Some(value) = value.filter(|_| !has(name)) {
            builder = builder.header(name, value);
        }
    }
    if !call.body.is_empty() || call.method == "POST" {
        builder = builder.header("content-length", call.body.len());
    }
    Ok(Box::new(Exchange::new(builder.body(())?)?.proceed()))
}

/// The head and the body, together where they fit into the connection's buffer.
#[inline(never)]
fn send(
    mut request: Box<Exchange<SendRequest>>,
    connection: &mut Connection,
    body: &[u8],
) -> Result<Box<Exchange<RecvResponse>>, Error> {
    let mut head = vec![0; HEAD_BYTES];
    let mut length = 0;
    while !request.can_proceed() {
        match request.write(&mut head[length..]) {
            Ok(written) => length += written,
            Err(ureq_proto::Error::OutputOverflow) if head.len() < HEAD_MAX => {}
            Err(e) => return Err(e.into()),
        }
        if !request.can_proceed() {
            head.resize(2 * head.len(), 0);
        }
    }
    let mut rest = (&head[..length], body);
    while !rest.0.is_empty() || !rest.1.is_empty() {
        let output = connection.buffers().output();
        let of_head = rest.0.len().min(output.len());
        let of_body = rest.1.len().min(output.len() - of_head);
        output[..of_head].copy_from_slice(&rest.0[..of_head]);
        output[of_head..of_head + of_body].copy_from_slice(&rest.1[..of_body]);
        let reason = if of_head > 0 { Timeout::SendRequest } else { Timeout::SendBody };
        connection.transmit_output(of_head + of_body, until(reason))?;
        rest = (&rest.0[of_head..], &rest.1[of_body..]);
    }
    match request.proceed()? {
        Some(SendRequestResult::RecvResponse(call)) => Ok(Box::new(call)),
        Some(SendRequestResult::SendBody(mut call)) => {
            call.consume_direct_write(body.len())?;
            call.proceed().map(Box::new).ok_or(Error::ConnectionFailed)
        }
        Some(SendRequestResult::Await100(_)) | None => Err(Error::ConnectionFailed),
    }
}

/// The answer, of which something has come if `is_more`, and whether the connection can be used again.
#[inline(never)]
fn receive(
    mut call: Box<Exchange<RecvResponse>>,
    connection: &mut Connection,
    mut is_more: bool,
) -> Result<(Answer, bool), Error> {
    let response = loop {
        let (used, response) = call.try_response(connection.buffers().input(), false)?;
        connection.buffers().input_consume(used);
        match response {
            Some(response) => break response,
            None if !is_more => return Err(cut_off()),
            None => is_more = connection.maybe_await_input(until(Timeout::RecvResponse))?,
        }
    };
    let mut answer = head(&response);
    let is_reusable = match call.proceed() {
        Some(RecvResponseResult::RecvBody(call)) => receive_body(call, connection, &mut answer.body)?,
        Some(RecvResponseResult::Redirect(call)) => !call.must_close_connection(),
        Some(RecvResponseResult::Cleanup(call)) => !call.must_close_connection(),
        None => return Err(cut_off()),
    };
    Ok((answer, is_reusable))
}

fn head(response: &Response<()>) -> Answer {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
    Answer { status: response.status().as_u16(), headers: headers.collect(), body: Vec::new() }
}

/// Reads the body to its end; whether the connection can be used again.
fn receive_body(
    mut call: Exchange<RecvBody>,
    connection: &mut Connection,
    body: &mut Vec<u8>,
) -> Result<bool, Error> {
    let mode = call.body_mode();
    let ends_with_connection = mode == BodyMode::CloseDelimited;
    if matches!(mode, BodyMode::LengthDelimited(length) if length > ANSWER_MAX as u64) {
        return Err(Error::BodyExceedsLimit(ANSWER_MAX as u64));
    }
    while ends_with_connection || !call.can_proceed() {
        let is_closed = match connection.maybe_await_input(until(Timeout::RecvBody)) {
            Ok(is_more) => !is_more,
            Err(Error::Io(e)) if is_close(&e) => true,
            Err(e) => return Err(e),
        };
        let (input, length) = (connection.buffers().input(), body.len());
        // no more comes out than went in
        body.resize(length + input.len(), 0);
        let (used, got) = call.read(input, &mut body[length..])?;
        connection.buffers().input_consume(used);
        body.truncate(length + got);
        if body.len() > ANSWER_MAX {
            return Err(Error::BodyExceedsLimit(ANSWER_MAX as u64));
        }
        if is_closed && used == 0 && got == 0 {
            // an end chunk without its last line is an end too
            return if ends_with_connection || call.is_ended_chunked() { Ok(false) } else { Err(cut_off()) };
        }
    }
    Ok(match call.proceed() {
        Some(RecvBodyResult::Redirect(call)) => !call.must_close_connection(),
        Some(RecvBodyResult::Cleanup(call)) => !call.must_close_connection(),
        None => false,
    })
}

fn is_close(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), UnexpectedEof | ConnectionAborted | ConnectionReset)
}

fn cut_off() -> Error {
    Error::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the connection was closed before the answer's end",
    ))
}
