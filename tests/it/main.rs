//! All tests that need more than one module or the real binary, in one test binary.

mod business;
mod corpus;
mod directory;
mod dispatcher;
mod inbox;
