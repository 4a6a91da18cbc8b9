//! SQLite with group commit: one writer thread drains the queue, one transaction, one fsync, and everybody in it is told.

use std::path::Path;
use std::thread;

use axum::body::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;

/// Bodies in one transaction.
const GROUP_MAX: usize = 4096;
/// Bodies that wait; above it the answer is 503.
const QUEUE_MAX: usize = 65_536;

/// What knows duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// Unique (timestamp, hash).
    Hash,
    /// Unique (phone_number_id, wamid, status).
    Items,
}

/// What a duplicate is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// See [`Index::Hash`].
    Hash { timestamp: i64, hash: i64 },
    /// See [`Index::Items`].
    Item { phone: String, wamid: String, status: String },
}

struct Append {
    body: Bytes,
    keys: Vec<Key>,
    done: oneshot::Sender<()>,
}

/// The queue to the writer.
pub struct Store {
    queue: Sender<Append>,
    index: Index,
}

impl Store {
    /// Opens or makes the file and starts the writer.
    pub fn open(path: &Path, index: Index) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        // an index that grows at its end likes large pages and small checkpoints, one with random keys the defaults
        let tuning = match index {
            Index::Hash => "PRAGMA page_size = 16384; PRAGMA wal_autocheckpoint = 250;",
            Index::Items => "",
        };
        connection.execute_batch(&format!(
            "{tuning} PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
             CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
             CREATE TABLE IF NOT EXISTS by_hash (timestamp INTEGER, hash INTEGER, body INTEGER NOT NULL,
                 PRIMARY KEY (timestamp, hash)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS by_item (phone TEXT, wamid TEXT, status TEXT, body INTEGER NOT NULL,
                 PRIMARY KEY (phone, wamid, status)) WITHOUT ROWID;"
        ))?;
        let (queue, waiting) = bounded(QUEUE_MAX);
        thread::spawn(move || {
            if let Err(e) = write(connection, &waiting) {
                eprintln!("the store: {e}");
                std::process::exit(1);
            }
        });
        Ok(Self { queue, index })
    }

    /// What knows duplicates.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Returns once the body is on disk; an error: the queue is full, or the writer is gone.
    pub async fn append(&self, body: Bytes, keys: Vec<Key>) -> Result<(), ()> {
        let (done, told) = oneshot::channel();
        self.queue.try_send(Append { body, keys, done }).map_err(|_| ())?;
        told.await.map_err(|_| ())
    }
}

fn write(mut connection: Connection, waiting: &Receiver<Append>) -> rusqlite::Result<()> {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while let Ok(first) = waiting.recv() {
        group.push(first);
        group.extend(waiting.try_iter().take(GROUP_MAX - 1));
        let transaction = connection.transaction()?;
        for append in &group {
            insert(&transaction, append)?;
        }
        transaction.commit()?;
        for append in group.drain(..) {
            let _ = append.done.send(());
        }
    }
    Ok(())
}

fn insert(transaction: &Transaction<'_>, append: &Append) -> rusqlite::Result<()> {
    transaction.prepare_cached("INSERT INTO bodies (body) VALUES (?1)")?.execute([&append.body[..]])?;
    let body = transaction.last_insert_rowid();
    for key in &append.keys {
        match key {
            Key::Hash { timestamp, hash } => transaction
                .prepare_cached("INSERT OR IGNORE INTO by_hash VALUES (?1, ?2, ?3)")?
                .execute([timestamp, hash, &body])?,
            Key::Item { phone, wamid, status } => transaction
                .prepare_cached("INSERT OR IGNORE INTO by_item VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![phone, wamid, status, body])?,
        };
    }
    Ok(())
}
