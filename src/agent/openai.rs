//! Chat completions of any server that speaks OpenAI's API: POST {AGENT_URL}/chat/completions.
//!
//! The conversation's memory goes along, bounded by count (AGENT_HISTORY) and by size; what was said in the turn and
//! the answer are remembered. Who the customer is, number or name, is not told.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::call::{post, text_replies, unusable};
use super::{Agent, Answer, Ask, CUT, said};
use crate::config;
use crate::event::{Message, Role};
use crate::failure::Failure;
use crate::net::client::Client;
use crate::secret::Secret;

/// Bytes of memory that go along at most; the oldest lines are left out first.
const HISTORY_BYTES_MAX: usize = 32_000;
/// Bytes of the turn's own text that go along at most: the end of it, where the question usually is.
const TURN_BYTES_MAX: usize = 32_000;

/// See the module's head.
pub struct OpenAi {
    client: Client,
    url: String,
    api_key: Option<Secret>,
    model: String,
    prompt: Option<String>,
    timeout: Duration,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    role: &'static str,
    content: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Option<Reply<'a>>,
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

impl OpenAi {
    /// From the agent's settings; `url` and `model` are there, the configuration saw to it.
    pub fn new(client: Client, config: &config::Agent) -> Self {
        Self {
            client,
            url: format!("{}/chat/completions", config.url.as_deref().unwrap_or_default()),
            api_key: config.api_key.clone(),
            model: config.model.clone().unwrap_or_default(),
            prompt: config.prompt.clone(),
            timeout: config.timeout,
        }
    }
}

impl Agent for OpenAi {
    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let heard = ask.messages.iter().map(words).collect::<Vec<_>>().join("\n");
        let heard = end_of(&heard);
        let request = Request { model: &self.model, messages: self.lines(ask, heard) };
        let body =
            serde_json::to_vec(&request).map_err(|_| unusable("the request can't be written as JSON"))?;
        let key = self.api_key.as_ref().map(Secret::reveal);
        let answer = post(&self.client, &self.url, key, &[], &body, self.timeout)?;
        let text = content(&answer.body)?;
        let replies = text_replies(&text)?;
        let remember = if replies.is_empty() {
            Vec::new()
        } else {
            vec![said(Role::User, heard), said(Role::Assistant, &text)]
        };
        Ok(Answer { replies, remember })
    }
}

impl OpenAi {
    fn lines<'a>(&'a self, ask: &'a Ask<'_>, heard: &'a str) -> Vec<Line<'a>> {
        let mut left = HISTORY_BYTES_MAX;
        let recent = ask.history.iter().rev().take_while(|said| {
            let length = said.content.len();
            let fits = length <= left;
            left = left.saturating_sub(length);
            fits
        });
        let mut lines: Vec<Line<'_>> =
            recent.map(|said| Line { role: role(said.role), content: (&*said.content).into() }).collect();
        if let Some(prompt) = &self.prompt {
            lines.push(Line { role: "system", content: prompt.into() });
        }
        lines.reverse();
        lines.push(Line { role: "user", content: heard.into() });
        lines
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

fn end_of(text: &str) -> &str {
    let Some(mut at) = text.len().checked_sub(TURN_BYTES_MAX).filter(|at| *at > 0) else { return text };
    CUT.inc();
    while !text.is_char_boundary(at) {
        at += 1;
    }
    &text[at..]
}

/// A message as words for a model: its text; media with their type in brackets.
fn words(message: &Message) -> String {
    match (&message.text, message.kind.as_str()) {
        (Some(text), "text" | "button" | "interactive") => text.clone(),
        (Some(text), kind) => format!("[{kind}] {text}"),
        (None, kind) => format!("[{kind}]"),
    }
}

/// `choices[0].message.content`: a string, or a list of parts with texts.
fn content(body: &[u8]) -> Result<String, Failure> {
    let parsed: Completion<'_> =
        serde_json::from_slice(body).map_err(|_| unusable("the answer is no chat completion"))?;
    let reply = parsed.choices.into_iter().next().and_then(|choice| choice.message);
    let reply = reply.ok_or_else(|| unusable("the answer has no choices[0].message"))?;
    if reply.refusal.is_some_and(|refusal| !refusal.is_empty()) {
        return Err(unusable("the model refused to answer"));
    }
    let raw = reply
        .content
        .map(RawValue::get)
        .ok_or_else(|| unusable("the answer has no content (a tool call?)"))?;
    if let Ok(text) = serde_json::from_str::<String>(raw) {
        return Ok(text);
    }
    let parts: Vec<Part> =
        serde_json::from_str(raw).map_err(|_| unusable("the answer's content is no text"))?;
    Ok(parts.into_iter().filter_map(|part| part.text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_a_string_or_parts() {
        let of = |content: &str| {
            super::content(format!(r#"{{"choices":[{{"message":{{"content":{content}}}}}]}}"#).as_bytes())
        };
        assert_eq!(of(r#""hi""#), Ok("hi".to_owned()));
        assert_eq!(
            of(r#"[{"type":"text","text":"a"},{"type":"image"},{"type":"text","text":"b"}]"#),
            Ok("ab".to_owned())
        );
        for bad in ["null", "{}", "1", "[[[["] {
            assert_eq!(of(bad).expect_err("unusable").reason.as_str(), "agent_bad_answer", "{bad}");
        }
        assert!(super::content(b"{}").is_err() && super::content(b"<html>").is_err());
        let refusal = br#"{"choices":[{"message":{"content":null,"refusal":"no"}}]}"#;
        assert!(super::content(refusal).expect_err("refused").detail.contains("refused"));
    }

    #[test]
    fn an_answer_nested_without_end_does_not_recurse() {
        let deep = format!(
            r#"{{"choices":[{{"message":{{"content":{}{}}}}}]}}"#,
            "[".repeat(500_000),
            "]".repeat(500_000)
        );
        assert!(content(deep.as_bytes()).is_err());
    }
}
