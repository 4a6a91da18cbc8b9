//! The committer's book at the start: the turns that the last process left open, which of their replies may have gone out,
//! and what they will end with if one of them is dead.

use super::{Committer, Open};
use crate::inbox::ReplyState;
use crate::inbox::tables::{self, REPLAYS, ReplyKey};

/// Turns a page.
const PAGE: usize = 1000;

impl Committer {
    pub(super) fn read_book(&mut self) -> rusqlite::Result<()> {
        self.instance = self.tables.instance()?;
        self.next_commit = self.tables.last_commit()? + 1;
        let replies = tables::open_replies(self.tables.connection())?;
        let mut after = 0;
        loop {
            let page = tables::open_turns(self.tables.connection(), self.instance, after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for turn in page {
                let of_turn = replies.get(&turn.id).map_or(&[][..], Vec::as_slice);
                for reply in of_turn.iter().filter(|reply| reply.may_be_out) {
                    let key = ReplyKey { turn: turn.id, nth: reply.nth };
                    self.flights.begin(&key.id(self.instance), key, turn.number);
                }
                let unsettled = of_turn.iter().filter(|reply| reply.state < ReplyState::Sent as u8).count();
                let dead = of_turn.iter().rev().find_map(|reply| reply.dead.clone());
                self.open_turns.insert(turn.id, Open { items: turn.items, unsettled, dead });
            }
        }
        self.catch_up()?;
        // who goes on with their turns will read that they are settled
        self.flights.end_named();
        self.counters.set(self.tables.count()?);
        self.replays = self.tables.meta(REPLAYS)?.unwrap_or(0);
        self.data_version = self.tables.data_version()?;
        Ok(())
    }
}
