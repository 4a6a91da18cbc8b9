//! `check`: the configuration alone, every mistake at once.

use super::Failed;
use crate::config::read;
use crate::config::vars::Vars;

/// Prints `ok`, or fails with all that is wrong.
pub fn run() -> Result<(), Failed> {
    read::config(Vars::from_process()).map_err(Failed::Config)?;
    println!("ok");
    Ok(())
}
