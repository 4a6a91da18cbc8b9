//! After a failed commit: nobody is told that something is durable, and whoever comes is refused until the process
//! ends.

use std::sync::Arc;

use super::{Committer, Group, IDLE};
use crate::inbox::Refusal;
use crate::inbox::queue::Order;

impl Committer {
    pub(super) fn poison(&mut self, group: &mut Group, why: &str) {
        self.shared.queue.refuse(Refusal::Poisoned);
        self.tables.rollback();
        self.waker.tell_left();
        // what is dropped before its commit is refused as poisoned
        self.shared.in_commit.lock().clear();
        self.shared.behind.lock().clear();
        group.appends.clear();
        group.keepers.clear();
        group.flushes.clear();
        group.orders.clear();
        let detail = format!("{why}; nothing is accepted until a restart");
        log::error!("inbox: {detail}");
        (self.shared.on_poison)(detail);
    }

    /// The poisoned thread's last duty: whoever comes gets an answer.
    pub(super) fn refuse_all(&self, mut group: Group) {
        let queue = Arc::clone(&self.shared.queue);
        loop {
            if let Some(keeper) = group.close.take() {
                queue.close();
                drop(keeper);
                return;
            }
            queue.drain(&mut group.appends, &mut group.orders, IDLE);
            group.appends.clear();
            for order in group.orders.drain(..) {
                if let Order::Close(keeper) = order {
                    group.close = Some(keeper);
                }
            }
        }
    }
}
