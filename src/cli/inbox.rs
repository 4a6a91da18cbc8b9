//! `inbox status|list|inspect|replay`: where every item is and why, beside the running service or without it.
//!
//! Reading needs no lock. `replay` writes as a guest: the committer steps aside for it and is told by a counter.

use std::collections::HashSet;
use std::path::Path as FilePath;

use clap::{Args, Subcommand, ValueEnum};
use rusqlite::{Connection, params};

use super::{Failed, log_to_stderr};
use crate::app::PARSER;
use crate::config::read;
use crate::config::vars::Vars;
use crate::event::{ItemId, Kind, Path};
use crate::inbox::State;
use crate::secret::masked;
use crate::store;
use crate::webhook::unpack;

/// Items that one `replay` puts back in one transaction, so that the service is not held up.
const REPLAY_CHUNK: usize = 1000;

/// The `inbox` command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count items by state, kind and reason
    Status,
    /// List items, newest first
    List(List),
    /// Show the whole path of an item: ID is a wamid, a sender, a reply id, or an id that `list` prints
    Inspect {
        /// What to look for
        id: String,
        /// Stop after this many items
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Put dead or parked messages back; a running service takes them within a second
    Replay(Replay),
}

/// A state, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Waits for its turn
    Pending,
    /// Waits until the document or the token of its business is mended
    Parked,
    /// Its reply is stored and not all sent; the reason says what holds it
    Answered,
    /// Replied to
    Sent,
    /// Never to be answered
    Kept,
    /// Can't be answered
    Dead,
}

/// Options of `inbox list`.
#[derive(Args, Debug)]
pub struct List {
    /// Only items in this state
    #[arg(long)]
    state: Option<Which>,
    /// Only items with this reason code
    #[arg(long)]
    reason: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

/// Options of `inbox replay`: ids, or a state, or a reason, or both.
#[derive(Args, Debug)]
pub struct Replay {
    /// Ids that `list` prints, or wamids
    ids: Vec<String>,
    /// All in this state: dead or parked
    #[arg(long)]
    state: Option<Which>,
    /// All with this reason code
    #[arg(long)]
    reason: Option<String>,
}

struct Found {
    id: ItemId,
    kind: Option<Kind>,
    state: u8,
    reason: Option<String>,
    detail: Option<String>,
    commit: i64,
    body: u32,
    path: Path,
    turn: Option<i64>,
}

/// Runs it.
pub fn run(command: &Command) -> Result<(), Failed> {
    let vars = Vars::from_process();
    log_to_stderr(&vars, "warn");
    crate::ops::process::end_on_broken_pipe();
    if let Command::Replay(replay) = command {
        check(replay)?;
    }
    let folder = read::data_dir_only(vars).map_err(Failed::Config)?;
    if !folder.join(store::FILE).exists() {
        return Err(Failed::Other(format!(
            "no store in {}; set DATA_DIR to the service's folder",
            folder.display()
        )));
    }
    match command {
        Command::Status => with(&folder, status),
        Command::List(list) => with(&folder, |c| show_list(c, list)),
        Command::Inspect { id, limit } => with(&folder, |c| inspect(c, id, *limit)),
        Command::Replay(replay) => put_back(&folder, replay),
    }
}

fn with(folder: &FilePath, act: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), Failed> {
    let connection = store::open_read_only(folder).map_err(|e| e.to_string())?;
    act(&connection).map_err(|e| Failed::Other(format!("store: {e}")))
}

fn status(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT state, kind, coalesce(reason, ''), count(*) FROM items GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC",
    )?;
    let mut rows = statement.query([])?;
    println!("{:<9} {:<13} {:<28} {:>10}", "STATE", "KIND", "REASON", "COUNT");
    while let Some(row) = rows.next()? {
        let (state, kind, reason) =
            (state_name(row.get(0)?), kind_name(row.get(1)?), row.get::<_, String>(2)?);
        println!("{state:<9} {kind:<13} {reason:<28} {:>10}", row.get::<_, i64>(3)?);
    }
    let turns: i64 = connection.query_row("SELECT count(*) FROM turns WHERE state = 0", [], |r| r.get(0))?;
    let bodies: i64 = connection.query_row("SELECT count(*) FROM commits", [], |r| r.get(0))?;
    println!("{turns} turn(s) with replies to send; bodies in {bodies} group commit(s)");
    Ok(())
}

