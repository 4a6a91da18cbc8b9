//! ureq's transport over a socket registered with `may`: connecting, writing and reading suspend the
//! coroutine, never the worker. They end by the call's deadline, which [`Watch`] keeps.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use may::io::{CoIo, WaitIo};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

use super::exchange::Connection;
use super::resolve::Names;
use super::trace;
use super::watch::Watch;
use crate::clock;
use crate::ops::metrics::Counter;
use crate::stack;

pub(super) static CONNECTED: Counter =
    Counter::new("net_connections_total", "Outgoing connections that were opened.");
pub(super) static CONNECT_FAILED: Counter =
    Counter::new("net_connects_failed_total", "Addresses that could not be connected to.");

/// The least time one address gets before the next is tried.
const ADDRESS_TIME_MIN: Duration = Duration::from_millis(250);

/// First link of the chain: TCP.
#[derive(Debug)]
pub(super) struct Tcp {
    /// To forget a host that no longer answers.
    pub(super) names: Names,
    /// See [`super::Options`].
    pub(super) is_patient: bool,
}

/// Last link of the chain: notes that the connection is complete.
#[derive(Debug)]
pub(super) struct Complete;

/// A connected socket with its buffers. It is dropped field by field in this order: the descriptor must
/// outlive its registration, or its number could already be another's when it is taken out.
#[derive(Debug)]
pub(super) struct Socket {
    line: Line,
    buffers: LazyBuffers,
    /// Of the buffers: of an answer, of a request.
    sizes: (usize, usize),
    /// See [`super::Options`].
    is_patient: bool,
}

/// A socket, its registration with `may`, and its deadline.
#[derive(Debug)]
struct Line {
    /// On the heap: a worker that put the coroutine to sleep may still look at it when the coroutine goes on.
    registered: Box<CoIo<Shared>>,
    watch: Arc<Watch>,
    stream: Arc<TcpStream>,
}

/// A socket in the form that `may` wants.
#[derive(Debug)]
struct Shared(Arc<TcpStream>);

impl<In: Transport> Connector<In> for Tcp {
    type Out = Socket;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<Socket>, Error> {
        trace::note(|t| t.fresh = true);
        let line = self.any(details).inspect_err(|_| {
            self.names.forget(details.uri.host().unwrap_or_default());
        })?;
        line.stream.set_nodelay(true)?;
        CONNECTED.inc();
        let sizes = (details.config.input_buffer_size(), details.config.output_buffer_size());
        let buffers = LazyBuffers::new(sizes.0, sizes.1);
        Ok(Some(Socket { line, buffers, sizes, is_patient: self.is_patient }))
    }
}

impl Tcp {
    /// The first address that answers; each gets its share of the time that is left.
    fn any(&self, details: &ConnectionDetails) -> Result<Line, Error> {
        let end = clock::monotonic() + trace::left(*details.timeout.after)?;
        let mut failed = Error::HostNotFound;
        for (nth, address) in details.addrs.iter().enumerate() {
            let left = end.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return Err(Error::Timeout(Timeout::Connect));
            }
            let share = (left / (details.addrs.len() - nth) as u32).max(ADDRESS_TIME_MIN).min(left);
            match connect(*address, clock::monotonic() + share) {
                Ok(line) => return Ok(line),
                Err(e) => {
                    CONNECT_FAILED.inc();
                    failed = ended(e, Timeout::Connect);
                }
            }
        }
        Err(failed)
    }
}

/// Connects to one address by `end`.
fn connect(address: SocketAddr, end: Duration) -> io::Result<Line> {
    if !may::coroutine::is_coroutine() {
        // a thread may block; a timeout of nothing is refused
        let left = end.saturating_sub(clock::monotonic()).max(Duration::from_millis(1));
        return Line::new(TcpStream::connect_timeout(&address, left)?);
    }
    let kind = socket2::Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
        _ => {}
    }
    let mut line = Line::new(socket.into())?;
    line.until(end, |line| {
        loop {
            if let Some(e) = line.stream.take_error()? {
                return Err(e);
            }
            match line.stream.peer_addr() {
                Err(e) if e.kind() == io::ErrorKind::NotConnected => line.registered.wait_io(),
                other => return other.map(drop),
            };
        }
    })?;
    Ok(line)
}

impl Line {
    fn new(stream: TcpStream) -> io::Result<Self> {
        let stream = Arc::new(stream);
        let registered = Box::new(CoIo::new(Shared(Arc::clone(&stream)))?);
        Ok(Self { registered, watch: Watch::new(Arc::clone(&stream)), stream })
    }

    /// Does I/O until it is done or `end` has come.
    fn until<T>(&mut self, end: Duration, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        self.watch.arm(end);
        let done = work(self);
        if self.watch.disarm() { done } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Read for Shared {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<In: Transport> Connector<In> for Complete {
    type Out = Connection;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Connection>, Error> {
        trace::note(|t| {
            t.ready = true;
            // what was written and read until now was the handshake
            (t.written, t.write_failed, t.answered) = (false, false, false);
        });
        Ok(chained.map(|chained| Box::new(chained) as Connection))
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let end = clock::monotonic() + trace::left(*timeout.after)?;
        trace::note(|t| t.written = true);
        let rest = &self.buffers.output()[..amount];
        // a deadline right after the last byte is no failed write: it may have arrived
        let write = |line: &mut Line| {
            line.registered.write_all(rest).inspect_err(|_| trace::note(|t| t.write_failed = true))
        };
        self.line.until(end, write).map_err(|e| ended(e, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let end = clock::monotonic() + trace::left(*timeout.after)?;
        let Self { line, buffers, sizes, is_patient } = self;
        let is_idle = buffers.input().is_empty() && is_silent(&line.stream);
        if is_idle {
            // the request is out, and thousands may wait here for their agents: without the buffers it was made in
            *buffers = LazyBuffers::new(sizes.0, sizes.1);
        }
        let read = line.until(end, |line| {
            if is_idle {
                let begins = || uninterrupted(|| line.registered.peek(&mut [0]));
                let begun = if *is_patient { stack::wait(begins) } else { begins() };
                begun?;
            }
            let room = buffers.input_append_buf();
            uninterrupted(|| line.registered.read(room))
        });
        let amount = read.map_err(|e| ended(e, timeout.reason))?;
        self.buffers.input_appended(amount);
        if amount > 0 {
            trace::note(|t| t.answered = true);
        }
        Ok(amount > 0)
    }

    /// Open and silent. Looks without waiting: the socket is non-blocking, and the pool asks under its lock.
    fn is_open(&mut self) -> bool {
        is_silent(&self.line.stream)
    }
}

/// Open, and nothing has come.
fn is_silent(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

fn uninterrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn ended(e: io::Error, reason: Timeout) -> Error {
    if e.kind() == io::ErrorKind::TimedOut { Error::Timeout(reason) } else { Error::Io(e) }
}
