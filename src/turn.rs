//! The business sentence: credentials = directory; reply = agent; stored; sent; settled.
//!
//! A turn can stop after any step and go on from what the inbox holds: before the answer is stored it asks again with
//! the same turn id, after it never again; a send whose outcome is unknown waits for the status webhook that names it.

mod send;
mod typing;
pub mod unpacked;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::agent::{self, Agent, Ask};
use crate::clock::{self, UnixMillis};
use crate::config;
use crate::directory::Directory;
use crate::dispatcher::{Job, Outcome, Runner};
use crate::event::{Business, ItemId, Message, Said, hash64};
use crate::failure::{Failure, Reason, Scope, Source, Verdict};
use crate::graph::Graph;
use crate::inbox::{Inbox, NewTurn, State, Work};
use crate::ops::metrics::{Counter, Family, Histogram, Metric};
use crate::secret::masked;
use crate::turnstile::places::Rule;
use crate::turnstile::{Place, Turnstile};
use send::Slot;
use unpacked::Unpacked;

/// Turns by what they came to.
pub static TURNS: Family<5> = Family::new(
    "turns_total",
    "Turns by outcome.",
    "outcome",
    ["sent", "no_reply", "kept", "dead", "retried"],
);
/// From the receipt of the turn's first message to Graph's acceptance of its last reply.
pub static REPLY_SECONDS: Histogram =
    Histogram::new("reply_seconds", "From receipt of a message to Graph's acceptance of its reply.");
/// Replies that Graph accepted.
pub static REPLIES: Counter = Counter::new("replies_total", "Reply messages accepted by Graph.");
/// Fallback texts.
pub static FALLBACKS: Counter = Counter::new("fallbacks_total", "Turns answered with AGENT_FALLBACK_TEXT.");

/// All of the above.
pub static METRICS: &[&dyn Metric] = &[&TURNS, &REPLY_SECONDS, &REPLIES, &FALLBACKS, &typing::CROWDED];

const SENT: usize = 0;
const NO_REPLY: usize = 1;
const KEPT: usize = 2;
const DEAD: usize = 3;
const RETRIED: usize = 4;

/// Turns that use the cores or wait for a commit at once, for each worker. More of them do not answer more, and the 200s
/// stand behind them: with 64, two full cores give half as many 200s again beside as many answers as with 400 turns.
const BUSY_PER_WORKER: usize = 64;
/// A disk may be so slow that most of them wait for it; then as many as so many turns a second need.
const BUSY_PER_SECOND: usize = 20_000;
/// Of one number while others are active too, for each worker. What others notice of a flood grows with it.
const WINDOW_PER_WORKER: usize = 1;
/// What that is made for at the fastest commit, at least: the 1,000 messages a second that Meta allows a number
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput>), each with a commit that it
/// waits for while another one is under way; and as much again, since a disk's usual sync is not its fastest.
const COMMITS_PER_SECOND: usize = 4_000;
/// Waits longer than this are cut into slices, so that a drain ends them.
const SLICE: Duration = Duration::from_millis(500);

/// Runs turns; see [`Runner`].
pub struct Turns {
    /// Where items and answers are.
    pub inbox: Arc<dyn Inbox>,
    /// Whose number it is.
    pub directory: Arc<dyn Directory>,
    /// Who answers.
    pub agent: Arc<dyn Agent>,
    /// Who sends.
    pub graph: Arc<dyn Graph>,
    /// Ages and deadlines.
    pub config: config::Turn,
    /// Attempts, fallback, memory.
    pub agent_config: config::Agent,
    /// Set when the service stops: long waits end, their jobs stay on disk.
    pub draining: Arc<AtomicBool>,
    /// Messages of large bodies.
    pub unpacked: Unpacked,
    /// Whose turns use the cores now: those that have no stored answer yet and don't wait for their agent.
    pub busy: Turnstile,
}