const COLUMNS: &str =
    "timestamp, key, kind, state, reason, detail, commit_id, body, entry, change, nth, turn";

fn found(row: &rusqlite::Row<'_>) -> rusqlite::Result<Found> {
    Ok(Found {
        id: ItemId { timestamp: row.get::<_, i64>(0)? as u64, key: row.get::<_, i64>(1)? as u64 },
        kind: Kind::from_number(row.get(2)?),
        state: row.get(3)?,
        reason: row.get(4)?,
        detail: row.get(5)?,
        commit: row.get(6)?,
        body: row.get(7)?,
        path: Path { entry: row.get(8)?, change: row.get(9)?, index: row.get(10)? },
        turn: row.get(11)?,
    })
}

fn show_list(connection: &Connection, list: &List) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT {COLUMNS} FROM items WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR reason = ?2)
         ORDER BY timestamp DESC LIMIT ?3"
    );
    let mut statement = connection.prepare(&sql)?;
    let state = list.state.map(|which| which as u8);
    let rows = statement.query_map(params![state, list.reason, list.limit as i64], found)?;
    println!("{:<32} {:<13} {:<9} {:<24} {:<8} NUMBER", "ID", "KIND", "STATE", "REASON", "FROM");
    for item in rows {
        let item = item?;
        let (from, number) = who(connection, &item);
        let reason = item.reason.as_deref().unwrap_or("");
        let kind = item.kind.map_or("?", Kind::as_str);
        println!(
            "{:<32} {kind:<13} {:<9} {reason:<24} {from:<8} {number}",
            id_text(item.id),
            state_name(item.state)
        );
    }
    Ok(())
}

/// Sender and number, masked.
fn who(connection: &Connection, item: &Found) -> (String, String) {
    let body = crate::inbox::stored_body(connection, item.commit as u64, item.body).ok().flatten();
    let described = body.zip(item.kind).map(|(body, kind)| unpack::describe(&body, kind, item.path));
    let mask = |text: String| if text.is_empty() { "-".to_owned() } else { masked(&text) };
    described.map_or(("-".to_owned(), "-".to_owned()), |d| (mask(d.sender), mask(d.phone_number_id)))
}

fn inspect(connection: &Connection, id: &str, limit: usize) -> rusqlite::Result<()> {
    let items = by_any(connection, id, limit)?;
    for item in &items {
        show(connection, item)?;
    }
    if items.is_empty() {
        println!("nothing found; items are kept for INBOX_RETENTION");
    }
    Ok(())
}

/// Everything that `inspect` can be asked for.
fn by_any(connection: &Connection, id: &str, limit: usize) -> rusqlite::Result<Vec<Found>> {
    let mut items = Vec::new();
    if let Some(key) = parse_id(id) {
        items.extend(by_key(connection, key)?);
    }
    for item in items_of_turns(connection, id)? {
        items.extend(by_key(connection, item)?);
    }
    if items.is_empty() {
        items = by_text(connection, id, limit)?;
    }
    items.dedup_by_key(|item| item.id);
    Ok(items)
}

fn by_key(connection: &Connection, id: ItemId) -> rusqlite::Result<Vec<Found>> {
    let sql = format!("SELECT {COLUMNS} FROM items WHERE timestamp = ?1 AND key = ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_map([id.timestamp as i64, id.key as i64], found)?.collect()
}

/// The items of the turn that a reply id, or the wamid of a reply, belongs to.
fn items_of_turns(connection: &Connection, id: &str) -> rusqlite::Result<Vec<ItemId>> {
    let turn: Option<i64> = match id.strip_prefix("ww-").and_then(|rest| rest.split('-').nth(1)) {
        Some(turn) => turn.parse().ok(),
        None if is_wamid(id) => connection
            .query_row("SELECT turn FROM replies WHERE wamid = ?1", [id], |r| r.get(0))
            .map(Some)
            .or_else(|e| if e == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(e) })?,
        None => None,
    };
    let Some(turn) = turn else { return Ok(Vec::new()) };
    let mut statement = connection.prepare("SELECT items FROM turns WHERE id = ?1")?;
    let blobs: Vec<Vec<u8>> = statement.query_map([turn], |r| r.get(0))?.collect::<Result<_, _>>()?;
    Ok(blobs.iter().flat_map(|blob| crate::inbox::stored_items(blob)).collect())
}

