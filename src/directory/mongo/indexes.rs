//! The two indexes that lookups need, under the original's names.

use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{ErrorKind, Result};
use mongodb::options::IndexOptions;
use mongodb::sync::Collection;

use crate::directory::store::IndexState;

/// The collection isn't there yet.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// An index of that name or with these keys is there with other options.
const CONFLICTS: [i32; 2] = [85, 86];

fn wanted() -> [(&'static str, Document); 2] {
    [
        ("webhook_lookup_idx", doc! { "whatsappPhoneNumberIds": 1, "whatsappEnabled": 1, "isActive": 1 }),
        ("subdomain_lookup_idx", doc! { "subDomain": 1, "isActive": 1 }),
    ]
}

/// Makes those that are missing. One of the same name that differs is left alone and shown.
pub fn ensure(businesses: &Collection<Document>) -> Result<Vec<(&'static str, IndexState)>> {
    let there = existing(businesses)?;
    let mut states = Vec::new();
    for (name, keys) in wanted() {
        let state = match state(&there, name, &keys) {
            Some(state) => state,
            None => create(businesses, name, keys)?,
        };
        states.push((name, state));
    }
    Ok(states)
}

/// Which of them are there; changes nothing.
pub fn look(businesses: &Collection<Document>) -> Result<Vec<(&'static str, Option<IndexState>)>> {
    let there = existing(businesses)?;
    Ok(wanted().into_iter().map(|(name, keys)| (name, state(&there, name, &keys))).collect())
}

struct Index {
    name: String,
    keys: Document,
    is_plain: bool,
}

fn existing(businesses: &Collection<Document>) -> Result<Vec<Index>> {
    let listed = match businesses.list_indexes().run() {
        Ok(listed) => listed,
        Err(error) => match &*error.kind {
            ErrorKind::Command(command) if command.code == NAMESPACE_NOT_FOUND => return Ok(Vec::new()),
            _ => return Err(error),
        },
    };
    listed
        .map(|model| {
            let model = model?;
            let options = model.options.unwrap_or_default();
            Ok(Index {
                name: options.name.unwrap_or_default(),
                keys: model.keys,
                is_plain: options.partial_filter_expression.is_none()
                    && !options.sparse.unwrap_or(false)
                    && options.collation.is_none(),
            })
        })
        .collect()
}

fn state(there: &[Index], name: &str, keys: &Document) -> Option<IndexState> {
    if let Some(index) = there.iter().find(|index| index.name == name) {
        let is_same = index.is_plain && is_same(&index.keys, keys);
        return Some(if is_same { IndexState::There } else { IndexState::Differs(index.keys.to_string()) });
    }
    let other = there.iter().find(|index| index.is_plain && is_same(&index.keys, keys));
    other.map(|index| IndexState::ThereAs(index.name.clone()))
}

/// The same fields in the same order; servers and tools write the direction in several types of number.
fn is_same(one: &Document, other: &Document) -> bool {
    let direction = |value: &Bson| match value {
        Bson::Int32(n) => f64::from(*n),
        Bson::Int64(n) => *n as f64,
        Bson::Double(n) => *n,
        _ => 0.0,
    };
    one.len() == other.len()
        && one.iter().zip(other).all(|((a, x), (b, y))| a == b && direction(x) == direction(y))
}

fn create(businesses: &Collection<Document>, name: &str, keys: Document) -> Result<IndexState> {
    let options = IndexOptions::builder().name(name.to_owned()).build();
    match businesses.create_index(IndexModel::builder().keys(keys).options(options).build()).run() {
        Ok(_) => Ok(IndexState::Created),
        Err(error) => match &*error.kind {
            ErrorKind::Command(command) if CONFLICTS.contains(&command.code) => {
                Ok(IndexState::Differs(command.code_name.clone()))
            }
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str, keys: Document, is_plain: bool) -> Index {
        Index { name: name.to_owned(), keys, is_plain }
    }

    #[test]
    fn an_index_is_known_by_its_name_and_its_keys() {
        let [(name, keys), _] = wanted();
        let doubles = doc! { "whatsappPhoneNumberIds": 1.0, "whatsappEnabled": 1_i64, "isActive": 1 };
        let turned = doc! { "isActive": 1, "whatsappPhoneNumberIds": 1, "whatsappEnabled": 1 };
        assert_eq!(state(&[], name, &keys), None);
        assert_eq!(state(&[index(name, doubles.clone(), true)], name, &keys), Some(IndexState::There));
        assert_eq!(
            state(&[index("other", doubles.clone(), true)], name, &keys),
            Some(IndexState::ThereAs("other".to_owned()))
        );
        for odd in [index(name, turned.clone(), true), index(name, doubles, false)] {
            assert!(matches!(state(&[odd], name, &keys), Some(IndexState::Differs(_))));
        }
        assert_eq!(state(&[index("other", turned, true)], name, &keys), None);
    }
}
