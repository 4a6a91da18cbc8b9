//! PURE: is this body from Meta, and what does it hold? No socket, no clock, no store.
//!
//! `signature` comes first, over the raw bytes. `parse` indexes a body into [`Item`](crate::event::Item)s
//! with simd-json's tape (nothing is built, nothing recurses); `unpack` takes single messages out again as
//! Meta sent them. `handshake` answers the GET with which Meta checks a callback address.
//!
//! Inside: `facts` decides what an item is (once, for every way to read a body), `scan` reads a body with
//! serde_json where the tape can't or where bytes are wanted.

pub mod handshake;
pub mod parse;
pub mod signature;
pub mod unpack;

mod facts;
#[cfg(test)]
mod random;
mod scan;
#[cfg(test)]
mod tests;

use crate::ops::metrics::{Counter, Metric};

/// Bodies that were read by the slower scan: what simd-json refuses, what is keyed by its bytes, and what may have more
/// than [`parse::TAPE_NODES_MAX`] nodes.
pub static SCANNED: Counter =
    Counter::new("webhook_scanned_total", "Bodies read by the scan instead of the tape.");
/// Bodies kept as one `unparsed` item: not JSON, or no `entry` in it.
pub static UNPARSED: Counter = Counter::new("webhook_unparsed_total", "Bodies that were not understood.");
/// Bodies kept as one `unparsed` item because they hold more than [`parse::ITEMS_MAX`] items.
pub static TOO_MANY: Counter = Counter::new("webhook_too_many_items_total", "Bodies with too many items.");
/// Changes of a `field` that this version does not know.
pub static UNKNOWN_FIELDS: Counter =
    Counter::new("webhook_unknown_fields_total", "Changes of a field that is not known.");
/// Messages of a `type` that this version does not know, or without a sender.
pub static UNKNOWN_TYPES: Counter =
    Counter::new("webhook_unknown_types_total", "Messages of a type that is not known, or without a sender.");

/// What this module counts.
pub static METRICS: &[&dyn Metric] = &[&SCANNED, &UNPARSED, &TOO_MANY, &UNKNOWN_FIELDS, &UNKNOWN_TYPES];
