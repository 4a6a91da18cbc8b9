//! What a verified body holds: read on the worker that has its connection, a large one on a thread of its own.
//!
//! A worker does one thing after the other, and Meta's largest bodies take it many milliseconds, for which all of its
//! other connections would wait. A thread shares the cores with the workers in small slices instead; what is handed
//! over to it and back are two buffers and a wake-up. Only verified bodies come here: nobody else can keep it busy.

use std::sync::Arc;
use std::time::Duration;

use super::room::Room;
use super::{LARGE_BODIES_MAX, Shared};
use crate::blocking::{NotRun, Pool};
use crate::inbox::Ticket;
use crate::webhook::parse::{Outcome, parse};

/// Bodies from this size on are handed over, in bytes: a worker would be busy with one for a millisecond.
const LARGE_BODY: usize = 512 << 10;
/// So many may wait: no more find [`Room`].
const WAITING_MAX: usize = LARGE_BODIES_MAX / LARGE_BODY;
/// Who waited so long is told to come again; hundreds of the largest are read in this time.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The thread for large bodies.
pub(super) struct Reader(Pool);

impl Reader {
    pub(super) fn new() -> Self {
        Self(Pool::new("large-bodies", 1, WAITING_MAX))
    }
}

/// Fills the ticket with the items of its body. Err: the thread did not come to it in time, and the ticket is empty; the
/// body keeps its room until it is let go. A panic on the thread is one here.
pub(super) fn read(
    shared: &Arc<Shared>,
    ticket: &mut dyn Ticket,
    room: &mut Room,
) -> Result<Outcome, NotRun> {
    if ticket.body().len() < LARGE_BODY {
        let (body, items) = ticket.body_and_items();
        return Ok(parse(body, items));
    }
    read_beside(shared, ticket, room)
}

/// Apart, so that its frame is not on every connection's stack.
#[cold]
#[inline(never)]
fn read_beside(shared: &Arc<Shared>, ticket: &mut dyn Ticket, room: &mut Room) -> Result<Outcome, NotRun> {
    let body = std::mem::take(ticket.body());
    let mut items = std::mem::take(ticket.body_and_items().1);
    let its = std::mem::take(room);
    let job = move || {
        let outcome = parse(&body, &mut items);
        (body, items, its, outcome)
    };
    let (body, items, its, outcome) = match shared.reader.0.run(job, WAIT_MAX) {
        // as it would have ended on the worker
        Err(NotRun::Panicked) => panic!("a large body could not be read"),
        done => done?,
    };
    *ticket.body() = body;
    *ticket.body_and_items().1 = items;
    *room = its;
    Ok(outcome)
}
