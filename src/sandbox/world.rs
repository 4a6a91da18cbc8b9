//! What the simulated Meta knows: numbers, media, what was sent, read and refused. Locks are held for moments, never
//! across a wait.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};

use super::faults::Faults;
use super::limits::Limits;
use super::post::{Post, Taken};
use super::rules::{By, Refused};
use super::webhooks::{self, Incoming};
use super::{Number, Options, Read, Sent, Violation};
use crate::clock;
use crate::event::hash64;

/// Violations that are kept.
const VIOLATIONS_MAX: usize = 1000;
/// Reply ids that are remembered to find doubled ones; twice as many at most.
const REPLY_IDS_MAX: usize = 1_000_000;
/// Media files.
const MEDIA_MAX: usize = 1000;

type OnSent = Arc<dyn Fn(&Sent) + Send + Sync>;

pub(super) struct World {
    pub options: Options,
    pub faults: Faults,
    pub post: Post,
    pub limits: Limits,
    pub counts: Counts,
    numbers: RwLock<HashMap<String, Arc<Number>>>,
    media: RwLock<HashMap<String, Arc<Media>>>,
    on_sent: RwLock<Option<OnSent>>,
    kept: Mutex<Kept>,
    reply_ids: Mutex<ReplyIds>,
    address: OnceLock<SocketAddr>,
    seed: u32,
    serial: AtomicU64,
}

#[derive(Default)]
pub(super) struct Counts {
    pub sent: AtomicU64,
    pub reads: AtomicU64,
    pub doubled: AtomicU64,
    pub violations: AtomicU64,
}

#[derive(Default)]
struct Kept {
    sent: VecDeque<Sent>,
    reads: VecDeque<Read>,
    violations: Vec<Violation>,
}

/// Two generations, so that the oldest can be forgotten in bulk.
#[derive(Default)]
struct ReplyIds {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

pub(super) struct Media {
    pub mime_type: String,
    pub bytes: Vec<u8>,
}

impl World {
    pub fn new(options: Options) -> Self {
        let numbers =
            options.numbers.iter().map(|n| (n.phone_number_id.clone(), Arc::new(n.clone()))).collect();
        let mut seed = [0; 4];
        // without it ids may repeat those of an earlier sandbox, which only matters to who keeps data between them
        let _ = getrandom::fill(&mut seed);
        Self {
            post: Post::new(&options),
            limits: Limits::new(options.pair_limit, options.throughput, options.window),
            options,
            faults: Faults::default(),
            counts: Counts::default(),
            numbers: RwLock::new(numbers),
            media: RwLock::default(),
            on_sent: RwLock::new(None),
            kept: Mutex::default(),
            reply_ids: Mutex::default(),
            address: OnceLock::new(),
            seed: u32::from_le_bytes(seed),
            serial: AtomicU64::new(0),
        }
    }

    pub fn is_at(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    pub fn number(&self, phone_number_id: &str) -> Option<Arc<Number>> {
        self.numbers.read().get(phone_number_id).cloned()
    }

    pub fn add_number(&self, number: Number) {
        self.numbers.write().insert(number.phone_number_id.clone(), Arc::new(number));
    }

    /// Whether any number has this token.
    pub fn knows_token(&self, token: &str) -> bool {
        self.numbers.read().values().any(|number| number.token.reveal() == token)
    }

    pub fn media(&self, id: &str) -> Option<Arc<Media>> {
        self.media.read().get(id).cloned()
    }

    pub fn add_media(&self, id: &str, mime_type: &str, bytes: Vec<u8>) {
        let mut media = self.media.write();
        if media.len() < MEDIA_MAX || media.contains_key(id) {
            media.insert(id.to_owned(), Arc::new(Media { mime_type: mime_type.to_owned(), bytes }));
        }
    }

    pub fn set_on_sent(&self, tell: OnSent) {
        *self.on_sent.write() = Some(tell);
    }

    /// A wamid in Meta's form for a message to `to`.
    pub fn wamid_out(&self, to: &str) -> String {
        self.wamid(to, [0x11, 0x18, 0x12], 18)
    }

    /// The same for a message from `from`.
    pub fn wamid_in(&self, from: &str) -> String {
        self.wamid(from, [0x12, 0x18, 0x14], 20)
    }

    /// As seen in the wild: base64 of a tagged number and a tagged id in hex.
    fn wamid(&self, peer: &str, tags: [u8; 3], digits: usize) -> String {
        let serial = self.serial.fetch_add(1, Relaxed);
        let peer = &peer.as_bytes()[..peer.len().min(100)];
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0x1c, 0x18, peer.len() as u8]);
        bytes.extend_from_slice(peer);
        bytes.extend_from_slice(&[0x15, 0x02, 0x00]);
        bytes.extend_from_slice(&tags);
        let id = format!("{:08X}{serial:0width$X}", self.seed, width = digits - 8);
        bytes.extend_from_slice(id.as_bytes());
        bytes.push(0);
        format!("wamid.{}", STANDARD.encode(bytes))
    }