/// For [`Turns::busy`], with so many workers.
pub fn busy(workers: usize) -> std::io::Result<Turnstile> {
    let rule = Rule {
        least: BUSY_PER_WORKER * workers,
        most: usize::MAX,
        per_second: BUSY_PER_SECOND,
        window: WINDOW_PER_WORKER * workers,
        window_per_second: COMMITS_PER_SECOND,
    };
    Turnstile::of_cores(rule, workers)
}

/// Fresh works of one job, read.
struct Batch {
    works: Vec<Work>,
    messages: Vec<Message>,
    attempt: u32,
}

impl Runner for Turns {
    fn run(&self, job: Job) -> Outcome {
        let place = self.busy.enter(job.number());
        if self.draining.load(Relaxed) {
            // it waited for its place: what has not begun stays on disk
            return Outcome::Again { job, after: None };
        }
        match job {
            Job::Fresh { works, attempt } => self.fresh(works, attempt, place),
            Job::Open { turn, attempt } => self.open(turn, attempt, place),
        }
    }
}

impl Turns {
    fn fresh(&self, works: Vec<Work>, attempt: u32, mut place: Place<'_>) -> Outcome {
        let Some(mut batch) = self.batch(works, attempt) else { return Outcome::Done };
        let now = clock::now();
        self.keep(&mut batch, "too_old", |work, message| self.is_too_old(sent_ms(work, message), now));
        let Some(first) = batch.messages.first() else {
            TURNS.inc(KEPT);
            return Outcome::Expired;
        };
        let business = match self.business(&mut place, &first.phone_number_id) {
            Ok(business) => business,
            Err(failure) => return self.no_business(batch, &failure),
        };
        if let Some(app) = &business.meta_app {
            let app = hash64(&[app.as_bytes()]);
            self.keep(&mut batch, "wrong_app", |work, _| work.app != app);
        }
        if batch.messages.is_empty() { kept() } else { self.answer(batch, &business, place) }
    }

    /// Whose number it is; without the place if the store is asked, which may hang.
    fn business(&self, place: &mut Place<'_>, phone_number_id: &str) -> Result<Arc<Business>, Failure> {
        self.directory
            .known(phone_number_id)
            .unwrap_or_else(|| place.aside(|| self.directory.by_number(phone_number_id)))
    }

    /// Settles the messages that `rule` names as kept, and takes them out of the batch.
    fn keep(&self, batch: &mut Batch, reason: &'static str, rule: impl Fn(&Work, &Message) -> bool) {
        let named: Vec<bool> = batch.works.iter().zip(&batch.messages).map(|(w, m)| rule(w, m)).collect();
        if !named.contains(&true) {
            return;
        }
        let ids: Vec<ItemId> =
            batch.works.iter().zip(&named).filter(|(_, n)| **n).map(|(w, _)| w.id).collect();
        log::info!("turn: {} message(s) kept: {reason}", ids.len());
        self.inbox.settle(&ids, State::Kept, &Reason::fixed(reason), "");
        let mut kept = named.iter();
        batch.works.retain(|_| !kept.next().copied().unwrap_or(false));
        let mut kept = named.iter();
        batch.messages.retain(|_| !kept.next().copied().unwrap_or(false));
    }

    fn is_too_old(&self, sent_ms: UnixMillis, now: UnixMillis) -> bool {
        now.saturating_sub(sent_ms) > self.config.reply_max_age.as_millis() as u64
    }

    /// Reads the messages; those whose body can't be read end here, and the turn with them if none is left.
    fn batch(&self, works: Vec<Work>, attempt: u32) -> Option<Batch> {
        let read = self.unpacked.read(&works);
        let mut batch = Batch { works: Vec::with_capacity(works.len()), messages: Vec::new(), attempt };
        let mut lost = Vec::new();
        for (work, message) in works.into_iter().zip(read) {
            match message {
                Some(message) => {
                    batch.works.push(work);
                    batch.messages.push(message);
                }
                None => lost.push(work.id),
            }
        }
        if !lost.is_empty() {
            log::error!("turn: {} message(s) dead: their body can't be read again", lost.len());
            let reason = Reason::fixed("unreadable");
            self.inbox.settle(&lost, State::Dead, &reason, "the stored body can't be read");
        }
        if batch.works.is_empty() {
            TURNS.inc(DEAD);
            return None;
        }
        Some(batch)
    }

