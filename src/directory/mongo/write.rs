//! The changes: add or replace, remove, tokens in place of others. Each can be done twice without harm, so each is
//! tried again where nobody knows whether it was done.
//!
//! There is no transaction: a standalone server has none. Everything is checked before the first write; a failure
//! in the middle leaves the businesses before it written, says so, and running it again completes it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use mongodb::bson::{Bson, Document, doc};
use mongodb::error::Result;
use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::sync::Collection;

use super::client::Calls;
use super::fields::{changed_fields, fields, ids_of, new_id, projection};
use super::found::{self, Found};
use super::{READ_WITHIN, error, safely_written};
use crate::directory::store::{Claim, Record, StoreError, Swap, TokenField};

/// Businesses that are read or written in one step.
const STEP: usize = 100;
/// Tokens that are stored in one step, which has one deadline: each is an update of its own, and a server that has
/// other things to do takes a second for it.
const SWAPS_STEP: usize = 10;

/// One document to be written.
#[derive(Clone)]
enum Change {
    Insert(Document),
    /// `_id`, and the fields that change.
    Set(Bson, Document),
}

/// See [`crate::directory::store::Store::upsert`].
pub fn upsert(calls: &Calls, records: Vec<Record>) -> std::result::Result<(), StoreError> {
    let mut changes: Vec<Change> = Vec::new();
    for step in records.chunks(STEP) {
        changes.extend(plan(calls, step)?);
    }
    refuse_claims(calls, &records)?;
    let total = changes.len();
    let mut written = 0;
    for step in changes.chunks(STEP) {
        let step = step.to_vec();
        let size = step.len();
        let is_begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&is_begun);
        let done = calls.write(move |database| apply(&safely_written(database), &step, &begins));
        done.map_err(|error| match error {
            StoreError::Unavailable(detail) if written > 0 || is_begun.load(Relaxed) => {
                StoreError::Unknown(format!("{detail}; {written} or more of {total} businesses are written"))
            }
            other => other,
        })?;
        written += size;
    }
    Ok(())
}

fn plan(calls: &Calls, records: &[Record]) -> std::result::Result<Vec<Change>, StoreError> {
    let names: Vec<String> = records.iter().map(|record| record.sub_domain.clone()).collect();
    let ids: Vec<Bson> = records.iter().filter(|r| !r.id.is_empty()).map(|r| new_id(&r.id)).collect();
    let found = calls.read(move |database| {
        let businesses = database.collection(super::COLLECTION);
        let same = find(&businesses, doc! { "subDomain": { "$in": &names } })?;
        Ok((same, find(&businesses, doc! { "_id": { "$in": &ids } })?))
    })?;
    let mut by_name: HashMap<String, Found> = HashMap::new();
    for one in found.0 {
        refuse_broken_id(&one)?;
        let name = one.document.get_str("subDomain").unwrap_or_default().to_owned();
        if by_name.insert(name.clone(), one).is_some() {
            return Err(StoreError::Refused(format!(
                "two documents have the subDomain {name:?}; remove one of them"
            )));
        }
    }
    let taken = |id: &Bson| found.1.iter().any(|one| one.document.get("_id") == Some(id));
    let changes = records.iter().filter_map(|record| {
        if let Some(one) = by_name.get(&record.sub_domain) {
            let changed = changed_fields(one, record);
            let id = one.document.get("_id").cloned().unwrap_or(Bson::Null);
            return (!changed.is_empty()).then_some(Change::Set(id, changed));
        }
        let own = new_id(&record.id);
        let mut document = doc! { "_id": if taken(&own) { new_id("") } else { own } };
        document.extend(fields(record));
        Some(Change::Insert(document))
    });
    Ok(changes.collect())
}

/// Reads for a decision: from the primary.
fn find(businesses: &Collection<Document>, filter: Document) -> Result<Vec<Found>> {
    let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
    let found = businesses.find(filter).projection(projection()).selection_criteria(primary);
    found::all(found.max_time(READ_WITHIN).run()?)
}

/// No filter can name it, so it can't be changed from here.
fn refuse_broken_id(found: &Found) -> std::result::Result<(), StoreError> {
    match &found.broken_id {
        None => Ok(()),
        Some(id) => Err(StoreError::Refused(format!("a document has the _id {id:?}, which is not UTF-8"))),
    }
}