    /// One body for all of them; each opens the 24 hours in which free text is taken.
    pub fn compose(&self, incoming: &[Incoming]) -> Vec<u8> {
        let now = clock::now();
        for message in incoming {
            self.limits.heard(&message.phone_number_id, &message.from, now);
        }
        webhooks::messages(incoming, |id| self.number(id), now)
    }

    /// Somebody writes: posted behind what the same customer wrote to the same number before.
    pub fn say(&self, incoming: Incoming) -> Taken {
        let key = hash64(&[incoming.phone_number_id.as_bytes(), incoming.from.as_bytes()]);
        self.post.in_order(key, self.compose(&[incoming]))
    }

    /// Keeps an accepted message and tells it on.
    pub fn sent(&self, mut sent: Sent) {
        if let Some(id) = &sent.biz_opaque_callback_data
            && self.is_doubled(&sent.phone_number_id, id)
        {
            self.counts.doubled.fetch_add(1, Relaxed);
        }
        let tell = self.on_sent.read().clone();
        let mut kept = self.kept.lock();
        sent.nth = self.counts.sent.load(Relaxed) + 1;
        if let Some(tell) = tell {
            // while the lock is held, so that the order told is the order kept
            tell(&sent);
        }
        push(&mut kept.sent, sent, self.options.keep);
        // last: who sees the count finds the message
        self.counts.sent.fetch_add(1, Relaxed);
    }

    fn is_doubled(&self, number: &str, id: &str) -> bool {
        let id = hash64(&[number.as_bytes(), id.as_bytes()]);
        let mut ids = self.reply_ids.lock();
        if ids.old.contains(&id) || !ids.young.insert(id) {
            return true;
        }
        if ids.young.len() >= REPLY_IDS_MAX {
            ids.old = std::mem::take(&mut ids.young);
        }
        false
    }

    pub fn read(&self, read: Read) {
        self.counts.reads.fetch_add(1, Relaxed);
        push(&mut self.kept.lock().reads, read, self.options.keep);
    }

    pub fn violated(&self, phone_number_id: &str, refused: &Refused) {
        self.counts.violations.fetch_add(1, Relaxed);
        let mut kept = self.kept.lock();
        if kept.violations.len() < VIOLATIONS_MAX {
            kept.violations.push(Violation {
                phone_number_id: phone_number_id.to_owned(),
                code: refused.code,
                what: refused.what.clone(),
                at: clock::now(),
            });
        }
    }

    pub fn sent_after(&self, nth: u64) -> Vec<Sent> {
        let kept = self.kept.lock();
        let first = kept.sent.partition_point(|sent| sent.nth <= nth);
        kept.sent.range(first..).cloned().collect()
    }

    pub fn reads(&self) -> Vec<Read> {
        self.kept.lock().reads.iter().cloned().collect()
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.kept.lock().violations.clone()
    }

    pub fn reset(&self) {
        self.faults.clear();
        *self.reply_ids.lock() = ReplyIds::default();
        let mut kept = self.kept.lock();
        *kept = Kept::default();
        for count in [&self.counts.sent, &self.counts.reads, &self.counts.doubled, &self.counts.violations] {
            count.store(0, Relaxed);
        }
    }

    /// The statuses that follow an accepted message, as bodies in their order; `failed` with its code instead.
    pub fn statuses(&self, number: &Number, sent: &Sent, by: By, failed: Option<i64>) -> Vec<Vec<u8>> {
        let of = |status| webhooks::status(number, sent, by, status, clock::now());
        match failed {
            Some(code) => vec![of(webhooks::Status::Failed(code))],
            None => [webhooks::Status::Sent, webhooks::Status::Delivered, webhooks::Status::Read]
                .into_iter()
                .map(of)
                .collect(),
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, keep: usize) {
    if keep == 0 {
        return;
    }
    if queue.len() >= keep {
        queue.pop_front();
    }
    queue.push_back(item);
}
