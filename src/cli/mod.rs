//! (written next)

pub mod business;
