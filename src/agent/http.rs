//! The operator's own bot: POST AGENT_URL with what arrived, answered with messages to send.
//!
//! The messages go exactly as Meta sent them; what comes back is any message body of the Graph API without addressing,
//! checked against Meta's limits before it is stored.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::call::{post, text_replies, unusable};
use super::{Agent, Answer, Ask, REPLIES_MAX, said};
use crate::config;
use crate::event::{Role, Said};
use crate::failure::Failure;
use crate::limits;
use crate::net::client::Client;
use crate::secret::Secret;

/// See the module's head.
pub struct Http {
    client: Client,
    url: String,
    api_key: Option<Secret>,
    timeout: Duration,
    remembers: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    session: &'a str,
    business: Business<'a>,
    customer: Customer<'a>,
    messages: Vec<&'a RawValue>,
    history: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Business<'a> {
    name: &'a str,
    #[serde(rename = "subDomain")]
    sub_domain: &'a str,
    phone_number_id: &'a str,
}

#[derive(Serialize)]
struct Customer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    wa_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct TextMessage {
    text: Option<TextBody>,
}

#[derive(Deserialize)]
struct TextBody {
    body: Option<String>,
}

impl Http {
    /// From the agent's settings; `url` is there, the configuration saw to it.
    pub fn new(client: Client, config: &config::Agent) -> Self {
        Self {
            client,
            url: config.url.clone().unwrap_or_default(),
            api_key: config.api_key.clone(),
            timeout: config.timeout,
            remembers: config.history > 0,
        }
    }

    fn remember(&self, ask: &Ask<'_>, replies: &[Box<RawValue>]) -> Vec<Said> {
        if !self.remembers || replies.is_empty() {
            return Vec::new();
        }
        let user = ask.messages.iter().map(|m| m.text.clone().unwrap_or_else(|| format!("[{}]", m.kind)));
        let assistant = replies.iter().filter_map(|reply| {
            let parsed: TextMessage = serde_json::from_str(reply.get()).ok()?;
            parsed.text?.body
        });
        let lines = |role, content: Vec<String>| said(role, &content.join("\n"));
        vec![lines(Role::User, user.collect()), lines(Role::Assistant, assistant.collect())]
            .into_iter()
            .filter(|said| !said.content.is_empty())
            .collect()
    }
}

impl Agent for Http {
    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let body = serde_json::to_vec(&request(ask))
            .map_err(|_| unusable("the request can't be written as JSON"))?;
        let key = self.api_key.as_ref().map(Secret::reveal);
        let extra = [("Idempotency-Key", ask.turn_id)];
        let answer = post(&self.client, &self.url, key, &extra, &body, self.timeout)?;
        let replies = if answer.status == 204 { Vec::new() } else { replies(&answer.body)? };
        let remember = self.remember(ask, &replies);
        Ok(Answer { replies, remember })
    }
}

fn request<'a>(ask: &'a Ask<'_>) -> Request<'a> {
    let role = |role| match role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    Request {
        session: ask.session,
        business: Business {
            name: &ask.business.name,
            sub_domain: &ask.business.sub_domain,
            phone_number_id: ask.phone_number_id,
        },
        customer: Customer {
            wa_id: ask.customer.wa_id.as_deref(),
            user_id: ask.customer.user_id.as_deref(),
            name: ask.customer.name.as_deref(),
        },
        messages: ask.messages.iter().map(|m| &*m.raw).collect(),
        history: ask
            .history
            .iter()
            .map(|said| Line { role: role(said.role), content: &said.content })
            .collect(),
    }
}

fn replies(body: &[u8]) -> Result<Vec<Box<RawValue>>, Failure> {
    let parsed: Reply<'_> = serde_json::from_slice(body)
        .map_err(|_| unusable("the answer is neither {\"messages\":[..]} nor {\"text\":\"..\"}"))?;
    match (parsed.messages, parsed.text) {
        (Some(messages), _) => {
            if messages.len() > REPLIES_MAX {
                return Err(unusable(&format!("more than {REPLIES_MAX} messages")));
            }
            for (n, message) in messages.iter().enumerate() {
                limits::check(message).map_err(|e| unusable(&format!("messages[{n}]: {e}")))?;
            }
            Ok(messages.into_iter().map(ToOwned::to_owned).collect())
        }
        (None, Some(text)) => text_replies(&text),
        (None, None) => Err(unusable("the answer has neither messages nor text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_or_text_and_nothing_else() {
        let count = |body: &str| replies(body.as_bytes()).map(|r| r.len());
        assert_eq!(count(r#"{"messages":[]}"#), Ok(0));
        assert_eq!(count(r#"{"text":""}"#), Ok(0));
        assert_eq!(count(r#"{"text":"hi","other":[1]}"#), Ok(1));
        assert_eq!(
            count(
                r#"{"messages":[{"type":"text","text":{"body":"a"}},{"type":"sticker","sticker":{"id":"1"}}]}"#
            ),
            Ok(2)
        );
        for (bad, why) in [
            ("{}", "neither"),
            ("[]", "neither"),
            ("<html>", "neither"),
            (r#"{"messages":[{"type":"text","text":{"body":""}}]}"#, "messages[0]: text.body is empty"),
            (
                r#"{"messages":[{"type":"text","text":{"body":"a"}},{"to":"1"}]}"#,
                "messages[1]: not a message body",
            ),
        ] {
            let failure = replies(bad.as_bytes()).expect_err("unusable");
            assert!(failure.detail.contains(why), "{bad}: {failure}");
        }
    }
}
