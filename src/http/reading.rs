//! Verifies and reads a body: on the worker that has its connection, a large one on a thread of its own.
//!
//! A worker does one thing after the other, and Meta's largest bodies take it ten milliseconds, for which all of its
//! other connections would wait. A thread shares the cores with the workers in small slices instead; what is handed
//! over to it and back is a buffer and a wake-up.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::blocking::{NotRun, Pool};
use crate::event::Item;
use crate::inbox::Ticket;
use crate::webhook::parse::{Outcome, parse};
use crate::webhook::signature::{Rejected, Verifier};

/// Bodies from this size on are handed over, in bytes: a worker would be busy with one for 2 ms.
const LARGE_BODY: usize = 512 << 10;
/// So many may wait, which is more than [`super::LARGE_BODIES_MAX`] lets in.
const WAITING_MAX: usize = super::LARGE_BODIES_MAX / LARGE_BODY;
/// Who waited so long is told to come again; hundreds of the largest are read in this time.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The app that signed a body, and whether it was understood; its items are in the ticket.
pub(super) type Reading = Result<(u64, Outcome), Rejected>;

/// The thread for large bodies.
pub(super) struct Reader(Pool);

impl Reader {
    pub(super) fn new() -> Self {
        Self(Pool::new("large-bodies", 1, WAITING_MAX))
    }
}

/// What the body in the ticket comes to. Err: it was not read, and the ticket is empty.
pub(super) fn read(
    shared: &Arc<Shared>,
    ticket: &mut dyn Ticket,
    signature: Option<&[u8]>,
) -> Result<Reading, NotRun> {
    if ticket.body().len() < LARGE_BODY {
        let (body, items) = ticket.body_and_items();
        return Ok(look(&shared.verifier, signature, body, items));
    }
    let body = std::mem::take(ticket.body());
    let mut items = std::mem::take(ticket.body_and_items().1);
    let (its, signature) = (Arc::clone(shared), signature.map(<[u8]>::to_vec));
    let job = move || {
        let reading = look(&its.verifier, signature.as_deref(), &body, &mut items);
        (body, items, reading)
    };
    let (body, items, reading) = shared.reader.0.run(job, WAIT_MAX)?;
    *ticket.body() = body;
    *ticket.body_and_items().1 = items;
    Ok(reading)
}

fn look(verifier: &Verifier, signature: Option<&[u8]>, body: &[u8], items: &mut Vec<Item>) -> Reading {
    let app = verifier.verify(signature, body)?;
    Ok((app, parse(body, items)))
}
