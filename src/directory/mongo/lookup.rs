//! The questions: the original's query by number, by subdomain, and pages of the whole collection.

use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, Result};
use mongodb::sync::Collection;

use super::READ_WITHIN;
use super::fields::{self, projection};
use super::found;
use crate::directory::store::{CLAIMANTS_MAX, Page, Record};

/// BSON types in the order in which `_id`s of different types are sorted.
/// Source: <https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/>.
const ID_TYPES: [&[&str]; 7] = [
    &["double", "int", "long", "decimal"],
    &["string"],
    &["object"],
    &["binData"],
    &["objectId"],
    &["bool"],
    &["date", "timestamp"],
];

/// The live businesses that list the number, by the original's query; if there are none, those that list it
/// at all, so that a disabled business is told from an unknown one. A few are enough to know that it is claimed
/// twice.
pub fn by_number(businesses: &Collection<Document>, number: &str) -> Result<Vec<Record>> {
    let live = doc! { "whatsappPhoneNumberIds": number, "whatsappEnabled": true, "isActive": true };
    let found = find(businesses, live, CLAIMANTS_MAX)?;
    if !found.is_empty() {
        return Ok(found);
    }
    // one who stored it as a number is told so, and not that nobody has it
    let mut forms = vec![Bson::String(number.to_owned())];
    forms.extend(number.parse().map(Bson::Int64));
    find(businesses, doc! { "whatsappPhoneNumberIds": { "$in": forms } }, CLAIMANTS_MAX)
}

/// Those of the subdomain, active or not.
pub fn by_subdomain(businesses: &Collection<Document>, sub_domain: &str) -> Result<Vec<Record>> {
    find(businesses, doc! { "subDomain": sub_domain }, CLAIMANTS_MAX)
}

fn find(businesses: &Collection<Document>, filter: Document, limit: usize) -> Result<Vec<Record>> {
    let found =
        businesses.find(filter).projection(projection()).limit(limit as i64).max_time(READ_WITHIN).run()?;
    Ok(found::all(found)?.iter().map(fields::record).collect())
}

/// The next `limit` in the order of `_id`, after the one that `from` stands for.
pub fn page(businesses: &Collection<Document>, from: Option<&str>, limit: usize) -> Result<Page> {
    let filter = match from.and_then(fields::unpacked) {
        Some(id) => after_id(&id),
        None => doc! {},
    };
    let found = businesses
        .find(filter)
        .projection(projection())
        .sort(doc! { "_id": 1 })
        .limit(limit as i64)
        .max_time(READ_WITHIN)
        .run()?;
    let documents = found::all(found)?;
    let records = documents.iter().map(fields::record).collect();
    if documents.len() < limit {
        return Ok(Page { records, next: None });
    }
    // an `_id` that is not UTF-8 can't be asked for: those after the last one that can come once more
    let last = documents.iter().rev().find_map(|found| found.document.get("_id"));
    match last {
        Some(last) => Ok(Page { records, next: Some(fields::packed(last)) }),
        None => Err(Error::custom("hundreds of documents have an _id that is not UTF-8")),
    }
}

/// `$gt` finds values of the same type only; those of the types that sort later come after them.
fn after_id(id: &Bson) -> Document {
    let name = match id {
        Bson::Double(_) | Bson::Int32(_) | Bson::Int64(_) | Bson::Decimal128(_) => "int",
        Bson::String(_) => "string",
        Bson::Document(_) => "object",
        Bson::Binary(_) => "binData",
        Bson::ObjectId(_) => "objectId",
        Bson::Boolean(_) => "bool",
        _ => "date",
    };
    let own = ID_TYPES.iter().position(|types| types.contains(&name)).unwrap_or(ID_TYPES.len() - 1);
    let later = ID_TYPES[own + 1..].iter().flat_map(|types| types.iter());
    let mut ways = vec![doc! { "_id": { "$gt": id } }];
    ways.extend(later.map(|name| doc! { "_id": { "$type": *name } }));
    doc! { "$or": ways }
}

/// The least that reading needs: a connection, the right to read.
pub fn check(businesses: &Collection<Document>) -> Result<()> {
    let mut first =
        businesses.find(doc! {}).projection(doc! { "_id": 1 }).limit(1).max_time(READ_WITHIN).run()?;
    first.advance().map(drop)
}
