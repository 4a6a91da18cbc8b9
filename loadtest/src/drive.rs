//! The users: each a coroutine with one connection, posting one signed request after the other until it is told
//! to stop.
//!
//! What gets no 200 is posted again, unchanged, as Meta does it, until it gets one. In a closed loop the next
//! request follows the 200 of the last. In an open loop requests have a time each, and latencies count from it,
//! so that a server that stalls is charged for all who would have come meanwhile.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use may::coroutine::JoinHandle;
use ring::hmac;
use whatsapp_webhook::clock;

use crate::client::{Client, Watchdog};
use crate::compose::{self, Composer, Said};
use crate::counts::Counts;
use crate::fairness::Fairness;
use crate::flood::{Flood, Flooder};
use crate::large::{self, Large};
use crate::ledger::Ledger;
use crate::stalls::{self, Stalls};
use crate::sys::now_us;
use crate::timing::Recorder;

/// The longest that an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// After the end, how long a request without a 200 is still posted again.
const INSIST: Duration = Duration::from_secs(15);
/// The first pause before a request is posted again; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A wait is cut into pieces of this length, so that a stop is seen.
const SLICE: Duration = Duration::from_millis(100);
/// Stack of a user's coroutine, in words.
const STACK_WORDS: usize = (64 << 10) / size_of::<usize>();
/// One of so many requests is kept, to be posted again much later as a duplicate.
const KEEP_ONE_OF: u64 = 16;
/// How often it is looked whether an answer takes too long.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// How often it is looked whether this program itself is late.
const CANARY_EVERY: Duration = Duration::from_millis(10);

/// What all users share.
pub struct Load {
    /// What is posted.
    pub plan: Plan,
    /// Messages and answers.
    pub ledger: Ledger,
    /// Intended time of a request to its 200.
    pub acks: Recorder,
    /// Those of `acks` that met no stall of the machine.
    pub quiet_acks: Recorder,
    /// Request really written to its 200: raw service time.
    pub service: Recorder,
    /// How late this program itself wakes up: what it adds to all other times.
    pub lag: Recorder,
    /// Message to answer (of statuses: to the 200), by business.
    pub fairness: Fairness,
    /// Message to answer.
    pub answers: Recorder,
    /// Those of `answers` that met no stall of the machine.
    pub quiet_answers: Recorder,
    /// Those stalls.
    pub stalls: Stalls,
    /// Floods of one business, if there are any.
    pub flood: Flood,
    /// Large bodies beside it, if there are any.
    pub large: Large,
    /// Counted.
    pub counts: Counts,
    /// Ends the load.
    pub stop: AtomicBool,
    /// Ends everything: nothing is posted again either.
    pub abandon: AtomicBool,
    go: AtomicBool,
    start_us: AtomicU64,
    ready: AtomicU64,
    key: Arc<hmac::Key>,
    /// The wall clock when [`now_us`] was 0, in microseconds: one clock to read less for each request.
    epoch_us: u64,
}

/// What is posted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub server: SocketAddr,
    /// Signs.
    pub app_secret: String,
    /// Connections.
    pub users: u32,
    /// Conversations; at least one for each user.
    pub conversations: u32,
    /// Whom they are with.
    pub businesses: u32,
    /// Messages in a request.
    pub batch: u32,
    /// Of 100 requests, how many are posted twice.
    pub duplicates: u64,
    /// Statuses instead of messages.
    pub statuses: bool,
    /// Open loop: time between two requests over all users.
    pub every: Option<Duration>,
    /// Tells the ids of this run from others, and is the seed of everything that is thrown dice for.
    pub seed: u32,
}

impl Load {
    /// Nothing runs yet.
    pub fn new(plan: Plan, ledger: Ledger, flood: Flood, large: Large) -> Self {
        let key = compose::key(&plan.app_secret);
        Self {
            counts: Counts::new(plan.users),
            key,
            epoch_us: (clock::now() * 1000).saturating_sub(now_us()),
            fairness: Fairness::new(plan.businesses),
            plan,
            ledger,
            acks: Recorder::new(),
            quiet_acks: Recorder::new(),
            service: Recorder::new(),
            lag: Recorder::new(),
            answers: Recorder::new(),
            quiet_answers: Recorder::new(),
            stalls: Stalls::default(),
            flood,
            large,
            stop: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            go: AtomicBool::new(false),
            start_us: AtomicU64::new(0),
            ready: AtomicU64::new(0),
        }
    }

