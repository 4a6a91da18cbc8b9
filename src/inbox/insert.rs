//! The insert of items: the statement that runs most often.

use std::sync::LazyLock;

use rusqlite::{CachedStatement, Connection};

use super::State;
use crate::event::{Item, ItemId, Kind};

/// Items of one statement: to start one costs as much as what it does for an item.
pub const TOGETHER: usize = 32;
const COLUMNS: usize = 11;

static MANY: LazyLock<String> = LazyLock::new(|| sql(TOGETHER));
static ONE: LazyLock<String> = LazyLock::new(|| sql(1));

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Row<'i> {
    pub id: ItemId,
    pub item: &'i Item,
    pub commit: u64,
    pub body: u32,
}

/// The statements that insert items, held for many of them: to find one again would cost as much as to run it.
pub struct Insert<'c> {
    many: CachedStatement<'c>,
    one: CachedStatement<'c>,
}

impl<'c> Insert<'c> {
    pub fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self { many: connection.prepare_cached(&MANY)?, one: connection.prepare_cached(&ONE)? })
    }

    /// False if an item of that id is there.
    pub fn item(&mut self, row: Row<'_>) -> rusqlite::Result<bool> {
        row.bind(&mut self.one, 0)?;
        self.one.raw_execute().map(|changed| changed == 1)
    }

    /// The same for [`TOGETHER`] of them: true if all were new. Else those that were are there now as well.
    pub fn items<'i>(&mut self, rows: impl ExactSizeIterator<Item = Row<'i>>) -> rusqlite::Result<bool> {
        debug_assert_eq!(rows.len(), TOGETHER);
        for (nth, row) in rows.enumerate() {
            row.bind(&mut self.many, nth * COLUMNS)?;
        }
        self.many.raw_execute().map(|changed| changed == TOGETHER)
    }
}

impl Row<'_> {
    fn bind(&self, statement: &mut CachedStatement<'_>, before: usize) -> rusqlite::Result<()> {
        let Self { id, item, commit, body } = *self;
        let path = item.path;
        let values: [i64; COLUMNS] = [
            id.timestamp as i64,
            id.key as i64,
            i64::from(item.kind as u8),
            i64::from(state_of(item.kind) as u8),
            item.number as i64,
            item.conversation as i64,
            commit as i64,
            i64::from(body),
            i64::from(path.entry),
            i64::from(path.change),
            i64::from(path.index),
        ];
        for (nth, value) in values.into_iter().enumerate() {
            statement.raw_bind_parameter(before + nth + 1, value)?;
        }
        Ok(())
    }
}

/// Of a new item.
fn state_of(kind: Kind) -> State {
    if kind.is_answered() { State::Pending } else { State::Kept }
}

fn sql(rows: usize) -> String {
    let row = format!("({})", ["?"; COLUMNS].join(", "));
    format!(
        "INSERT OR IGNORE INTO items
         (timestamp, key, kind, state, number, conversation, commit_id, body, entry, change, nth)
         VALUES {}",
        vec![row; rows].join(", ")
    )
}
