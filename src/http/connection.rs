//! One connection as may_minihttp's service: the guard around every request, and the last word.
//!
//! Answers go through may_minihttp, so that pipelined ones leave in order, in one write. Only the last answer
//! of a connection is written here, directly on the descriptor: after an error that leaves the end of the
//! request unknown, for `Connection: close` and HTTP/1.0 (which may_minihttp ignores), to HEAD (it can't
//! leave a body out), and for what it ends without a word (no HTTP, more than 16 header lines, a late
//! header). Then the sending half is shut down and what the client still sends is read for a moment: closing
//! on unread bytes would reset the connection under the answer.
//!
//! Before a direct write whatever may_minihttp has not written yet has to go out, and it can't be asked to.
//! How many bytes that is, is known: those of all answers, less those that the kernel has got. If they are
//! ACKs, which look all alike, the guard writes them; otherwise the last answer goes through may_minihttp as
//! well.

use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use may_minihttp::{HttpService, Request, Response};

use super::answer::{self, Answer};
use super::counters::{ACK_SECONDS, CUT, Cut, OPEN, REQUESTS};
use super::fd::{self, Half};
use super::head::{self, BadFraming, Expect, Head};
use super::routes::{self, Ask, Route};
use super::sweep::{TOO_LARGE, now_ms};
use super::table::{Entry, Phase};
use super::{Shared, UNREAD_MAX, access};
use crate::clock;
use crate::event::BODY_MAX;
use crate::inbox::Ticket;

/// Bodies of requests that have no use for one are read up to this size; the connection of a larger one ends.
pub const DISCARD_MAX: usize = 64 << 10;
/// How long the client's remaining bytes are read after the last word.
const LINGER: Duration = Duration::from_secs(2);
/// How many of them.
const LINGER_MAX: usize = 8 << 20;
/// Bytes of answers after which the kernel is asked how many were read.
const LOOK_EVERY: u64 = UNREAD_MAX / 4;

/// See the module.
pub struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) entry: Arc<Entry>,
    pub(super) fd: RawFd,
    /// Made at the first webhook POST.
    pub(super) ticket: Option<Box<dyn Ticket>>,
    /// The end of the request's X-Forwarded-For lines.
    pub(super) hops: Vec<u8>,
    peer: Option<IpAddr>,
    /// Bytes of the ACKs since the last other answer.
    acks: u64,
    /// Bytes of answers since the kernel was asked.
    unasked: u64,
    /// Bytes of the requests so far, if their header lines were written as usual.
    taken: u64,
    /// The request's connection ends with its answer.
    close: bool,
    /// The answer must not have a body.
    is_head: bool,
    /// The last word was said.
    over: bool,
}

impl Connection {
    /// For an accepted descriptor.
    pub fn new(shared: Arc<Shared>, fd: RawFd, now_ms: u64) -> Self {
        let entry = shared.table.add(fd, now_ms);
        OPEN.add(1);
        Self {
            shared,
            entry,
            fd,
            ticket: None,
            hops: Vec::new(),
            peer: None,
            acks: 0,
            unasked: 0,
            taken: 0,
            close: false,
            is_head: false,
            over: false,
        }
    }

    /// Ends it before its first request.
    pub fn refuse(&mut self, reason: Cut) {
        self.entry.end(reason);
        self.over = true;
        fd::shutdown(self.fd, Half::Both);
    }

    /// Who is on the other end, asked once.
    pub(super) fn peer(&mut self) -> Option<IpAddr> {
        if self.peer.is_none() {
            self.peer = fd::peer(self.fd);
        }
        self.peer
    }

    /// Whose request it is. A connection that is gone already counts as nobody's.
    pub(super) fn client(&mut self) -> IpAddr {
        let peer = self.peer().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        access::client(peer, &self.hops, &self.shared.http.trusted_proxies)
    }