/// Newest bodies first: those that hold the text, and in them the items that have it as wamid or sender.
fn by_text(connection: &Connection, text: &str, limit: usize) -> rusqlite::Result<Vec<Found>> {
    let mut statement = connection.prepare("SELECT id, bounds, bodies FROM commits ORDER BY id DESC")?;
    let mut rows = statement.query([])?;
    let finder = memchr::memmem::Finder::new(text.as_bytes());
    let mut items = Vec::new();
    let mut parsed = Vec::new();
    while let Some(row) = rows.next()? {
        let stored = crate::inbox::stored_bodies(row.get_ref(1)?.as_blob()?, row.get(2)?);
        if stored.is_damaged {
            eprintln!("bodies of commit {} can't be read: the store is damaged", row.get::<_, i64>(0)?);
        }
        if finder.find(&stored.bytes).is_none() {
            continue;
        }
        for (nth, range) in stored.bodies.into_iter().enumerate() {
            let body = stored.bytes.get(range).unwrap_or_default();
            if finder.find(body).is_none() {
                continue;
            }
            (PARSER.items)(body, &mut parsed);
            for item in &parsed {
                if unpack::describe(body, item.kind, item.path).has(text) {
                    items.extend(at(connection, row.get(0)?, nth as u32, item.path)?);
                    // a duplicate has no row of its own: the first one's row tells
                    items.extend(by_key(connection, ItemId { timestamp: item.timestamp, key: item.key })?);
                }
            }
            if items.len() >= limit {
                return Ok(items);
            }
        }
    }
    Ok(items)
}

fn at(connection: &Connection, commit: i64, body: u32, path: Path) -> rusqlite::Result<Vec<Found>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM items INDEXED BY items_open WHERE state < 2 AND commit_id = ?1 AND body = ?2
         AND entry = ?3 AND change = ?4 AND nth = ?5"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_map(params![commit, body, path.entry, path.change, path.index], found)?.collect()
}

fn show(connection: &Connection, item: &Found) -> rusqlite::Result<()> {
    let (from, number) = who(connection, item);
    println!(
        "item {}  {}  from {from}  to number {number}",
        id_text(item.id),
        item.kind.map_or("?", Kind::as_str)
    );
    println!("  sent {}  in group commit {}", seconds(item.id.timestamp), item.commit);
    let reason = item.reason.as_deref().map(|r| format!("  {r}")).unwrap_or_default();
    let detail =
        item.detail.as_deref().filter(|d| !d.is_empty()).map(|d| format!(": {d}")).unwrap_or_default();
    println!("  {}{reason}{detail}", state_name(item.state));
    let Some(turn) = item.turn else { return Ok(()) };
    let mut statement = connection.prepare_cached(
        "SELECT nth, state, wamid, reason, detail FROM replies WHERE turn = ?1 ORDER BY nth",
    )?;
    let mut rows = statement.query([turn])?;
    while let Some(row) = rows.next()? {
        let state = ["stored", "sending", "sent", "dead"]
            .get(usize::from(row.get::<_, u8>(1)?))
            .copied()
            .unwrap_or("?");
        let text = |column| row.get::<_, Option<String>>(column).map(Option::unwrap_or_default);
        println!(
            "  turn {turn} reply {}: {state} {} {} {}",
            row.get::<_, u32>(0)?,
            text(2)?,
            text(3)?,
            text(4)?
        );
    }
    Ok(())
}

/// Whether it says what to put back.
fn check(replay: &Replay) -> Result<(), Failed> {
    if replay.ids.is_empty() && replay.state.is_none() && replay.reason.is_none() {
        return Err(Failed::Usage("name ids, --state or --reason: what to put back".to_owned()));
    }
    if replay.state.is_some_and(|which| !matches!(which, Which::Dead | Which::Parked)) {
        return Err(Failed::Usage("only dead and parked items can be put back".to_owned()));
    }
    match replay.ids.iter().find(|id| parse_id(id).is_none() && !is_wamid(id)) {
        Some(id) => Err(Failed::Usage(format!(
            "{id} is neither a wamid nor an id that `inbox list` prints; `inbox inspect {id}` shows the ids of its items"
        ))),
        None => Ok(()),
    }
}

