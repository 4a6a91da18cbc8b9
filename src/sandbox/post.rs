//! Posting webhooks as Meta does: signed, concurrently, again with growing pauses until there is a 200.
//!
//! What one customer says is posted one after the other, so that a test can tell order from luck. However many there
//! are, only some are under way; the rest waits as bytes, and nothing that waits is lost.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use may::sync::Semphore;
use parking_lot::{Mutex, RwLock};
use ring::hmac;

use super::{Options, wire};
use crate::clock;
use crate::net::client::Client;
use crate::net::{self, Call};

/// Webhooks that may wait for their 200; more are dropped and counted.
const PENDING_MAX: u64 = 2_000_000;
/// How many have a coroutine; the others wait in line.
const RUNNING_MAX: usize = 2_000;
/// How many are posted at once.
const CONCURRENT_MAX: usize = 256;
/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// The longest pause is this many times the first.
const PAUSE_GROWTH_MAX: u32 = 64;
/// A pause is cut into pieces, so that the end is seen.
const SLICE: Duration = Duration::from_millis(100);

/// How webhooks fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Still without a 200.
    pub pending: u64,
    /// Got their 200.
    pub delivered: u64,
    /// Posts after the first of a webhook.
    pub again: u64,
    /// Posts without a 200, with or without an answer.
    pub failed: u64,
    /// Not even queued: too many were pending.
    pub dropped: u64,
}

#[derive(Clone)]
pub(super) struct Post(Arc<Inner>);

struct Inner {
    url: RwLock<Option<String>>,
    key: hmac::Key,
    pause: Duration,
    client: std::sync::OnceLock<Client>,
    places: Semphore,
    line: Mutex<Line>,
    /// What is to be posted after something that is under way, by its key.
    orders: Mutex<HashMap<u64, VecDeque<Ordered>>>,
    stopping: AtomicBool,
    pending: AtomicU64,
    delivered: AtomicU64,
    again: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// Something to do for one webhook, or for several that follow each other.
type Job = Box<dyn FnOnce(&Inner) + Send>;
/// A body, and who wants to know that it was taken.
type Ordered = (Vec<u8>, Arc<AtomicBool>);

#[derive(Default)]
struct Line {
    running: usize,
    waiting: VecDeque<Job>,
}

/// Tells when a webhook got its 200.
pub(super) struct Taken(Arc<AtomicBool>);

impl Taken {
    /// False if `within` is over first.
    pub fn wait(&self, within: Duration) -> bool {
        super::wait_until(within, || self.0.load(Relaxed))
    }
}

impl Post {
    pub fn new(options: &Options) -> Self {
        Self(Arc::new(Inner {
            url: RwLock::new(options.webhook_url.clone()),
            key: hmac::Key::new(hmac::HMAC_SHA256, options.app_secret.reveal().as_bytes()),
            pause: options.redeliver_after.max(Duration::from_millis(1)),
            client: std::sync::OnceLock::new(),
            places: Semphore::new(CONCURRENT_MAX),
            line: Mutex::default(),
            orders: Mutex::default(),
            stopping: AtomicBool::new(false),
            pending: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            again: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }))
    }

    pub fn set_url(&self, url: &str) {
        *self.0.url.write() = Some(url.to_owned());
    }

    /// All waits end, nothing is posted again.
    pub fn stop(&self) {
        self.0.stopping.store(true, Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Relaxed)
    }

    pub fn counts(&self) -> Counts {
        let inner = &self.0;
        Counts {
            pending: inner.pending.load(Relaxed),
            delivered: inner.delivered.load(Relaxed),
            again: inner.again.load(Relaxed),
            failed: inner.failed.load(Relaxed),
            dropped: inner.dropped.load(Relaxed),
        }
    }

    pub fn signature(&self, body: &[u8]) -> String {
        format!("sha256={}", hex::encode(hmac::sign(&self.0.key, body)))
    }

    /// Posts until there is a 200.
    pub fn signed(&self, body: Vec<u8>) -> Taken {
        let taken = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&taken);
        let _ = self.start(move |post| {
            if post.until_taken(&body) {
                tell.store(true, Relaxed);
            }
        });
        Taken(taken)
    }