    fn no_business(&self, batch: Batch, failure: &Failure) -> Outcome {
        let number = batch.messages.first().map_or(String::new(), |m| masked(&m.phone_number_id));
        log::log!(level_of(failure), "turn: number {number}: {failure}");
        self.failed_before_answer(batch, failure)
    }

    /// One policy for what fails before an answer is stored.
    fn failed_before_answer(&self, batch: Batch, failure: &Failure) -> Outcome {
        let ids = ids(&batch.works);
        // attempts are the agent's: a directory that is away for an hour costs it none
        let counted = u32::from(failure.source != Source::Directory);
        let again = Job::Fresh { works: batch.works, attempt: batch.attempt.saturating_add(counted) };
        match failure.verdict {
            Verdict::Dead => {
                self.inbox.settle(&ids, State::Dead, &failure.reason, &failure.detail);
                TURNS.inc(DEAD);
                Outcome::Done
            }
            Verdict::Park { scope, after } => {
                self.inbox.settle(&ids, State::Parked, &failure.reason, &failure.detail);
                TURNS.inc(RETRIED);
                Outcome::Hold { job: again, scope, after }
            }
            Verdict::Retry { after } => {
                TURNS.inc(RETRIED);
                Outcome::Again { job: again, after }
            }
            Verdict::Unknown => {
                TURNS.inc(RETRIED);
                Outcome::Again { job: again, after: None }
            }
        }
    }

    fn answer(&self, batch: Batch, business: &Arc<Business>, mut place: Place<'_>) -> Outcome {
        let first = &batch.messages[0];
        let last = &batch.messages[batch.messages.len() - 1];
        let session = format!("{}:{}", business.sub_domain, first.conversation);
        // two documents may have one subdomain: what is remembered stays with the business that heard it
        let memory = format!("{session}@{}", business.id);
        let phone_number_id = first.phone_number_id.clone();
        let typing = typing::Typing::start(&self.graph, business, &phone_number_id, &last.wamid);
        let history = match self.history(&memory) {
            Ok(history) => history,
            Err(failure) => return self.failed_before_answer(batch, &failure),
        };
        let ask = Ask {
            turn_id: &turn_id(&batch.works),
            session: &session,
            business,
            phone_number_id: &phone_number_id,
            customer: &last.customer,
            messages: &batch.messages,
            history: &history,
        };
        let answered = place.aside(|| {
            let answered = self.agent.answer(&ask);
            typing.stop();
            answered
        });
        let answer = match answered {
            Ok(answer) => answer,
            Err(failure) => match self.fallback(&failure, batch.attempt) {
                Some(answer) => answer,
                None => return self.agent_failed(batch, failure),
            },
        };
        let received_ms = batch.works[0].received_ms;
        let to = last.reply_to.clone();
        // what can go out at once is marked as being sent in the commit that stores it: one less to wait for
        let slot = (!answer.replies.is_empty()).then(|| self.slot(&phone_number_id, &to));
        let begun = clock::monotonic();
        let stored = self.inbox.answered(NewTurn {
            items: ids(&batch.works),
            number: batch.works[0].number,
            conversation: batch.works[0].conversation,
            phone_number_id,
            to,
            session: memory,
            replies: answer.replies,
            remember: answer.remember,
            history_max: self.agent_config.history,
            is_sending: matches!(slot, Some(Slot::Now(_))),
        });
        if stored.is_ok() {
            // a commit is what a turn with a place waits for
            self.busy.saw(clock::monotonic() - begun);
        }
        // from here on it waits for its pace and for its place at Graph
        drop(place);
        match stored {
            Err(failure) => self.failed_before_answer(batch, &failure),
            Ok(turn) if turn.replies.is_empty() => {
                TURNS.inc(NO_REPLY);
                Outcome::Done
            }
            Ok(turn) => self.send_all(turn, 0, business, slot, Some(received_ms)),
        }
    }

