//! The businesses: whether their store answers, what is wrong with each, and which numbers Graph is asked about.

use std::collections::BTreeMap;
use std::time::Duration;

use mongodb::bson::DateTime;

use super::report::{Few, Level, Report, word};
use crate::clock::{self, UnixMillis};
use crate::config::{self, Config};
use crate::directory::embedded::Embedded;
use crate::directory::mongo::Mongo;
use crate::directory::store::{IndexState, Record, Store, all};
use crate::directory::tokens::{Form, Keys, Unreadable};
use crate::secret::Secret;
use crate::store;

/// Findings about businesses that are lines of their own; the others are counted.
const NAMED_MAX: usize = 100;
/// What is left for Graph of all the time.
const FOR_GRAPH: Duration = Duration::from_secs(12);
/// A token that expires within so long is told of.
const EXPIRES_SOON_MS: UnixMillis = 7 * 86_400_000;

/// A number that is answered for, and with which token.
pub struct Number {
    /// The business's subdomain; `None`: the fallback credentials.
    pub sub_domain: Option<String>,
    pub phone_number_id: String,
    pub token: Secret,
}

/// Looks at all of it until `end`.
pub fn look(config: &Config, report: &Report, end: Duration) -> Vec<Number> {
    let Some(records) = records(config, report, end.saturating_sub(FOR_GRAPH)) else {
        return fallback(config, &[], report);
    };
    let mut numbers = each(config, &records, report);
    clashes(&records, report);
    numbers.extend(fallback(config, &records, report));
    numbers
}

/// All of them, or why there are none.
fn records(config: &Config, report: &Report, end: Duration) -> Option<Vec<Record>> {
    let store: Box<dyn Store> = match &config.directory.mongodb {
        Some(mongodb) => Box::new(mongo(mongodb, report)?),
        None => Box::new(embedded(&config.directory, report)?),
    };
    let mut records = Vec::new();
    let mut is_cut = false;
    let read = all(&*store, |record| {
        records.push(record);
        is_cut = clock::monotonic() > end;
        !is_cut
    });
    if let Err(e) = read {
        report.fail("business", format!("{e}; only {} could be read", records.len()));
    } else if is_cut {
        report.warn("business", format!("the store is slow: {} were read, and then no more", records.len()));
    }
    Some(records)
}

fn embedded(config: &config::Directory, report: &Report) -> Option<Embedded> {
    // to open it would make it
    let is_made = config.data_dir.join(store::FILE).exists()
        && store::open_read_only(&config.data_dir)
            .and_then(|connection| {
                let path = config.data_dir.join(store::FILE);
                store::version(&connection).map_err(|e| store::OpenError::Sqlite(path, e))
            })
            // what is wrong with it is told of as the store's
            .ok()?
            > 0;
    if !is_made {
        none(config, report);
        return None;
    }
    Embedded::open(config).map_err(|e| report.fail("business", e.to_string())).ok()
}

fn none(config: &config::Directory, report: &Report) {
    if config.fallback.is_some() {
        return report.ok("business", "there is none: WHATSAPP_PHONE_NUMBER_ID alone is answered for");
    }
    report.warn("business", "there is none: every message ends as no_business; `business add` adds one");
}

fn mongo(config: &config::mongodb::Mongodb, report: &Report) -> Option<Mongo> {
    let mongo = Mongo::new(config);
    if let Err(e) = mongo.check() {
        let text = format!(
            "{e}; is it running, MONGODB_URI right, its firewall open to this machine? Meanwhile webhooks are stored, and \
             what is not cached waits"
        );
        report.fail("mongodb", text);
        return None;
    }
    let seen = match mongo.look() {
        Ok(seen) => seen,
        Err(e) => {
            report.warn("mongodb", format!("answers, but does not tell of its indexes: {e}"));
            return Some(mongo);
        }
    };
    match seen.replica_set {
        Some(name) => report.ok("mongodb", format!("answers, replica set {name}")),
        None => report.ok("mongodb", "answers, a server alone (no replica set, so no fail-over)"),
    }
    for (name, state) in seen.indexes {
        match state {
            Some(IndexState::There | IndexState::Created) => report.ok("mongodb", format!("{name} is there")),
            Some(IndexState::ThereAs(other)) => {
                report.ok("mongodb", format!("{name} is there under the name {other}"));
            }
            Some(IndexState::Differs(keys)) => report.warn(
                "mongodb",
                format!("{name} has other keys or options: {keys}; `whatsapp-webhook indexes` says what to do"),
            ),
            None => report.warn(
                "mongodb",
                format!("{name} is missing, so each lookup reads every business; `whatsapp-webhook indexes` makes it"),
            ),
        }
    }
    Some(mongo)
}

/// One line for what is wrong with each, one for all that is right.
fn each(config: &Config, records: &[Record], report: &Report) -> Vec<Number> {
    let directory = &config.directory;
    let keys = Keys::new(directory.encryption_secret.as_ref(), directory.encryption_secret_old.as_ref());
    let few = Few::of(report, "business", NAMED_MAX);
    let mut numbers = Vec::new();
    let (mut live, mut opened) = (0, 0);
    for record in records {
        if let Some(fault) = &record.fault {
            few.say(Level::Fail, format!("{fault}; mend the document: until then its messages wait"));
            continue;
        }
        live += usize::from(record.is_live());
        if record.is_live() {
            apart(config, record, &few);
        }
        if let Some(token) = token(&keys, record, &few) {
            opened += usize::from(record.is_live());
            let ids = record.phone_number_ids.iter().filter(|_| record.is_live());
            numbers.extend(ids.map(|id| Number {
                sub_domain: Some(record.sub_domain.clone()),
                phone_number_id: id.clone(),
                token: token.clone(),
            }));
        }
    }
    few.end("`business list` shows all");
    if live > 0 {
        let text = format!("{} in all, {live} enabled and active, tokens of {opened} open", records.len());
        report.ok("business", text);
    } else if records.is_empty() {
        none(directory, report);
    } else {
        let text = format!(
            "none of {} is enabled and active, so nobody is answered; `business add --subdomain S --enable --keep-token`",
            records.len()
        );
        report.warn("business", text);
    }
    numbers
}

