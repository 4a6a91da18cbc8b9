//! The statements. Every method runs inside the transaction that the committer has open.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fold::Fold;
use super::frames::Bounds;
use super::{OpenTurn, Reply, ReplyState, State, TurnId};
use crate::clock::UnixMillis;
use crate::event::{ItemId, Kind, Path, Recipient, Role, Said};
use crate::failure::Reason;
use crate::store;

/// `meta`: items of all commits up to this one are in their table.
const DERIVED: &str = "derived_commit";
/// `meta`: random, part of every reply id of this store.
const INSTANCE: &str = "instance";
/// `meta`: counts `inbox replay` runs of other processes.
pub const REPLAYS: &str = "replays";
/// The reason of a reply that is stored and to be sent again: a status may still name an earlier try.
pub const TRIED: Reason = Reason::fixed("tried");

/// One reply of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyKey {
    pub turn: TurnId,
    pub nth: u32,
}

/// A change of state.
pub enum Change {
    Answered(Box<Stored>),
    Sending(ReplyKey),
    Sent(ReplyKey, String),
    Unsent(ReplyKey),
    ReplyDead(ReplyKey, Reason, String),
    Settle(Vec<ItemId>, State, Reason, String),
}

/// An answer to store.
pub struct Stored {
    pub turn: OpenTurn,
    pub session: String,
    pub remember: Vec<Said>,
    pub history_max: usize,
}

/// Where a stored item's body is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub commit: u64,
    pub body: u32,
    pub kind: Option<Kind>,
    pub path: Path,
}

impl Place {
    pub fn is(&self, commit: u64, body: u32, path: Path) -> bool {
        (self.commit, self.body, self.path) == (commit, body, path)
    }
}

/// The connection of the committer.
pub struct Tables {
    connection: Connection,
    fold: Fold,
}

impl Tables {
    pub fn new(mut connection: Connection, log_bytes: u64) -> rusqlite::Result<Self> {
        store::take_over(&connection)?;
        connection.set_prepared_statement_cache_capacity(128);
        let fold = Fold::watch(&mut connection, log_bytes)?;
        Ok(Self { connection, fold })
    }

    /// See [`Fold::fold_if_due`].
    pub fn checkpoint_if_due(&mut self) {
        self.fold.fold_if_due(&self.connection);
    }

    pub fn begin(&self) -> rusqlite::Result<()> {
        self.execute("BEGIN IMMEDIATE")
    }

    pub fn commit(&self) -> rusqlite::Result<()> {
        self.execute("COMMIT")
    }