    /// Starts the users; they connect and wait for [`Load::go`].
    pub fn start(self: &Arc<Self>) -> std::io::Result<Vec<JoinHandle<()>>> {
        let spawn = |run: Box<dyn FnOnce() + Send>| {
            may::go!(may::coroutine::Builder::new().stack_size(STACK_WORDS), run)
        };
        let users: Vec<_> = (0..self.plan.users).map(|id| User::new(Arc::clone(self), id)).collect();
        let flooder = Flooder::new(self, Composer::new(Arc::clone(&self.key), self.plan.seed));
        large::start(self, Composer::new(Arc::clone(&self.key), self.plan.seed))?;
        let watches = users.iter().map(|user| user.client.watch()).chain(flooder.iter().map(Flooder::watch));
        let watches = watches.map(Arc::clone).collect();
        stalls::watch(Arc::downgrade(self))?;
        let mut dog = Watchdog::new(ANSWER_TIMEOUT, watches);
        let users = users.into_iter().map(|user| spawn(Box::new(|| user.run())));
        let mut all = users.collect::<std::io::Result<Vec<_>>>()?;
        if let Some(flooder) = flooder {
            all.push(spawn(Box::new(|| flooder.run()))?);
        }
        let load = Arc::clone(self);
        all.push(spawn(Box::new(move || load.canary()))?);
        let watch = move || {
            while dog.look(clock::monotonic()) {
                clock::sleep(WATCH_EVERY);
            }
        };
        all.push(spawn(Box::new(watch))?);
        Ok(all)
    }

    /// Measures how late a coroutine of this program wakes up.
    fn canary(&self) {
        while !self.is_stopped() {
            let at = now_us() + CANARY_EVERY.as_micros() as u64;
            clock::sleep(CANARY_EVERY);
            self.lag.record(0, now_us().saturating_sub(at));
        }
    }

    /// Requests that were due so far, `None` in a closed loop.
    pub fn due(&self, now_us: u64) -> Option<u64> {
        let every = self.plan.every?.as_nanos().max(1);
        let elapsed = now_us.saturating_sub(self.start_us.load(Relaxed));
        Some((u128::from(elapsed) * 1000 / every) as u64)
    }

    /// How many users tried to connect.
    pub fn ready(&self) -> u64 {
        self.ready.load(Relaxed)
    }

    /// The load begins.
    pub fn go(&self) {
        self.start_us.store(now_us(), Relaxed);
        self.go.store(true, Relaxed);
    }

    /// Whether it has begun.
    pub fn is_begun(&self) -> bool {
        self.go.load(Relaxed)
    }

    /// Nothing new is posted.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed) || self.is_abandoned()
    }

    /// Nothing is posted again either.
    pub fn is_abandoned(&self) -> bool {
        self.abandon.load(Relaxed)
    }

    /// The wall clock at that time, in seconds since the epoch.
    pub fn seconds(&self, now_us: u64) -> u64 {
        (self.epoch_us + now_us) / 1_000_000
    }

    /// Posts until there is a 200; when the request that got it was written, `None` if it was given up.
    pub fn insist(&self, client: &mut Client, request: &[u8], now_us: u64) -> Option<u64> {
        let mut pause = PAUSE_FIRST;
        let mut insist_until = None;
        let mut written_us = now_us;
        while !post(client, request, &self.counts) {
            if self.is_stopped() {
                let until = *insist_until.get_or_insert_with(|| clock::monotonic() + INSIST);
                if self.is_abandoned() || clock::monotonic() > until {
                    self.counts.given_up.fetch_add(1, Relaxed);
                    return None;
                }
            }
            clock::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
            written_us = crate::sys::now_us();
        }
        Some(written_us)
    }
}

/// Of a request.
struct Time {
    /// When it was due.
    intended_us: u64,
    /// When its turn came.
    begun_us: u64,
}

struct User {
    load: Arc<Load>,
    id: u32,
    client: Client,
    composer: Composer,
    dice: u64,
    /// Requests so far, and of statuses the number that makes each unique.
    posted: u64,
    /// Which of its conversations is next.
    cursor: u32,
    said: Vec<Said>,
    old: Vec<u8>,
}

