//! Sending a stored answer, one reply after the other, each settled before the next begins.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{DEAD, REPLIES, REPLY_SECONDS, RETRIED, SENT, SLICE, TURNS, Turns, hint, level_of};
use crate::clock;
use crate::dispatcher::{Job, Outcome};
use crate::event::{Business, Recipient};
use crate::failure::{Failure, Reason, Scope, Verdict};
use crate::graph::{Send, errors};
use crate::inbox::{OpenTurn, ReplyState, State};
use crate::secret::masked;
use crate::turnstile::Place;

/// A reply's turn to be sent.
pub(super) enum Slot<'a> {
    /// Once it is stored, in this place at Graph.
    Now(Place<'a>),
    /// Then, when its pace lets it go, of the monotonic clock, and there is a place.
    From(Duration),
}

/// What one reply came to.
enum Step {
    Settled,
    Again(Option<Duration>),
    Hold(Scope, Option<Duration>),
}

impl Turns {
    /// A stored answer that was not all sent: after a failure, or after a restart. One that is too old ends whether its
    /// business can be reached or not: it would be the probe of a held number for ever.
    pub(super) fn open(&self, turn: OpenTurn, attempt: u32, mut place: Place<'_>) -> Outcome {
        if self.is_too_old(turn.stored_ms, clock::now()) {
            drop(place);
            return self.expire(turn, attempt);
        }
        let business = self.business(&mut place, &turn.phone_number_id);
        drop(place);
        match business {
            Ok(business) => self.send_all(turn, attempt, &business, None, None),
            Err(failure) => {
                log::log!(level_of(&failure), "turn {}: {failure}", turn.id);
                match failure.verdict {
                    Verdict::Dead => {
                        for reply in turn.replies.iter().filter(|r| is_unsettled(r.state)) {
                            self.inbox.reply_dead(&reply.id, &failure.reason, &failure.detail);
                        }
                        TURNS.inc(DEAD);
                        Outcome::Done
                    }
                    Verdict::Park { scope, after } => {
                        self.inbox.settle(&turn.items, State::Answered, &failure.reason, &failure.detail);
                        hold(turn, attempt, scope, after)
                    }
                    // nothing was sent, so it was no try of the send
                    Verdict::Retry { after } => {
                        TURNS.inc(RETRIED);
                        Outcome::Again { job: Job::Open { turn, attempt }, after }
                    }
                    Verdict::Unknown => again(turn, attempt, None),
                }
            }
        }
    }

    /// Ends what is unsettled. What may have gone out waits for its status before.
    fn expire(&self, mut turn: OpenTurn, attempt: u32) -> Outcome {
        for nth in 0..turn.replies.len() {
            if turn.replies[nth].state == ReplyState::Sending && !self.settle_unknown(&mut turn, nth) {
                return again(turn, attempt, None);
            }
            if turn.replies[nth].state == ReplyState::Stored {
                self.too_old(&mut turn, nth);
            }
        }
        log::info!("turn {}: too old, not sent", turn.id);
        TURNS.inc(DEAD);
        Outcome::Expired
    }

    /// Sends what is unsettled. `slot`: of the first reply of a new answer. `received_ms` only where nothing else delayed
    /// the turn: for the latency metric.
    pub(super) fn send_all(
        &self,
        mut turn: OpenTurn,
        attempt: u32,
        business: &Arc<Business>,
        mut slot: Option<Slot<'_>>,
        received_ms: Option<u64>,
    ) -> Outcome {
        let mut died = false;
        for nth in 0..turn.replies.len() {
            if !is_unsettled(turn.replies[nth].state) {
                continue;
            }
            match self.send_one(&mut turn, nth, business, slot.take()) {
                Step::Settled => died |= turn.replies[nth].state == ReplyState::Dead,
                Step::Again(after) => return again(turn, attempt, after),
                Step::Hold(scope, after) => return hold(turn, attempt, scope, after),
            }
        }
        if let (Some(received_ms), false) = (received_ms, died) {
            REPLY_SECONDS.observe(Duration::from_millis(clock::now().saturating_sub(received_ms)));
        }
        TURNS.inc(if died { DEAD } else { SENT });
        Outcome::Done
    }

