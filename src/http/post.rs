//! The webhook's POST: the hottest code of the product.
//!
//! In its order: what the header alone refuses; the body into the connection's ticket; the signature over the
//! raw bytes; the items; the inbox; 200. Nothing is formatted, logged or locked on the way to a 200, and
//! nothing is allocated but what the connection keeps. The clock is read twice. (Of a large body none of that matters.)
//!
//! A right signature is never limited (unless RATE_LIMIT_WEBHOOK is set), so it has to be checked even from
//! an address that is over RATE_LIMIT_UNVERIFIED. What a flood of wrong ones can cost is bounded all the
//! same: requests without a signature line of the right form are refused unread, small bodies cost no more to
//! check than any request costs, and the larger ones of all addresses over the limit together draw on one
//! budget of bytes a second.

use std::time::Duration;

use may_minihttp::{Request, Response};

use super::answer::Answer;
use super::connection::{Connection, DISCARD_MAX};
use super::counters::{BODY_BYTES, CROWDED};
use super::head::{Head, Signature};
use super::rate::Class;
use super::room::{Room, SMALL_BODY};
use super::routes::{Route, SOON, too_many};
use super::table::Phase;
use super::{fd, reading};
use crate::event::BODY_MAX;
use crate::inbox::{Refusal, Ticket};
use crate::webhook::parse::{NotUnderstood, Outcome};

/// So many items are kept room for.
const ITEMS_KEPT: usize = 1000;

impl Connection {
    /// Answers a POST of the webhook. `started`: when its header was complete.
    pub(super) fn post(
        &mut self,
        req: Request<'_, '_, '_>,
        head: &Head,
        started: Duration,
        out: &mut Response<'_>,
    ) {
        const ROUTE: Route = Route::Webhook;
        let Some(length) = head.length else {
            return self.refuse_with(
                ROUTE,
                Answer::fixed(411, r#"{"error":"Content-Length is missing"}"#),
                out,
            );
        };
        if length > BODY_MAX {
            return self.refuse_with(ROUTE, Answer::fixed(413, r#"{"error":"the body is over 4 MiB"}"#), out);
        }
        if let Some(answer) = self.refuse_unread(head, length, started) {
            if length > DISCARD_MAX {
                return self.refuse_with(ROUTE, answer, out);
            }
            self.let_send(head);
            if !self.discard_body(req, length) {
                return self.refuse_cut_off(ROUTE, out);
            }
            return self.reply(ROUTE, answer, out);
        }
        if !Room::is_there(&self.shared, length) {
            return self.refuse_with(ROUTE, crowded(), out);
        }
        self.let_send(head);
        let mut ticket = self.ticket.take().unwrap_or_else(|| self.shared.inbox.ticket(self.fd as usize));
        let body = ticket.body();
        body.clear();
        body.reserve(length.min(SMALL_BODY));
        let (mut room, mut came, mut is_crowded) = (Room::default(), 0, false);
        self.read_body(req, length, |bytes| {
            came += bytes.len();
            // read on without room, so that the connection goes on
            is_crowded = is_crowded || !room.add(&self.shared, body, bytes, length);
        });
        // nobody asks how long the work takes, so the clock is not read for it
        let whole = came == length && self.entry.go(Phase::Work, started.as_millis() as u64);
        if !whole {
            forget(&mut *ticket, length);
            self.ticket = Some(ticket);
            drop(room);
            return self.refuse_cut_off(ROUTE, out);
        }
        BODY_BYTES.add(length as u64);
        let answer = match is_crowded {
            true => Some(crowded()),
            false => self.take_in(&mut *ticket, head, &mut room, started),
        };
        self.ticket = Some(ticket);
        drop(room);
        match answer {
            None => self.reply_ack(started, out),
            Some(answer) => self.reply(ROUTE, answer, out),
        }
    }

    /// What can be refused by the header alone.
    fn refuse_unread(&mut self, head: &Head, length: usize, now: Duration) -> Option<Answer> {
        let now_us = fd::micros(now);
        match head.signature {
            Signature::Given(_) => {}
            Signature::Absent if self.shared.webhook.allow_unsigned => return None,
            Signature::Absent | Signature::Malformed => return Some(self.unverified(now_us)),
        }
        if length <= SMALL_BODY || self.shared.http.rates.unverified == 0 {
            return None;
        }
        let client = self.client();
        self.shared.may_check(client, length as u64, now_us).err().map(too_many)
    }

    /// Counts against the sender of a body without a right signature: 401, or 429 once there were too many.
    fn unverified(&mut self, now_us: u64) -> Answer {
        let client = self.client();
        match self.shared.take(Class::Unverified, client, now_us) {
            Ok(()) => Answer::fixed(401, r#"{"error":"the signature is missing or wrong"}"#),
            Err(wait_us) => too_many(wait_us),
        }
    }

    /// Verifies, indexes and stores the body in the ticket; `None` once it is durable.
    fn take_in(
        &mut self,
        ticket: &mut dyn Ticket,
        head: &Head,
        room: &mut Room,
        started: Duration,
    ) -> Option<Answer> {
        let length = ticket.body().len();
        let signature = match &head.signature {
            Signature::Given(value) => Some(value.as_slice()),
            Signature::Absent | Signature::Malformed => None,
        };
        let Ok(app) = self.shared.verifier.verify(signature, ticket.body()) else {
            forget(ticket, length);
            return Some(self.unverified(fd::micros(started)));
        };
        if signature.is_some() && self.shared.http.rates.webhook > 0 {
            let client = self.client();
            if let Err(wait_us) = self.shared.take(Class::Webhook, client, fd::micros(started)) {
                forget(ticket, length);
                return Some(too_many(wait_us));
            }
        }
        let Ok(outcome) = reading::read(&self.shared, ticket, room) else { return Some(crowded()) };
        if signature.is_none() && outcome == Outcome::Unparsed(NotUnderstood::NotJson) {
            forget(ticket, length);
            return Some(Answer::fixed(400, r#"{"error":"the body is not JSON"}"#));
        }
        let stored = ticket.append(app);
        if length > SMALL_BODY {
            forget(ticket, length);
        }
        stored.err().map(refused)
    }
}

/// Empties the ticket's buffers, and gives those of a large body back.
fn forget(ticket: &mut dyn Ticket, length: usize) {
    ticket.body().clear();
    ticket.body_and_items().1.clear();
    if length > SMALL_BODY {
        ticket.body().shrink_to(SMALL_BODY);
        ticket.body_and_items().1.shrink_to(ITEMS_KEPT);
    }
}

/// Counted, too.
fn crowded() -> Answer {
    CROWDED.inc();
    Answer::fixed(503, r#"{"error":"too many large bodies at once"}"#).with(SOON)
}

fn refused(refusal: Refusal) -> Answer {
    let json = match refusal {
        Refusal::Poisoned => r#"{"error":"the store failed"}"#,
        Refusal::Full => r#"{"error":"the store is busy"}"#,
        Refusal::Late => r#"{"error":"the store is slow"}"#,
        Refusal::Draining => r#"{"error":"stopping"}"#,
    };
    Answer::fixed(503, json).with(SOON)
}
