//! A document of `businesses` as a record, and a record as a document's fields. Pure.
//!
//! Other programs write these documents. A field that is missing, of another type, or too large is named with
//! the document's `_id`, and such a business is answered for by nobody; its neighbours are not touched by it.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};

use super::found::Found;
use crate::directory::store::{NUMBERS_MAX, Record, TEXT_MAX};
use crate::secret::Secret;

/// The longest stored token, in bytes. An access token of 400 characters takes about 1,300; refresh tokens, which nobody
/// here uses, are longer.
pub const TOKEN_TEXT_MAX: usize = 16 << 10;

const PACKED: &str = "bson:";
/// Characters of an `_id` that a message shows.
const ID_SHOWN: usize = 100;

/// The fields that are read: the original's, and ours (`metaApp`) besides the two that say who is answered for.
pub fn projection() -> Document {
    doc! {
        "_id": 1, "name": 1, "subDomain": 1, "wabaId": 1, "whatsappPhoneNumberIds": 1,
        "whatsappAccessToken": 1, "whatsappRefreshToken": 1, "whatsappTokenExpiresAt": 1,
        "whatsappEnabled": 1, "isActive": 1, "metaApp": 1,
    }
}

/// The record, with what is wrong in its `fault`.
pub fn record(found: &Found) -> Record {
    let document = &found.document;
    let mut reader = Reader { document, faults: found.faults.clone() };
    let sub_domain = match reader.text("subDomain") {
        Some(text) => text,
        None => {
            reader.fault("subDomain", "is missing");
            String::new()
        }
    };
    if matches!(document.get_str("subDomain"), Ok("")) {
        reader.fault("subDomain", "is empty");
    }
    let mut record = Record {
        id: match &found.broken_id {
            Some(shown) => shown.clone(),
            None => document.get("_id").map_or_else(String::new, id_text),
        },
        name: reader.text("name").unwrap_or_else(|| sub_domain.clone()),
        sub_domain,
        waba_id: reader.text("wabaId").unwrap_or_default(),
        phone_number_ids: reader.numbers(),
        access_token: reader.token("whatsappAccessToken"),
        refresh_token: reader.token("whatsappRefreshToken"),
        token_expires_at: reader.moment("whatsappTokenExpiresAt"),
        enabled: reader.flag("whatsappEnabled"),
        active: reader.flag("isActive"),
        meta_app: reader.text("metaApp").filter(|app| !app.is_empty()),
        fault: None,
    };
    if !reader.faults.is_empty() {
        let id: String = record.id.chars().take(ID_SHOWN).collect();
        record.fault = Some(format!("document with _id {id}: {}", reader.faults.join("; ")));
    }
    record
}

struct Reader<'a> {
    document: &'a Document,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn fault(&mut self, field: &str, what: &str) {
        self.faults.push(format!("{field} {what}"));
    }

    fn token(&mut self, field: &str) -> Option<Secret> {
        self.text_up_to(TOKEN_TEXT_MAX, field).filter(|text| !text.is_empty()).map(Secret::new)
    }

    fn text(&mut self, field: &str) -> Option<String> {
        self.text_up_to(TEXT_MAX, field)
    }

    /// `None` for one that is missing or null.
    fn text_up_to(&mut self, max: usize, field: &str) -> Option<String> {
        match self.document.get(field)? {
            Bson::Null => None,
            Bson::String(text) if text.len() <= max => Some(text.clone()),
            Bson::String(text) => {
                self.fault(field, &format!("has {} bytes, more than {max}", text.len()));
                Some(String::new())
            }
            other => {
                let what = format!("is {}, not a string", kind(other));
                self.fault(field, &what);
                Some(String::new())
            }
        }
    }

    fn flag(&mut self, field: &str) -> bool {
        match self.document.get(field) {
            Some(Bson::Boolean(flag)) => *flag,
            None | Some(Bson::Null) => false,
            Some(other) => {
                let what = format!("is {}, not true or false", kind(other));
                self.fault(field, &what);
                false
            }
        }
    }

    fn numbers(&mut self) -> Vec<String> {
        let field = "whatsappPhoneNumberIds";
        let numbers = match self.document.get(field) {
            Some(Bson::Array(numbers)) => numbers,
            None | Some(Bson::Null) => return Vec::new(),
            Some(other) => {
                let what = format!("is {}, not an array of strings", kind(other));
                self.fault(field, &what);
                return Vec::new();
            }
        };
        if numbers.len() > NUMBERS_MAX {
            self.fault(field, &format!("has {} entries, more than {NUMBERS_MAX}", numbers.len()));
        }
        // what is right of a wrong array still claims its numbers, and one wrong entry is told of all
        let is_right = |number: &&Bson| number.as_str().is_some_and(|text| text.len() <= TEXT_MAX);
        match numbers.iter().find(|number| !is_right(number)) {
            None => {}
            Some(Bson::String(_)) => self.fault(field, "has an entry that is too long"),
            Some(other) => {
                let what = format!("has an entry that is {}, not a string", kind(other));
                self.fault(field, &what);
            }
        }
        numbers.iter().filter(is_right).filter_map(Bson::as_str).map(str::to_owned).collect()
    }

    /// A date as RFC 3339 text; a text as it is.
    fn moment(&mut self, field: &str) -> Option<String> {
        match self.document.get(field) {
            Some(Bson::DateTime(at)) => {
                Some(at.try_to_rfc3339_string().unwrap_or_else(|_| at.timestamp_millis().to_string()))
            }
            Some(Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_)) => {
                self.fault(field, "is a number, not a date");
                None
            }
            _ => self.text(field).filter(|text| !text.is_empty()),
        }
    }
}