    /// Of the next reply to this recipient. Never waits; takes the place in the queue of its pace.
    pub(super) fn slot(&self, phone_number_id: &str, to: &Recipient) -> Slot<'_> {
        let pace = self.graph.reserve(phone_number_id, to);
        let place = if pace.is_zero() { self.graph.try_enter(phone_number_id) } else { None };
        place.map_or_else(|| Slot::From(clock::monotonic() + pace), Slot::Now)
    }

    fn send_one(
        &self,
        turn: &mut OpenTurn,
        nth: usize,
        business: &Arc<Business>,
        slot: Option<Slot<'_>>,
    ) -> Step {
        let due = match slot {
            Some(Slot::Now(place)) => return self.send_now(turn, nth, business, place),
            Some(Slot::From(due)) => Some(due),
            None => None,
        };
        if turn.replies[nth].state == ReplyState::Sending && !self.settle_unknown(turn, nth) {
            return Step::Again(None);
        }
        if turn.replies[nth].state != ReplyState::Stored {
            return Step::Settled;
        }
        if self.is_too_old(turn.stored_ms, clock::now()) {
            return self.too_old(turn, nth);
        }
        let pace = match due {
            Some(due) => due.saturating_sub(clock::monotonic()),
            None => self.graph.reserve(&turn.phone_number_id, &turn.to),
        };
        if !pace.is_zero() && !self.wait(pace) {
            return Step::Again(None);
        }
        // before it counts as being sent: what waits here was not
        let place = self.graph.enter(&turn.phone_number_id);
        if place.waited && self.draining.load(Relaxed) {
            return Step::Again(None);
        }
        if self.is_too_old(turn.stored_ms, clock::now()) {
            return self.too_old(turn, nth);
        }
        match self.inbox.sending(&turn.replies[nth].id, turn.number) {
            Ok(None) => self.send_now(turn, nth, business, place),
            Ok(Some(_)) => self.named(turn, nth),
            Err(failure) => {
                log::warn!("turn {}: {failure}", turn.id);
                Step::Again(None)
            }
        }
    }

    /// Sends what the inbox has as being sent.
    fn send_now(&self, turn: &mut OpenTurn, nth: usize, business: &Arc<Business>, place: Place<'_>) -> Step {
        let id = turn.replies[nth].id.clone();
        // what became of it is told below
        turn.replies[nth].state = ReplyState::Stored;
        let send = Send {
            business,
            phone_number_id: &turn.phone_number_id,
            to: &turn.to,
            body: &turn.replies[nth].body,
            reply_id: &id,
            in_reply_to: None,
        };
        match self.graph.send(&send, place) {
            Ok(wamid) => {
                self.inbox.sent(&id, &wamid);
                turn.replies[nth].state = ReplyState::Sent;
                REPLIES.inc();
                Step::Settled
            }
            Err(failure) => self.send_failed(turn, nth, &failure),
        }
    }

    fn send_failed(&self, turn: &mut OpenTurn, nth: usize, failure: &Failure) -> Step {
        let id = turn.replies[nth].id.clone();
        let number = masked(&turn.phone_number_id);
        match failure.verdict {
            Verdict::Dead => {
                log::warn!("turn {}: reply {id} dead: {failure}", turn.id);
                self.dead(turn, nth, &failure.reason, &failure.detail)
            }
            Verdict::Retry { after } => {
                log::info!("turn {}: reply {id} again: {failure}", turn.id);
                self.inbox.unsent(&id);
                Step::Again(after)
            }
            Verdict::Park { scope, after } => {
                log::warn!(
                    "turn {}: number {number} held ({scope:?}): {failure}{}",
                    turn.id,
                    hint(scope, failure)
                );
                self.inbox.unsent(&id);
                self.inbox.settle(&turn.items, State::Answered, &failure.reason, &failure.detail);
                Step::Hold(scope, after)
            }
            Verdict::Unknown => {
                log::warn!(
                    "turn {}: reply {id} may have gone out, waiting for its status: {failure}",
                    turn.id
                );
                let reply = &mut turn.replies[nth];
                reply.state = ReplyState::Sending;
                let was_last = reply.is_last_try;
                reply.is_last_try |= failure.reason.as_str() == errors::ONCE_MORE;
                let is_given_up = was_last && failure.reason.as_str() == errors::ONCE_MORE;
                if !self.settle_unknown(turn, nth) {
                    return Step::Again(None);
                }
                match turn.replies[nth].state {
                    ReplyState::Sent => Step::Settled,
                    _ if is_given_up => self.dead(turn, nth, &failure.reason, &failure.detail),
                    _ => Step::Again(None),
                }
            }
        }
    }

    /// Waits for the status webhook that names the reply. Then it is `Sent`; or `Stored` again, when none came within
    /// SEND_SETTLE. False if the service stops meanwhile: still unknown.
    fn settle_unknown(&self, turn: &mut OpenTurn, nth: usize) -> bool {
        let id = turn.replies[nth].id.clone();
        let until = clock::monotonic() + self.config.send_settle;
        loop {
            let left = until.saturating_sub(clock::monotonic());
            let evidence = self.inbox.evidence(&id, left.min(SLICE));
            if evidence.is_some() {
                self.named(turn, nth);
                return true;
            }
            if left.is_zero() {
                break;
            }
            if self.draining.load(Relaxed) {
                return false;
            }
        }
        log::info!("turn {}: no status names reply {id}", turn.id);
        self.inbox.unsent(&id);
        turn.replies[nth].state = ReplyState::Stored;
        true
    }

    /// A status names it.
    fn named(&self, turn: &mut OpenTurn, nth: usize) -> Step {
        let id = &turn.replies[nth].id;
        log::info!("turn {}: reply {id} went out: a status names it", turn.id);
        self.inbox.forget(id);
        turn.replies[nth].state = ReplyState::Sent;
        REPLIES.inc();
        Step::Settled
    }

    fn too_old(&self, turn: &mut OpenTurn, nth: usize) -> Step {
        self.dead(turn, nth, &Reason::fixed("too_old"), "not sent within REPLY_MAX_AGE")
    }

    fn dead(&self, turn: &mut OpenTurn, nth: usize, reason: &Reason, detail: &str) -> Step {
        self.inbox.reply_dead(&turn.replies[nth].id, reason, detail);
        turn.replies[nth].state = ReplyState::Dead;
        Step::Settled
    }
}

fn is_unsettled(state: ReplyState) -> bool {
    matches!(state, ReplyState::Stored | ReplyState::Sending)
}

fn again(turn: OpenTurn, attempt: u32, after: Option<Duration>) -> Outcome {
    TURNS.inc(RETRIED);
    Outcome::Again { job: Job::Open { turn, attempt: attempt.saturating_add(1) }, after }
}

fn hold(turn: OpenTurn, attempt: u32, scope: Scope, after: Option<Duration>) -> Outcome {
    TURNS.inc(RETRIED);
    Outcome::Hold { job: Job::Open { turn, attempt: attempt.saturating_add(1) }, scope, after }
}
