//! All tests that need more than one module or the real binary, in one test binary.
#![allow(
    clippy::disallowed_methods,
    reason = "a test's threads are not coroutines: they may sleep and read the clock"
)]

mod agents;
mod benches;
mod business;
mod cli;
mod corpus;
mod crash;
mod directory;
mod dispatcher;
mod doctor;
mod edge;
mod exchange;
mod graph;
mod harness;
mod inbox;
mod mongo;
mod net;
mod nginx;
mod sandbox;
mod service;
mod stub_inbox;
mod tidy;
mod whole;

/// Sets the size of coroutine stacks, before the first coroutine of this process.
fn coroutines() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| whatsapp_webhook::ops::process::configure_coroutines(2));
}