/// What is wrong with a live one besides its token.
fn apart(config: &Config, record: &Record, few: &Few<'_>) {
    let (name, named) = (&record.sub_domain, word(&record.sub_domain));
    if record.phone_number_ids.is_empty() {
        let text = format!(
            "{name}: has no number; `business add --subdomain {named} --phone-number-id P --keep-token`"
        );
        few.say(Level::Warn, text);
    }
    let apps = &config.webhook.apps;
    if let Some(app) =
        record.meta_app.as_ref().filter(|app| !apps.iter().any(|a| a.name.as_ref() == Some(app)))
    {
        let text = format!(
            "{name}: is bound to the app {app}, which WHATSAPP_APP_SECRET does not name, so its messages are kept as \
             wrong_app; add {app}=its-secret there, or `business add --subdomain {named} --app '' --keep-token`"
        );
        few.say(Level::Fail, text);
    }
    let now = clock::now();
    match record.token_expires_at.as_deref().and_then(millis) {
        Some(at) if at <= now => few.say(
            Level::Warn,
            format!(
                "{name}: its token expired {} days ago, as its document says; store a new one",
                (now - at) / 86_400_000
            ),
        ),
        Some(at) if at - now < EXPIRES_SOON_MS => few.say(
            Level::Warn,
            format!("{name}: its token expires in {} days; store a new one", (at - now) / 86_400_000),
        ),
        _ => {}
    }
}

/// A date as programs write it: RFC 3339, the same without its zone, or milliseconds.
fn millis(text: &str) -> Option<UnixMillis> {
    let date = DateTime::parse_rfc3339_str(text).or_else(|_| DateTime::parse_rfc3339_str(format!("{text}Z")));
    let millis = date.map(|date| date.timestamp_millis()).ok().or_else(|| text.parse().ok())?;
    Some(millis.max(0) as UnixMillis)
}

/// The token, if it can be used; how it is stored is told of in any case.
fn token(keys: &Keys, record: &Record, few: &Few<'_>) -> Option<Secret> {
    let name = &record.sub_domain;
    let store_anew = format!("`business add --subdomain {}` reads a new one", word(name));
    match keys.read(record.access_token.as_ref().map_or("", Secret::reveal)) {
        Ok(token) => {
            match token.form {
                Form::Encrypted => {}
                Form::EncryptedOld => few.say(
                    Level::Warn,
                    format!("{name}: its token opens with ENCRYPTION_SECRET_OLD only; `key rotate` moves it"),
                ),
                Form::Plaintext => few.say(
                    Level::Warn,
                    format!("{name}: its token is stored in the clear; {store_anew} and encrypts it"),
                ),
            }
            Some(token.secret)
        }
        Err(why) => {
            let mend = match why {
                Unreadable::NoSecret | Unreadable::WrongSecret => format!(
                    "; set the ENCRYPTION_SECRET that it was stored with (as ENCRYPTION_SECRET_OLD beside a new one), or \
                     {store_anew}"
                ),
                _ => format!("; {store_anew}"),
            };
            let why = if why == Unreadable::Missing { "no access token is stored" } else { why.as_str() };
            let level = if record.is_live() { Level::Fail } else { Level::Warn };
            few.say(level, format!("{name}: {why}{mend}"));
            None
        }
    }
}

/// What two of them share.
fn clashes(records: &[Record], report: &Report) {
    let mut of_number: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut of_name: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records.iter().filter(|record| record.is_live()) {
        *of_name.entry(&record.sub_domain).or_default() += usize::from(record.fault.is_none());
        for number in &record.phone_number_ids {
            of_number.entry(number).or_default().push(&record.sub_domain);
        }
    }
    let few = Few::of(report, "business", NAMED_MAX);
    for (number, who) in of_number.iter().filter(|(_, who)| who.len() > 1) {
        let text = format!(
            "number {number} is claimed by {}, so its messages are answered for none; take it from all but one",
            who.join(" and ")
        );
        few.say(Level::Fail, text);
    }
    for (name, count) in of_name.iter().filter(|(_, count)| **count > 1) {
        let text = format!("{count} of them share the subDomain {name}; give each its own");
        few.say(Level::Warn, text);
    }
    few.end("`business list` shows all");
}

/// The fallback credentials, if a message may be answered with them.
fn fallback(config: &Config, records: &[Record], report: &Report) -> Vec<Number> {
    let Some(fallback) = &config.directory.fallback else { return Vec::new() };
    let number = &fallback.phone_number_id;
    if let Some(owner) = records.iter().find(|record| record.phone_number_ids.contains(number)) {
        let text = format!(
            "WHATSAPP_PHONE_NUMBER_ID is a number of {}, so WHATSAPP_TOKEN is not used",
            owner.sub_domain
        );
        report.ok("business", text);
        return Vec::new();
    }
    vec![Number { sub_domain: None, phone_number_id: number.clone(), token: fallback.token.clone() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_in_the_forms_that_programs_write() {
        for text in
            ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20", "1700000000000"]
        {
            assert_eq!(millis(text), Some(1_700_000_000_000), "{text}");
        }
        assert_eq!(millis("soon"), None);
    }
}
