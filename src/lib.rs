//! A WhatsApp webhook server that keeps every message it acknowledged.
//!
//! One direction: `http` (edge) -> `webhook` (pure) -> `inbox` (durable), then the 200; after it
//! `dispatcher` (lanes) -> `turn` { `directory` -> `agent` -> `graph` }, with `ops` at the side.
//! Leaves that any module may use: `blocking`, `event`, `failure`, `clock`, `secret`, `stack`, `store`,
//! `turnstile`, `ops::metrics`.

pub mod agent;
pub mod app;
pub mod bell;
pub mod blocking;
pub mod cli;
pub mod clock;
pub mod config;
pub mod directory;
pub mod dispatcher;
pub mod event;
pub mod failure;
pub mod graph;
pub mod http;
pub mod inbox;
pub mod limits;
pub mod net;
pub mod ops;
pub mod sandbox;
pub mod secret;
pub mod stack;
pub mod store;
pub mod turn;
pub mod turnstile;
pub mod webhook;