/// The items that these ids and wamids name, each once.
fn named(folder: &FilePath, texts: &[String]) -> Result<Vec<ItemId>, Failed> {
    let mut ids: Vec<ItemId> = texts.iter().filter_map(|text| parse_id(text)).collect();
    with(folder, |connection| {
        for wamid in texts.iter().filter(|text| is_wamid(text)) {
            ids.extend(by_any(connection, wamid, usize::MAX)?.iter().map(|item| item.id));
        }
        Ok(())
    })?;
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn put_back(folder: &FilePath, replay: &Replay) -> Result<(), Failed> {
    let ids = named(folder, &replay.ids)?;
    let guest = store::guest(folder).map_err(|e| e.to_string())?;
    let (back, partly) = replay_all(&guest.connection, replay, ids).map_err(|e| format!("store: {e}"))?;
    println!("{back} item(s) put back");
    if partly > 0 {
        println!("{partly} item(s) left: a part of their answer was sent already");
    }
    Ok(())
}

fn replay_all(
    connection: &Connection,
    replay: &Replay,
    ids: Vec<ItemId>,
) -> rusqlite::Result<(usize, usize)> {
    let ids = if replay.ids.is_empty() { chosen(connection, replay)? } else { ids };
    let (mut back, mut partly) = (0, 0);
    for chunk in ids.chunks(REPLAY_CHUNK) {
        let transaction = connection.unchecked_transaction()?;
        for id in chunk {
            let key = params![id.timestamp as i64, id.key as i64];
            let sent: i64 = transaction
                .prepare_cached(
                    "SELECT count(*) FROM items i JOIN replies r ON r.turn = i.turn
                     WHERE i.timestamp = ?1 AND i.key = ?2 AND r.state = 2",
                )?
                .query_row(key, |r| r.get(0))?;
            if sent > 0 {
                partly += 1;
                continue;
            }
            back += transaction
                .prepare_cached(
                    "UPDATE items SET state = 0, turn = NULL, reason = NULL, detail = NULL
                     WHERE timestamp = ?1 AND key = ?2 AND state IN (1, 5)",
                )?
                .execute(key)?;
        }
        transaction.execute(
            "INSERT INTO meta (name, value) VALUES ('replays', 1) ON CONFLICT DO UPDATE SET value = value + 1",
            [],
        )?;
        transaction.commit()?;
    }
    Ok((back, partly))
}

fn chosen(connection: &Connection, replay: &Replay) -> rusqlite::Result<Vec<ItemId>> {
    let mut statement = connection.prepare(
        "SELECT timestamp, key FROM items
         WHERE state IN (1, 5) AND (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR reason = ?2)",
    )?;
    let state = replay.state.map(|which| which as u8);
    let rows = statement.query_map(params![state, replay.reason], |r| {
        Ok(ItemId { timestamp: r.get::<_, i64>(0)? as u64, key: r.get::<_, i64>(1)? as u64 })
    })?;
    rows.collect()
}

fn state_name(number: u8) -> &'static str {
    let all = [State::Pending, State::Parked, State::Answered, State::Sent, State::Kept, State::Dead];
    all.iter().find(|state| **state as u8 == number).map_or("?", |state| state.as_str())
}

fn kind_name(number: u8) -> &'static str {
    Kind::from_number(number).map_or("?", Kind::as_str)
}

fn id_text(id: ItemId) -> String {
    format!("{}-{:016x}", id.timestamp, id.key)
}

fn parse_id(text: &str) -> Option<ItemId> {
    let (timestamp, key) = text.split_once('-')?;
    let key = u64::from_str_radix(key, 16).ok().filter(|_| key.len() == 16)?;
    Some(ItemId { timestamp: timestamp.parse().ok()?, key })
}

/// Meta's ids of messages all begin like this.
fn is_wamid(text: &str) -> bool {
    text.starts_with("wamid")
}

fn seconds(timestamp: u64) -> String {
    if timestamp == 0 {
        "at a time that Meta did not say".to_owned()
    } else {
        format!("at {timestamp} (Unix)")
    }
}
