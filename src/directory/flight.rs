//! Single flight: of the coroutines that miss the same key at once, one asks the store and all get its
//! answer.
//!
//! The one that leads holds a [`Lead`]; if it panics or is cancelled, dropping it lands the flight with the
//! answer for "nobody knows", so that nobody who joined hangs. Who joined waits with a deadline. Bounded by
//! the number of coroutines that look something up at once.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use may::sync::SyncFlag;
use parking_lot::Mutex;

use crate::clock;

/// A question that is on its way.
pub struct Flight<T> {
    answer: OnceLock<T>,
    landed: SyncFlag,
}

impl<T: Clone> Flight<T> {
    /// The answer, if it comes within the time. Suspends the coroutine (or the thread).
    pub fn wait(&self, within: Duration) -> Option<T> {
        if !self.landed.wait_timeout(within) {
            clock::back_to_worker();
        }
        self.answer.get().cloned()
    }
}

/// What one gets who wants to ask.
pub enum Seat<'a, T: Clone> {
    /// Ask, then [`Lead::land`].
    Leads(Lead<'a, T>),
    /// Another one asks already.
    Joins(Arc<Flight<T>>),
}

/// All questions that are on their way, by key.
pub struct Flights<T> {
    under_way: Mutex<HashMap<Box<str>, Arc<Flight<T>>>>,
    lost: T,
}

impl<T: Clone> Flights<T> {
    /// `lost` is what the others get when the one that leads dies.
    pub fn new(lost: T) -> Self {
        Self { under_way: Mutex::new(HashMap::new()), lost }
    }

    /// Joins the flight for `key`, or starts it.
    pub fn board(&self, key: &str) -> Seat<'_, T> {
        let mut under_way = self.under_way.lock();
        if let Some(flight) = under_way.get(key) {
            return Seat::Joins(flight.clone());
        }
        let flight = Arc::new(Flight { answer: OnceLock::new(), landed: SyncFlag::new() });
        under_way.insert(key.into(), flight.clone());
        Seat::Leads(Lead { flights: self, key: key.into(), flight })
    }

    /// The flight for `key`, if there is one.
    pub fn join(&self, key: &str) -> Option<Arc<Flight<T>>> {
        self.under_way.lock().get(key).cloned()
    }

    /// Nobody joins any more what is under way now: what they ask may have been answered from old data.
    pub fn forget(&self) {
        self.under_way.lock().clear();
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.under_way.lock().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The duty to answer for all who join.
pub struct Lead<'a, T: Clone> {
    flights: &'a Flights<T>,
    key: Box<str>,
    flight: Arc<Flight<T>>,
}

impl<T: Clone> Lead<'_, T> {
    /// Answers everybody. Put the answer into the cache before, or who comes next asks again.
    pub fn land(self, answer: T) {
        let _ = self.flight.answer.set(answer);
    }
}

impl<T: Clone> Drop for Lead<'_, T> {
    fn drop(&mut self) {
        let _ = self.flight.answer.set(self.flights.lost.clone());
        let mut under_way = self.flights.under_way.lock();
        if under_way.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            under_way.remove(&self.key);
        }
        drop(under_way);
        self.flight.landed.fire();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn joined<'a>(seat: Seat<'a, &'static str>) -> Arc<Flight<&'static str>> {
        match seat {
            Seat::Joins(flight) => flight,
            Seat::Leads(_) => panic!("expected to join"),
        }
    }

    #[test]
    fn all_who_join_get_the_answer() {
        let flights = Flights::new("lost");
        let Seat::Leads(lead) = flights.board("a") else { panic!("the first leads") };
        let flight = joined(flights.board("a"));
        assert!(matches!(flights.board("b"), Seat::Leads(_)));
        lead.land("answer");
        assert_eq!(flight.wait(LONG), Some("answer"));
        assert!(matches!(flights.board("a"), Seat::Leads(_)), "it has landed");
    }

    #[test]
    fn a_panic_of_the_one_that_leads_hangs_nobody() {
        let flights = Flights::new("lost");
        let Seat::Leads(lead) = flights.board("a") else { panic!("the first leads") };
        let flight = joined(flights.board("a"));
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _lead = lead;
            panic!("as planned");
        }));
        assert!(panicked.is_err());
        assert_eq!(flight.wait(LONG), Some("lost"));
        assert!(flights.is_empty());
    }

    #[test]
    fn who_joined_waits_no_longer_than_the_deadline() {
        let flights = Flights::new("lost");
        let Seat::Leads(lead) = flights.board("a") else { panic!("the first leads") };
        let flight = joined(flights.board("a"));
        assert_eq!(flight.wait(Duration::from_millis(10)), None);
        lead.land("late");
        assert_eq!(flight.wait(LONG), Some("late"));
    }

    #[test]
    fn after_forget_nobody_joins_an_old_flight_and_its_landing_leaves_the_new_one_alone() {
        let flights = Flights::new("lost");
        let Seat::Leads(old) = flights.board("a") else { panic!("the first leads") };
        let old_joined = joined(flights.board("a"));
        flights.forget();
        let Seat::Leads(new) = flights.board("a") else { panic!("a new one leads") };
        old.land("old");
        assert_eq!(old_joined.wait(LONG), Some("old"));
        let new_joined = joined(flights.board("a"));
        new.land("new");
        assert_eq!(new_joined.wait(LONG), Some("new"));
    }
}