    /// Posts until there is a 200, after those of the same `key` that were given before got theirs.
    pub fn in_order(&self, key: u64, body: Vec<u8>) -> Taken {
        let taken = Arc::new(AtomicBool::new(false));
        let first = (body, Arc::clone(&taken));
        let mut orders = self.0.orders.lock();
        if let Some(behind) = orders.get_mut(&key) {
            self.0.pending.fetch_add(1, Relaxed);
            behind.push_back(first);
            return Taken(taken);
        }
        orders.insert(key, VecDeque::new());
        drop(orders);
        let started = self.start(move |post| {
            let mut next = Some(first);
            let mut is_first = true;
            while let Some((body, tell)) = next {
                let is_taken = post.until_taken(&body);
                tell.store(is_taken, Relaxed);
                // the first is uncounted by who runs this
                post.pending.fetch_sub(u64::from(!is_first), Relaxed);
                is_first = false;
                next = post.behind(key);
            }
        });
        if !started {
            self.0.orders.lock().remove(&key);
        }
        Taken(taken)
    }

    /// Posts one after the other, each until there is a 200, with a pause before each.
    pub fn in_turn(&self, bodies: Vec<Vec<u8>>, pause: Duration) {
        let _ = self.start(move |post| {
            for body in bodies {
                if !post.pause(pause) || !post.until_taken(&body) {
                    return;
                }
            }
        });
    }

    /// Posts once.
    pub fn once(&self, body: Vec<u8>, signature: Option<String>) {
        let _ = self.start(move |post| {
            let _ = post.attempt(&body, signature.as_deref());
        });
    }

    /// False: dropped.
    fn start(&self, run: impl FnOnce(&Inner) + Send + 'static) -> bool {
        let inner = Arc::clone(&self.0);
        if inner.pending.fetch_add(1, Relaxed) >= PENDING_MAX {
            inner.pending.fetch_sub(1, Relaxed);
            inner.dropped.fetch_add(1, Relaxed);
            return false;
        }
        let job: Job = Box::new(run);
        {
            let mut line = inner.line.lock();
            if line.running >= RUNNING_MAX {
                line.waiting.push_back(job);
                return true;
            }
            line.running += 1;
        }
        let started = wire::spawn(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                job(&inner);
                inner.pending.fetch_sub(1, Relaxed);
                next = inner.next();
            }
        });
        if started.is_err() {
            self.0.line.lock().running -= 1;
            self.0.pending.fetch_sub(1, Relaxed);
            self.0.dropped.fetch_add(1, Relaxed);
        }
        started.is_ok()
    }
}

impl Inner {
    /// The next in line for a coroutine that is done; `None`: it ends.
    fn next(&self) -> Option<Job> {
        let mut line = self.line.lock();
        let next = line.waiting.pop_front();
        line.running -= usize::from(next.is_none());
        next
    }

    /// What is to be posted next of that key; `None`: nothing, and the key is free.
    fn behind(&self, key: u64) -> Option<Ordered> {
        let mut orders = self.orders.lock();
        let next = orders.get_mut(&key).and_then(VecDeque::pop_front);
        if next.is_none() {
            orders.remove(&key);
        }
        next
    }

    /// False: stopped first.
    fn until_taken(&self, body: &[u8]) -> bool {
        let signature = format!("sha256={}", hex::encode(hmac::sign(&self.key, body)));
        let mut pause = self.pause;
        while !self.attempt(body, Some(&signature)) {
            if !self.pause(pause) {
                return false;
            }
            self.again.fetch_add(1, Relaxed);
            pause = (pause * 2).min(self.pause * PAUSE_GROWTH_MAX);
        }
        true
    }

    /// One POST; whether it got a 200. False while there is no URL, uncounted.
    fn attempt(&self, body: &[u8], signature: Option<&str>) -> bool {
        let Some(url) = self.url.read().clone() else { return false };
        let mut headers = vec![("Content-Type", "application/json"), ("Accept", "*/*")];
        headers.extend(signature.map(|signature| ("X-Hub-Signature-256", signature)));
        self.places.wait();
        let client = self.client.get_or_init(|| {
            Client::new(net::Options {
                pool_size: CONCURRENT_MAX,
                connect_timeout: Duration::from_secs(5),
                is_patient: false,
            })
        });
        let answer =
            client.call(&Call { method: "POST", url: &url, headers: &headers, body, timeout: ANSWER_MAX });
        self.places.post();
        let taken = answer.is_ok_and(|answer| answer.status == 200);
        if taken { &self.delivered } else { &self.failed }.fetch_add(1, Relaxed);
        taken
    }

    /// False: stopped meanwhile.
    fn pause(&self, pause: Duration) -> bool {
        let mut left = pause;
        while !left.is_zero() {
            if self.stopping.load(Relaxed) {
                return false;
            }
            let slice = left.min(SLICE);
            clock::sleep(slice);
            left -= slice;
        }
        !self.stopping.load(Relaxed)
    }
}
