//! Looking at a number through the Graph API: a read that sends nothing and changes nothing.
//!
//! `GET {url}/{version}/{phone_number_id}?fields=..` with the business's own token
//! (<https://developers.facebook.com/docs/whatsapp/business-management-api/manage-phone-numbers>); it
//! needs the permission `whatsapp_business_management`, where a send needs `whatsapp_business_messaging`.

use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::client::{is_2xx, is_id, refused};
use super::errors;
use crate::failure::Failure;
use crate::net::client::Client;
use crate::secret::Secret;
use crate::{clock, config, net};

const FIELDS: &str = "verified_name,quality_rating,status";

/// A number as Graph shows it; a field that the token may not see is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Number {
    /// The name that customers see.
    #[serde(default)]
    pub verified_name: Option<String>,
    /// `GREEN`, `YELLOW`, `RED`, `UNKNOWN`.
    #[serde(default)]
    pub quality_rating: Option<String>,
    /// `CONNECTED`, or why it can't be used.
    #[serde(default)]
    pub status: Option<String>,
}

/// An answer, or why there is none.
#[derive(Debug)]
pub struct Seen {
    /// What it said.
    pub number: Result<Number, Failure>,
    /// Whether anything answered.
    pub answered: bool,
    /// How far our clock is ahead of the answer's `Date`, in milliseconds, and how sure that is (half of what the call
    /// took, and the second that a `Date` is cut to).
    pub ahead_ms: Option<(i64, u64)>,
    /// The version of the API that answered.
    pub version: Option<String>,
}

/// Asks the Graph API at one URL and version.
#[derive(Debug)]
pub struct Looker {
    http: Client,
    base: String,
}

impl Looker {
    /// Connects to nothing yet. Reads the system's certificates: call from a thread.
    pub fn new(config: &config::Graph, within: Duration) -> Self {
        let options =
            net::Options { pool_size: config.pool_size, connect_timeout: within, is_patient: false };
        Self { http: Client::new(options), base: format!("{}/{}", config.url, config.version) }
    }

    /// Looks at one number.
    pub fn number(&self, token: &Secret, phone_number_id: &str, within: Duration) -> Seen {
        if !is_id(phone_number_id) {
            let failure = refused("graph_bad_number", "the phone_number_id is not one of Meta's");
            return Seen { number: Err(failure), answered: true, ahead_ms: None, version: None };
        }
        let bearer = Zeroizing::new(format!("Bearer {}", token.reveal()));
        let url = format!("{}/{phone_number_id}?fields={FIELDS}", self.base);
        self.ask(&url, &[("authorization", bearer.as_str())], token, within)
    }

    /// Whether anything is there, without a token: the answer is a refusal.
    pub fn anybody(&self, within: Duration) -> Seen {
        self.ask(&format!("{}/me", self.base), &[], &Secret::new(""), within)
    }

    fn ask(&self, url: &str, headers: &[(&str, &str)], token: &Secret, within: Duration) -> Seen {
        let begun = clock::monotonic();
        let call = net::Call { method: "GET", url, headers, body: &[], timeout: within };
        let answer = match self.http.call(&call) {
            Ok(answer) => answer,
            Err(e) => {
                let number = Err(errors::no_answer(&e, token));
                return Seen { number, answered: false, ahead_ms: None, version: None };
            }
        };
        let took_ms = (clock::monotonic() - begun).as_millis() as u64;
        let ahead_ms = answer.header("date").and_then(|date| ahead(date, clock::now(), took_ms));
        let version = answer.header("facebook-api-version").map(str::to_owned);
        let number = is_2xx(&answer).then(|| serde_json::from_slice(&answer.body).ok()).flatten();
        let number =
            number.ok_or_else(|| errors::classify(answer.status, &answer.headers, &answer.body, token));
        Seen { number, answered: true, ahead_ms, version }
    }
}

/// How far `now_ms` is ahead of what an answer that took so long says, and how sure that is.
fn ahead(date: &str, now_ms: u64, took_ms: u64) -> Option<(i64, u64)> {
    let date = httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let middle = now_ms as i64 - (took_ms / 2) as i64;
    // the second is cut off, so half of it is added
    Some((middle - date.as_millis() as i64 - 500, took_ms / 2 + 500))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_compared_with_the_middle_of_the_call() {
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        assert_eq!(ahead(date, 1_700_000_000_500, 0), Some((0, 500)));
        assert_eq!(ahead(date, 1_700_000_061_500, 2000), Some((60_000, 1500)));
        assert_eq!(ahead(date, 1_699_999_400_500, 0), Some((-600_000, 500)));
        assert_eq!(ahead("yesterday", 0, 0), None);
    }
}
