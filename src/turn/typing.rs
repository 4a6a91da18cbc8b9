//! Read receipt and typing indicator, kept alive while the agent works.
//!
//! The indicator lasts 25 s or until the reply (FACTS of Meta's typing-indicators page), so it is renewed before that; and
//! the reply waits for a call under way, since an indicator that lands after the reply would stay.
//!
//! A call runs on a coroutine of its own, which ends with it: between two calls an indicator is an entry in a list, since
//! the stack of a coroutine that waits would be most of what a turn takes. One that gets no place at Graph in time, or only
//! once its turn has ended, is not made.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::{Condvar, Mutex};

use crate::clock;
use crate::dispatcher;
use crate::event::Business;
use crate::graph::Graph;
use crate::ops::metrics::Counter;

/// How often the indicator is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// How late it may be: 25 s must not pass.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the reply waits for a call under way, and a call for its place.
const LAST_CALL_MAX: Duration = Duration::from_secs(5);
/// Calls under way, those that wait for their place included: Graph takes about as many in [`LAST_CALL_MAX`].
const CALLS_MAX: usize = 8_192;
/// The indicator is given up after this many renewals: an agent that takes longer is stuck.
const RENEWALS_MAX: u32 = 30;
/// Indicators that wait for their renewal at most, ended ones included until their time comes.
const WAITING_MAX: usize = 200_000;

/// Indicators that were not shown or renewed because too many wait.
pub static CROWDED: Counter = Counter::new(
    "typing_not_renewed_total",
    "Typing indicators not shown or renewed because too many wait for it.",
);

static CALLS: AtomicUsize = AtomicUsize::new(0);

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
            let state = self.shared.state.lock();
            if *state != State::Calling {
                return;
            }
            let waiter = Blocker::current();
            *self.shared.last_call.lock() = Some(Arc::clone(&waiter));
            waiter
        };
        if waiter.park(Some(LAST_CALL_MAX)).is_err() {
            clock::back_to_worker();
            self.shared.last_call.lock().take();
        }
    }
}

/// However the turn ended: a call that still waits for its place is not made any more.
impl Drop for Typing {
    fn drop(&mut self) {
        *self.shared.state.lock() = State::Stopped;
    }
}

/// A call of an indicator that is `Calling`.
struct Call {
    shared: Arc<Shared>,
    renewals: u32,
}

/// Makes it, on a coroutine of its own.
fn call(shared: Arc<Shared>, renewals: u32) {
    let is_one_too_many = CALLS.fetch_add(1, Relaxed) >= CALLS_MAX;
    let call = Call { shared, renewals };
    if is_one_too_many {
        CROWDED.inc();
        return;
    }
    dispatcher::spawn(move || call.make());
}

impl Call {
    fn make(&self) {
        let Shared { graph, business, phone_number_id, wamid, state, .. } = &*self.shared;
        let Some(place) = graph.enter_within(phone_number_id, LAST_CALL_MAX) else { return };
        if *state.lock() == State::Stopped {
            return;
        }
        if let Err(failure) = graph.read(business, phone_number_id, wamid, true, place) {
            log::debug!("typing indicator: {failure}");
        }
    }
}

/// Whatever became of it, also if it panicked or there was no memory for its stack: it is listed for the next one.
impl Drop for Call {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Relaxed);
        self.shared.called(self.renewals);
    }
}

