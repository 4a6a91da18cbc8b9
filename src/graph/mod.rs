//! The WhatsApp Graph API: message bodies, limits, pacing, error classes.

pub mod body;
pub mod client;
pub mod errors;
pub mod look;
pub mod pacing;

use serde_json::value::RawValue;

use crate::event::{Business, Recipient};
use crate::failure::Failure;
use crate::ops::metrics::Metric;
use crate::turnstile::Place;

/// What this module counts.
pub static METRICS: &[&dyn Metric] = &[
    &client::SENDS,
    &client::READS,
    &client::SECONDS,
    &client::PACED,
    &client::PACED_SECONDS,
    &client::UNPACED,
    &client::QUEUED,
];

/// One message to send.
#[derive(Debug)]
pub struct Send<'a> {
    /// Whose token.
    pub business: &'a Business,
    /// From which number.
    pub phone_number_id: &'a str,
    /// To whom.
    pub to: &'a Recipient,
    /// A message body without addressing, as an agent returns it.
    pub body: &'a RawValue,
    /// `biz_opaque_callback_data`: our reply id.
    pub reply_id: &'a str,
    /// Quote this wamid (`context.message_id`), if given.
    pub in_reply_to: Option<&'a str>,
}

/// What the rest of the program sees of the Graph API.
pub trait Graph: std::marker::Send + Sync + 'static {
    /// How long to wait before a send from this number to this recipient may go out (pacing: per number, per
    /// pair), 0 if at once. Takes the place in the queue: call once a send, then wait, then send.
    fn reserve(&self, phone_number_id: &str, to: &Recipient) -> std::time::Duration;
    /// A place among this number's calls at once, for [`Graph::send`]; waits for one.
    fn enter(&self, phone_number_id: &str) -> Place<'_>;
    /// The same, but gives up after `within`.
    fn enter_within(&self, phone_number_id: &str, within: std::time::Duration) -> Option<Place<'_>>;
    /// The same if there is one free now.
    fn try_enter(&self, phone_number_id: &str) -> Option<Place<'_>>;
    /// Sends it once and returns the wamid. See [`crate::failure::Verdict`] for what the errors mean.
    fn send(&self, send: &Send<'_>, place: Place<'_>) -> Result<String, Failure>;
    /// Marks the message read; with `typing` also shows the typing indicator (25 s or until the reply).
    fn read(
        &self,
        business: &Business,
        phone_number_id: &str,
        wamid: &str,
        typing: bool,
        place: Place<'_>,
    ) -> Result<(), Failure>;
}
