//! Faults on demand: which calls go wrong, how, and how often. Pure but for the dice, which are a counter hashed with a
//! seed, so that a run can be repeated.

use parking_lot::Mutex;
use serde::Deserialize;

use crate::event::hash64;

/// How many faults can be armed at once; the oldest goes when there are more.
const FAULTS_MAX: usize = 1000;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// An error of the Graph API by its code, with the HTTP status that Meta uses for it.
    Graph(i64),
    /// A 500 whose body is a page of HTML.
    Html500,
    /// The right answer, this many milliseconds late.
    DelayMs(u64),
    /// Accepted: the message goes out and its statuses follow, but the caller sees a reset.
    AcceptThenReset,
    /// Accepted, but the caller sees a 500.
    AcceptThen500,
    /// Accepted, and half of the answer arrives before the connection is closed.
    AcceptThenHalf,
    /// Accepted; the webhook then says `failed` with this code.
    StatusFailed(i64),
    /// Reset before anything is processed.
    Reset,
    /// Closed without an answer, nothing processed.
    Close,
    /// No answer for this many milliseconds, then closed; nothing processed.
    StallMs(u64),
}

/// Which calls can be hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calls {
    /// Messages.
    #[default]
    Sends,
    /// Read receipts and typing indicators.
    Reads,
    /// Questions after a number.
    Looks,
    /// Every call.
    All,
}

/// One armed fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub what: What,
    /// How many calls it hits; `None`: until it is cleared.
    #[serde(default)]
    pub times: Option<u32>,
    /// How likely a call that fits is hit, 0 to 1; `None`: always.
    #[serde(default)]
    pub probability: Option<f64>,
    /// Only calls to this recipient.
    #[serde(default)]
    pub to: Option<String>,
    /// Only calls from this phone_number_id.
    #[serde(default)]
    pub number: Option<String>,
    /// Which kind of call.
    #[serde(default)]
    pub calls: Calls,
    /// Seconds for a Retry-After header of an error answer.
    #[serde(default)]
    pub retry_after: Option<u32>,
}

impl Fault {
    /// Hits the next `times` sends.
    pub fn next(times: u32, what: What) -> Self {
        Self { times: Some(times), ..Self::always(what) }
    }

    /// Hits every send until it is cleared.
    pub fn always(what: What) -> Self {
        Self {
            what,
            times: None,
            probability: None,
            to: None,
            number: None,
            calls: Calls::Sends,
            retry_after: None,
        }
    }

    /// Only calls to this recipient.
    pub fn to(self, recipient: &str) -> Self {
        Self { to: Some(recipient.to_owned()), ..self }
    }

    /// Only calls from this number.
    pub fn number(self, phone_number_id: &str) -> Self {
        Self { number: Some(phone_number_id.to_owned()), ..self }
    }

    /// Only this share of the calls, 0 to 1.
    pub fn probability(self, probability: f64) -> Self {
        Self { probability: Some(probability), ..self }
    }

    /// Which kind of call.
    pub fn calls(self, calls: Calls) -> Self {
        Self { calls, ..self }
    }

    fn fits(&self, call: Calls, number: &str, to: &str) -> bool {
        let kind = self.calls == Calls::All || self.calls == call;
        kind && self.number.as_deref().is_none_or(|n| n == number)
            && self.to.as_deref().is_none_or(|t| t == to)
    }
}

/// The faults that are armed.
#[derive(Debug, Default)]
pub struct Faults {
    armed: Mutex<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    faults: Vec<Fault>,
    thrown: u64,
    hits: u64,
}

impl Faults {
    /// Arms a fault; the oldest that fits a call hits it.
    pub fn add(&self, fault: Fault) {
        let mut armed = self.armed.lock();
        if armed.faults.len() == FAULTS_MAX {
            armed.faults.remove(0);
        }
        armed.faults.push(fault);
    }

    /// Disarms all.
    pub fn clear(&self) {
        self.armed.lock().faults.clear();
    }

    /// How many calls were hit so far.
    pub fn hits(&self) -> u64 {
        self.armed.lock().hits
    }

    /// The fault that hits this call, if one does: counted.
    pub(super) fn hit(&self, call: Calls, number: &str, to: &str) -> Option<Fault> {
        let mut armed = self.armed.lock();
        if armed.faults.is_empty() {
            return None;
        }
        let nth = (0..armed.faults.len()).find(|&nth| {
            armed.faults[nth].fits(call, number, to) && {
                armed.thrown += 1;
                armed.faults[nth].probability.is_none_or(|p| dice(armed.thrown) < p)
            }
        })?;
        armed.hits += 1;
        let fault = armed.faults[nth].clone();
        match &mut armed.faults[nth].times {
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => drop(armed.faults.remove(nth)),
            None => {}
        }
        Some(fault)
    }
}

/// The n-th throw, 0 to 1.
fn dice(nth: u64) -> f64 {
    (hash64(&[&nth.to_le_bytes()]) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_as_often_as_it_says_and_only_what_it_names() {
        let faults = Faults::default();
        faults.add(Fault::next(2, What::Reset).to("1555"));
        assert!(faults.hit(Calls::Sends, "7", "1666").is_none());
        assert!(faults.hit(Calls::Reads, "7", "1555").is_none(), "a read receipt is no send");
        assert!(faults.hit(Calls::Sends, "7", "1555").is_some());
        assert!(faults.hit(Calls::Sends, "7", "1555").is_some());
        assert!(faults.hit(Calls::Sends, "7", "1555").is_none());
        assert_eq!(faults.hits(), 2);
    }

    #[test]
    fn a_probability_hits_about_its_share() {
        let faults = Faults::default();
        faults.add(Fault::always(What::Html500).probability(0.1));
        let hits = (0..10_000).filter(|_| faults.hit(Calls::Sends, "7", "1").is_some()).count();
        assert!((800..1200).contains(&hits), "{hits}");
    }

    #[test]
    fn a_fault_can_be_read_from_json() {
        let fault: Fault =
            serde_json::from_str(r#"{"what":{"graph":131056},"times":3,"to":"1555","calls":"all"}"#)
                .expect("read");
        assert_eq!((fault.what, fault.times), (What::Graph(131_056), Some(3)));
        let fault: Fault = serde_json::from_str(r#"{"what":"accept_then_reset"}"#).expect("read");
        assert_eq!(fault.what, What::AcceptThenReset);
        assert!(serde_json::from_str::<Fault>(r#"{"what":"reset","tims":3}"#).is_err());
    }
}