    pub fn rollback(&self) {
        if !self.connection.is_autocommit() {
            let _ = self.execute("ROLLBACK");
        }
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Folds the log into the file; best effort, for a clean stop.
    pub fn checkpoint(&self) {
        self.fold.wait();
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }

    /// Changes when another connection commits.
    pub fn data_version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |r| r.get(0))
    }

    pub fn meta(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
            .query_row([name], |r| r.get(0))
            .optional()
    }

    fn set_meta(&self, name: &str, value: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
            )?
            .execute(params![name, value])
            .map(drop)
    }

    /// Random, made at the first start on this store.
    pub fn instance(&self) -> rusqlite::Result<u64> {
        if let Some(instance) = self.meta(INSTANCE)? {
            return Ok(instance as u64);
        }
        let mut bytes = [0; 8];
        let _ = getrandom::fill(&mut bytes);
        let instance = u64::from_le_bytes(bytes) >> 16;
        self.set_meta(INSTANCE, instance as i64)?;
        Ok(instance)
    }

    pub fn last_commit(&self) -> rusqlite::Result<u64> {
        let last: Option<i64> = self.connection.query_row("SELECT max(id) FROM commits", [], |r| r.get(0))?;
        Ok(last.unwrap_or(0).max(self.derived()? as i64) as u64)
    }

    pub fn last_turn(&self) -> rusqlite::Result<TurnId> {
        let last: Option<i64> = self.connection.query_row("SELECT max(id) FROM turns", [], |r| r.get(0))?;
        let kept = self.meta("last_turn")?;
        Ok(last.unwrap_or(0).max(kept.unwrap_or(0)))
    }

    pub fn set_last_turn(&self, turn: TurnId) -> rusqlite::Result<()> {
        self.set_meta("last_turn", turn)
    }

    pub fn derived(&self) -> rusqlite::Result<u64> {
        Ok(self.meta(DERIVED)?.unwrap_or(0) as u64)
    }

    pub fn set_derived(&self, commit: u64) -> rusqlite::Result<()> {
        self.set_meta(DERIVED, commit as i64)
    }

    pub fn insert_commit(
        &self,
        id: u64,
        at: UnixMillis,
        bounds: &[u8],
        bodies: &[u8],
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO commits (id, received_ms, bounds, bodies) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![id as i64, at as i64, bounds, bodies])
            .map(drop)
    }

    pub fn place(&self, id: ItemId) -> rusqlite::Result<Option<Place>> {
        self.connection
            .prepare_cached(
                "SELECT commit_id, body, kind, entry, change, nth FROM items WHERE timestamp = ?1 AND key = ?2",
            )?
            .query_row(params![id.timestamp as i64, id.key as i64], |r| {
                let path = Path { entry: r.get(3)?, change: r.get(4)?, index: r.get(5)? };
                let kind = Kind::from_number(r.get(2)?);
                Ok(Place { commit: r.get::<_, i64>(0)? as u64, body: r.get(1)?, kind, path })
            })
            .optional()
    }

    pub fn item_state(&self, id: ItemId) -> rusqlite::Result<Option<u8>> {
        self.connection
            .prepare_cached("SELECT state FROM items WHERE timestamp = ?1 AND key = ?2")?
            .query_row(params![id.timestamp as i64, id.key as i64], |r| r.get(0))
            .optional()
    }

    pub fn set_item(
        &self,
        id: ItemId,
        state: State,
        turn: Option<TurnId>,
        why: Option<(&Reason, &str)>,
    ) -> rusqlite::Result<()> {
        let (reason, detail) = why.map_or((None, None), |(r, d)| (Some(r.as_str()), Some(d)));
        self.connection
            .prepare_cached(
                "UPDATE items SET state = ?3, turn = coalesce(?4, turn), reason = ?5, detail = ?6
                 WHERE timestamp = ?1 AND key = ?2",
            )?
            .execute(params![id.timestamp as i64, id.key as i64, state as u8, turn, reason, detail])
            .map(drop)
    }

    pub fn insert_turn(&self, stored: &Stored) -> rusqlite::Result<()> {
        let turn = &stored.turn;
        let (recipient_kind, recipient) = recipient_columns(&turn.to);
        self.connection
            .prepare_cached(
                "INSERT INTO turns (id, state, number, conversation, phone_number_id, recipient_kind, recipient,
                                    session, stored_ms, items)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                turn.id,
                u8::from(turn.replies.is_empty()),
                turn.number as i64,
                turn.conversation as i64,
                turn.phone_number_id,
                recipient_kind,
                recipient,
                stored.session,
                turn.stored_ms as i64,
                items_blob(&turn.items)
            ])?;
        for (nth, reply) in turn.replies.iter().enumerate() {
            self.connection
                .prepare_cached("INSERT INTO replies (turn, nth, state, body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![turn.id, nth as u32, reply.state as u8, reply.body.get()])?;
        }
        Ok(())
    }

    pub fn remember(&self, stored: &Stored) -> rusqlite::Result<()> {
        if stored.remember.is_empty() {
            return Ok(());
        }
        for (n, said) in stored.remember.iter().enumerate() {
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO memory (session, seq, role, content, said_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    stored.session,
                    stored.turn.id * 1024 + n as i64,
                    (said.role == Role::Assistant) as u8,
                    said.content,
                    stored.turn.stored_ms as i64
                ])?;
        }
        self.connection
            .prepare_cached(
                "DELETE FROM memory WHERE session = ?1 AND seq <=
                 (SELECT seq FROM memory WHERE session = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute(params![stored.session, stored.history_max as i64])
            .map(drop)
    }

    /// The states that a reply may leave are `Stored` and `Sending`; false if it had left them.
    pub fn set_reply(
        &self,
        key: ReplyKey,
        state: ReplyState,
        wamid: Option<&str>,
        why: Option<(&Reason, &str)>,
        at: UnixMillis,
    ) -> rusqlite::Result<bool> {
        let (reason, detail) = why.map_or((None, None), |(r, d)| (Some(r.as_str()), Some(d)));
        let settled = matches!(state, ReplyState::Sent | ReplyState::Dead).then_some(at as i64);
        self.connection
            .prepare_cached(
                "UPDATE replies SET state = ?3, wamid = ?4, reason = ?5, detail = ?6, settled_ms = ?7
                 WHERE turn = ?1 AND nth = ?2 AND state < 2",
            )?
            .execute(params![key.turn, key.nth, state as u8, wamid, reason, detail, settled])
            .map(|changed| changed == 1)
    }

    /// Notes on a reply that was sent that it did not arrive.
    pub fn note_undelivered(&self, key: ReplyKey, reason: &Reason) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE replies SET reason = ?3 WHERE turn = ?1 AND nth = ?2 AND state = 2")?
            .execute(params![key.turn, key.nth, reason.as_str()])
            .map(drop)
    }

    pub fn close_turn(&self, turn: TurnId) -> rusqlite::Result<()> {
        self.connection.prepare_cached("UPDATE turns SET state = 1 WHERE id = ?1")?.execute([turn]).map(drop)
    }

    /// How many items are in each open state, and dead: pending, parked, answered, dead.
    pub fn count(&self) -> rusqlite::Result<[u64; 4]> {
        let open = |state: State| {
            let sql = format!(
                "SELECT count(*) FROM items INDEXED BY items_open WHERE state < 2 AND state = {}",
                state as u8
            );
            self.connection.query_row(&sql, [], |r| r.get::<_, i64>(0))
        };
        let dead: i64 = self.connection.query_row(
            "SELECT count(*) FROM items INDEXED BY items_dead WHERE state = 5",
            [],
            |r| r.get(0),
        )?;
        let mut answered = 0;
        let mut statement = self.connection.prepare("SELECT items FROM turns WHERE state = 0")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            answered += row.get_ref(0)?.as_blob()?.len() as u64 / 16;
        }
        Ok([open(State::Pending)? as u64, open(State::Parked)? as u64, answered, dead as u64])
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Turns that are not closed, after `after`.
pub fn open_turns(
    connection: &Connection,
    instance: u64,
    after: TurnId,
    limit: usize,
) -> rusqlite::Result<Vec<OpenTurn>> {
    let mut turns = connection.prepare_cached(
        "SELECT id, number, conversation, phone_number_id, recipient_kind, recipient, stored_ms, items
         FROM turns INDEXED BY turns_open WHERE state = 0 AND id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let found = turns.query_map(params![after, limit as i64], |r| {
        Ok(OpenTurn {
            id: r.get(0)?,
            number: r.get::<_, i64>(1)? as u64,
            conversation: r.get::<_, i64>(2)? as u64,
            phone_number_id: r.get(3)?,
            to: recipient_from(r.get(4)?, r.get(5)?),
            stored_ms: r.get::<_, i64>(6)? as u64,
            items: items_from(r.get_ref(7)?.as_blob()?),
            replies: Vec::new(),
        })
    })?;
    let mut open: Vec<OpenTurn> = found.collect::<Result<_, _>>()?;
    let mut replies =
        connection.prepare_cached("SELECT nth, state, body FROM replies WHERE turn = ?1 ORDER BY nth")?;
    for turn in &mut open {
        let id = turn.id;
        let rows = replies.query_map([id], |r| reply_from(instance, id, r))?;
        turn.replies = rows.collect::<Result<_, _>>()?;
    }
    Ok(open)
}

fn reply_from(instance: u64, turn: TurnId, row: &Row<'_>) -> rusqlite::Result<Reply> {
    let state = match row.get(1)? {
        0 => ReplyState::Stored,
        1 => ReplyState::Sending,
        2 => ReplyState::Sent,
        _ => ReplyState::Dead,
    };
    let body: String = row.get(2)?;
    let body = serde_json::value::RawValue::from_string(body).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(e))
    })?;
    Ok(Reply { id: ReplyKey { turn, nth: row.get(0)? }.id(instance), body, state, is_last_try: false })
}

