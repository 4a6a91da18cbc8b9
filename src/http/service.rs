//! One connection: reads a request's header and body, asks the routes, and keeps the guard's table true.

use std::io::{self, BufRead};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use may_minihttp::{BodyReader, HttpService, HttpServiceFactory, Request, Response};

use super::fd::{self, Half, Received};
use super::guard::State;
use super::head::Head;
use super::reply::{self, Answer, Refused};
use super::routes::{Edge, Route};
use super::{ANSWERS, CUT, Cut, answer_index};
use crate::clock;
use crate::inbox::Ticket;

/// Bytes of answers that a peer may leave unread.
const UNREAD_MAX: u64 = 1 << 20;
/// How many bytes of answers go out between two looks at what was read.
const UNREAD_LOOK: u64 = 256 << 10;
/// After a direct answer: how much of what the peer still sends is thrown away, so that it gets to read the answer.
const LINGER_MAX_BYTES: usize = 8 << 20;
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_LOOK: Duration = Duration::from_millis(5);
/// The shortest request with more than 16 header lines.
const MANY_HEADERS_MIN: u64 = 118;
/// At first a body's buffer gets at most this, so that a length alone costs nothing.
const FIRST_RESERVE_MAX: usize = 64 << 10;

/// Makes a [`Connection`] for each accepted socket.
pub struct Factory(pub Arc<Edge>);

impl HttpServiceFactory for Factory {
    type Service = Connection;

    fn new_service(&self, id: usize) -> Connection {
        let fd = i32::try_from(id).unwrap_or(-1);
        let admitted = self.0.guard.enter(fd);
        if admitted {
            fd::set_nodelay(fd);
        }
        Connection {
            edge: Arc::clone(&self.0),
            fd,
            closing: !admitted,
            head: Head::default(),
            ticket: None,
            peer: None,
            answered: 0,
            looked: 0,
            consumed: 0,
        }
    }
}

/// See the module's head. Its buffers live as long as the connection.
pub struct Connection {
    pub(super) edge: Arc<Edge>,
    fd: i32,
    closing: bool,
    pub(super) head: Head,
    pub(super) ticket: Option<Box<dyn Ticket>>,
    peer: Option<IpAddr>,
    /// Bytes of answers so far, and when the peer's reading was last looked at.
    answered: u64,
    looked: u64,
    /// About how many bytes of requests were taken.
    consumed: u64,
}

impl HttpService for Connection {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        if self.closing || self.edge.guard.is_closing(self.fd) {
            // what was pipelined behind the last request; the socket is shut, so nobody reads this
            self.closing = true;
            Answer::fixed(503, "").write(response, false);
            return Ok(());
        }
        let begun = clock::monotonic();
        self.consumed += head_bytes(&request);
        if let Err(refused) = self.head.read(&request) {
            self.refuse(refused, response);
            return Ok(());
        }
        let route = Route::of(request.path(), self.head.method);
        if self.take_body(request, &route).is_none() {
            self.cut_body(response);
            return Ok(());
        }
        self.edge.guard.set(self.fd, State::Busy);
        let head_only = self.head.method == super::head::Method::Head;
        let answer = self.answer(route, begun);
        self.finish(answer, head_only, response);
        Ok(())
    }
}

impl Connection {
    /// Reads the body where it belongs: into the ticket for a webhook, away for anything else. `None` if it was cut.
    fn take_body(&mut self, request: Request, route: &Route) -> Option<()> {
        let length = self.head.length;
        let is_webhook = matches!(route, Route::Webhook);
        if is_webhook {
            let inbox = &self.edge.inbox;
            self.ticket.get_or_insert_with(|| inbox.ticket()).body().clear();
        }
        if length == 0 {
            return Some(());
        }
        self.edge.guard.set(self.fd, State::Body);
        if self.head.expects_continue {
            self.answered += fd::send(self.fd, reply::CONTINUE) as u64;
        }
        self.consumed += length as u64;
        let mut reader = request.body();
        let buffer = self.ticket.as_mut().filter(|_| is_webhook).map(|ticket| ticket.body());
        read_body(&mut reader, length, buffer)
    }

    fn finish(&mut self, mut answer: Answer, head_only: bool, response: &mut Response) {
        ANSWERS.inc(answer_index(answer.status));
        let draining = self.edge.guard.draining.load(Acquire);
        let close = self.head.close || draining;
        if close && answer.extra.is_none() {
            answer.extra = Some("Connection: close");
        }
        self.answered += answer.write(response, head_only);
        if close {
            // the answer still goes out; the next read is the end
            self.closing = true;
            CUT.inc(if draining { Cut::Drain as usize } else { Cut::Asked as usize });
            fd::shutdown(self.fd, Half::Read);
        } else {
            self.edge.guard.set(self.fd, State::Idle);
            self.look_at_reading();
        }
    }

