//! All tests that need more than one module, in one binary.

mod business;
mod directory;
//! The tests from outside, one binary.
mod dispatcher;