impl ReplyKey {
    /// `ww-<instance>-<turn>-<nth>`: at most 50 characters.
    pub fn id(self, instance: u64) -> String {
        format!("ww-{instance:012x}-{}-{}", self.turn, self.nth)
    }

    /// The key in a reply id of this store.
    pub fn parse(id: &str, instance: u64) -> Option<Self> {
        let mut parts = id.strip_prefix("ww-")?.split('-');
        if u64::from_str_radix(parts.next()?, 16).ok()? != instance {
            return None;
        }
        let key = Self { turn: parts.next()?.parse().ok()?, nth: parts.next()?.parse().ok()? };
        parts.next().is_none().then_some(key)
    }
}

fn recipient_columns(to: &Recipient) -> (u8, &str) {
    match to {
        Recipient::Phone(id) => (0, id),
        Recipient::User(id) => (1, id),
        Recipient::Group(id) => (2, id),
    }
}

fn recipient_from(kind: u8, id: String) -> Recipient {
    match kind {
        0 => Recipient::Phone(id),
        1 => Recipient::User(id),
        _ => Recipient::Group(id),
    }
}

fn items_blob(items: &[ItemId]) -> Vec<u8> {
    items.iter().flat_map(|i| [i.timestamp.to_le_bytes(), i.key.to_le_bytes()]).flatten().collect()
}

