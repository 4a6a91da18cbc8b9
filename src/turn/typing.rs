//! Read receipt and typing indicator, kept alive while the agent works.
//!
//! The indicator lasts 25 s or until the reply (FACTS of Meta's typing-indicators page), so it is renewed before that; and
//! the reply waits for a call under way, since an indicator that lands after the reply would stay.
//!
//! A call runs on a coroutine of its own, which ends with it: between two calls an indicator is an entry in a list, since
//! the stack of a coroutine that waits would be most of what a turn takes.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::{Condvar, Mutex};

use crate::clock;
use crate::event::Business;
use crate::graph::Graph;
use crate::ops::metrics::Counter;

/// How often the indicator is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// How late it may be: 25 s must not pass.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the reply waits for a call under way.
const LAST_CALL_MAX: Duration = Duration::from_secs(5);
/// The indicator is given up after this many renewals: an agent that takes longer is stuck.
const RENEWALS_MAX: u32 = 30;
/// Indicators that wait for their renewal at most, ended ones included until their time comes.
const WAITING_MAX: usize = 200_000;

/// Indicators that were not renewed because too many wait.
pub static CROWDED: Counter =
    Counter::new("typing_not_renewed_total", "Typing indicators not renewed because too many wait for it.");

/// A running indicator.
pub struct Typing {
    shared: Arc<Shared>,
}

struct Shared {
    graph: Arc<dyn Graph>,
    business: Arc<Business>,
    phone_number_id: String,
    wamid: String,
    state: Mutex<State>,
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
            graph: Arc::clone(graph),
            business: Arc::clone(business),
            phone_number_id: phone_number_id.to_owned(),
            wamid: wamid.to_owned(),
            state: Mutex::new(State::Calling),
            last_call: Mutex::new(None),
        });
        call(Arc::clone(&shared), RENEWALS_MAX);
        Self { shared }
    }

    /// No call begins after this, and none is under way (unless it takes longer than 5 s).
    pub fn stop(self) {
        let waiter = {
            let mut state = self.shared.state.lock();
            let calling = *state == State::Calling;
            *state = State::Stopped;
            if !calling {
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

/// Makes the call of an indicator that is `Calling`, and lists it for the next one.
fn call(shared: Arc<Shared>, renewals: u32) {
    let _detached = may::go!(move || {
        let Shared { graph, business, phone_number_id, wamid, .. } = &*shared;
        if let Err(failure) = graph.read(business, phone_number_id, wamid, true) {
            log::debug!("typing indicator: {failure}");
        }
        shared.called(renewals);
        clock::linger();
    });
}

impl Shared {
    fn called(self: &Arc<Self>, renewals: u32) {
        let mut state = self.state.lock();
        if *state == State::Stopped {
            drop(state);
            if let Some(waiter) = self.last_call.lock().take() {
                waiter.unpark();
            }
            return;
        }
        *state = State::Waiting;
        drop(state);
        if renewals > 0 {
            Renewer::get().add(Next {
                at: clock::monotonic() + RENEW_EVERY,
                of: Arc::downgrade(self),
                renewals,
            });
        }
    }
}

/// When an indicator is to be renewed.
struct Next {
    at: Duration,
    /// Gone with its turn.
    of: Weak<Shared>,
    renewals: u32,
}

/// Everybody waits equally long, so the list is in the order of its times.
#[derive(Default)]
struct Renewer {
    waiting: Mutex<VecDeque<Next>>,
    arrived: Condvar,
}

impl Renewer {
    /// Started when it is first needed.
    fn get() -> &'static Self {
        static RENEWER: OnceLock<&'static Renewer> = OnceLock::new();
        RENEWER.get_or_init(|| {
            let renewer: &'static Self = Box::leak(Box::default());
            let run = move || renewer.run();
            std::thread::Builder::new()
                .name("typing".to_owned())
                .spawn(run)
                .expect("a thread can be started");
            renewer
        })
    }

    fn add(&self, next: Next) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            CROWDED.inc();
            return;
        }
        waiting.push_back(next);
        if waiting.len() == 1 {
            self.arrived.notify_one();
        }
    }

    #[allow(clippy::disallowed_methods, reason = "this is a thread of its own")]
    fn run(&self) {
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.is_empty() {
                self.arrived.wait(&mut waiting);
            }
            let now = clock::monotonic();
            while waiting.front().is_some_and(|next| next.at <= now) {
                let Some(next) = waiting.pop_front() else { break };
                if let Some(shared) = next.of.upgrade() {
                    let mut state = shared.state.lock();
                    if *state == State::Waiting {
                        *state = State::Calling;
                        drop(state);
                        call(shared, next.renewals - 1);
                    }
                }
            }
            drop(waiting);
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::event::Recipient;
    use crate::failure::Failure;
    use crate::graph::Send;
    use crate::secret::Secret;
    use crate::turnstile::Place;

    /// Counts the indicators.
    #[derive(Default)]
    struct Counting(AtomicU32);

    impl Graph for Counting {
        fn reserve(&self, _: &str, _: &Recipient) -> Duration {
            Duration::ZERO
        }
        fn enter(&self, _: &str) -> Place<'_> {
            unreachable!("only the indicator is tested")
        }
        fn try_enter(&self, _: &str) -> Option<Place<'_>> {
            unreachable!("only the indicator is tested")
        }
        fn send(&self, _: &Send<'_>, _: Place<'_>) -> Result<String, Failure> {
            unreachable!("only the indicator is tested")
        }
        fn read(&self, _: &Business, _: &str, _: &str, _: bool) -> Result<(), Failure> {
            self.0.fetch_add(1, SeqCst);
            Ok(())
        }
    }

    fn shop() -> Arc<Business> {
        Arc::new(Business {
            id: "1".into(),
            name: String::new(),
            sub_domain: "shop".into(),
            waba_id: String::new(),
            phone_number_ids: Vec::new(),
            meta_app: None,
            token: Secret::new("t"),
        })
    }

    #[allow(clippy::disallowed_methods, reason = "the test's thread is no coroutine")]
    fn until(is_so: impl Fn() -> bool) {
        let end = clock::monotonic() + Duration::from_secs(10);
        while !is_so() {
            assert!(clock::monotonic() < end, "not within 10 s");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test's thread is no coroutine")]
    fn an_indicator_is_renewed_until_it_is_stopped() {
        let counting = Arc::new(Counting::default());
        let graph: Arc<dyn Graph> = counting.clone();
        let typing = Typing::start(&graph, &shop(), "106", "wamid.1");
        let shared = Arc::clone(&typing.shared);
        let was_called = |count| {
            until(|| counting.0.load(SeqCst) == count && *shared.state.lock() == State::Waiting);
        };
        was_called(1);
        let renewer: &'static Renewer = Box::leak(Box::default());
        std::thread::spawn(move || renewer.run());
        let due = || Next { at: Duration::ZERO, of: Arc::downgrade(&shared), renewals: 1 };
        renewer.add(due());
        was_called(2);
        typing.stop();
        renewer.add(due());
        until(|| renewer.waiting.lock().is_empty());
        std::thread::sleep(LOOK_EVERY);
        assert_eq!(counting.0.load(SeqCst), 2);
    }
}
