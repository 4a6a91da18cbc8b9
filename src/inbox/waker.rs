//! Waking a whole commit's waiters from the committer's thread.
//!
//! An unpark from an OS thread costs a write to a worker's eventfd each, and any worker may get the coroutine. So for
//! more than a few waiters the bodies go back to where they came from: one coroutine a worker gets those of the
//! connections whose events that worker polls, records their outcome and unparks them, which are pushes to its own
//! queue. The committer touches nothing of a connection then, and a connection's stack and buffers stay with the
//! core that will read its next request.

use std::sync::Arc;

use parking_lot::Mutex;

use super::queue::Append;
use crate::bell::Bell;

/// Below this many waiters they are woken directly.
const FAN_OUT_MIN: usize = 8;
/// The coroutines that wake others.
pub struct Waker {
    helpers: Vec<Helper>,
}

struct Helper {
    list: Arc<Mutex<Vec<Append>>>,
    bell: Bell,
}

impl Waker {
    /// Starts `workers` coroutines, which live until this is dropped. Fails where there are no descriptors left: each takes
    /// two.
    pub fn start(workers: usize) -> std::io::Result<Self> {
        let workers = workers.max(1);
        let helpers = (0..workers).map(|worker| Helper::start(worker, workers));
        Ok(Self { helpers: helpers.collect::<Result<_, _>>()? })
    }

    /// Tells all that their bodies are durable, and leaves the list empty.
    pub fn tell(&self, appends: &mut Vec<Append>) {
        if appends.len() < FAN_OUT_MIN {
            for append in appends.drain(..) {
                append.durable();
            }
            return;
        }
        let mut lists: Vec<_> = self.helpers.iter().map(|helper| helper.list.lock()).collect();
        let were_empty: Vec<bool> = lists.iter().map(|list| list.is_empty()).collect();
        let count = lists.len();
        for append in appends.drain(..) {
            lists[append.home() % count].push(append);
        }
        let rings: Vec<bool> =
            lists.iter().zip(were_empty).map(|(list, was)| was && !list.is_empty()).collect();
        drop(lists);
        for (helper, ring) in self.helpers.iter().zip(rings) {
            if ring && !helper.bell.ring() {
                // its coroutine has ended, and hears no ring any more
                wake_all(&helper.list, &mut Vec::new());
            }
        }
    }

    /// Wakes from here whom no coroutine has woken yet.
    pub fn tell_left(&self) {
        for helper in &self.helpers {
            wake_all(&helper.list, &mut Vec::new());
        }
    }
}

/// All of a list, by way of `own`, which is empty again then.
fn wake_all(list: &Mutex<Vec<Append>>, own: &mut Vec<Append>) {
    std::mem::swap(&mut *list.lock(), own);
    for append in own.drain(..) {
        append.durable();
    }
}

impl Helper {
    fn start(worker: usize, workers: usize) -> std::io::Result<Self> {
        let list = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&list);
        let mut mine: Vec<Append> = Vec::new();
        let bell = Bell::hang("waker", (worker, workers), move || wake_all(&shared, &mut mine))?;
        Ok(Self { list, bell })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inbox::Ticket;
    use crate::inbox::queue::Queue;

    #[test]
    fn without_its_coroutine_a_list_is_woken_from_here() {
        let waker = Waker { helpers: vec![Helper { list: Arc::default(), bell: Bell::broken() }] };
        let queue = Arc::new(Queue::new());
        let posts: Vec<_> = (0..FAN_OUT_MIN)
            .map(|n| {
                let mut ticket = queue.ticket(n);
                ticket.body().extend_from_slice(b"body");
                std::thread::spawn(move || ticket.append(0))
            })
            .collect();
        let (mut appends, mut more, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        while appends.len() < FAN_OUT_MIN {
            queue.drain(&mut more, &mut orders, Duration::from_millis(10));
            appends.append(&mut more);
        }
        waker.tell(&mut appends);
        for post in posts {
            assert_eq!(post.join().expect("no panic"), Ok(()));
        }
    }
}
