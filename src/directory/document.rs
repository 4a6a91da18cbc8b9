//! A business as one line of JSON with the document's own field names: what `business export` writes and
//! `import` reads.
//!
//! Tokens stand in it as stored. Besides our own lines, those of `mongoexport` are read (`{"$oid": ..}`,
//! `{"$date": ..}`); fields that the directory doesn't use are skipped.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::store::Record;
use crate::secret::Secret;

/// The longest line that is read, in bytes: a business with all the numbers that one may have.
pub const LINE_MAX: usize = 256 << 10;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(rename = "_id")]
    id: &'a str,
    name: &'a str,
    sub_domain: &'a str,
    waba_id: &'a str,
    whatsapp_phone_number_ids: &'a [String],
    whatsapp_access_token: Option<&'a str>,
    whatsapp_refresh_token: Option<&'a str>,
    whatsapp_token_expires_at: Option<&'a str>,
    whatsapp_enabled: bool,
    is_active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta_app: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    #[serde(rename = "_id", default)]
    id: Option<Id>,
    #[serde(default)]
    name: Option<String>,
    sub_domain: String,
    #[serde(default)]
    waba_id: Option<Text>,
    #[serde(default)]
    whatsapp_phone_number_ids: Option<Vec<Text>>,
    #[serde(default)]
    whatsapp_access_token: Option<String>,
    #[serde(default)]
    whatsapp_refresh_token: Option<String>,
    #[serde(default)]
    whatsapp_token_expires_at: Option<Date>,
    #[serde(default)]
    whatsapp_enabled: bool,
    #[serde(default)]
    is_active: bool,
    #[serde(default)]
    meta_app: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Oid {
        #[serde(rename = "$oid")]
        oid: String,
    },
}