    /// Answers, and goes on if the request lets us.
    pub(super) fn reply(&mut self, route: Route, answer: Answer, out: &mut Response<'_>) {
        if self.is_last() {
            return self.farewell(route, answer, false, out);
        }
        REQUESTS.inc(route, answer.code);
        self.acks = 0;
        let size = answer.put(false, out);
        self.account(size, clock::monotonic());
    }

    /// The answer to a body that is durable. `started`: when its header was complete.
    pub(super) fn reply_ack(&mut self, started: Duration, out: &mut Response<'_>) {
        let now = clock::monotonic();
        ACK_SECONDS.observe(now.saturating_sub(started));
        if self.is_last() {
            return self.farewell(Route::Webhook, answer::ACK, false, out);
        }
        REQUESTS.inc(Route::Webhook, 200);
        let size = answer::ACK.put(false, out);
        self.acks += size;
        self.account(size, now);
    }

    fn is_last(&self) -> bool {
        self.close || self.shared.draining.load(Relaxed)
    }

    fn account(&mut self, size: u64, now: Duration) {
        let answered = self.entry.answered.load(Relaxed) + size;
        self.entry.answered.store(answered, Relaxed);
        self.unasked += size;
        if self.unasked >= LOOK_EVERY {
            self.unasked = 0;
            let acked = fd::counted(self.fd).map_or(0, |counted| counted.acked);
            // without this one, which may be large by itself
            if (answered - size).saturating_sub(acked) > UNREAD_MAX {
                self.entry.end(Cut::SlowReader);
                self.over = true;
                fd::shutdown(self.fd, Half::Both);
            }
        }
        self.entry.go(Phase::Wait, now.as_millis() as u64);
    }

    /// Refuses, and ends the connection, since the end of the request is unknown or not worth reading for.
    pub(super) fn refuse_with(&mut self, route: Route, answer: Answer, out: &mut Response<'_>) {
        self.entry.end(Cut::Refused);
        self.farewell(route, answer, true, out);
    }

    /// The last answer. `unread`: the client may still be sending.
    fn farewell(&mut self, route: Route, answer: Answer, unread: bool, out: &mut Response<'_>) {
        if !self.say(route, &answer, unread) {
            // other answers are in front of it: through may_minihttp, whose next read finds the end
            REQUESTS.inc(route, answer.code);
            let size = answer.put(true, out);
            self.entry.answered.fetch_add(size, Relaxed);
            self.entry.go(Phase::Wait, now_ms());
            self.over = true;
            return fd::shutdown(self.fd, Half::Read);
        }
        mute(out);
    }

    /// Writes the last answer; false if may_minihttp has others to write before it.
    fn say(&mut self, route: Route, answer: &Answer, unread: bool) -> bool {
        let answered = self.entry.answered.load(Relaxed);
        let waiting = match fd::written(self.fd) {
            Some(written) => answered.saturating_sub(written),
            None => 0, // gone: nothing can be written in a wrong order
        };
        let ack = answer::ack_bytes();
        let acks = waiting / ack.len() as u64;
        if waiting > self.acks || acks * ack.len() as u64 != waiting {
            return false;
        }
        REQUESTS.inc(route, answer.code);
        let mut bytes = ack.repeat(acks as usize);
        bytes.extend_from_slice(&answer.to_bytes(!self.is_head));
        self.entry.go(Phase::Work, now_ms());
        self.over = true;
        if self.send_all(&bytes).is_ok() {
            fd::shutdown(self.fd, Half::Write);
            if unread {
                self.linger();
            }
        }
        fd::shutdown(self.fd, Half::Both);
        true
    }

    fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = clock::monotonic() + self.shared.http.body_timeout;
        let mut pause = Duration::from_millis(1);
        while !bytes.is_empty() {
            match fd::send(self.fd, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && clock::monotonic() < deadline => {
                    clock::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads on until the client has seen the answer and ends, within bounds.
    fn linger(&self) {
        let deadline = clock::monotonic() + LINGER;
        let mut left = LINGER_MAX;
        let mut pause = Duration::from_millis(1);
        while left > 0 {
            match fd::discard(self.fd, left) {
                Ok(0) => return,
                Ok(n) => left = left.saturating_sub(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && clock::monotonic() < deadline => {
                    clock::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(_) => return,
            }
        }
    }

    /// The interim answer, if the client waits for it and nothing is in front of it.
    pub(super) fn let_send(&mut self, head: &Head) {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let answered = self.entry.answered.load(Relaxed);
        if head.expect == Expect::Continue && fd::written(self.fd) == Some(answered) {
            // it fits into an empty send buffer; if it does not go out, the client sends the body after a
            // while
            let sent = fd::send(self.fd, CONTINUE).unwrap_or(0);
            self.entry.answered.fetch_add(sent as u64, Relaxed);
        }
    }

    /// Reads the body and forgets it; false if it did not come whole or not in time.
    pub(super) fn discard_body(&self, req: Request<'_, '_, '_>, length: usize) -> bool {
        let mut left = length;
        self.read_body(req, length, |bytes| left -= bytes.len());
        left == 0 && self.entry.go(Phase::Work, now_ms())
    }

    /// Gives the body to `take` as it comes.
    ///
    /// Once it is whole, what came behind it may lie in the kernel without another report of it, since the
    /// reads of the body have used up the one that there was; may_minihttp would wait for the next. So it is
    /// asked for.
    pub(super) fn read_body(&self, req: Request<'_, '_, '_>, length: usize, mut take: impl FnMut(&[u8])) {
        if length == 0 {
            return;
        }
        let mut source = req.body();
        let (mut left, mut parts) = (length, 0);
        while left > 0 {
            match source.fill_buf() {
                Ok([]) => break,
                Ok(bytes) => {
                    let n = bytes.len();
                    take(bytes);
                    source.consume(n);
                    left -= n;
                    parts += 1;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        drop(source);
        if parts > 1 {
            fd::nudge(self.fd);
        }
    }

    /// The body did not come whole: the client ended it, or it took too long.
    pub(super) fn refuse_cut_off(&mut self, route: Route, out: &mut Response<'_>) {
        let late = self.entry.why() == Some(Cut::LateBody);
        let answer = if late { LATE } else { Answer::fixed(400, r#"{"error":"the body is cut off"}"#) };
        self.refuse_with(route, answer, out);
    }

    fn other(&mut self, route: Route, req: Request<'_, '_, '_>, head: &Head, out: &mut Response<'_>) {
        let peer = self.peer();
        let client = self.client();
        let one = |name: &str| {
            let mut found = req.headers().iter().filter(|line| line.name.eq_ignore_ascii_case(name));
            found.next().filter(|_| found.next().is_none()).map(|line| line.value)
        };
        let (path, query) = routes::split(req.path());
        let ask = Ask {
            method: req.method(),
            path,
            query,
            accept: one("accept"),
            authorization: one("authorization"),
            forwarded: head.forwarded,
            peer,
            client,
        };
        self.is_head = ask.method == "HEAD";
        self.close |= self.is_head;
        let answer = routes::answer(&self.shared, route, &ask);
        if head.length.unwrap_or(0) > DISCARD_MAX {
            return self.refuse_with(route, answer, out);
        }
        self.let_send(head);
        if !self.discard_body(req, head.length.unwrap_or(0)) {
            return self.refuse_cut_off(route, out);
        }
        self.reply(route, answer, out);
    }
}

/// may_minihttp writes an answer after every call. Nobody can get this one, since the sending half is shut
/// down; if it could, it would not be a 200.
fn mute(out: &mut Response<'_>) {
    out.status_code(503, answer::reason(503));
}

impl HttpService for Connection {
    fn call(&mut self, req: Request, out: &mut Response) -> io::Result<()> {
        let started = clock::monotonic();
        if self.over || !self.entry.go(Phase::Body, started.as_millis() as u64) {
            // a request that came with the last one, or that was completed while it was cut
            if !self.over {
                self.last_word();
            }
            mute(out);
            return Ok(());
        }
        let mut taken = req.method().len() + req.path().len() + " HTTP/1.1\r\n\r\n ".len();
        let lines = req.headers().iter().map(|line| {
            taken += line.name.len() + line.value.len() + ": \r\n".len();
            (line.name, line.value)
        });
        let head = head::read(req.version(), lines, &mut self.hops);
        let route = Route::of(routes::split(req.path()).0);
        self.is_head = false;
        let head = match head {
            Ok(head) => head,
            Err(bad) => {
                self.refuse_with(route, bad_framing(bad), out);
                return Ok(());
            }
        };
        self.taken += (taken + head.length.unwrap_or(0).min(BODY_MAX)) as u64;
        self.close = head.close;
        if head.expect == Expect::Unknown {
            self.refuse_with(route, Answer::fixed(417, r#"{"error":"unknown expectation"}"#), out);
        } else if route == Route::Webhook && req.method() == "POST" {
            self.post(req, &head, started, out);
        } else {
            self.other(route, req, &head, out);
        }
        Ok(())
    }
}

fn bad_framing(bad: BadFraming) -> Answer {
    match bad {
        BadFraming::TransferEncoding => {
            Answer::fixed(501, r#"{"error":"Transfer-Encoding is not supported, send a Content-Length"}"#)
        }
        BadFraming::Length => Answer::fixed(400, r#"{"error":"Content-Length is not one number"}"#),
    }
}

/// The answer to a header or a body that took too long.
pub const LATE: Answer = Answer::fixed(408, r#"{"error":"the request took too long"}"#);
const MALFORMED: Answer =
    Answer::fixed(400, r#"{"error":"not a proper HTTP/1.1 request, or more than 16 header lines"}"#);
const HALF_CLOSED: Answer =
    Answer::fixed(503, r#"{"error":"closed before the request was read, send it again"}"#)
        .with("Retry-After: 1");

impl Connection {
    /// may_minihttp is about to end the connection (or has begun a request after it was cut): says why, if
    /// nobody has.
    fn last_word(&mut self) {
        let why = self.entry.why();
        let Some(counted) = fd::counted(self.fd) else { return };
        let (reason, answer) = match why {
            Some(Cut::LateHeader) => (Cut::LateHeader, LATE),
            Some(_) => {
                self.over = true;
                return fd::shutdown(self.fd, Half::Both);
            }
            // the client ended its half; may_minihttp looks for that before it looks at the bytes in front of
            // it
            None if counted.half_closed && self.untaken(&counted) < SMALLEST => return,
            None if counted.half_closed => (Cut::HalfClosed, HALF_CLOSED),
            None if self.untaken(&counted) < MANY_LINES => (Cut::Malformed, MALFORMED),
            None => (Cut::Malformed, TOO_LARGE),
        };
        self.entry.end(reason);
        self.is_head = false;
        self.say(Route::Malformed, &answer, true);
    }

    /// Bytes that may_minihttp has read and that were in no request.
    fn untaken(&self, counted: &fd::Counted) -> u64 {
        counted.received.saturating_sub(fd::unread(self.fd)).saturating_sub(self.taken)
    }
}

/// No request is smaller, in bytes; the end of the stream itself counts as one byte.
const SMALLEST: u64 = 18;
/// may_minihttp keeps to itself whether a header was wrong or had too many lines. 17 lines hardly take less
/// than this, and wrong requests are seldom larger; both answers name both causes.
const MANY_LINES: u64 = 160;

impl Drop for Connection {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.entry.end(Cut::Panicked);
        } else if !self.over {
            self.last_word();
        }
        if let Some(reason) = self.entry.why() {
            CUT.inc(reason as usize);
        }
        self.shared.table.remove(self.fd, &self.entry);
        OPEN.add(-1);
        if !std::thread::panicking() {
            clock::linger();
        }
    }
}
