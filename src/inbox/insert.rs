//! The insert of an item: the statement that runs most often.

use rusqlite::{CachedStatement, params};

use super::State;
use crate::event::{Item, ItemId};

/// The statement that inserts items, held for many of them: to find it again would cost as much as to run it.
pub struct Insert<'c>(pub CachedStatement<'c>);

impl Insert<'_> {
    pub const SQL: &'static str = "INSERT OR IGNORE INTO items
                   (timestamp, key, kind, state, number, conversation, commit_id, body, entry, change, nth)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

    /// False if an item of that id is there.
    pub fn item(
        &mut self,
        id: ItemId,
        item: &Item,
        state: State,
        commit: u64,
        body: u32,
    ) -> rusqlite::Result<bool> {
        let changed = self.0.execute(params![
            id.timestamp as i64,
            id.key as i64,
            item.kind as u8,
            state as u8,
            item.number as i64,
            item.conversation as i64,
            commit as i64,
            body,
            item.path.entry,
            item.path.change,
            item.path.index
        ])?;
        Ok(changed == 1)
    }
}
