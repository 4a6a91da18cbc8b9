//! PURE: is this body from Meta, and what does it hold? No socket, no clock, no store.
//!
//! `signature` comes first, over the raw bytes. `parse` indexes a body into [`Item`](crate::event::Item)s with
//! simd-json's tape (nothing is built, nothing recurses); `unpack` takes single messages out again as Meta sent them.
