//! ureq's transport over a `may` socket: connecting, writing and reading suspend the coroutine, never the
//! worker, and end by the call's deadline.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use may::net::TcpStream;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

use super::resolve::Names;
use super::{TIMER_MIN, trace};
use crate::clock;
use crate::ops::metrics::Counter;

pub(super) static CONNECTED: Counter =
    Counter::new("net_connections_total", "Outgoing connections that were opened.");
pub(super) static CONNECT_FAILED: Counter =
    Counter::new("net_connects_failed_total", "Addresses that could not be connected to.");

/// The least time one address gets before the next is tried.
const ADDRESS_TIME_MIN: Duration = Duration::from_millis(250);
/// See [`ended`].
const AFTER_TIMEOUT: Duration = Duration::from_millis(1);

/// First link of the chain: TCP.
#[derive(Debug)]
pub(super) struct Tcp {
    /// To forget a host that no longer answers.
    pub(super) names: Names,
}

/// Last link of the chain: notes that the connection is complete.
#[derive(Debug)]
pub(super) struct Complete;

/// A connected socket with its buffers.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    buffers: LazyBuffers,
}

impl<In: Transport> Connector<In> for Tcp {
    type Out = Socket;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<Socket>, Error> {
        trace::note(|t| t.fresh = true);
        let stream = self.any(details).inspect_err(|_| {
            self.names.forget(details.uri.host().unwrap_or_default());
        })?;
        stream.set_nodelay(true)?;
        CONNECTED.inc();
        let (input, output) = (details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Socket { stream, buffers: LazyBuffers::new(input, output) }))
    }
}

impl Tcp {
    /// The first address that answers; each gets its share of the time that is left.
    fn any(&self, details: &ConnectionDetails) -> Result<TcpStream, Error> {
        let end = clock::monotonic() + trace::left(*details.timeout.after)?;
        let mut failed = Error::HostNotFound;
        for (nth, address) in details.addrs.iter().enumerate() {
            let left = end.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return Err(Error::Timeout(Timeout::Connect));
            }
            let share = (left / (details.addrs.len() - nth) as u32).max(ADDRESS_TIME_MIN).min(left);
            match connect(address, share) {
                Ok(stream) => return Ok(stream),
                Err(e) => {
                    CONNECT_FAILED.inc();
                    failed = e;
                }
            }
        }
        Err(failed)
    }
}

fn connect(address: &SocketAddr, within: Duration) -> Result<TcpStream, Error> {
    TcpStream::connect_timeout(address, within.max(TIMER_MIN)).map_err(|e| ended(e, Timeout::Connect))
}

impl<In: Transport> Connector<In> for Complete {
    type Out = In;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<In>, Error> {
        trace::note(|t| {
            t.ready = true;
            // what was written and read until now was the handshake
            (t.written, t.write_failed, t.answered) = (false, false, false);
        });
        Ok(chained)
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let end = clock::monotonic() + trace::left(*timeout.after)?;
        let mut rest = &self.buffers.output()[..amount];
        trace::note(|t| t.written = true);
        while !rest.is_empty() {
            let written = time_left(end, timeout.reason).and_then(|left| {
                self.stream.set_write_timeout(Some(left))?;
                match self.stream.write(rest) {
                    Ok(0) => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
                    other => other.map_err(|e| ended(e, timeout.reason)),
                }
            });
            match written {
                Ok(n) => rest = &rest[n..],
                Err(e) => {
                    trace::note(|t| t.write_failed = true);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let end = clock::monotonic() + trace::left(*timeout.after)?;
        let amount = loop {
            self.stream.set_read_timeout(Some(time_left(end, timeout.reason)?))?;
            match self.stream.read(self.buffers.input_append_buf()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|e| ended(e, timeout.reason))?,
            }
        };
        self.buffers.input_appended(amount);
        if amount > 0 {
            trace::note(|t| t.answered = true);
        }
        Ok(amount > 0)
    }

    /// Open and silent. Looks without waiting: the socket is non-blocking, and the pool asks under its lock.
    fn is_open(&mut self) -> bool {
        matches!(self.stream.inner().peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

fn time_left(end: Duration, reason: Timeout) -> Result<Duration, Error> {
    let left = end.saturating_sub(clock::monotonic());
    if left.is_zero() { Err(Error::Timeout(reason)) } else { Ok(left.max(TIMER_MIN)) }
}

/// An I/O error as ureq's.
///
/// A socket's timeout, unlike a park's, is delivered on a worker, but after it has run its queue and before it waits
/// for events: what is yielded or woken from there lies in that queue until the next event or timer of this worker,
/// seconds later on a quiet server. A short sleep leaves that place: who comes back from it wakes a worker.
fn ended(e: io::Error, reason: Timeout) -> Error {
    match e.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            clock::sleep(AFTER_TIMEOUT);
            Error::Timeout(reason)
        }
        _ => Error::Io(e),
    }
}
