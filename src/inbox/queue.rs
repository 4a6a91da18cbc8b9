//! What waits for the committer: bodies of requests and changes of state, in one bounded list that it swaps out whole.
//!
//! A request's buffers travel with it and come back when the commit is done, so a connection allocates once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use may::sync::Blocker;
use parking_lot::{Condvar, Mutex};

use super::promise::Keeper;
use super::tables::Change;
use super::{Refusal, Ticket};
use crate::clock;
use crate::event::Item;

/// Bodies that may wait for a commit. At 750 bytes each this is a second of full load.
pub const BODIES_MAX: usize = 65_536;
/// Bytes of bodies that may wait for a commit.
pub const BYTES_MAX: usize = 64 << 20;
/// A buffer that grew beyond this is given back after its request.
const BUFFER_KEPT_MAX: usize = 64 << 10;

/// A body on its way into a commit.
pub struct Append {
    pub body: Vec<u8>,
    pub items: Vec<Item>,
    pub app: u64,
    pub at: Duration,
    /// `None` once the outcome is recorded.
    waiter: Option<Arc<Waiter>>,
    home: usize,
    generation: u64,
}

impl Append {
    /// Its commit is done: records that, gives the buffers back and resumes the connection's coroutine.
    pub fn durable(mut self) {
        if let Some(waiter) = self.record(Ok(())) {
            waiter.wake();
        }
    }

    /// The same for a body that was not taken, on the coroutine itself, which must not be woken.
    fn refused(mut self, refusal: Refusal) {
        self.record(Err(refusal));
    }

    /// The connection's, see [`super::Inbox::ticket`].
    pub fn home(&self) -> usize {
        self.home
    }

    fn record(&mut self, outcome: Result<(), Refusal>) -> Option<Arc<Waiter>> {
        let waiter = self.waiter.take()?;
        self.body.clear();
        self.items.clear();
        let mut state = waiter.state.lock();
        if state.generation == self.generation {
            state.outcome.get_or_insert(outcome);
            state.spare = Some((std::mem::take(&mut self.body), std::mem::take(&mut self.items)));
        }
        drop(state);
        Some(waiter)
    }

    /// For the look-out for late commits: enough to end the wait without the buffers.
    pub fn handle(&self) -> Option<Handle> {
        let waiter = Arc::clone(self.waiter.as_ref()?);
        Some(Handle { waiter, generation: self.generation })
    }
}

/// Nobody waits for ever: what is dropped without an outcome was dropped since the committer has ended.
impl Drop for Append {
    fn drop(&mut self) {
        if let Some(waiter) = self.record(Err(Refusal::Poisoned)) {
            waiter.wake();
        }
    }
}

/// How many of them have so many bytes together at most; at least one.
pub fn first_of(appends: &[Append], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |append: &&Append| {
        bytes += append.body.len();
        bytes <= bytes_max
    };
    appends.iter().take_while(fits).count().max(1)
}

/// Ends a wait from outside the committer.
pub struct Handle {
    waiter: Arc<Waiter>,
    generation: u64,
}

impl Handle {
    /// The waiter gets `refusal`, unless it has an outcome already; whether it did.
    pub fn refuse(&self, refusal: Refusal) -> bool {
        let mut state = self.waiter.state.lock();
        if state.generation != self.generation || state.outcome.is_some() {
            return false;
        }
        state.outcome = Some(Err(refusal));
        drop(state);
        self.waiter.blocker.unpark();
        true
    }
}

/// Something other than a body.
pub enum Order {
    /// Changes of state, applied in the next transaction; the keeper is kept when they are durable.
    Change(Change, Option<Keeper<()>>),
    /// Everything before it is committed; answers how far the items reach.
    Flush(Keeper<u64>),
    /// The last order.
    Close(Keeper<()>),
}

/// A connection's wait, reused from request to request.
pub struct Waiter {
    state: Mutex<WaiterState>,
    blocker: Arc<Blocker>,
}

impl Waiter {
    /// Resumes the connection's coroutine.
    pub fn wake(&self) {
        self.blocker.unpark();
    }
}

struct WaiterState {
    generation: u64,
    outcome: Option<Result<(), Refusal>>,
    spare: Option<(Vec<u8>, Vec<Item>)>,
}

/// The list itself.
pub struct Queue {
    list: Mutex<List>,
    arrived: Condvar,
    refusal: Mutex<Option<Refusal>>,
    refuses: AtomicBool,
}

#[derive(Default)]
struct List {
    appends: Vec<Append>,
    orders: Vec<Order>,
    bytes: usize,
    committer_sleeps: bool,
    closed: bool,
}

impl Queue {
    pub fn new() -> Self {
        Self {
            list: Mutex::default(),
            arrived: Condvar::new(),
            refusal: Mutex::new(None),
            refuses: AtomicBool::new(false),
        }
    }

    /// Why nothing is accepted, if so.
    pub fn refusal(&self) -> Option<Refusal> {
        if self.refuses.load(Ordering::Acquire) { *self.refusal.lock() } else { None }
    }

    /// From now on nothing is accepted. Poison is never replaced by a milder reason.
    pub fn refuse(&self, refusal: Refusal) {
        let mut current = self.refusal.lock();
        if *current != Some(Refusal::Poisoned) {
            *current = Some(refusal);
        }
        self.refuses.store(true, Ordering::Release);
    }

    fn append(&self, append: Append) -> Result<(), (Append, Refusal)> {
        if let Some(refusal) = self.refusal() {
            return Err((append, refusal));
        }
        let mut list = self.list.lock();
        if list.closed {
            return Err((append, Refusal::Draining));
        }
        if list.appends.len() >= BODIES_MAX || list.bytes + append.body.len() > BYTES_MAX {
            return Err((append, Refusal::Full));
        }
        list.bytes += append.body.len();
        list.appends.push(append);
        self.ring(list);
        Ok(())
    }