fn kind(value: &Bson) -> &'static str {
    match value {
        Bson::Double(_) | Bson::Int32(_) | Bson::Int64(_) | Bson::Decimal128(_) => "a number",
        Bson::String(_) => "a string",
        Bson::Array(_) => "an array",
        Bson::Document(_) => "an object",
        Bson::Boolean(_) => "true or false",
        Bson::DateTime(_) => "a date",
        Bson::ObjectId(_) => "an ObjectId",
        Bson::Null => "null",
        _ => "of another type",
    }
}

/// An ObjectId in hex, a string as it is; anything else as [`packed`].
pub fn id_text(id: &Bson) -> String {
    match id {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(id) => id.chars().take(TEXT_MAX).collect(),
        other => packed(other),
    }
}

/// Ids that [`id_text`] may have come from, for a filter with `$in`.
pub fn ids_of(text: &str) -> Vec<Bson> {
    let mut ids = vec![Bson::String(text.to_owned())];
    ids.extend(ObjectId::parse_str(text).map(Bson::ObjectId));
    ids.extend(unpacked(text));
    ids
}

/// An `_id` of any type as text: `bson:` and the hex of a document that holds it.
pub fn packed(id: &Bson) -> String {
    let bytes = doc! { "_id": id }.to_vec().unwrap_or_default();
    format!("{PACKED}{}", hex::encode(bytes))
}

/// What [`packed`] made it of.
pub fn unpacked(text: &str) -> Option<Bson> {
    let bytes = hex::decode(text.strip_prefix(PACKED)?).ok()?;
    Document::from_reader(&*bytes).ok()?.remove("_id")
}

/// The `_id` for a new document: the record's own as an ObjectId if it is one, as a string if it is not.
pub fn new_id(text: &str) -> Bson {
    if text.is_empty() {
        return Bson::ObjectId(ObjectId::new());
    }
    ObjectId::parse_str(text).map_or_else(|_| Bson::String(text.to_owned()), Bson::ObjectId)
}

/// Every field of the record but `_id`.
pub fn fields(record: &Record) -> Document {
    let mut document = doc! {
        "name": &record.name,
        "subDomain": &record.sub_domain,
        "wabaId": &record.waba_id,
        "whatsappPhoneNumberIds": &record.phone_number_ids,
        "whatsappAccessToken": record.access_token.as_ref().map(Secret::reveal),
        "whatsappRefreshToken": record.refresh_token.as_ref().map(Secret::reveal),
        "whatsappTokenExpiresAt": record.token_expires_at.as_deref().map(moment),
        "whatsappEnabled": record.enabled,
        "isActive": record.active,
    };
    if let Some(app) = &record.meta_app {
        document.insert("metaApp", app);
    }
    document
}

/// The fields in which `wanted` differs from what the document says now; a field of another form but the same
/// meaning stays as it is.
pub fn changed_fields(found: &Found, wanted: &Record) -> Document {
    let now = record(found);
    let mut changed = fields(wanted);
    if now.meta_app.is_some() && wanted.meta_app.is_none() {
        changed.insert("metaApp", Bson::Null);
    }
    if now.fault.is_some() {
        return changed;
    }
    let same = [
        ("name", now.name == wanted.name),
        ("subDomain", now.sub_domain == wanted.sub_domain),
        ("wabaId", now.waba_id == wanted.waba_id),
        ("whatsappPhoneNumberIds", now.phone_number_ids == wanted.phone_number_ids),
        ("whatsappAccessToken", now.access_token == wanted.access_token),
        ("whatsappRefreshToken", now.refresh_token == wanted.refresh_token),
        ("whatsappTokenExpiresAt", now.token_expires_at == wanted.token_expires_at),
        ("whatsappEnabled", now.enabled == wanted.enabled),
        ("isActive", now.active == wanted.active),
        ("metaApp", now.meta_app == wanted.meta_app),
    ];
    for (field, _) in same.iter().filter(|(_, is_same)| *is_same) {
        changed.remove(field);
    }
    changed
}

