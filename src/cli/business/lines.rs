//! `business import|export`: the directory as JSON lines, one business each, tokens as stored.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};

use super::{printable, shortened};
use crate::directory::document::{self, LINE_MAX};
use crate::directory::lookup::ID_MAX;
use crate::directory::store::{NUMBERS_MAX, Record, Store, StoreError, TEXT_MAX, all};

/// Businesses that one import takes: it is one transaction, during which the service can't commit.
const IMPORT_MAX: usize = 10_000;
/// Windows writes it in front of a file.
const BOM: char = '\u{feff}';
/// Faults that one import names.
const FAULTS_MAX: usize = 100;

/// What [`import`] would refuse in the record. Whatever is answered for can be imported: others choose their names as
/// they like, where `business add` is strict.
fn check(record: &Record) -> Vec<String> {
    let mut faults = Vec::new();
    let is_text = |text: &str| text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    if record.sub_domain.is_empty() || !is_text(&record.sub_domain) {
        let shown = shortened(&record.sub_domain);
        faults.push(format!("subDomain {shown:?}: 1 to {TEXT_MAX} bytes, no control characters"));
    }
    let app = record.meta_app.as_deref().unwrap_or_default();
    for (field, text) in [("name", &*record.name), ("wabaId", &*record.waba_id), ("metaApp", app)] {
        if !is_text(text) {
            faults.push(format!("{field}: at most {TEXT_MAX} bytes, no control characters"));
        }
    }
    let numbers = &record.phone_number_ids;
    if numbers.len() > NUMBERS_MAX {
        faults.push(format!("whatsappPhoneNumberIds: at most {NUMBERS_MAX} for a business"));
    }
    let is_id = |number: &&String| number.len() <= ID_MAX && is_text(number);
    if let Some(number) = numbers.iter().find(|number| !is_id(number)) {
        let shown = shortened(number);
        faults
            .push(format!("whatsappPhoneNumberIds {shown:?}: at most {ID_MAX} bytes, no control characters"));
    }
    faults
}

/// Writes all that [`import`] takes. Documents that have a fault are left out and named: then it failed.
pub fn export(store: &dyn Store, out: &mut dyn Write) -> Result<(), String> {
    let mut written = Ok(());
    let mut faults = Vec::new();
    all(store, |record| {
        let refused = check(&record);
        match &record.fault {
            Some(fault) => faults.push(format!("left out: {}", printable(fault))),
            None if refused.is_empty() => written = writeln!(out, "{}", document::to_line(&record)),
            None => faults.push(format!("left out: _id {}: {}", printable(&record.id), refused.join("; "))),
        }
        written.is_ok()
    })
    .map_err(|e| e.to_string())?;
    written.and_then(|()| out.flush()).map_err(|e| format!("standard output: {e}"))?;
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// All or nothing: half of an import would be answered with, the other half not, and nobody would know which.
pub fn import(store: &dyn Store, input: &mut dyn Read) -> Result<String, String> {
    let mut records: Vec<Record> = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut faults: Vec<String> = Vec::new();
    let mut reader = BufReader::new(input);
    for number in 1.. {
        let Some(line) = next_line(&mut reader)? else { break };
        if faults.len() >= FAULTS_MAX {
            faults.push(format!("line {number}: stopped here, too many faults"));
            break;
        }
        if records.len() >= IMPORT_MAX {
            faults.push(format!("line {number}: at most {IMPORT_MAX} businesses at once; split the file"));
            break;
        }
        match line {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => match document::from_line(line.trim_start_matches(BOM)) {
                Ok(record) => {
                    faults.extend(check(&record).into_iter().map(|fault| format!("line {number}: {fault}")));
                    if let Some(earlier) = lines.insert(record.sub_domain.clone(), number) {
                        faults.push(format!("line {number}: the same subdomain as line {earlier}"));
                    }
                    records.push(record);
                }
                Err(fault) => faults.push(format!("line {number}: {fault}")),
            },
            Err(fault) => faults.push(format!("line {number}: {fault}")),
        }
    }
    if !faults.is_empty() {
        return Err(format!("{}\nnothing was imported", faults.join("\n")));
    }
    let (count, live) = (records.len(), records.iter().filter(|record| record.is_live()).count());
    store.upsert(records).map_err(|e| match e {
        StoreError::Unknown(_) => format!("{e}\nit may be imported in part: run the same import again"),
        StoreError::Unavailable(_) | StoreError::Claimed(_) | StoreError::Refused(_) => {
            format!("{e}\nnothing was imported")
        }
    })?;
    Ok(format!("imported {count} businesses, {live} of them enabled and active\n"))
}

type Line = Result<zeroize::Zeroizing<String>, &'static str>;

/// `None` at the end; the inner error is a line that can't be taken, after which the next one can be read.
fn next_line(reader: &mut dyn BufRead) -> Result<Option<Line>, String> {
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    let mut is_too_long = false;
    loop {
        let buffer = reader.fill_buf().map_err(|e| format!("standard input: {e}"))?;
        if buffer.is_empty() && bytes.is_empty() && !is_too_long {
            return Ok(None);
        }
        let end = buffer.iter().position(|b| *b == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        is_too_long |= bytes.len() + part.len() > LINE_MAX;
        if !is_too_long {
            bytes.extend_from_slice(part);
        }
        let (used, is_end) = (part.len() + usize::from(end.is_some()), end.is_some() || buffer.is_empty());
        reader.consume(used);
        if is_end {
            break;
        }
    }
    if is_too_long {
        return Ok(Some(Err("longer than 256 KiB")));
    }
    Ok(Some(match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(zeroize::Zeroizing::new(text)),
        Err(_) => Err("not UTF-8"),
    }))
}
