//! A document as it came, whatever is in it: the server checks neither UTF-8 nor anything else, and one broken text
//! must not cost the answer that it stands in.
//!
//! What can be read is in [`Found::document`]; what can't is named in [`Found::faults`], so that it becomes the fault
//! of that one business.

use mongodb::bson::raw::RawElement;
use mongodb::bson::{Bson, Document, RawArray, RawBsonRef, RawDocument};
use mongodb::error::Result;
use mongodb::sync::Cursor;

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Its fields. A text that is not UTF-8 has U+FFFD in it, an array only the entries that can be read; an `_id`
    /// that can't be read is not there, since nothing finds it again.
    pub document: Document,
    /// The fields that can't be read as they are, each with what is wrong.
    pub faults: Vec<String>,
    /// `_id` for a message, where [`Found::document`] has none.
    pub broken_id: Option<String>,
}

impl From<Document> for Found {
    fn from(document: Document) -> Self {
        Self { document, ..Self::default() }
    }
}

/// All documents of the cursor.
pub fn all(mut cursor: Cursor<Document>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    while cursor.advance()? {
        found.push(read(cursor.current()));
    }
    Ok(found)
}

/// Reads what can be read.
pub fn read(raw: &RawDocument) -> Found {
    let mut found = Found::default();
    for element in raw.iter_elements() {
        let Ok(element) = element else {
            found.faults.push("what follows in it can't be read".to_owned());
            break;
        };
        let name = element.key().as_str();
        let (value, fault) = value(&element);
        if let Some(fault) = fault {
            found.faults.push(format!("{name} {fault}"));
            if name == "_id" {
                found.broken_id = Some(value.as_str().unwrap_or("(not readable)").to_owned());
                continue;
            }
        }
        found.document.insert(name, value);
    }
    found
}

const NOT_UTF8: &str = "is not UTF-8";

fn value(element: &RawElement<'_>) -> (Bson, Option<&'static str>) {
    let raw = element.value();
    if let Ok(value) = raw.clone().and_then(Bson::try_from) {
        return (value, None);
    }
    if let Ok(RawBsonRef::Array(entries)) = raw {
        return readable(entries);
    }
    match element.value_utf8_lossy().and_then(Bson::try_from) {
        Ok(value @ Bson::String(_)) => (value, Some(NOT_UTF8)),
        _ => (Bson::Undefined, Some("holds what can't be read")),
    }
}

/// The entries that can be read: they still claim their numbers.
fn readable(entries: &RawArray) -> (Bson, Option<&'static str>) {
    let mut values = Vec::new();
    let mut fault = "has an entry that is not UTF-8";
    for element in entries.iter_elements() {
        let Ok(element) = element else {
            fault = "has entries that can't be read";
            break;
        };
        if let Ok(value) = element.value().and_then(Bson::try_from) {
            values.push(value);
        }
    }
    (Bson::Array(values), Some(fault))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;

    /// The document with every `#` made a byte that UTF-8 doesn't have.
    fn broken(document: &Document) -> RawDocumentBuf {
        let mut bytes = document.to_vec().expect("written");
        bytes.iter_mut().filter(|byte| **byte == b'#').for_each(|byte| *byte = 0xFF);
        RawDocumentBuf::from_bytes(bytes).expect("lengths are right")
    }

    #[test]
    fn one_broken_text_is_named_and_the_rest_is_read() {
        let document = doc! {
            "_id": 7, "subDomain": "caf#", "whatsappPhoneNumberIds": ["106", "1#7", "108"],
            "name": { "inner": "#" }, "whatsappEnabled": true,
        };
        let found = read(&broken(&document));
        assert_eq!(found.document.get_str("subDomain").ok(), Some("caf\u{fffd}"));
        let numbers = found.document.get_array("whatsappPhoneNumberIds").expect("an array");
        assert_eq!(*numbers, ["106".into(), Bson::from("108")]);
        assert_eq!(found.document.get_bool("whatsappEnabled").ok(), Some(true));
        let expected = [
            "subDomain is not UTF-8",
            "whatsappPhoneNumberIds has an entry that is not UTF-8",
            "name holds what can't be read",
        ];
        assert_eq!(found.faults, expected);
        let found = read(&broken(&doc! { "_id": "a#", "name": "x" }));
        assert_eq!((found.broken_id.as_deref(), found.document.len()), (Some("a\u{fffd}"), 1));
        let whole = doc! { "_id": 7, "name": "é" };
        let found = read(&broken(&whole));
        assert!(found.document == whole && found.faults.is_empty());
    }

    #[test]
    fn bytes_that_make_no_sense_are_a_fault_and_no_panic() {
        let bytes = doc! { "_id": 7, "name": "shop", "isActive": true }.to_vec().expect("written");
        for at in 4..bytes.len() - 1 {
            for byte in [0, 1, 2, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = byte;
                if let Ok(raw) = RawDocumentBuf::from_bytes(bytes) {
                    let _ = read(&raw);
                }
            }
        }
    }
}