    fn history(&self, session: &str) -> Result<Vec<Said>, Failure> {
        let limit = match self.agent_config.kind {
            config::AgentKind::Echo => 0,
            _ => self.agent_config.history,
        };
        self.inbox.history(session, limit)
    }

    /// The fallback text, once the last attempt has failed or the answer can't be used. Not where the agent refused the
    /// turn (4xx).
    fn fallback(&self, failure: &Failure, attempt: u32) -> Option<agent::Answer> {
        let is_last = match failure.verdict {
            Verdict::Retry { .. } | Verdict::Unknown => attempt + 1 >= self.agent_config.attempts,
            _ => failure.reason.as_str() == agent::BAD_ANSWER,
        };
        if !is_last {
            return None;
        }
        let text = self.agent_config.fallback_text.as_deref()?;
        log::warn!("turn: {failure}; sending the fallback text");
        FALLBACKS.inc();
        Some(agent::fallback(text))
    }

    fn agent_failed(&self, batch: Batch, mut failure: Failure) -> Outcome {
        let retryable = matches!(failure.verdict, Verdict::Retry { .. } | Verdict::Unknown);
        if retryable && batch.attempt + 1 >= self.agent_config.attempts {
            failure.verdict = Verdict::Dead;
        }
        let (number, turn) = (masked(&batch.messages[0].phone_number_id), turn_id(&batch.works));
        let end = if failure.verdict == Verdict::Dead { "dead" } else { "to be tried again" };
        log::warn!("turn: number {number}, {turn}: {failure} (attempt {}, {end})", batch.attempt + 1);
        self.failed_before_answer(batch, &failure)
    }

    /// Sleeps; false if the service began to stop meanwhile.
    fn wait(&self, duration: Duration) -> bool {
        let until = clock::monotonic() + duration;
        loop {
            let left = until.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return true;
            }
            if self.draining.load(Relaxed) {
                return false;
            }
            clock::sleep(left.min(SLICE));
        }
    }
}

/// A store that is away is told of once, by the directory: not by every message that waits for it.
fn level_of(failure: &Failure) -> log::Level {
    match failure.verdict {
        Verdict::Retry { .. } => log::Level::Debug,
        _ => log::Level::Warn,
    }
}

fn kept() -> Outcome {
    TURNS.inc(KEPT);
    Outcome::Done
}

fn ids(works: &[Work]) -> Vec<ItemId> {
    works.iter().map(|work| work.id).collect()
}

/// When the customer sent it; when we received it where Meta's timestamp makes no sense.
fn sent_ms(work: &Work, message: &Message) -> UnixMillis {
    if message.timestamp == 0 { work.received_ms } else { message.timestamp.saturating_mul(1000) }
}

/// The same for every attempt at the same messages, also after a restart.
fn turn_id(works: &[Work]) -> String {
    let parts: Vec<[u8; 8]> =
        works.iter().flat_map(|w| [w.id.timestamp.to_le_bytes(), w.id.key.to_le_bytes()]).collect();
    let parts: Vec<&[u8]> = parts.iter().map(<[u8; 8]>::as_slice).collect();
    format!("turn-{:016x}", hash64(&parts))
}

/// Holds of a whole business are logged once, with what to do.
fn hint(scope: Scope, failure: &Failure) -> &'static str {
    match (scope, failure.reason.as_str()) {
        (Scope::Business, "graph_190" | "graph_0") => "; give it a new token with `business add`",
        (Scope::Business, "business_invalid") => "; mend its document",
        (Scope::Business, "token_invalid") => "; ENCRYPTION_SECRET does not fit its stored token",
        _ => "",
    }
}