pub fn items_from(blob: &[u8]) -> Vec<ItemId> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    blob.chunks_exact(16).map(|c| ItemId { timestamp: number(&c[..8]), key: number(&c[8..]) }).collect()
}

/// One body of a commit, its app and when it was received; `None` if retention removed it.
pub fn body(
    connection: &Connection,
    commit: u64,
    nth: u32,
) -> rusqlite::Result<Option<(Vec<u8>, u64, UnixMillis)>> {
    let bounds: Option<(Vec<u8>, i64)> = connection
        .prepare_cached("SELECT bounds, received_ms FROM commits WHERE id = ?1")?
        .query_row([commit as i64], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let Some((bounds, at)) = bounds else { return Ok(None) };
    let place = Bounds::read(&bounds).and_then(|bounds| bounds.body(nth));
    let Some((place, app)) = place else {
        tell_damaged(commit);
        return Ok(None);
    };
    let (start, length) = (place.stored.start as i64 + 1, place.stored.len() as i64);
    let stored: Vec<u8> = connection
        .prepare_cached("SELECT substr(bodies, ?2, ?3) FROM commits WHERE id = ?1")?
        .query_row(params![commit as i64, start, length], |r| r.get(0))?;
    let body = place.body(stored);
    if body.is_none() {
        tell_damaged(commit);
    }
    Ok(body.map(|bytes| (bytes, app, at as u64)))
}

/// The disk has changed what was written. What can't be read is as if retention had removed it: the rest goes on.
pub fn tell_damaged(commit: u64) {
    log::error!("inbox: bodies of commit {commit} can't be read: the store is damaged");
}

/// A reply of an open turn, as the committer's book needs it.
pub struct OpenReply {
    pub nth: u32,
    pub state: u8,
    /// A send was begun, and it is not settled.
    pub may_be_out: bool,
    /// Why it will not be sent.
    pub dead: Option<(Reason, String)>,
}

/// Replies of each open turn, for the committer's book.
pub fn open_replies(connection: &Connection) -> rusqlite::Result<HashMap<TurnId, Vec<OpenReply>>> {
    let mut statement = connection.prepare(
        "SELECT r.turn, r.nth, r.state, r.state = 1 OR r.state = 0 AND r.reason IS NOT NULL,
                iif(r.state = 3, coalesce(r.reason, ''), NULL), coalesce(r.detail, '')
         FROM turns t INDEXED BY turns_open JOIN replies r ON r.turn = t.id WHERE t.state = 0",
    )?;
    let mut book: HashMap<TurnId, Vec<OpenReply>> = HashMap::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let dead = row.get::<_, Option<String>>(4)?.map(Reason::from).zip(row.get(5)?);
        let reply = OpenReply { nth: row.get(1)?, state: row.get(2)?, may_be_out: row.get(3)?, dead };
        book.entry(row.get(0)?).or_default().push(reply);
    }
    Ok(book)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_id_reads_back_and_a_strange_one_does_not() {
        let key = ReplyKey { turn: 812, nth: 3 };
        let id = key.id(0xabc);
        assert_eq!(ReplyKey::parse(&id, 0xabc), Some(key));
        assert_eq!(ReplyKey::parse(&id, 0xabd), None);
        assert_eq!(ReplyKey::parse("ww-abc-1", 0xabc), None);
        assert_eq!(ReplyKey::parse("ww-abc-1-2-3", 0xabc), None);
        assert!(id.len() <= 64);
    }
}
