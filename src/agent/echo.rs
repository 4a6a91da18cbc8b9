//! Says what it hears: for trying things out, and for the load test.

use super::{Agent, Answer, Ask, CUT, REPLIES_MAX, texts};
use crate::failure::Failure;

/// See the module's head.
pub struct Echo;

impl Agent for Echo {
    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let heard: Vec<String> = ask.messages.iter().map(said).collect();
        let mut replies = texts(&heard.join("\n"));
        if replies.len() > REPLIES_MAX {
            CUT.inc();
            replies.truncate(REPLIES_MAX);
        }
        Ok(Answer { replies, remember: Vec::new() })
    }
}

/// The words of a message, else its type in brackets.
fn said(message: &crate::event::Message) -> String {
    match &message.text {
        Some(text) => text.clone(),
        None => format!("[{}]", message.kind),
    }
}
