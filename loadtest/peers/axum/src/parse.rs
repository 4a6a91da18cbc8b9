//! The envelope into items: a key for each message and status.

use std::borrow::Cow;

use serde::Deserialize;
use xxhash_rust::xxh3::Xxh3;

use crate::store::{Index, Key};

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    entry: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    changes: Vec<Change<'a>>,
}

#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    value: Value<'a>,
}

#[derive(Deserialize)]
struct Value<'a> {
    #[serde(borrow)]
    metadata: Option<Metadata<'a>>,
    #[serde(borrow, default)]
    messages: Vec<Item<'a>>,
    #[serde(borrow, default)]
    statuses: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    phone_number_id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow, default)]
    status: Cow<'a, str>,
}

/// The keys of all messages and statuses in a body; `None`: not understood.
pub fn items(body: &[u8], index: Index) -> Option<Vec<Key>> {
    let envelope: Envelope<'_> = sonic_rs::from_slice(body).ok()?;
    let mut keys = Vec::with_capacity(1);
    for value in envelope.entry.iter().flat_map(|entry| &entry.changes).map(|change| &change.value) {
        let phone = value.metadata.as_ref().map_or("", |metadata| &metadata.phone_number_id);
        for item in value.messages.iter().chain(&value.statuses) {
            keys.push(key(phone, item, index)?);
        }
    }
    Some(keys)
}

fn key(phone: &str, item: &Item<'_>, index: Index) -> Option<Key> {
    Some(match index {
        Index::Items => Key::Item {
            phone: phone.to_owned(),
            wamid: item.id.clone().into(),
            status: item.status.clone().into(),
        },
        Index::Hash => {
            let mut hash = Xxh3::new();
            for part in [phone, &item.id, &item.status] {
                hash.update(part.as_bytes());
                hash.update(&[0]);
            }
            Key::Hash { timestamp: item.timestamp.parse().ok()?, hash: hash.digest() as i64 }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[{"value":{
        "metadata":{"phone_number_id":"7"},"messages":[{"id":"wamid.1","timestamp":"5","from":"49"}],
        "statuses":[{"id":"wamid.2","timestamp":"6","status":"read"}]},"field":"messages"}]}]}"#;

    #[test]
    fn messages_and_statuses_have_keys() {
        let keys = items(BODY, Index::Items).expect("understood");
        let item = |wamid: &str, status: &str| Key::Item {
            phone: "7".into(),
            wamid: wamid.into(),
            status: status.into(),
        };
        assert_eq!(keys, [item("wamid.1", ""), item("wamid.2", "read")]);
        let keys = items(BODY, Index::Hash).expect("understood");
        assert!(matches!(keys[..], [Key::Hash { timestamp: 5, .. }, Key::Hash { timestamp: 6, .. }]));
        assert_ne!(keys[0], keys[1]);
        assert_eq!(items(b"{", Index::Hash), None);
    }
}
