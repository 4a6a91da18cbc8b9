//! Items that go into their table together: sorted by key, so that the index is written page by page, and some at each
//! commit, so that nobody waits for all of them.
//!
//! A slice ends in the middle of a commit's items, and a transaction may end there too. If the process ends then, the
//! commit is derived again from its beginning at the next start, and finds its own items.

use super::compare::Compare;
use super::deferred::Deferred;
use crate::event::ItemId;

/// Items of a slice, at least.
const SLICE_MIN: usize = 256;
/// A bulk takes at most so many slices: what arrives meanwhile is the next one, which can't grow beyond so many commits.
const SLICES_MAX: usize = 16;
/// The same where somebody waits for an answer.
const FRESH_SLICES_MAX: usize = 8;

/// See the module.
#[derive(Default)]
pub struct Bulk {
    pub deferred: Deferred,
    /// By key: the body's place among the deferred ones, and the item's in it.
    pub order: Vec<(ItemId, u32, u32)>,
    /// How many of them are done.
    pub at: usize,
    /// Those that were new and are answerable, with the key under which they are stored.
    pub new: Vec<(u32, u32, ItemId)>,
    /// New statuses that name something sent.
    pub statuses: Vec<(u32, u32)>,
    pub compare: Compare,
}

impl Bulk {
    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.deferred.is_empty()
    }

    /// Begins with all that waits, and leaves `waiting` empty; the bulk must be.
    pub fn take(&mut self, waiting: &mut Deferred) {
        std::mem::swap(&mut self.deferred, waiting);
        self.order.reserve(self.deferred.len());
        for (b, body) in self.deferred.bodies().enumerate() {
            let of_body = body.items.iter().enumerate();
            let id = |item: &crate::event::Item| ItemId { timestamp: item.timestamp, key: item.key };
            self.order.extend(of_body.map(|(i, item)| (id(item), b as u32, i as u32)));
        }
        self.order.sort_unstable();
    }

    /// How many items the next slice has. All that are left, if so much waits behind them that it would only grow.
    pub fn slice(&self, waiting: &Deferred) -> usize {
        let most = if self.deferred.has_answerable() { FRESH_SLICES_MAX } else { SLICES_MAX };
        if waiting.is_full() { usize::MAX } else { SLICE_MIN.max(self.order.len().div_ceil(most)) }
    }

    /// Empties it, and keeps room for the next one.
    pub fn clear(&mut self) {
        let most = 2 * SLICE_MIN * SLICES_MAX;
        self.deferred.clear();
        self.order.clear();
        self.order.shrink_to(most);
        self.at = 0;
        self.new.clear();
        self.new.shrink_to(most);
        self.statuses.clear();
        self.statuses.shrink_to(most);
        self.compare = Compare::default();
    }
}