/// Refuses numbers that two live businesses would have: two of `records`, or one of them and another that is there.
fn refuse_claims(calls: &Calls, records: &[Record]) -> std::result::Result<(), StoreError> {
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.is_live()) {
        for number in &record.phone_number_ids {
            let of_number = owners.entry(number).or_default();
            if !of_number.contains(&record.sub_domain) {
                of_number.push(record.sub_domain.clone());
            }
        }
    }
    let numbers: Vec<String> = owners.keys().map(|number| (*number).to_owned()).collect();
    for step in numbers.chunks(STEP) {
        let step = step.to_vec();
        let live = calls.read(move |database| {
            let numbers = doc! { "$in": &step };
            let filter =
                doc! { "whatsappPhoneNumberIds": numbers, "whatsappEnabled": true, "isActive": true };
            find(&database.collection(super::COLLECTION), filter)
        })?;
        for Found { document, .. } in live {
            let name = document.get_str("subDomain").unwrap_or_default();
            if records.iter().any(|record| record.sub_domain == name) {
                continue;
            }
            for number in document.get_array("whatsappPhoneNumberIds").into_iter().flatten() {
                if let Some(of_number) = number.as_str().and_then(|number| owners.get_mut(number)) {
                    of_number.push(name.to_owned());
                }
            }
        }
    }
    let claimed = owners.into_iter().filter(|(_, names)| names.len() > 1);
    let claims: Vec<Claim> = claimed
        .map(|(number, mut sub_domains)| {
            sub_domains.sort();
            Claim { phone_number_id: number.to_owned(), sub_domains }
        })
        .collect();
    if claims.is_empty() { Ok(()) } else { Err(StoreError::Claimed(claims)) }
}

/// A document of a new `_id` that is there already was inserted by an attempt that did not hear its answer.
/// `is_begun`: something of it is written.
fn apply(businesses: &Collection<Document>, changes: &[Change], is_begun: &AtomicBool) -> Result<()> {
    let inserts: Vec<&Document> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Insert(document) => Some(document),
            Change::Set(..) => None,
        })
        .collect();
    if !inserts.is_empty() {
        match businesses.insert_many(inserts).ordered(false).run() {
            Err(error) if !error::is_duplicate_only(&error) => return Err(error),
            Ok(_) | Err(_) => is_begun.store(true, Relaxed),
        }
    }
    for change in changes {
        if let Change::Set(id, changed) = change {
            businesses.update_one(doc! { "_id": id }, doc! { "$set": changed }).run()?;
            is_begun.store(true, Relaxed);
        }
    }
    Ok(())
}

/// See [`crate::directory::store::Store::remove`].
pub fn remove(calls: &Calls, sub_domain: &str) -> std::result::Result<bool, StoreError> {
    let name = sub_domain.to_owned();
    let found = calls
        .read(move |database| find(&database.collection(super::COLLECTION), doc! { "subDomain": &name }))?;
    found.iter().try_for_each(refuse_broken_id)?;
    let ids: Vec<Bson> = found.iter().filter_map(|one| one.document.get("_id").cloned()).collect();
    if ids.is_empty() {
        return Ok(false);
    }
    calls.write(move |database| {
        let businesses = safely_written(database);
        for id in &ids {
            businesses.delete_one(doc! { "_id": id }).run()?;
        }
        Ok(true)
    })
}

/// See [`crate::directory::store::Store::swap_tokens`]. A token that another program replaced meanwhile stays
/// that program's.
pub fn swap_tokens(calls: &Calls, swaps: Vec<Swap>) -> std::result::Result<usize, StoreError> {
    let mut swapped = 0;
    for step in swaps.chunks(SWAPS_STEP) {
        let step = step.to_vec();
        swapped += calls.write(move |database| {
            let businesses = safely_written(database);
            let mut matched = 0;
            for swap in &step {
                let field = match swap.field {
                    TokenField::Access => "whatsappAccessToken",
                    TokenField::Refresh => "whatsappRefreshToken",
                };
                let filter = doc! { "_id": { "$in": ids_of(&swap.id) }, field: swap.from.reveal() };
                let set = doc! { "$set": { field: swap.to.reveal() } };
                matched += businesses.update_one(filter, set).run()?.matched_count as usize;
            }
            Ok(matched)
        })?;
    }
    Ok(swapped)
}
