//! The thread that reads pages of open items and memories, on a connection of its own, so that no worker blocks and
//! the committer does not wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path as FilePath;
use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};
use rusqlite::{Connection, params};

use super::promise::promise;
use super::tables;
use super::{Page, Position, Work};
use crate::event::{ItemId, Path, Role, Said};
use crate::store;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to the thread.
pub struct Reader {
    jobs: Sender<Job>,
}

impl Reader {
    pub fn start(data_dir: &FilePath) -> Result<Self, store::OpenError> {
        let connection = store::open_read_only(data_dir)?;
        connection.set_prepared_statement_cache_capacity(32);
        let (jobs, received) = unbounded::<Job>();
        std::thread::Builder::new()
            .name("inbox-reader".to_owned())
            .spawn(move || {
                for job in received {
                    // a panic is a bug, and one job's: who waits for it is told, and the next ones run
                    let _ = catch_unwind(AssertUnwindSafe(|| job(&connection)));
                }
            })
            .map_err(|e| store::OpenError::Io(data_dir.to_owned(), e))?;
        Ok(Self { jobs })
    }

    /// Runs `job` on the thread some time, and waits for nothing.
    pub fn post(&self, job: impl FnOnce(&Connection) + Send + 'static) {
        // without the thread there is nothing to be read
        let _ = self.jobs.send(Box::new(job));
    }

    /// Runs `query` on the thread and waits for it; `None` if the thread is gone or the query panicked.
    pub fn run<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Option<rusqlite::Result<T>> {
        let (keeper, waiting) = promise();
        self.jobs.send(Box::new(move |connection| keeper.keep(query(connection)))).ok()?;
        waiting.wait()
    }
}

/// Numbers with open items: a skip scan over the index, one step a number.
pub fn open_numbers(connection: &Connection) -> rusqlite::Result<Vec<u64>> {
    let mut next = connection.prepare_cached(
        "SELECT min(number) FROM items INDEXED BY items_open WHERE state < 2 AND number > ?1",
    )?;
    let mut first =
        connection.prepare_cached("SELECT min(number) FROM items INDEXED BY items_open WHERE state < 2")?;
    let mut numbers = Vec::new();
    let mut at: Option<i64> = first.query_row([], |r| r.get(0))?;
    while let Some(number) = at {
        numbers.push(number as u64);
        at = next.query_row([number], |r| r.get(0))?;
    }
    Ok(numbers)
}

/// When the oldest open item was received.
pub fn oldest_open(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT received_ms FROM commits WHERE id =
               (SELECT min(commit_id) FROM items INDEXED BY items_open WHERE state < 2)";
    let found = connection.prepare_cached(sql)?.query_row([], |r| r.get::<_, i64>(0));
    match found {
        Ok(at) => Ok(Some(at as u64)),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Commit, index in it, bytes, app, when it was received.
type ReadBody = (u64, u32, Arc<[u8]>, u64, u64);

/// A page of one number's open items with their bodies; bodies of one commit are read together.
pub fn page(
    connection: &Connection,
    number: u64,
    after: Position,
    limit: usize,
    covered_commit: u64,
) -> rusqlite::Result<Page> {
    let mut statement = connection.prepare_cached(
        "SELECT timestamp, key, commit_id, body, entry, change, nth,
                (SELECT conversation FROM items i WHERE i.timestamp = o.timestamp AND i.key = o.key)
         FROM items o INDEXED BY items_open
         WHERE state < 2 AND number = ?1 AND (commit_id, body, entry, change, nth) > (?2, ?3, ?4, ?5, ?6)
           AND commit_id <= ?8
         ORDER BY commit_id, body, entry, change, nth LIMIT ?7",
    )?;
    let mut rows = statement.query(params![
        number as i64,
        after.commit as i64,
        after.body,
        after.path.entry,
        after.path.change,
        after.path.index,
        limit as i64,
        covered_commit as i64
    ])?;
    let mut works: Vec<Work> = Vec::new();
    let mut shared: Option<ReadBody> = None;
    while let Some(row) = rows.next()? {
        let path = Path { entry: row.get(4)?, change: row.get(5)?, index: row.get(6)? };
        let position = Position { commit: row.get::<_, i64>(2)? as u64, body: row.get(3)?, path };
        let known = shared.as_ref().is_some_and(|s| (s.0, s.1) == (position.commit, position.body));
        if !known {
            let (bytes, app, at) =
                tables::body(connection, position.commit, position.body)?.unwrap_or_default();
            shared = Some((position.commit, position.body, Arc::from(bytes), app, at));
        }
        let Some((_, _, body, app, received_ms)) = &shared else { continue };
        works.push(Work {
            id: ItemId { timestamp: row.get::<_, i64>(0)? as u64, key: row.get::<_, i64>(1)? as u64 },
            position,
            number,
            conversation: row.get::<_, i64>(7)? as u64,
            received_ms: *received_ms,
            app: *app,
            body: Arc::clone(body),
        });
    }
    let path = Path { entry: u32::MAX, change: u32::MAX, index: u32::MAX };
    Ok(Page { works, covered: Position { commit: covered_commit, body: u32::MAX, path } })
}

/// The newest `limit` lines of a session, oldest first.
pub fn history(connection: &Connection, session: &str, limit: usize) -> rusqlite::Result<Vec<Said>> {
    let mut statement = connection
        .prepare_cached("SELECT role, content FROM memory WHERE session = ?1 ORDER BY seq DESC LIMIT ?2")?;
    let rows = statement.query_map(params![session, limit as i64], |r| {
        let role = if r.get::<_, u8>(0)? == 1 { Role::Assistant } else { Role::User };
        Ok(Said { role, content: r.get(1)? })
    })?;
    let mut lines: Vec<Said> = rows.collect::<Result<_, _>>()?;
    lines.reverse();
    Ok(lines)
}
