//! `key rotate`: every stored token from the old ENCRYPTION_SECRET to the new one, beside the running service.
//!
//! The service reads with both secrets meanwhile (ENCRYPTION_SECRET is the new one, ENCRYPTION_SECRET_OLD the old
//! one), so no reply waits for it. A token that another program stores meanwhile is not overwritten. Stopped in
//! the middle, it goes on where it was when it is run again: what is rotated already counts as such.

use std::io::Write;

use clap::Subcommand;

use super::Failed;
use crate::config::vars::Problem;
use crate::directory::store::{Record, Store, Swap, TokenField, all};
use crate::directory::tokens::{Keys, Rotated};
use crate::{config, directory};

/// Tokens that are handed to the store at once: if it fails, so many at most are stored and not counted.
const STEP: usize = 10;
/// Times that the businesses are gone through: what others stored with the old secret meanwhile is found then.
const PASSES_MAX: usize = 3;
/// Businesses whose trouble is named.
const NAMED_MAX: usize = 100;

/// The `key` command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Re-encrypt all stored tokens: ENCRYPTION_SECRET is the new secret, ENCRYPTION_SECRET_OLD the old one
    Rotate {
        /// Count what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs it. An error if a token is left that the new secret doesn't open.
pub fn run(command: &Command, config: &config::Directory, out: &mut dyn Write) -> Result<(), Failed> {
    let Command::Rotate { dry_run } = command;
    check(config)?;
    let keys = Keys::new(config.encryption_secret.as_ref(), config.encryption_secret_old.as_ref());
    let store = directory::store(config).map_err(|e| e.to_string())?;
    let mut rotated = 0;
    let mut last = Pass::default();
    for _ in 0..PASSES_MAX {
        last = pass(&*store, &keys, *dry_run)?;
        rotated += last.swapped;
        if *dry_run || last.rotatable == 0 {
            break;
        }
    }
    if *dry_run {
        rotated = last.rotatable;
    }
    let verb = if *dry_run { "to rotate" } else { "rotated" };
    let current = last.current - if *dry_run { 0 } else { rotated.min(last.current) };
    let counts = format!(
        "{} businesses: {rotated} tokens {verb}, {current} encrypted with the new secret already, {} stored in the \
         clear, {} unreadable with either secret\n",
        last.businesses,
        last.plaintext,
        last.unreadable.len()
    );
    out.write_all(counts.as_bytes()).map_err(|e| format!("standard output: {e}"))?;
    let mut left: Vec<String> = last.unreadable.iter().take(NAMED_MAX).cloned().collect();
    if !*dry_run && last.rotatable > 0 {
        left.push(format!("{} tokens were changed by others meanwhile: run it again", last.rotatable));
    }
    if left.is_empty() { Ok(()) } else { Err(Failed::Other(left.join("\n"))) }
}

fn check(config: &config::Directory) -> Result<(), Failed> {
    let mut problems = Vec::new();
    let mut problem = |name: &str, what: &str| {
        problems.push(Problem { name: name.to_owned(), what: what.to_owned() });
    };
    match (&config.encryption_secret, &config.encryption_secret_old) {
        (Some(new), Some(old)) if new == old => {
            problem("ENCRYPTION_SECRET_OLD", "is the same as ENCRYPTION_SECRET; there is nothing to rotate");
        }
        (new, old) => {
            if new.is_none() {
                problem("ENCRYPTION_SECRET", "is not set; set it to the new secret");
            }
            if old.is_none() {
                problem("ENCRYPTION_SECRET_OLD", "is not set; set it to the secret that the tokens have now");
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failed::Config(problems)) }
}

#[derive(Default)]
struct Pass {
    businesses: usize,
    current: usize,
    rotatable: usize,
    swapped: usize,
    plaintext: usize,
    /// One line each.
    unreadable: Vec<String>,
}

/// Goes through all businesses once.
fn pass(store: &dyn Store, keys: &Keys, dry_run: bool) -> Result<Pass, Failed> {
    let mut pass = Pass::default();
    let mut swaps: Vec<Swap> = Vec::new();
    let mut failed = None;
    let walked = all(store, |record| {
        pass.businesses += 1;
        look(&record, keys, &mut pass, &mut swaps);
        if dry_run {
            swaps.clear();
        } else if swaps.len() >= STEP {
            match store.swap_tokens(std::mem::take(&mut swaps)) {
                Ok(swapped) => pass.swapped += swapped,
                Err(error) => failed = Some(error),
            }
        }
        failed.is_none()
    });
    let last = match walked.err().or(failed) {
        Some(error) => Err(error),
        None if swaps.is_empty() => Ok(0),
        None => store.swap_tokens(swaps),
    };
    match last {
        Ok(swapped) => {
            pass.swapped += swapped;
            Ok(pass)
        }
        Err(error) => {
            let done = pass.swapped;
            // some of the step that failed may be stored too
            Err(Failed::Other(format!("{error}\n{done} tokens or more were rotated; run it again to go on")))
        }
    }
}

fn look(record: &Record, keys: &Keys, pass: &mut Pass, swaps: &mut Vec<Swap>) {
    for (field, stored) in
        [(TokenField::Access, &record.access_token), (TokenField::Refresh, &record.refresh_token)]
    {
        let which = match field {
            TokenField::Access => ("access", "whatsappAccessToken"),
            TokenField::Refresh => ("refresh", "whatsappRefreshToken"),
        };
        // what was not read as it is stored can't be rotated, and may be open to the old secret
        if let Some(fault) = record.fault.as_ref().filter(|fault| fault.contains(which.1)) {
            pass.unreadable.push(format!("left as it is: {}", fault.escape_debug()));
            continue;
        }
        let Some(stored) = stored else { continue };
        match keys.rotate(stored) {
            Rotated::Current => pass.current += 1,
            Rotated::Plaintext => pass.plaintext += 1,
            Rotated::To(to) => {
                pass.rotatable += 1;
                swaps.push(Swap { id: record.id.clone(), field, from: stored.clone(), to });
            }
            Rotated::Unreadable => {
                let name = record.sub_domain.escape_debug();
                pass.unreadable.push(format!("business {name}: neither secret opens its {} token", which.0));
            }
        }
    }
}
