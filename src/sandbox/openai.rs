//! A small server that speaks the chat completions of OpenAI and its kin, for testing the agent that calls such
//! servers: it says what it heard, and misbehaves on demand.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;

use super::wire::{self, After, Request};
use crate::clock;
use crate::secret::Secret;

/// Requests that are kept.
const REQUESTS_MAX: usize = 10_000;
/// Faults that can wait.
const FAULTS_MAX: usize = 10_000;

/// What one call gets instead of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status with an error object, with Retry-After in seconds if given: 500, 429, 401, ..
    Status(u16, Option<u32>),
    /// A 200 with these bytes: not JSON, no choices, a null content, content in parts, ..
    Body(String),
    /// The right answer, late, in ms.
    DelayMs(u64),
    /// No answer for so many ms, then closed.
    StallMs(u64),
    /// Reset.
    Reset,
    /// Half of the answer, then closed.
    Half,
}

/// A message of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// The words.
    pub content: String,
}

/// A request that was right.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Completion {
    /// The model asked for.
    pub model: String,
    /// The conversation.
    pub messages: Vec<Message>,
}

/// The server; ends when dropped.
pub struct OpenAi {
    server: wire::Server,
    state: Arc<State>,
}

struct State {
    key: Option<Secret>,
    faults: Mutex<VecDeque<Fault>>,
    requests: Mutex<VecDeque<Completion>>,
    calls: AtomicU64,
    bad: AtomicU64,
}

impl OpenAi {
    /// Listens on a free port of loopback; with a `key`, only that bearer is taken.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn start(key: Option<Secret>) -> io::Result<Self> {
        let state = Arc::new(State {
            key,
            faults: Mutex::default(),
            requests: Mutex::default(),
            calls: AtomicU64::new(0),
            bad: AtomicU64::new(0),
        });
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let service = Arc::clone(&state);
        Ok(Self { server: wire::Server::start(listen, service)?, state })
    }

    /// What AGENT_URL has to be.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.server.addr())
    }

    /// The next call gets this; several wait in order.
    pub fn fault(&self, fault: Fault) {
        let mut faults = self.state.faults.lock();
        if faults.len() < FAULTS_MAX {
            faults.push_back(fault);
        }
    }

    /// Calls so far, all of them.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Relaxed)
    }

    /// Calls that a real server would have refused.
    pub fn bad(&self) -> u64 {
        self.state.bad.load(Relaxed)
    }

    /// Right requests, oldest first, also those that a fault then hit.
    pub fn requests(&self) -> Vec<Completion> {
        self.state.requests.lock().iter().cloned().collect()
    }
}

impl wire::Service for State {
    fn call(&self, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        self.calls.fetch_add(1, Relaxed);
        if request.path() != "/v1/chat/completions" || request.method != "POST" {
            return self.refuse(404, "Unknown request URL", out);
        }
        if let Some(key) = &self.key
            && request.bearer() != Some(key.reveal())
        {
            return self.refuse(401, "Incorrect API key provided", out);
        }
        let asked: Completion = match serde_json::from_slice(request.body) {
            Ok(asked) => asked,
            Err(_) => return self.refuse(400, "We could not parse the JSON body of your request", out),
        };
        let Some(said) = asked.messages.iter().rev().find(|m| m.role == "user").map(|m| m.content.clone())
        else {
            return self.refuse(400, "messages must hold one of the user", out);
        };
        let model = asked.model.clone();
        let mut requests = self.requests.lock();
        if requests.len() == REQUESTS_MAX {
            requests.pop_front();
        }
        requests.push_back(asked);
        drop(requests);
        let fault = self.faults.lock().pop_front();
        self.answer(fault, &model, &said, out)
    }
}

impl State {
    fn answer(&self, fault: Option<Fault>, model: &str, said: &str, out: &mut Vec<u8>) -> After {
        let mut after = After::Keep;
        match fault {
            None => {}
            Some(Fault::Status(status, retry_after)) => {
                error(out, status, retry_after, "Simulated on demand");
                return After::Keep;
            }
            Some(Fault::Body(body)) => {
                wire::answer(out, 200, "application/json", &[], body.as_bytes());
                return After::Keep;
            }
            Some(Fault::DelayMs(ms)) => clock::sleep(Duration::from_millis(ms)),
            Some(Fault::StallMs(ms)) => {
                clock::sleep(Duration::from_millis(ms));
                return After::Silent;
            }
            Some(Fault::Reset) => return After::Reset,
            Some(Fault::Half) => after = After::Half,
        }
        let quote = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        let body = format!(
            concat!(
                r#"{{"id":"chatcmpl-{}","object":"chat.completion","created":{},"model":{},"#,
                r#""choices":[{{"index":0,"message":{{"role":"assistant","content":{},"refusal":null}},"logprobs":null,"finish_reason":"stop"}}],"#,
                r#""usage":{{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}}}"#
            ),
            self.calls.load(Relaxed),
            clock::now() / 1000,
            quote(model),
            quote(&format!("You said: {said}"))
        );
        wire::answer(out, 200, "application/json", &[], body.as_bytes());
        after
    }

    fn refuse(&self, status: u16, message: &str, out: &mut Vec<u8>) -> After {
        self.bad.fetch_add(1, Relaxed);
        error(out, status, None, message);
        After::Keep
    }
}

fn error(out: &mut Vec<u8>, status: u16, retry_after: Option<u32>, message: &str) {
    let seconds = retry_after.map(|seconds| seconds.to_string());
    let headers: Vec<_> = seconds.as_deref().map(|seconds| ("Retry-After", seconds)).into_iter().collect();
    let body =
        format!(r#"{{"error":{{"message":"{message}","type":"simulated","param":null,"code":null}}}}"#);
    wire::answer(out, status, "application/json", &headers, body.as_bytes());
}
