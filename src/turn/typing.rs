//! Read receipt and typing indicator, kept alive while the agent works.
//!
//! The indicator lasts 25 s or until the reply (FACTS of Meta's typing-indicators page), so it is renewed before that; and
//! the reply waits for a call under way, since an indicator that lands after the reply would stay.

use std::sync::Arc;
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::Mutex;

use crate::clock;
use crate::event::Business;
use crate::graph::Graph;

/// How often the indicator is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// How long the reply waits for a call under way.
const LAST_CALL_MAX: Duration = Duration::from_secs(5);
/// The indicator is given up after this many renewals: an agent that takes longer is stuck.
const RENEWALS_MAX: u32 = 30;

/// A running indicator.
pub struct Typing {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The indicator's coroutine waits here between calls.
    pause: Mutex<Option<Arc<Blocker>>>,
    /// The turn waits here for a call under way.
    last_call: Mutex<Option<Arc<Blocker>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Calling,
    Waiting,
    Stopped,
}

impl Typing {
    /// Begins with the first call at once, on a coroutine of its own.
    pub fn start(
        graph: &Arc<dyn Graph>,
        business: &Arc<Business>,
        phone_number_id: &str,
        wamid: &str,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Calling),
            pause: Mutex::new(None),
            last_call: Mutex::new(None),
        });
        let (graph, business) = (Arc::clone(graph), Arc::clone(business));
        let (phone_number_id, wamid) = (phone_number_id.to_owned(), wamid.to_owned());
        let run = Arc::clone(&shared);
        let _detached = may::go!(move || {
            run.keep_alive(&*graph, &business, &phone_number_id, &wamid);
            clock::linger();
        });
        Self { shared }
    }

    /// No call begins after this, and none is under way (unless it takes longer than 5 s).
    pub fn stop(self) {
        let waiter = {
            let mut state = self.shared.state.lock();
            let calling = *state == State::Calling;
            *state = State::Stopped;
            if !calling {
                drop(state);
                if let Some(pause) = self.shared.pause.lock().take() {
                    pause.unpark();
                }
                return;
            }
            let waiter = Blocker::current();
            *self.shared.last_call.lock() = Some(Arc::clone(&waiter));
            waiter
        };
        if waiter.park(Some(LAST_CALL_MAX)).is_err() {
            clock::back_to_worker();
        }
    }
}

impl Shared {
    fn keep_alive(&self, graph: &dyn Graph, business: &Business, phone_number_id: &str, wamid: &str) {
        let pause = Blocker::current();
        *self.pause.lock() = Some(Arc::clone(&pause));
        for _ in 0..RENEWALS_MAX {
            if let Err(failure) = graph.read(business, phone_number_id, wamid, true) {
                log::debug!("typing indicator: {failure}");
            }
            {
                let mut state = self.state.lock();
                if *state == State::Stopped {
                    drop(state);
                    if let Some(waiter) = self.last_call.lock().take() {
                        waiter.unpark();
                    }
                    return;
                }
                *state = State::Waiting;
            }
            if pause.park(Some(RENEW_EVERY)).is_err() {
                clock::back_to_worker();
            }
            let mut state = self.state.lock();
            if *state == State::Stopped {
                return;
            }
            *state = State::Calling;
        }
        *self.state.lock() = State::Waiting;
    }
}
