//! Who answers: echo, OpenAI-compatible chat completions, or the operator's own bot over HTTP.

use serde_json::value::RawValue;

use crate::event::{Business, Customer, Message, Said};
use crate::failure::Failure;

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
