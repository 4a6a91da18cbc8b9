//! Replies between their first `sending` and their settlement: where a status webhook finds the send that it names, also
//! when it comes long after that was given up and before the next one. In memory, because the table has them too; usually
//! as many as there are calls to Graph under way and replies that wait for another try.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::Evidence;
use super::promise::{Keeper, promise};
use super::tables::ReplyKey;
use crate::event::hash64;

/// All replies whose send was begun once and that are not settled, by the hash of their id.
#[derive(Default)]
pub struct Flights {
    map: Mutex<HashMap<u64, Flight>>,
}

struct Flight {
    key: ReplyKey,
    number: u64,
    evidence: Option<Evidence>,
    waiter: Option<Keeper<Evidence>>,
}

impl Flights {
    /// A send begins. What was said of an earlier one of the same reply is kept.
    pub fn begin(&self, reply_id: &str, key: ReplyKey, number: u64) {
        let mut map = self.map.lock();
        let new = || Flight { key, number, evidence: None, waiter: None };
        let flight = map.entry(hash64(&[reply_id.as_bytes()])).or_insert_with(new);
        if flight.key != key {
            *flight = new();
        }
    }

    pub fn end(&self, reply_id: &str) {
        self.map.lock().remove(&hash64(&[reply_id.as_bytes()]));
    }

    /// Ends those that have their evidence: where nobody will ask for it.
    pub fn end_named(&self) {
        self.map.lock().retain(|_, flight| flight.evidence.is_none());
    }

    /// What a status said of a reply, if one did.
    pub fn evidence(&self, reply_id: &str) -> Option<Evidence> {
        self.map.lock().get(&hash64(&[reply_id.as_bytes()]))?.evidence.clone()
    }

    /// Whether a status whose callback data hashes to `hash`, from `number`, may name one of them.
    pub fn find(&self, hash: u64, number: u64) -> Option<ReplyKey> {
        let map = self.map.lock();
        map.get(&hash).filter(|flight| flight.number == number).map(|flight| flight.key)
    }

    /// Hands the evidence to who waits for it, or keeps it for who will.
    pub fn report(&self, hash: u64, evidence: Evidence) {
        let mut map = self.map.lock();
        let Some(flight) = map.get_mut(&hash) else { return };
        flight.evidence = Some(evidence.clone());
        let waiter = flight.waiter.take();
        drop(map);
        if let Some(waiter) = waiter {
            waiter.keep(evidence);
        }
    }

    /// Waits for the evidence on one reply. `None` also for a reply that is not in flight.
    pub fn wait(&self, reply_id: &str, within: Duration) -> Option<Evidence> {
        let hash = hash64(&[reply_id.as_bytes()]);
        let waiting = {
            let mut map = self.map.lock();
            let flight = map.get_mut(&hash)?;
            if let Some(evidence) = &flight.evidence {
                return Some(evidence.clone());
            }
            let (keeper, waiting) = promise();
            flight.waiter = Some(keeper);
            waiting
        };
        waiting.wait_within(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ReplyKey = ReplyKey { turn: 1, nth: 0 };

    #[test]
    fn evidence_reaches_the_waiter_whichever_comes_first() {
        let flights = std::sync::Arc::new(Flights::default());
        let hash = hash64(&[b"a"]);
        flights.begin("a", KEY, 9);
        assert_eq!(flights.find(hash, 9), Some(KEY));
        flights.report(hash, Evidence::Sent("w".into()));
        assert_eq!(flights.wait("a", Duration::ZERO), Some(Evidence::Sent("w".into())));

        flights.begin("b", KEY, 9);
        let late = std::sync::Arc::clone(&flights);
        let thread = std::thread::spawn(move || late.wait("b", Duration::from_secs(10)));
        while flights.map.lock()[&hash64(&[b"b"])].waiter.is_none() {
            std::thread::yield_now();
        }
        flights.report(hash64(&[b"b"]), Evidence::Failed("w".into(), 131026));
        assert_eq!(thread.join().expect("no panic"), Some(Evidence::Failed("w".into(), 131026)));
    }

    #[test]
    fn a_later_send_of_the_same_reply_keeps_what_was_said_of_the_first() {
        let flights = Flights::default();
        flights.begin("a", KEY, 9);
        flights.report(hash64(&[b"a"]), Evidence::Sent("w".into()));
        flights.begin("a", KEY, 9);
        assert_eq!(flights.evidence("a"), Some(Evidence::Sent("w".into())));
        // of another reply it says nothing
        flights.begin("a", ReplyKey { turn: 2, nth: 0 }, 9);
        assert_eq!(flights.evidence("a"), None);
        flights.report(hash64(&[b"a"]), Evidence::Sent("w".into()));
        flights.begin("b", KEY, 9);
        flights.end_named();
        assert_eq!(flights.map.lock().len(), 1);
    }

    #[test]
    fn a_status_from_another_number_is_no_evidence() {
        let flights = Flights::default();
        flights.begin("a", KEY, 9);
        assert_eq!(flights.find(hash64(&[b"a"]), 8), None);
    }
}
