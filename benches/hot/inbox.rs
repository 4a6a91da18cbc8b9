//! What a durable 200 waits for, by connections that share a commit: each appends a body of its own, again and
//! again, to a real inbox in a real file; beside it the same bytes of each round in one write and one fdatasync
//! of a plain file of fixed size. What the committer puts off until after the commit is not waited for and not
//! counted, as far as it stays off. From 8 connections on, commits keep 1 ms apart.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tempfile::TempDir;
use whatsapp_webhook::event::{Item, Kind, Path};
use whatsapp_webhook::inbox::embedded::Embedded;
use whatsapp_webhook::inbox::{Inbox, Position};
use whatsapp_webhook::{app, clock};

use crate::bodies::body;
use crate::judge::Band;
use crate::pair::{Case, Pairs, each};

/// Connections with the ratio. Wide: disks differ more than memory does, and on a busy machine a commit waits for
/// its thread and for those who are to join it.
const CONNECTIONS: [(u64, Band); 4] =
    [(1, Band(1.0, 8.0)), (8, Band(0.6, 12.0)), (64, Band(1.0, 14.0)), (500, Band(2.5, 18.0))];
/// Bodies that a connection appends in a call, one after the other.
const APPENDS: u64 = 4;
/// Size of the plain file: it is overwritten in turns, as a log is that is checkpointed.
const FILE_BYTES: usize = 4 << 20;

/// All sizes.
pub fn bench(pairs: &mut Pairs) {
    for (connections, band) in CONNECTIONS {
        let name = format!("by {connections} connections");
        let per = connections * APPENDS;
        let case = Case { group: "inbox/append", name: &name, per, floor: "write, fdatasync", band };
        let body = body("message", 1);
        let (mut ours, mut floor) = (None, None);
        pairs.timed(
            case,
            |calls| ours.get_or_insert_with(Ours::open).append(connections, calls * APPENDS, &body),
            |calls| {
                let floor = floor.get_or_insert_with(|| Plain::open(body.repeat(connections as usize)));
                each(|| floor.append())(calls * APPENDS)
            },
        );
    }
}

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made beside the program")
}

struct Ours {
    inbox: Arc<Embedded>,
    /// Every body is new.
    next: Arc<AtomicU64>,
    _folder: TempDir,
}

impl Ours {
    fn open() -> Self {
        let folder = folder();
        let retention = Duration::from_secs(3600);
        let inbox = Embedded::open(folder.path(), retention, app::PARSER, |why| panic!("poisoned: {why}"))
            .expect("an empty folder can be opened");
        Self { inbox, next: Arc::default(), _folder: folder }
    }

    /// How long it takes until each of the connections has appended so many bodies.
    fn append(&mut self, connections: u64, appends: u64, body: &[u8]) -> Duration {
        let (go, ready) = (Arc::new(may::sync::SyncFlag::new()), Arc::new(AtomicU64::new(0)));
        let all: Vec<_> = (0..connections)
            .map(|_| {
                let (go, ready, next) = (go.clone(), ready.clone(), self.next.clone());
                let (inbox, body) = (self.inbox.clone(), body.to_vec());
                may::go!(move || {
                    let mut ticket = inbox.ticket(0);
                    ready.fetch_add(1, Relaxed);
                    go.wait();
                    for _ in 0..appends {
                        ticket.body().extend_from_slice(&body);
                        ticket.body_and_items().1.push(item(next.fetch_add(1, Relaxed)));
                        ticket.append(0).expect("accepted");
                    }
                    clock::linger();
                })
            })
            .collect();
        while ready.load(Relaxed) < connections {
            std::thread::yield_now();
        }
        let start = clock::monotonic();
        go.fire();
        all.into_iter().for_each(|one| one.join().expect("no connection panics"));
        let took = clock::monotonic() - start;
        // what was put off is done now, so that it disturbs neither the floor nor the next round
        self.inbox.pending(0, Position::default(), 1).expect("the store can be read");
        took
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.inbox.close().expect("the last commit");
    }
}

/// Without reading the body: that is another bench's.
fn item(nth: u64) -> Item {
    let key = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let timestamp = 1_749_416_383 + nth / 5_000;
    Item { kind: Kind::Message, path: Path::default(), timestamp, key, number: 1, conversation: key }
}

struct Plain {
    file: File,
    at: usize,
    bytes: Vec<u8>,
    _folder: TempDir,
}

impl Plain {
    fn open(bytes: Vec<u8>) -> Self {
        let folder = folder();
        let file = File::create(folder.path().join("plain")).expect("a file can be made");
        file.write_all_at(&vec![0; FILE_BYTES], 0).expect("written");
        file.sync_all().expect("synced");
        Self { file, at: 0, bytes, _folder: folder }
    }

    fn append(&mut self) {
        if self.at + self.bytes.len() > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&self.bytes, self.at as u64).expect("written");
        self.file.sync_data().expect("synced");
        self.at += self.bytes.len();
    }
}
