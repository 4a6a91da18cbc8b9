//! The embedded inbox: one SQLite file, one committer thread, one reader thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::committer::{Committer, Shared};
use super::counters::Counters;
use super::flights::Flights;
use super::promise::promise;
use super::queue::{Append, Order, Queue};
use super::reader::{self, Reader};
use super::retention::Keep;
use super::tables::{self, Change, ReplyKey, Stored};
use super::{
    Counts, Evidence, Feed, Inbox, NewTurn, OpenTurn, Page, Parser, Position, Refusal, Reply, ReplyState,
    State, Ticket, TurnId,
};
use crate::event::{ItemId, Said};
use crate::failure::{Failure, Reason, Source, Verdict};
use crate::{clock, store};

/// A body that has waited this long for its commit is refused (`Late`), so that Meta is not kept waiting.
const ACK_MAX: Duration = Duration::from_secs(10);
/// How often the look-out for late bodies looks.
const LOOK_OUT: Duration = Duration::from_millis(500);
/// How often the age of the oldest open item is read.
const OLDEST_EVERY: u32 = 10;

/// What the committer does under load; the defaults were measured on two cores.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How far apart commits are under load, twice that under full load; 0: as soon as the last one is done. More makes
    /// larger groups, which cost less a message, and slower 200s.
    pub pace: Duration,
    /// Bytes of log from which it is folded into the file. More is folded less often and for longer, and takes as much of
    /// the disk.
    pub log_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { pace: Duration::from_millis(1), log_bytes: 4 << 20 }
    }
}

/// See [`Inbox`].
pub struct Embedded {
    shared: Arc<Shared>,
    reader: Arc<Reader>,
    next_turn: AtomicI64,
    instance: u64,
}

impl Embedded {
    /// Opens the store in `data_dir` and starts the threads; blocks until what the last process left is derived.
    /// `on_poison` is called once if a commit fails: the process has to end then.
    pub fn open(
        data_dir: &Path,
        retention: Duration,
        parser: Parser,
        on_poison: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Arc<Self>, store::OpenError> {
        let keep = Keep { finished: retention, memory: retention };
        Self::open_tuned(data_dir, keep, Tuning::default(), parser, on_poison)
    }

    /// The same with settings for load, and for how long what is kept.
    pub fn open_tuned(
        data_dir: &Path,
        keep: Keep,
        tuning: Tuning,
        parser: Parser,
        on_poison: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Arc<Self>, store::OpenError> {
        let shared = Arc::new(Shared {
            queue: Arc::new(Queue::new()),
            flights: Arc::new(Flights::default()),
            counters: Arc::new(Counters::default()),
            feed: Mutex::new(None),
            in_commit: Mutex::default(),
            behind: Mutex::default(),
            on_poison: Box::new(on_poison),
        });
        let committer = Committer::open(data_dir, keep, tuning, parser, Arc::clone(&shared))?;
        let sqlite = |e| store::OpenError::Sqlite(data_dir.join(store::FILE), e);
        let next_turn = AtomicI64::new(committer.next_turn().map_err(sqlite)?);
        let instance = committer.instance();
        let reader = Arc::new(Reader::start(data_dir)?);
        std::thread::Builder::new()
            .name("inbox-commit".to_owned())
            .spawn(move || committer.run())
            .map_err(|e| store::OpenError::Io(data_dir.to_owned(), e))?;
        let inbox = Arc::new(Self { shared, reader, next_turn, instance });
        inbox.look_out().map_err(|e| store::OpenError::Io(data_dir.to_owned(), e))?;
        Ok(inbox)
    }

    /// Grows while the committer lives, also when there is nothing to do: food for a watchdog.
    pub fn progress(&self) -> u64 {
        self.shared.counters.passes.load(Relaxed)
    }

    /// Ends waits that are late and reads the age of the oldest item, as long as the inbox lives.
    fn look_out(self: &Arc<Self>) -> std::io::Result<()> {
        let inbox = Arc::downgrade(self);
        let is_asked = Arc::new(AtomicBool::new(false));
        std::thread::Builder::new().name("inbox-lookout".to_owned()).spawn(move || {
            for round in 0_u32.. {
                clock::sleep(LOOK_OUT);
                let Some(inbox) = inbox.upgrade() else { return };
                let since = clock::monotonic().saturating_sub(ACK_MAX);
                let mut late = inbox.shared.queue.late(since);
                for list in [&inbox.shared.in_commit, &inbox.shared.behind] {
                    late.extend(list.lock().iter().filter(|a| a.at < since).filter_map(Append::handle));
                }
                let refused = late.iter().filter(|handle| handle.refuse(Refusal::Late)).count();
                super::LATE.add(refused as u64);
                // not waited for: a disk that holds the reader makes late ones too
                if round % OLDEST_EVERY == 0 && !is_asked.swap(true, Relaxed) {
                    let (counters, is_asked) = (Arc::clone(&inbox.shared.counters), Arc::clone(&is_asked));
                    inbox.reader.post(move |connection| {
                        if let Ok(oldest) = reader::oldest_open(connection) {
                            counters.oldest_ms.store(oldest.unwrap_or(0), Relaxed);
                        }
                        is_asked.store(false, Relaxed);
                    });
                }
            }
        })?;
        Ok(())
    }

    fn change(&self, change: Change) {
        self.shared.queue.order(Order::Change(change, None));
    }

    /// Waits until the change is durable.
    fn change_now(&self, change: Change) -> Result<(), Failure> {
        let (keeper, done) = promise();
        self.shared.queue.order(Order::Change(change, Some(keeper)));
        done.wait().ok_or_else(gone)
    }

    fn flush(&self) -> Result<u64, Failure> {
        let (keeper, done) = promise();
        self.shared.queue.order(Order::Flush(keeper));
        done.wait().ok_or_else(gone)
    }

    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.reader.run(query) {
            Some(Ok(found)) => Ok(found),
            Some(Err(e)) => Err(failed(e.to_string())),
            None => Err(gone()),
        }
    }

    fn key(&self, reply_id: &str) -> Result<ReplyKey, Failure> {
        ReplyKey::parse(reply_id, self.instance)
            .ok_or_else(|| failed("not a reply id of this store".to_owned()))
    }
}

impl Inbox for Embedded {
    fn ticket(&self, home: usize) -> Box<dyn Ticket> {
        Box::new(self.shared.queue.ticket(home))
    }