/// An id that somebody stored as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Number(u64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Date {
    Text(String),
    Wrapped {
        #[serde(rename = "$date")]
        date: Moment,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Moment {
    Text(String),
    Millis(i64),
    Wrapped {
        #[serde(rename = "$numberLong")]
        millis: String,
    },
}

impl Text {
    fn into_string(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

impl Date {
    /// As RFC 3339. `mongoexport` writes milliseconds in its canonical form, and for dates before 1970 or after 9999;
    /// those that RFC 3339 has no form for stay as they are.
    fn into_string(self) -> String {
        let from_millis = |millis: i64| {
            let date = mongodb::bson::DateTime::from_millis(millis);
            date.try_to_rfc3339_string().unwrap_or_else(|_| millis.to_string())
        };
        match self {
            Self::Text(text) | Self::Wrapped { date: Moment::Text(text) } => text,
            Self::Wrapped { date: Moment::Millis(millis) } => from_millis(millis),
            Self::Wrapped { date: Moment::Wrapped { millis } } => millis.parse().map_or(millis, from_millis),
        }
    }
}

/// The record as a line of JSON, without the line end.
pub fn to_line(record: &Record) -> String {
    let written = Written {
        id: &record.id,
        name: &record.name,
        sub_domain: &record.sub_domain,
        waba_id: &record.waba_id,
        whatsapp_phone_number_ids: &record.phone_number_ids,
        whatsapp_access_token: record.access_token.as_ref().map(Secret::reveal),
        whatsapp_refresh_token: record.refresh_token.as_ref().map(Secret::reveal),
        whatsapp_token_expires_at: record.token_expires_at.as_deref(),
        whatsapp_enabled: record.enabled,
        is_active: record.active,
        meta_app: record.meta_app.as_deref(),
    };
    serde_json::to_string(&written).expect("strings and booleans can be written as JSON")
}

/// The record of a line. The error names the place, never the content: a line holds a token.
pub fn from_line(line: &str) -> Result<Record, String> {
    let read: Read = serde_json::from_str(line).map_err(|e| {
        let what = match e.classify() {
            serde_json::error::Category::Data if e.to_string().starts_with("missing field") => {
                "there is no subDomain in it"
            }
            serde_json::error::Category::Data => match wrong_field(line) {
                Some(field) => return format!("{field} has another type than the document's"),
                None => "a field has another type than the document's",
            },
            _ => "it is not JSON",
        };
        format!("{what} (column {})", e.column())
    })?;
    let numbers = read.whatsapp_phone_number_ids.unwrap_or_default();
    Ok(Record {
        id: match read.id {
            Some(Id::Text(id) | Id::Oid { oid: id }) => id,
            None => String::new(),
        },
        name: read.name.unwrap_or_else(|| read.sub_domain.clone()),
        sub_domain: read.sub_domain,
        waba_id: read.waba_id.map_or_else(String::new, Text::into_string),
        // nobody is found by an empty one, and two businesses may have it
        phone_number_ids: numbers.into_iter().map(Text::into_string).filter(|id| !id.is_empty()).collect(),
        access_token: read.whatsapp_access_token.filter(|t| !t.is_empty()).map(Secret::new),
        refresh_token: read.whatsapp_refresh_token.filter(|t| !t.is_empty()).map(Secret::new),
        token_expires_at: read.whatsapp_token_expires_at.map(Date::into_string),
        enabled: read.whatsapp_enabled,
        active: read.is_active,
        meta_app: read.meta_app.filter(|app| !app.is_empty()),
        fault: None,
    })
}

/// The field by which the line can't be read.
fn wrong_field(line: &str) -> Option<&'static str> {
    fn is<T: serde::de::DeserializeOwned>(raw: &RawValue) -> bool {
        serde_json::from_str::<T>(raw.get()).is_ok()
    }
    let fields: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(line).ok()?;
    type Field = (&'static str, fn(&RawValue) -> bool);
    let readable: [Field; 11] = [
        ("_id", is::<Option<Id>>),
        ("name", is::<Option<String>>),
        ("subDomain", is::<String>),
        ("wabaId", is::<Option<Text>>),
        ("whatsappPhoneNumberIds", is::<Option<Vec<Text>>>),
        ("whatsappAccessToken", is::<Option<String>>),
        ("whatsappRefreshToken", is::<Option<String>>),
        ("whatsappTokenExpiresAt", is::<Option<Date>>),
        ("whatsappEnabled", is::<bool>),
        ("isActive", is::<bool>),
        ("metaApp", is::<Option<String>>),
    ];
    let wrong = readable.iter().find(|(name, is)| fields.get(*name).is_some_and(|raw| !is(raw)));
    wrong.map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_of_mongoexport_is_read() {
        let line = r#"{"_id":{"$oid":"65f000000000000000000001"},"name":"Café","subDomain":"cafe",
            "wabaId":"1",
            "whatsappPhoneNumberIds":["106",107],"whatsappAccessToken":"tok","whatsappRefreshToken":null,
            "whatsappTokenExpiresAt":{"$date":"2027-01-01T00:00:00Z"},"whatsappEnabled":true,"isActive":true,
            "createdAt":{"$date":{"$numberLong":"1"}},"__v":0}"#;
        let record = from_line(line).expect("readable");
        assert_eq!(record.id, "65f000000000000000000001");
        assert_eq!(record.phone_number_ids, ["106", "107"]);
        assert_eq!(record.token_expires_at.as_deref(), Some("2027-01-01T00:00:00Z"));
        assert!(record.is_live() && record.refresh_token.is_none() && record.meta_app.is_none());
        for canonical in [r#"{"$numberLong":"1700000000000"}"#, "1700000000000"] {
            let line = format!(r#"{{"subDomain":"a","whatsappTokenExpiresAt":{{"$date":{canonical}}}}}"#);
            let record = from_line(&line).expect("readable");
            assert_eq!(record.token_expires_at.as_deref(), Some("2023-11-14T22:13:20Z"));
        }
    }

    #[test]
    fn a_bad_line_is_refused_without_its_content() {
        for line in
            ["", "{", "[]", r#"{"name":"x"}"#, r#"{"subDomain":"a","whatsappAccessToken":["SECRET"]}"#]
        {
            let error = from_line(line).expect_err("bad");
            assert!(!error.contains("SECRET"), "{error}");
        }
        assert!(from_line(r#"{"name":"x"}"#).expect_err("bad").contains("no subDomain"));
        for (field, value) in [
            ("_id", r#"{"$numberLong":"7"}"#),
            ("name", "7"),
            ("subDomain", "null"),
            ("wabaId", "[]"),
            ("whatsappPhoneNumberIds", r#"[{"$numberLong":"106"}]"#),
            ("whatsappAccessToken", r#"["SECRET"]"#),
            ("whatsappTokenExpiresAt", "7"),
            ("whatsappEnabled", "1"),
            ("isActive", r#""SECRET""#),
        ] {
            let other = if field == "subDomain" { "name" } else { "subDomain" };
            let line = format!(r#"{{"__v":{{"a":[1]}},"{other}":"a","{field}":{value}}}"#);
            let error = from_line(&line).expect_err("bad");
            assert_eq!(error, format!("{field} has another type than the document's"));
        }
        let deep = format!("{{\"subDomain\":\"a\",\"x\":{}", "[".repeat(60_000));
        assert!(from_line(&deep).is_err(), "nesting is bounded by the parser");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            texts in prop::collection::vec(any::<String>(), 4),
            numbers in prop::collection::vec(".{1,20}", 0..4),
            optional in prop::collection::vec(prop::option::of(".{1,20}"), 4),
            flags in any::<(bool, bool)>(),
        ) {
            let record = Record {
                id: texts[0].clone(), name: texts[1].clone(),
                sub_domain: texts[2].clone(), waba_id: texts[3].clone(),
                phone_number_ids: numbers,
                access_token: optional[0].clone().map(Secret::new),
                refresh_token: optional[1].clone().map(Secret::new),
                token_expires_at: optional[2].clone(),
                meta_app: optional[3].clone(),
                enabled: flags.0, active: flags.1, fault: None,
            };
            let line = to_line(&record);
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(from_line(&line), Ok(record));
        }
    }
}