impl User {
    fn new(load: Arc<Load>, id: u32) -> Self {
        let client = Client::new(load.plan.server, ANSWER_TIMEOUT);
        let composer = Composer::new(Arc::clone(&load.key), load.plan.seed);
        let dice =
            (u64::from(id) + 1 + (u64::from(load.plan.seed) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { load, id, client, composer, dice, posted: 0, cursor: 0, said: Vec::new(), old: Vec::new() }
    }

    fn run(mut self) {
        if self.client.connect().is_err() {
            self.load.counts.broken.fetch_add(1, Relaxed);
        }
        self.load.ready.fetch_add(1, Relaxed);
        while !self.load.go.load(Relaxed) {
            if self.load.is_stopped() {
                return;
            }
            clock::sleep(Duration::from_millis(2));
        }
        while let Some(time) = self.next_time() {
            self.compose(&time);
            if !self.deliver(time) {
                return;
            }
            if self.load.plan.duplicates > 0 && self.throw() % 100 < self.load.plan.duplicates {
                self.again();
            }
        }
    }

    /// Waits for the time of the next request; `None`: the load is over.
    fn next_time(&self) -> Option<Time> {
        let Some(every) = self.load.plan.every else {
            let now = now_us();
            return (!self.load.is_stopped()).then_some(Time { intended_us: now, begun_us: now });
        };
        let nth = u64::from(self.id) + self.posted * u64::from(self.load.plan.users);
        let offset_us = (every.as_nanos() * u128::from(nth) / 1000) as u64;
        let at_us = self.load.start_us.load(Relaxed) + offset_us;
        loop {
            if self.load.is_stopped() {
                return None;
            }
            let now = now_us();
            let left = at_us.saturating_sub(now);
            if left == 0 {
                return Some(Time { intended_us: at_us, begun_us: now });
            }
            clock::sleep(Duration::from_micros(left).min(SLICE));
        }
    }

    fn compose(&mut self, time: &Time) {
        let plan = &self.load.plan;
        let own = (plan.conversations - self.id).div_ceil(plan.users);
        self.said.clear();
        for index in 0..plan.batch {
            let conversation = self.id + self.cursor * plan.users;
            self.cursor = (self.cursor + 1) % own;
            let nth = if plan.statuses {
                (self.posted * u64::from(plan.batch) + u64::from(index)) as u32
            } else {
                self.load.ledger.sent(conversation, time.intended_us)
            };
            let business = self.load.ledger.business(conversation);
            self.said.push(Said { conversation, nth, business });
        }
        let timestamp = self.load.seconds(time.begun_us);
        if plan.statuses {
            self.composer.statuses(&self.said, timestamp);
        } else {
            self.composer.messages(&self.said, timestamp);
        }
        self.posted += 1;
        self.load.counts.of(self.id).begin();
    }

    /// Posts until there is a 200; false: given up.
    fn deliver(&mut self, time: Time) -> bool {
        // composing one takes a microsecond: not worth another look at the clock
        let written_us = if self.said.len() > 1 { now_us() } else { time.begun_us };
        let request = self.composer.last();
        let Some(written_us) = self.load.insist(&mut self.client, request, written_us) else { return false };
        let now = now_us();
        let took_us = now.saturating_sub(time.intended_us);
        self.load.acks.record(self.id as usize, took_us);
        let is_quiet = self.load.stalls.is_quiet(time.intended_us);
        self.load.large.acknowledged(now, took_us, is_quiet);
        if is_quiet {
            self.load.quiet_acks.record(self.id as usize, took_us);
        }
        self.load.service.record(self.id as usize, now.saturating_sub(written_us));
        self.load.counts.of(self.id).ack(self.composer.body_len());
        for said in &self.said {
            if self.load.plan.statuses {
                self.load.fairness.record(said.business, took_us);
            } else {
                self.load.ledger.acknowledged(said.conversation, said.nth);
            }
        }
        true
    }

    /// Posts a request a second time: the last one, or one of long ago.
    fn again(&mut self) {
        if self.old.is_empty() || self.throw().is_multiple_of(KEEP_ONE_OF) {
            self.old.clear();
            self.old.extend_from_slice(self.composer.last());
        }
        let is_old = self.throw().is_multiple_of(2);
        let request = if is_old { &self.old[..] } else { self.composer.last() };
        if post(&mut self.client, request, &self.load.counts) {
            self.load.counts.of(self.id).ack_duplicate();
            self.load.counts.duplicates.fetch_add(1, Relaxed);
        }
    }

    /// Xorshift: which requests are posted twice need not be a secret.
    fn throw(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice >> 8
    }
}

fn post(client: &mut Client, request: &[u8], counts: &Counts) -> bool {
    match client.post(request) {
        Ok(200) => true,
        Ok(status) => {
            counts.refused.fetch_add(1, Relaxed);
            counts.busy.fetch_add(u64::from(status == 503), Relaxed);
            counts.because(&format!("status {status}"));
            false
        }
        Err(e) => {
            counts.broken.fetch_add(1, Relaxed);
            counts.because(match e.kind() {
                ErrorKind::UnexpectedEof => "closed without an answer",
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
                ErrorKind::ConnectionRefused => "connection refused",
                ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer in 30 s",
                ErrorKind::InvalidData => "an answer that is not HTTP",
                _ => "another error of the connection",
            });
            false
        }
    }
}
