//! HTTP/1.1 by hand, directly on coroutine sockets, so that a simulated server can misbehave on the wire: half an
//! answer, no answer, a reset.
//!
//! Keep-alive and pipelining work; bodies need a Content-Length. It is meant for loopback and trusted peers: limits are
//! fixed, deadlines there are none.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use may::net::{TcpListener, TcpStream};
use parking_lot::Mutex;

/// Headers that a request may have.
const HEADERS_MAX: usize = 64;
/// The longest head, in bytes.
const HEAD_MAX: usize = 32 << 10;
/// The largest body, in bytes.
const BODY_MAX: usize = 4 << 20;
/// A connection's buffer at its start, in bytes.
const BUFFER_START: usize = 8 << 10;
/// The least stack of a coroutine, in words; touched pages only cost. The process's own size is taken where it is
/// larger, since only stacks of that size are used again.
const STACK_WORDS_MIN: usize = (128 << 10) / size_of::<usize>();

/// A request, as it stands in the connection's buffer.
#[derive(Debug)]
pub struct Request<'a> {
    /// `GET`, `POST`, ..
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// As sent.
    pub body: &'a [u8],
    headers: &'a [httparse::Header<'a>],
}

impl<'a> Request<'a> {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let header = self.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    }

    /// The token of `Authorization: Bearer`.
    pub fn bearer(&self) -> Option<&'a str> {
        let value = self.header("authorization")?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    }

    /// The target without its query.
    pub fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or(self.target)
    }
}

/// What happens to the connection once the service has written its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The answer goes out; the next request is awaited.
    Keep,
    /// The answer goes out, then the connection is closed.
    Close,
    /// Half of the answer's bytes go out, then the connection is closed.
    Half,
    /// Closed without an answer.
    Silent,
    /// Reset (RST) without an answer.
    Reset,
}

/// What answers. Called on a coroutine; may sleep with [`crate::clock::sleep`].
pub trait Service: Send + Sync + 'static {
    /// Appends a whole HTTP answer to `out` (see [`answer`]).
    fn call(&self, request: &Request<'_>, out: &mut Vec<u8>) -> After;
}

/// Appends an answer with its head.
pub fn answer(out: &mut Vec<u8>, status: u16, content_type: &str, headers: &[(&str, &str)], body: &[u8]) {
    let _ = write!(out, "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\n", reason(status));
    for (name, value) in headers {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    let _ = write!(out, "Content-Length: {}\r\n\r\n", body.len());
    out.extend_from_slice(body);
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Other",
    }
}

/// A listening server; it ends, with all its connections, when it is dropped.
pub struct Server {
    address: SocketAddr,
    open: Arc<Open>,
}

/// The connections, each by a second descriptor that can be shut from outside.
#[derive(Default)]
struct Open {
    stopping: AtomicBool,
    next: AtomicU64,
    accepted: AtomicU64,
    sockets: Mutex<HashMap<u64, std::net::TcpStream>>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// The address can't be bound, also when somebody else listens there.
    pub fn start(listen: SocketAddr, service: Arc<dyn Service>) -> io::Result<Self> {
        if listen.port() != 0 {
            // the coroutine listener shares ports (SO_REUSEPORT), which would hide that the port is taken
            drop(std::net::TcpListener::bind(listen)?);
        }
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let open = Arc::new(Open::default());
        let held = Arc::clone(&open);
        spawn(move || accept(&listener, &held, &service))?;
        Ok(Self { address, open })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.open.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.open.stopping.store(true, Ordering::Release);
        for socket in self.open.sockets.lock().values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        // wakes the accept loop, which then sees the flag
        let _ = std::net::TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

/// Starts a coroutine with a stack that parsing and formatting fit in, whatever the process configured.
pub(super) fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let words = may::config().get_stack_size().max(STACK_WORDS_MIN);
    let _detached = may::go!(may::coroutine::Builder::new().stack_size(words), run)?;
    Ok(())
}

fn accept(listener: &TcpListener, open: &Arc<Open>, service: &Arc<dyn Service>) {
    loop {
        let accepted = listener.accept();
        if open.stopping.load(Ordering::Acquire) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // out of descriptors: the next one may work
            crate::clock::sleep(Duration::from_millis(10));
            continue;
        };
        open.accepted.fetch_add(1, Ordering::Relaxed);
        let (open, service) = (Arc::clone(open), Arc::clone(service));
        let _ = spawn(move || serve(stream, &open, &*service));
    }
}

fn serve(mut stream: TcpStream, open: &Open, service: &dyn Service) {
    let _ = stream.set_nodelay(true);
    let Ok(second) = stream.inner().try_clone() else { return };
    let id = open.next.fetch_add(1, Ordering::Relaxed);
    open.sockets.lock().insert(id, second);
    let end = if open.stopping.load(Ordering::Acquire) { Ok(false) } else { converse(&mut stream, service) };
    open.sockets.lock().remove(&id);
    if matches!(end, Ok(true)) {
        // closing with linger 0 sends RST instead of FIN
        let _ = socket2::SockRef::from(stream.inner()).set_linger(Some(Duration::ZERO));
    }
}

/// Serves requests until an end; true: reset the connection.
fn converse(stream: &mut TcpStream, service: &dyn Service) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER_START];
    let mut filled = 0;
    let mut out = Vec::with_capacity(1024);
    loop {
        let used = match one(&buffer[..filled], service, &mut out) {
            Step::More(total) => {
                if filled == buffer.len() || total > buffer.len() {
                    buffer.resize(total.max(buffer.len() * 2), 0);
                }
                let read = stream.read(&mut buffer[filled..])?;
                if read == 0 {
                    return Ok(false);
                }
                filled += read;
                continue;
            }
            Step::Bad(status) => {
                answer(&mut out, status, "text/plain", &[], b"");
                stream.write_all(&out)?;
                return Ok(false);
            }
            Step::Done(used, After::Keep) => {
                stream.write_all(&out)?;
                used
            }
            Step::Done(_, After::Close) => {
                stream.write_all(&out)?;
                return Ok(false);
            }
            Step::Done(_, After::Half) => {
                stream.write_all(&out[..out.len() / 2])?;
                return Ok(false);
            }
            Step::Done(_, After::Silent) => return Ok(false),
            Step::Done(_, After::Reset) => return Ok(true),
        };
        out.clear();
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}

enum Step {
    /// Not whole yet; this many bytes are needed, if it is known.
    More(usize),
    /// Not a request that can be served.
    Bad(u16),
    /// Answered; its length.
    Done(usize, After),
}

fn one(bytes: &[u8], service: &dyn Service, out: &mut Vec<u8>) -> Step {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Step::More(0),
        Ok(httparse::Status::Partial) | Err(_) => return Step::Bad(400),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else { return Step::Bad(400) };
    let mut request = Request { method, target, body: &[], headers: head.headers };
    if request.header("transfer-encoding").is_some() {
        return Step::Bad(411);
    }
    let body = match request.header("content-length").map_or(Ok(0), |text| text.trim().parse::<usize>()) {
        Ok(body) if body <= BODY_MAX => body,
        Ok(_) => return Step::Bad(413),
        Err(_) => return Step::Bad(400),
    };
    let Some(whole) = bytes.get(length..length + body) else { return Step::More(length + body) };
    request.body = whole;
    let after = service.call(&request, out);
    let asked = request.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
    Step::Done(length + body, if asked && after == After::Keep { After::Close } else { after })
}