fn moment(text: &str) -> Bson {
    DateTime::parse_rfc3339_str(text).map_or_else(|_| Bson::String(text.to_owned()), Bson::DateTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Document {
        doc! {
            "_id": ObjectId::parse_str("65f000000000000000000001").expect("hex"),
            "name": "Shop", "subDomain": "shop", "wabaId": "1", "whatsappPhoneNumberIds": ["106", "107"],
            "whatsappAccessToken": "abcd", "whatsappRefreshToken": Bson::Null,
            "whatsappTokenExpiresAt": DateTime::from_millis(1_800_000_000_000),
            "whatsappEnabled": true, "isActive": true, "createdAt": DateTime::from_millis(0), "__v": 3,
        }
    }

    #[test]
    fn a_document_is_read_and_written_back_the_same() {
        let record = record(&shop().into());
        assert_eq!(record.fault, None);
        assert_eq!(record.id, "65f000000000000000000001");
        assert_eq!(record.token_expires_at.as_deref(), Some("2027-01-15T08:00:00Z"));
        let written = fields(&record);
        for (field, value) in &written {
            assert_eq!(Some(value), shop().get(field), "{field}");
        }
        assert!(changed_fields(&shop().into(), &record).is_empty());
        let mut other = record;
        other.enabled = false;
        assert_eq!(changed_fields(&shop().into(), &other), doc! { "whatsappEnabled": false });
    }

    #[test]
    fn every_bad_field_is_named_with_the_id_and_without_its_value() {
        for (field, value, word) in [
            ("subDomain", Bson::Null, "missing"),
            ("subDomain", Bson::Int32(1), "a number"),
            ("subDomain", Bson::String(String::new()), "empty"),
            ("name", Bson::Array(Vec::new()), "an array"),
            ("wabaId", Bson::Int64(7), "a number"),
            ("whatsappPhoneNumberIds", Bson::String("106".into()), "a string"),
            ("whatsappPhoneNumberIds", Bson::Array(vec![Bson::Int64(106)]), "an entry that is a number"),
            ("whatsappAccessToken", Bson::Document(doc! { "SECRET": 1 }), "an object"),
            ("whatsappAccessToken", Bson::String("SECRET".repeat(3_000)), "more than"),
            ("whatsappEnabled", Bson::String("SECRET".into()), "a string"),
            ("isActive", Bson::Int32(1), "a number"),
            ("metaApp", Bson::Boolean(true), "true or false"),
            ("whatsappTokenExpiresAt", Bson::Int64(1), "not a date"),
        ] {
            let mut document = shop();
            document.insert(field, value);
            let fault = record(&document.clone().into()).fault.unwrap_or_default();
            assert!(fault.contains("65f000000000000000000001") && fault.contains(field), "{field}: {fault}");
            assert!(fault.contains(word) && !fault.contains("SECRET"), "{field}: {fault}");
        }
        let mut document = shop();
        let many = ["106".into(), Bson::Int64(1), Bson::Int64(2)].into_iter().cycle().take(30_000);
        document.insert("whatsappPhoneNumberIds", many.collect::<Vec<Bson>>());
        document.insert("_id", "x".repeat(50_000));
        let read = record(&document.clone().into());
        assert_eq!(read.phone_number_ids.len(), 10_000, "a wrong array claims its right numbers");
        let fault = read.fault.expect("wrong twice");
        assert!(
            fault.len() < 400 && fault.contains("30000 entries") && fault.contains("an entry that is"),
            "{fault}"
        );
        let mut document = shop();
        document.remove("name");
        assert_eq!(record(&document.clone().into()).fault, None, "a name is only shown");
    }

    #[test]
    fn an_id_of_any_type_finds_its_document_again() {
        for id in [
            Bson::ObjectId(ObjectId::new()),
            Bson::String("shop-1".into()),
            Bson::String("65f000000000000000000001".into()),
            Bson::Int32(5),
            Bson::Document(doc! { "a": 1 }),
        ] {
            assert!(ids_of(&id_text(&id)).contains(&id), "{id}");
        }
    }
}