    /// An order is always taken, what it changes was acknowledged long ago; unless nobody is there any more to carry it out.
    pub fn order(&self, order: Order) {
        let mut list = self.list.lock();
        if list.closed {
            return;
        }
        list.orders.push(order);
        self.ring(list);
    }

    fn ring(&self, mut list: parking_lot::MutexGuard<'_, List>) {
        let sleeps = std::mem::take(&mut list.committer_sleeps);
        drop(list);
        if sleeps {
            self.arrived.notify_one();
        }
    }

    /// Swaps what waits into the two (empty) lists; sleeps at most `patience` if nothing does.
    pub fn drain(&self, appends: &mut Vec<Append>, orders: &mut Vec<Order>, patience: Duration) {
        let mut list = self.list.lock();
        if list.appends.is_empty() && list.orders.is_empty() {
            list.committer_sleeps = true;
            self.arrived.wait_for(&mut list, patience);
            list.committer_sleeps = false;
        }
        std::mem::swap(&mut list.appends, appends);
        std::mem::swap(&mut list.orders, orders);
        list.bytes = 0;
    }

    /// The committer ends: what still came is dropped, and with it everybody's wait for it.
    pub fn close(&self) {
        let mut list = self.list.lock();
        list.closed = true;
        let left = (std::mem::take(&mut list.appends), std::mem::take(&mut list.orders));
        drop(list);
        drop(left);
    }

    /// Requests that wait since before `since`, oldest first.
    pub fn late(&self, since: Duration) -> Vec<Handle> {
        let list = self.list.lock();
        list.appends.iter().take_while(|a| a.at < since).filter_map(Append::handle).collect()
    }

    pub fn ticket(self: &Arc<Self>, home: usize) -> Connection {
        let state = WaiterState { generation: 0, outcome: None, spare: None };
        let waiter = Arc::new(Waiter { state: Mutex::new(state), blocker: Blocker::current() });
        Connection { queue: Arc::clone(self), waiter, home, body: Vec::new(), items: Vec::new() }
    }
}

/// See [`Ticket`].
pub struct Connection {
    queue: Arc<Queue>,
    waiter: Arc<Waiter>,
    home: usize,
    body: Vec<u8>,
    items: Vec<Item>,
}

impl Ticket for Connection {
    fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    fn body_and_items(&mut self) -> (&[u8], &mut Vec<Item>) {
        (&self.body, &mut self.items)
    }

    fn append(&mut self, app: u64) -> Result<(), Refusal> {
        let generation = {
            let mut state = self.waiter.state.lock();
            state.generation += 1;
            state.outcome = None;
            state.generation
        };
        let append = Append {
            body: std::mem::take(&mut self.body),
            items: std::mem::take(&mut self.items),
            app,
            at: clock::monotonic(),
            waiter: Some(Arc::clone(&self.waiter)),
            home: self.home,
            generation,
        };
        if let Err((append, refusal)) = self.queue.append(append) {
            append.refused(refusal);
        }
        loop {
            let mut state = self.waiter.state.lock();
            if let Some(outcome) = state.outcome.take() {
                let spare = state.spare.take();
                // who comes with an outcome from now on is too late
                state.generation += 1;
                drop(state);
                if let Some((body, items)) = spare {
                    self.take_back(body, items);
                }
                return outcome;
            }
            drop(state);
            let _ = self.waiter.blocker.park(None);
        }
    }
}

impl Connection {
    fn take_back(&mut self, body: Vec<u8>, items: Vec<Item>) {
        if body.capacity() <= BUFFER_KEPT_MAX {
            self.body = body;
        }
        if items.capacity() * size_of::<Item>() <= BUFFER_KEPT_MAX {
            self.items = items;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::promise::promise;

    #[test]
    fn nobody_waits_for_a_committer_that_has_ended() {
        let queue = Arc::new(Queue::new());
        let (keeper, early) = promise::<u64>();
        queue.order(Order::Flush(keeper));
        queue.close();
        assert_eq!(early.wait(), None);
        let (keeper, late) = promise::<u64>();
        queue.order(Order::Flush(keeper));
        assert_eq!(late.wait(), None);
        let mut ticket = queue.ticket(0);
        ticket.body().extend_from_slice(b"body");
        assert_eq!(ticket.append(0), Err(Refusal::Draining));
    }

    #[test]
    fn an_outcome_that_comes_after_the_wait_changes_nothing() {
        let queue = Arc::new(Queue::new());
        let mut ticket = queue.ticket(0);
        let (mut appends, mut orders) = (Vec::new(), Vec::new());
        let mut handle = None;
        let mut post = |refusal| {
            ticket.body().extend_from_slice(b"body");
            std::thread::scope(|scope| {
                let posting = scope.spawn(|| ticket.append(0));
                while appends.is_empty() {
                    queue.drain(&mut appends, &mut orders, Duration::from_millis(10));
                }
                let append: Append = appends.remove(0);
                let stale: Option<Handle> = std::mem::replace(&mut handle, append.handle());
                // of the request before, which has its outcome
                assert!(stale.is_none_or(|stale| !stale.refuse(Refusal::Late)));
                match refusal {
                    Some(refusal) => assert!(append.handle().is_some_and(|handle| handle.refuse(refusal))),
                    None => append.durable(),
                }
                posting.join().expect("no panic")
            })
        };
        assert_eq!(post(None), Ok(()));
        assert_eq!(post(Some(Refusal::Late)), Err(Refusal::Late));
        assert_eq!(post(None), Ok(()));
        assert!(!handle.expect("the last").refuse(Refusal::Late));
    }
}
