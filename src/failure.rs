//! What went wrong after the 200, whose fault it was, and what happens next. Policy is one `match` on [`Verdict`].

use std::fmt;
use std::time::Duration;

/// Who could not do its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The business's record or its token.
    Directory,
    /// The agent that answers.
    Agent,
    /// The WhatsApp Graph API.
    Graph,
    /// Our own store.
    Inbox,
}

/// How much stands still while something is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This number to this customer (error 131056).
    Pair,
    /// One phone number (throughput, error 130429).
    Number,
    /// One business (its token, its WABA limit).
    Business,
    /// Everything that goes through the Meta app (error 4).
    App,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was sent: try again, not before `after` if it is given, else by backoff.
    Retry {
        /// The other side's own wish (Retry-After, estimated_time_to_regain_access).
        after: Option<Duration>,
    },
    /// Nothing was sent and trying only this again would not help: hold everything of the scope.
    Park {
        /// What stands still.
        scope: Scope,
        /// For how long; `None`: by backoff for a limit, until it is mended for a token.
        after: Option<Duration>,
    },
    /// It may or may not have gone out (timeout, reset after the request, 5xx, 131000, 131016): evidence first.
    Unknown,
    /// It will never work: kept with the reason.
    Dead,
}

/// A failure with its reason code, which an operator can look up, and a detail without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault.
    pub source: Source,
    /// What next.
    pub verdict: Verdict,
    /// Snake case, stable: `graph_190`, `agent_timeout`, `no_business`.
    pub reason: Reason,
    /// For the log and `inbox inspect`: never a token, never a message text.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Failure {}

/// A reason code: lower-case words joined by `_`, stable across versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reason(std::borrow::Cow<'static, str>);

impl Reason {
    /// A fixed code.
    pub const fn fixed(code: &'static str) -> Self {
        Self(std::borrow::Cow::Borrowed(code))
    }

    /// `graph_<code>`: an error code of the Graph API.
    pub fn graph(code: i64) -> Self {
        Self(std::borrow::Cow::Owned(format!("graph_{code}")))
    }

    /// As it is stored and shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Reason {
    fn from(code: String) -> Self {
        Self(std::borrow::Cow::Owned(code))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
