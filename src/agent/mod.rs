//! Who answers: echo, OpenAI-compatible chat completions, or the operator's own bot over HTTP.

mod call;
mod echo;
mod http;
mod openai;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::config::{self, AgentKind};
use crate::event::{Business, Customer, Message, Role, Said};
use crate::failure::Failure;
use crate::limits;
use crate::net::{self, client::Client};
use crate::ops::metrics::{Counter, Family, Histogram, Metric};

/// One question to the agent: all that arrived in one turn.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Stable over retries and restarts of the same turn.
    pub turn_id: &'a str,
    /// `subDomain:customer`.
    pub session: &'a str,
    /// Whose number was written to.
    pub business: &'a Business,
    /// Which of its numbers.
    pub phone_number_id: &'a str,
    /// Who wrote.
    pub customer: &'a Customer,
    /// In order; never empty.
    pub messages: &'a [Message],
    /// Earlier lines, oldest first.
    pub history: &'a [Said],
}

/// What to send and what to remember.
#[derive(Debug, Default)]
pub struct Answer {
    /// Graph message bodies without addressing (`{"type":"text","text":{"body":".."}}`), within Meta's limits, in order.
    /// Empty: no reply.
    pub replies: Vec<Box<RawValue>>,
    /// Lines to add to the memory (the user's, then the assistant's).
    pub remember: Vec<Said>,
}

/// Something that answers. Called on a coroutine; must not block a worker.
pub trait Agent: Send + Sync + 'static {
    /// The answer, or a failure: Retry (5xx, timeout, connection), Dead (4xx, an answer that can't be used).
    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, Failure>;
}

/// Messages that one answer may hold: to one customer the pair limit lets no more than 45 through at once.
const REPLIES_MAX: usize = 20;
/// Characters of one remembered line; what is longer is cut.
const REMEMBERED_MAX: usize = 8_000;
/// Idle connections to the agent's server.
const POOL: usize = 100;
/// Connecting to it.
const CONNECT_MAX: Duration = Duration::from_secs(5);

static CALLS: Family<5> = Family::new(
    "agent_calls_total",
    "Calls to the agent's server by outcome.",
    "outcome",
    ["ok", "refused", "failed", "timeout", "unreached"],
);
static ANSWER_SECONDS: Histogram = Histogram::new("agent_seconds", "Time of a call to the agent's server.");

static BAD_ANSWERS: Counter =
    Counter::new("agent_bad_answers_total", "Answers of the agent's server that could not be used.");
static CUT: Counter = Counter::new(
    "agent_text_cut_total",
    "Texts of customers that were cut on their way to a model or an echo.",
);

/// Reason code of an answer that came and can't be used.
pub const BAD_ANSWER: &str = "agent_bad_answer";

/// All of the above.
pub static METRICS: &[&dyn Metric] = &[&CALLS, &ANSWER_SECONDS, &BAD_ANSWERS, &CUT];

/// The agent that is configured.
///
/// # Errors
/// The client can't be made: no roots to verify the agent's server with.
pub fn build(config: &config::Agent) -> Result<Arc<dyn Agent>, String> {
    let client =
        || Client::new(net::Options { pool_size: POOL, connect_timeout: CONNECT_MAX, is_patient: true });
    Ok(match config.kind {
        AgentKind::Echo => Arc::new(echo::Echo),
        AgentKind::OpenAi => Arc::new(openai::OpenAi::new(client(), config)),
        AgentKind::Http => Arc::new(http::Http::new(client(), config)),
    })
}

/// The fallback text as an answer; nothing is remembered.
pub fn fallback(text: &str) -> Answer {
    Answer { replies: texts(text), remember: Vec::new() }
}

#[derive(Serialize)]
struct TextMessage<'a> {
    r#type: &'static str,
    text: TextBody<'a>,
}

#[derive(Serialize)]
struct TextBody<'a> {
    body: &'a str,
}

/// A text as message bodies, split to Meta's limit.
fn texts(text: &str) -> Vec<Box<RawValue>> {
    let pieces = limits::split_text(text);
    pieces
        .iter()
        .filter_map(|body| to_raw_value(&TextMessage { r#type: "text", text: TextBody { body } }).ok())
        .collect()
}

/// A line to remember.
fn said(role: Role, content: &str) -> Said {
    Said { role, content: content.chars().take(REMEMBERED_MAX).collect() }
}