    /// A peer that sends requests and never reads answers would make us keep them all.
    fn look_at_reading(&mut self) {
        if self.answered - self.looked < UNREAD_LOOK {
            return;
        }
        self.looked = self.answered;
        let unread = fd::traffic(self.fd).map_or(0, |(_, acked)| self.answered.saturating_sub(acked));
        if unread > UNREAD_MAX {
            self.closing = true;
            self.edge.guard.close(self.fd, Cut::Unread, None);
        }
    }

    /// The body did not come whole: the sweeper cut it, or the peer did.
    fn cut_body(&mut self, response: &mut Response) {
        if let Some(ticket) = &mut self.ticket {
            ticket.body().clear();
        }
        if !self.edge.guard.is_closing(self.fd) {
            self.edge.guard.close(self.fd, Cut::BodyCut, Some(reply::MALFORMED));
        }
        self.closing = true;
        Answer::fixed(400, "").write(response, false);
    }

    /// Answers directly, since what follows on the connection can't be told apart.
    fn refuse(&mut self, refused: Refused, response: &mut Response) {
        let words = refused.words();
        ANSWERS.inc(answer_index(status_of(words)));
        self.edge.guard.mark_closing(self.fd, Cut::Refused);
        self.closing = true;
        fd::send(self.fd, words);
        linger(self.fd);
        Answer::fixed(400, "").write(response, false);
    }

    /// The client's address: the peer, or behind trusted proxies the last hop that is not one of them.
    pub(super) fn client(&mut self) -> IpAddr {
        let unknown = IpAddr::from([0, 0, 0, 0]);
        let peer = *self.peer.get_or_insert_with(|| fd::peer(self.fd).unwrap_or(unknown));
        self.edge.client(peer, self.head.forwarded_for())
    }

    /// The peer's own address.
    pub(super) fn peer(&mut self) -> IpAddr {
        let unknown = IpAddr::from([0, 0, 0, 0]);
        *self.peer.get_or_insert_with(|| fd::peer(self.fd).unwrap_or(unknown))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.closing && !self.edge.guard.is_closing(self.fd) {
            self.explain_the_end();
        }
        self.edge.guard.leave(self.fd);
    }
}

impl Connection {
    /// The crate ends a connection without a word when it can't parse a request. If the peer is still there, that is
    /// what happened. More than 16 header lines and a malformed line look the same from here; the size decides.
    fn explain_the_end(&self) {
        if !matches!(fd::peek(self.fd), Received::Nothing | Received::Bytes(_)) {
            CUT.inc(Cut::Peer as usize);
            return;
        }
        let taken = fd::traffic(self.fd).map_or(0, |(received, _)| received.saturating_sub(self.consumed));
        let (why, words) = if taken >= MANY_HEADERS_MIN {
            (Cut::LargeHeader, reply::LARGE_HEADER)
        } else {
            (Cut::Malformed, reply::MALFORMED)
        };
        ANSWERS.inc(answer_index(status_of(words)));
        self.edge.guard.mark_closing(self.fd, why);
        fd::send(self.fd, words);
        if std::thread::panicking() {
            fd::shutdown(self.fd, Half::Both);
        } else {
            linger(self.fd);
        }
    }
}

/// Says that no more comes, and throws away what the peer still sends, so that a reset does not eat the answer.
fn linger(fd: i32) {
    fd::shutdown(fd, Half::Write);
    let until = clock::monotonic() + LINGER_MAX;
    let mut buffer = [0; 4096];
    let mut left = LINGER_MAX_BYTES;
    while left > 0 && clock::monotonic() < until {
        match fd::discard(fd, &mut buffer) {
            Received::Bytes(n) => left = left.saturating_sub(n),
            Received::Nothing => clock::sleep(LINGER_LOOK),
            Received::End | Received::Broken => break,
        }
    }
    fd::shutdown(fd, Half::Both);
}

/// Exactly `length` bytes into `buffer`, or away. `None` if the connection ended before.
fn read_body(reader: &mut BodyReader<'_, '_>, length: usize, mut buffer: Option<&mut Vec<u8>>) -> Option<()> {
    if let Some(buffer) = &mut buffer {
        buffer.reserve(length.min(FIRST_RESERVE_MAX));
    }
    let mut left = length;
    while left > 0 {
        let part = reader.fill_buf().ok()?;
        let taken = part.len().min(left);
        if taken == 0 {
            return None;
        }
        if let Some(buffer) = &mut buffer {
            buffer.extend_from_slice(&part[..taken]);
        }
        reader.consume(taken);
        left -= taken;
    }
    Some(())
}

/// From the method to the end of the last header line: exact but for blanks around values.
fn head_bytes(request: &Request<'_, '_, '_>) -> u64 {
    let start = request.method().as_ptr() as usize;
    let end = match request.headers().last() {
        Some(header) => header.value.as_ptr() as usize + header.value.len() + 4,
        None => request.path().as_ptr() as usize + request.path().len() + " HTTP/1.1\r\n\r\n".len(),
    };
    end.saturating_sub(start) as u64
}

fn status_of(words: &[u8]) -> u16 {
    let digits = words.get(9..12).and_then(|d| std::str::from_utf8(d).ok());
    digits.and_then(|d| d.parse().ok()).unwrap_or(0)
}
