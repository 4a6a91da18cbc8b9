//! Memory for large bodies: all connections together hold at most [`LARGE_BODIES_MAX`] of them.
//!
//! What counts is what has come. A length is only a claim: who announces megabytes and sends nothing takes no room from
//! anybody.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{LARGE_BODIES_MAX, Shared};

/// Bodies up to this size are kept room for, take none of it, and are checked whoever sent them, in bytes.
pub(super) const SMALL_BODY: usize = 64 << 10;

/// The room that one body takes, given back on drop.
#[derive(Default)]
pub(super) struct Room {
    shared: Option<Arc<Shared>>,
    taken: usize,
}

impl Room {
    /// Whether a body of this length would find room now.
    pub(super) fn is_there(shared: &Shared, length: usize) -> bool {
        length <= SMALL_BODY || shared.large_bodies.load(Relaxed) + length <= LARGE_BODIES_MAX
    }

    /// Adds to a body of `length` bytes what came of it; false: there is no room, and the body is gone.
    pub(super) fn add(
        &mut self,
        shared: &Arc<Shared>,
        body: &mut Vec<u8>,
        bytes: &[u8],
        length: usize,
    ) -> bool {
        let needed = body.len() + bytes.len();
        if needed > body.capacity() {
            let size = length.min(2 * body.capacity()).max(needed);
            if !self.grow(shared, size) {
                *body = Vec::new();
                return false;
            }
            body.reserve_exact(size - body.len());
        }
        body.extend_from_slice(bytes);
        true
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, shared: &Arc<Shared>, size: usize) -> bool {
        if size <= SMALL_BODY {
            return true;
        }
        let more = size.saturating_sub(self.taken);
        if shared.large_bodies.fetch_add(more, Relaxed) + more > LARGE_BODIES_MAX {
            shared.large_bodies.fetch_sub(more, Relaxed);
            return false;
        }
        self.shared.get_or_insert_with(|| Arc::clone(shared));
        self.taken += more;
        true
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.large_bodies.fetch_sub(self.taken, Relaxed);
        }
    }
}