impl Shared {
    fn called(self: &Arc<Self>, renewals: u32) {
        let mut state = self.state.lock();
        if *state == State::Stopped {
            return;
        }
        *state = State::Waiting;
        drop(state);
        if let Some(waiter) = self.last_call.lock().take() {
            waiter.unpark();
        } else if renewals > 0 {
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
    /// Its thread is started when it is first needed; again, if there was none to be had.
    fn get() -> &'static Self {
        static RENEWER: Renewer = Renewer { waiting: Mutex::new(VecDeque::new()), arrived: Condvar::new() };
        static IS_RUNNING: AtomicBool = AtomicBool::new(false);
        if !IS_RUNNING.load(Relaxed) && !IS_RUNNING.swap(true, Relaxed) {
            let started = std::thread::Builder::new().name("typing".to_owned()).spawn(|| RENEWER.run());
            if let Err(e) = started {
                IS_RUNNING.store(false, Relaxed);
                log::error!("typing indicators are not renewed: no thread can be started: {e}");
            }
        }
        &RENEWER
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
            if catch_unwind(AssertUnwindSafe(|| self.renew())).is_err() {
                log::error!("the thread of the typing indicators panicked and goes on");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn renew(&self) {
        // not with the lock: a call that can't be made is listed again at once
        for next in self.due() {
            let Some(shared) = next.of.upgrade() else { continue };
            let mut state = shared.state.lock();
            if *state == State::Waiting {
                *state = State::Calling;
                drop(state);
                call(shared, next.renewals - 1);
            }
        }
    }

    /// Waits until there are any.
    fn due(&self) -> Vec<Next> {
        let mut waiting = self.waiting.lock();
        while waiting.is_empty() {
            self.arrived.wait(&mut waiting);
        }
        let now = clock::monotonic();
        let count = waiting.iter().take_while(|next| next.at <= now).count();
        waiting.drain(..count).collect()
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
    use crate::turnstile::places::Rule;
    use crate::turnstile::{Place, Turnstile};

    /// The tests count the calls of the whole process.
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());

    /// Counts the indicators; has one place.
    struct Counting {
        calls: AtomicU32,
        turnstile: Turnstile,
        panics: bool,
    }

    fn counting(panics: bool) -> Arc<Counting> {
        let one = Rule { least: 1, most: 1, per_second: 0, window: 1, window_per_second: 0 };
        Arc::new(Counting { calls: AtomicU32::new(0), turnstile: Turnstile::new(one), panics })
    }

    impl Graph for Counting {
        fn reserve(&self, _: &str, _: &Recipient) -> Duration {
            Duration::ZERO
        }
        fn enter(&self, _: &str) -> Place<'_> {
            unreachable!("only the indicator is tested")
        }
        fn enter_within(&self, _: &str, within: Duration) -> Option<Place<'_>> {
            self.turnstile.enter_within(0, within)
        }
        fn try_enter(&self, _: &str) -> Option<Place<'_>> {
            unreachable!("only the indicator is tested")
        }
        fn send(&self, _: &Send<'_>, _: Place<'_>) -> Result<String, Failure> {
            unreachable!("only the indicator is tested")
        }
        fn read(&self, _: &Business, _: &str, _: &str, _: bool, _: Place<'_>) -> Result<(), Failure> {
            self.calls.fetch_add(1, SeqCst);
            assert!(!self.panics, "on purpose");
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
        let _alone = ONE_BY_ONE.lock();
        let counting = counting(false);
        let graph: Arc<dyn Graph> = counting.clone();
        let typing = Typing::start(&graph, &shop(), "106", "wamid.1");
        let shared = Arc::clone(&typing.shared);
        let was_called = |count| {
            until(|| counting.calls.load(SeqCst) == count && *shared.state.lock() == State::Waiting);
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
        assert_eq!(counting.calls.load(SeqCst), 2);
    }

    #[test]
    fn a_call_whose_turn_has_ended_before_it_got_a_place_is_not_made() {
        let _alone = ONE_BY_ONE.lock();
        let counting = counting(false);
        let graph: Arc<dyn Graph> = counting.clone();
        let held = counting.turnstile.enter(0);
        let typing = Typing::start(&graph, &shop(), "106", "wamid.1");
        let shared = Arc::downgrade(&typing.shared);
        drop(typing);
        assert!(shared.upgrade().is_some(), "it waits for its place");
        drop(held);
        until(|| shared.upgrade().is_none());
        assert_eq!(counting.calls.load(SeqCst), 0);
        assert!(counting.turnstile.try_enter(0).is_some(), "it gave the place back");
        assert_eq!(CALLS.load(SeqCst), 0);
    }

    #[test]
    fn where_too_many_calls_are_under_way_the_indicator_waits_for_its_next_time() {
        let _alone = ONE_BY_ONE.lock();
        let counting = counting(false);
        let graph: Arc<dyn Graph> = counting.clone();
        CALLS.fetch_add(CALLS_MAX, SeqCst);
        let typing = Typing::start(&graph, &shop(), "106", "wamid.1");
        CALLS.fetch_sub(CALLS_MAX, SeqCst);
        assert!(*typing.shared.state.lock() == State::Waiting);
        typing.stop();
        assert_eq!((counting.calls.load(SeqCst), CALLS.load(SeqCst)), (0, 0));
    }

    /// A reply must not wait for a call that is over.
    #[test]
    fn a_call_that_panics_ends_as_any_other() {
        let _alone = ONE_BY_ONE.lock();
        let counting = counting(true);
        let graph: Arc<dyn Graph> = counting.clone();
        let typing = Typing::start(&graph, &shop(), "106", "wamid.1");
        until(|| counting.calls.load(SeqCst) == 1 && *typing.shared.state.lock() == State::Waiting);
        assert_eq!(CALLS.load(SeqCst), 0);
        assert!(counting.turnstile.try_enter(0).is_some(), "the place is free again");
    }
}
