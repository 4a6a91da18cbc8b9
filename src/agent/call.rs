//! What the two agents that are called over HTTP share: one POST, its outcome as a failure or an answer's bytes.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{ANSWER_SECONDS, BAD_ANSWERS, CALLS, REPLIES_MAX, texts};
use crate::clock;
use crate::failure::{Failure, Reason, Source, Verdict};
use crate::net::client::Client;
use crate::net::{self, Call, CallError};

const OK: usize = 0;
const REFUSED: usize = 1;
const FAILED: usize = 2;
const TIMED_OUT: usize = 3;
const UNREACHED: usize = 4;

/// The longest wait that a Retry-After is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Posts JSON once; the answer if its status is 2xx.
pub fn post(
    client: &Client,
    url: &str,
    api_key: Option<&str>,
    extra: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> Result<net::Answer, Failure> {
    let authorization = api_key.map(|key| zeroize::Zeroizing::new(format!("Bearer {key}")));
    let mut headers = vec![("Content-Type", "application/json"), ("Accept", "application/json")];
    headers.extend_from_slice(extra);
    if let Some(authorization) = &authorization {
        headers.push(("Authorization", authorization));
    }
    let begun = clock::monotonic();
    let answer = client.call(&Call { method: "POST", url, headers: &headers, body, timeout });
    ANSWER_SECONDS.observe(clock::monotonic() - begun);
    match answer {
        Ok(answer) if (200..300).contains(&answer.status) => {
            CALLS.inc(OK);
            Ok(answer)
        }
        Ok(answer) => Err(refused(&answer)),
        Err(error) => Err(unreached(error)),
    }
}

fn refused(answer: &net::Answer) -> Failure {
    let again = answer.status >= 500 || matches!(answer.status, 408 | 425 | 429);
    CALLS.inc(if again { FAILED } else { REFUSED });
    let verdict = if again { Verdict::Retry { after: retry_after(answer) } } else { Verdict::Dead };
    failure(verdict, format!("agent_http_{}", answer.status), "the agent's server answered with this status")
}

fn retry_after(answer: &net::Answer) -> Option<Duration> {
    let seconds = answer.header("retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn unreached(error: CallError) -> Failure {
    let (index, reason) =
        if error.timed_out { (TIMED_OUT, "agent_timeout") } else { (UNREACHED, "agent_unreachable") };
    CALLS.inc(index);
    failure(Verdict::Retry { after: None }, reason.to_owned(), &error.detail)
}

/// A failure of the agent.
pub fn failure(verdict: Verdict, reason: String, detail: &str) -> Failure {
    Failure { source: Source::Agent, verdict, reason: Reason::from(reason), detail: detail.to_owned() }
}

/// An answer that can't be used: asking again would bring the same.
pub fn unusable(detail: &str) -> Failure {
    BAD_ANSWERS.inc();
    failure(Verdict::Dead, super::BAD_ANSWER.to_owned(), detail)
}

/// A text that an agent answered, as message bodies.
///
/// # Errors
/// It would be more messages than one answer may hold.
pub fn text_replies(text: &str) -> Result<Vec<Box<RawValue>>, Failure> {
    let replies = texts(text);
    if replies.len() > REPLIES_MAX {
        return Err(unusable(&format!("a text that takes more than {REPLIES_MAX} messages")));
    }
    Ok(replies)
}
