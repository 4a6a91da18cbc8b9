//! `indexes`: the indexes that lookups need in MongoDB, by the names that they have there. Run it as often as you
//! like: what is there already stays as it is.

use std::io::Write;

use crate::directory::mongo::COLLECTION;
use crate::directory::store::IndexState;
use crate::{config, directory};

/// Makes what is missing and says what is there. An index of a wanted name that differs is an error: only the
/// operator can know whether something else relies on it.
pub fn run(config: &config::Directory, out: &mut dyn Write) -> Result<(), String> {
    if config.mongodb.is_none() {
        return say(out, "MONGODB_URI is not set: the embedded store has its indexes built in\n");
    }
    let store = directory::store(config).map_err(|e| e.to_string())?;
    let mut differing = Vec::new();
    for (name, state) in store.ensure_indexes().map_err(|e| e.to_string())? {
        let line = match state {
            IndexState::Created => format!("{name}: created\n"),
            IndexState::There => format!("{name}: there\n"),
            IndexState::ThereAs(other) => format!("{name}: there under the name {other}\n"),
            IndexState::Differs(keys) => {
                differing.push(format!(
                    "{name}: an index of that name or of these keys is there and differs: {keys}; if nothing else needs \
                     it, drop it (db.{COLLECTION}.dropIndex({name:?})) and run this again"
                ));
                continue;
            }
        };
        say(out, &line)?;
    }
    if differing.is_empty() { Ok(()) } else { Err(differing.join("\n")) }
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), String> {
    out.write_all(line.as_bytes()).map_err(|e| format!("standard output: {e}"))
}
