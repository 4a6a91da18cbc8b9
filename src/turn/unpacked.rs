//! Messages taken out of large bodies, once a body and not once a message.
//!
//! A body of one message is read again in a microsecond. A batch of a thousand would be gone through a thousand times,
//! so its messages are taken out together and kept as long as somebody may still want them: a few bodies.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::event::{Item, Message, Path};
use crate::inbox::Work;
use crate::webhook::{parse, unpack};

/// A body below this is read again, in bytes.
const LARGE_MIN: usize = 4 << 10;
/// Large bodies whose messages are kept.
const BODIES_MAX: usize = 64;

type Messages = Arc<HashMap<Path, Message>>;

/// See the module's head.
#[derive(Default)]
pub struct Unpacked {
    recent: Mutex<VecDeque<(Weak<[u8]>, Messages)>>,
}

impl Unpacked {
    /// The message of each of the works, in their order; `None` for those whose body can't be read.
    pub fn read(&self, works: &[Work]) -> Vec<Option<Message>> {
        let mut messages = Vec::with_capacity(works.len());
        for group in works.chunk_by(|a, b| Arc::ptr_eq(&a.body, &b.body)) {
            let body = &group[0].body;
            if body.len() < LARGE_MIN {
                let paths: Vec<Path> = group.iter().map(|work| work.position.path).collect();
                let mut read = unpack::messages(body, &paths).unwrap_or_default().into_iter();
                messages.extend(group.iter().map(|_| read.next()));
                continue;
            }
            let all = self.all(body);
            let of_body = |work: &Work| all.as_ref().and_then(|all| all.get(&work.position.path)).cloned();
            messages.extend(group.iter().map(of_body));
        }
        messages
    }

    fn all(&self, body: &Arc<[u8]>) -> Option<Messages> {
        let is_it = |kept: &Weak<[u8]>| kept.upgrade().is_some_and(|kept| Arc::ptr_eq(&kept, body));
        let known = self.recent.lock().iter().find(|(kept, _)| is_it(kept)).map(|(_, all)| Arc::clone(all));
        if known.is_some() {
            return known;
        }
        let mut items: Vec<Item> = Vec::new();
        parse::parse(body, &mut items);
        let paths: Vec<Path> = items.iter().filter(|i| i.kind.is_answered()).map(|i| i.path).collect();
        let messages = unpack::messages(body, &paths).ok()?;
        let all: Messages = Arc::new(paths.into_iter().zip(messages).collect());
        let mut recent = self.recent.lock();
        recent.retain(|(kept, _)| kept.strong_count() > 0);
        if recent.len() >= BODIES_MAX {
            recent.pop_front();
        }
        recent.push_back((Arc::downgrade(body), Arc::clone(&all)));
        Some(all)
    }
}