    fn unhealthy(&self) -> Option<Refusal> {
        self.shared.queue.refusal()
    }

    fn counts(&self) -> Counts {
        let (pending, parked, dead) = self.shared.counters.read();
        let oldest = self.shared.counters.oldest_ms.load(Relaxed);
        let oldest_ms = (oldest > 0 && pending + parked > 0).then_some(oldest);
        Counts { pending, parked, dead, oldest_ms }
    }

    fn feed(&self, feed: Arc<dyn Feed>) {
        *self.shared.feed.lock() = Some(feed);
    }

    fn open_numbers(&self) -> Result<(Vec<u64>, Position), Failure> {
        let commit = self.flush()?;
        let numbers = self.read(reader::open_numbers)?;
        let end = crate::event::Path { entry: u32::MAX, change: u32::MAX, index: u32::MAX };
        Ok((numbers, Position { commit, body: u32::MAX, path: end }))
    }

    fn pending(&self, number: u64, after: Position, limit: usize) -> Result<Page, Failure> {
        let covered = self.flush()?;
        self.read(move |connection| reader::page(connection, number, after, limit, covered))
    }

    fn open_turns(&self, after: TurnId, limit: usize) -> Result<Vec<OpenTurn>, Failure> {
        let instance = self.instance;
        self.read(move |connection| tables::open_turns(connection, instance, after, limit))
    }

    fn history(&self, session: &str, limit: usize) -> Result<Vec<Said>, Failure> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let session = session.to_owned();
        self.read(move |connection| reader::history(connection, &session, limit))
    }

    fn answered(&self, new: NewTurn) -> Result<OpenTurn, Failure> {
        let id = self.next_turn.fetch_add(1, Relaxed);
        let replies = new.replies.into_iter().enumerate();
        let turn = OpenTurn {
            id,
            items: new.items,
            number: new.number,
            conversation: new.conversation,
            phone_number_id: new.phone_number_id,
            to: new.to,
            stored_ms: clock::now(),
            replies: replies
                .map(|(nth, body)| Reply {
                    id: ReplyKey { turn: id, nth: nth as u32 }.id(self.instance),
                    body,
                    state: if new.is_sending && nth == 0 { ReplyState::Sending } else { ReplyState::Stored },
                    is_last_try: false,
                })
                .collect(),
        };
        if new.is_sending
            && let Some(first) = turn.replies.first()
        {
            self.shared.flights.begin(&first.id, ReplyKey { turn: id, nth: 0 }, turn.number);
        }
        let stored = Stored {
            turn: turn.clone(),
            session: new.session,
            remember: new.remember,
            history_max: new.history_max,
        };
        self.change_now(Change::Answered(Box::new(stored)))?;
        Ok(turn)
    }

    fn sending(&self, reply_id: &str, number: u64) -> Result<Option<Evidence>, Failure> {
        let key = self.key(reply_id)?;
        self.shared.flights.begin(reply_id, key, number);
        self.change_now(Change::Sending(key))?;
        // a status that came before the mark has settled the reply, and the mark changed nothing
        Ok(self.shared.flights.evidence(reply_id))
    }

    fn sent(&self, reply_id: &str, wamid: &str) {
        if let Ok(key) = self.key(reply_id) {
            self.change(Change::Sent(key, wamid.to_owned()));
        }
    }

    fn unsent(&self, reply_id: &str) {
        if let Ok(key) = self.key(reply_id) {
            self.change(Change::Unsent(key));
        }
    }

    fn reply_dead(&self, reply_id: &str, reason: &Reason, detail: &str) {
        if let Ok(key) = self.key(reply_id) {
            self.change(Change::ReplyDead(key, reason.clone(), detail.to_owned()));
        }
    }

    fn evidence(&self, reply_id: &str, within: Duration) -> Option<Evidence> {
        self.shared.flights.wait(reply_id, within)
    }

    fn forget(&self, reply_id: &str) {
        self.shared.flights.end(reply_id);
    }

    fn settle(&self, items: &[ItemId], state: State, reason: &Reason, detail: &str) {
        self.change(Change::Settle(items.to_vec(), state, reason.clone(), detail.to_owned()));
    }

    fn close(&self) -> Result<(), Failure> {
        self.shared.queue.refuse(Refusal::Draining);
        let (keeper, done) = promise();
        self.shared.queue.order(Order::Close(keeper));
        done.wait_within(ACK_MAX).ok_or_else(gone)
    }
}

fn gone() -> Failure {
    failed("the committer has ended".to_owned())
}

fn failed(detail: String) -> Failure {
    Failure {
        source: Source::Inbox,
        verdict: Verdict::Retry { after: None },
        reason: Reason::fixed("inbox_failed"),
        detail,
    }
}
