//! What the store's records mean: whose message it is, with which token, or why nobody may answer.
//!
//! No I/O. Remembers what was decrypted, and of whom trouble was told already, so that a wrong
//! ENCRYPTION_SECRET is one line a business in the log and not one a message.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::store::Record;
use super::tokens::{Form, Keys, MEMO_MAX, Memo, Token, Unreadable};
use crate::config;
use crate::event::{Business, hash64};
use crate::failure::{Failure, Reason, Scope, Source, Verdict};
use crate::ops::metrics::Counter;
use crate::secret::{Secret, masked};

/// The subdomain of the fallback credentials; no business may have it.
pub const FALLBACK_SUB_DOMAIN: &str = "default";
/// Businesses whose trouble has been told; above it, telling starts again.
const TOLD_MAX: usize = 10_000;

pub(super) static MEMO_EVICTED: Counter =
    Counter::new("directory_memo_evicted_total", "Decrypted tokens forgotten because there were too many.");
pub(super) static TOKENS_INVALID: Counter =
    Counter::new("directory_token_invalid_total", "Lookups that ended at a token that can't be used.");
pub(super) static DOCUMENTS_INVALID: Counter = Counter::new(
    "directory_business_invalid_total",
    "Lookups that ended at a business whose document has a field that can't be right.",
);
pub(super) static TOLD_AGAIN: Counter = Counter::new(
    "directory_told_cleared_total",
    "Times that so many businesses were in trouble that the log starts to repeat them.",
);

/// What the one who asked tells those who joined.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Who is answered for.
    Business(Arc<Business>),
    /// The store answered, and nobody may be answered for.
    Refused(Failure),
    /// The store did not answer, and why.
    Unavailable(String),
}

/// By what is looked up; each has its own cache, so that a number can't pass for a subdomain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `phone_number_id`.
    Number,
    /// `subDomain`.
    SubDomain,
}

/// See the file's head.
pub struct Judge {
    keys: Keys,
    memo: Mutex<Memo>,
    fallback: Option<Arc<Business>>,
    told: Mutex<HashSet<u64>>,
}

impl Judge {
    /// With the keys and the fallback credentials of the configuration.
    pub fn new(config: &config::Directory) -> Self {
        let fallback = config.fallback.as_ref().map(|fallback| {
            Arc::new(Business {
                id: FALLBACK_SUB_DOMAIN.to_owned(),
                name: FALLBACK_SUB_DOMAIN.to_owned(),
                sub_domain: FALLBACK_SUB_DOMAIN.to_owned(),
                waba_id: String::new(),
                phone_number_ids: vec![fallback.phone_number_id.clone()],
                meta_app: None,
                token: fallback.token.clone(),
            })
        });
        Self {
            keys: Keys::new(config.encryption_secret.as_ref(), config.encryption_secret_old.as_ref()),
            memo: Mutex::new(Memo::new(MEMO_MAX)),
            fallback,
            told: Mutex::new(HashSet::new()),
        }
    }

    /// Forgets what was decrypted and what was told.
    pub fn clear(&self) {
        self.memo.lock().clear();
        self.told.lock().clear();
    }

    /// Who of the records is answered for.
    pub fn judge(&self, by: By, key: &str, mut records: Vec<Record>) -> Answer {
        let is_known = !records.is_empty();
        let faulty = records.iter().find(|record| record.fault.is_some()).cloned();
        records.retain(|record| match by {
            By::Number => record.is_live(),
            By::SubDomain => record.active,
        });
        let shown = match by {
            By::Number => format!("phone_number_id {}", masked(key)),
            By::SubDomain => format!("subdomain {key:?}"),
        };
        match (records.len(), faulty) {
            (0, Some(faulty)) => self.refuse_faulty(&faulty),
            (0, None) if is_known => {
                Answer::Refused(refused("business_disabled", format!("the business of {shown} is disabled")))
            }
            (0, None) => match self.fallback_for(by, key) {
                Some(business) => Answer::Business(business),
                None => Answer::Refused(refused("no_business", format!("no business has {shown}"))),
            },
            (1, _) => self.open_record(records.remove(0)),
            _ => {
                let who: Vec<String> = records.iter().map(named).collect();
                let detail = format!("{shown} belongs to several live businesses: {}", who.join(", "));
                self.tell(log::Level::Error, &[b"ambiguous", key.as_bytes()], &detail);
                Answer::Refused(refused("business_ambiguous", detail))
            }
        }
    }

    fn fallback_for(&self, by: By, key: &str) -> Option<Arc<Business>> {
        let fallback = self.fallback.as_ref()?;
        let is_it = match by {
            By::Number => fallback.phone_number_ids.iter().any(|number| number == key),
            By::SubDomain => fallback.sub_domain == key,
        };
        is_it.then(|| fallback.clone())
    }

    /// Names what is wrong with the record's document, if anything is.
    pub fn tell_fault(&self, record: &Record) {
        if let Some(fault) = &record.fault {
            let detail = fault.escape_debug().to_string();
            self.tell(
                log::Level::Error,
                &[b"fault", detail.as_bytes()],
                &format!("business store: {detail}"),
            );
        }
    }

    /// Another live business has the same subdomain. Both are answered for, each with its own token and memory.
    pub fn tell_twin(&self, record: &Record) {
        let name = named(record);
        let detail = format!(
            "business {name}: several live businesses have this subDomain; an agent of your own can't tell their \
             sessions apart"
        );
        self.tell(log::Level::Warn, &[b"twin", name.as_bytes()], &detail);
    }

    fn refuse_faulty(&self, record: &Record) -> Answer {
        DOCUMENTS_INVALID.inc();
        self.tell_fault(record);
        let detail = record.fault.as_deref().unwrap_or_default().escape_debug().to_string();
        let verdict = Verdict::Park { scope: Scope::Business, after: None };
        Answer::Refused(failure(verdict, "business_invalid", detail))
    }

    /// The record with its token, if that can be used.
    pub fn open_record(&self, record: Record) -> Answer {
        if record.fault.is_some() {
            return self.refuse_faulty(&record);
        }
        let stored = record.access_token.as_ref().map_or("", Secret::reveal);
        let parts: &[&[u8]] = &[record.id.as_bytes(), stored.as_bytes()];
        let token = match self.read_token(stored) {
            Ok(token) => token,
            Err(why) => {
                TOKENS_INVALID.inc();
                let detail = format!("business {}: {why}", named(&record));
                self.tell(log::Level::Error, parts, &detail);
                let verdict = Verdict::Park { scope: Scope::Business, after: None };
                return Answer::Refused(failure(verdict, "token_invalid", detail));
            }
        };
        if token.form == Form::Plaintext {
            let detail = format!(
                "business {}: its access token is stored in the clear; `business add` encrypts it",
                named(&record)
            );
            self.tell(log::Level::Warn, parts, &detail);
        }
        Answer::Business(Arc::new(Business {
            id: record.id,
            name: record.name,
            sub_domain: record.sub_domain,
            waba_id: record.waba_id,
            phone_number_ids: record.phone_number_ids,
            meta_app: record.meta_app,
            token: token.secret,
        }))
    }

    fn read_token(&self, stored: &str) -> Result<Token, Unreadable> {
        if let Some(token) = self.memo.lock().find(stored) {
            return Ok(token);
        }
        let token = self.keys.read(stored)?;
        if token.form != Form::Plaintext && self.memo.lock().put(stored, token.clone()) {
            MEMO_EVICTED.inc();
        }
        Ok(token)
    }

    /// Logs it once for these parts (until a clear).
    fn tell(&self, level: log::Level, parts: &[&[u8]], text: &str) {
        let mut told = self.told.lock();
        if told.len() >= TOLD_MAX {
            TOLD_AGAIN.inc();
            told.clear();
        }
        if told.insert(hash64(parts)) {
            drop(told);
            log::log!(level, "{text}");
        }
    }
}

/// Others write to the store too: a line end of theirs would be a line of its own in the log.
fn named(record: &Record) -> String {
    record.sub_domain.escape_debug().to_string()
}

fn failure(verdict: Verdict, reason: &'static str, detail: String) -> Failure {
    Failure { source: Source::Directory, verdict, reason: Reason::fixed(reason), detail }
}

/// Nobody may be answered for.
pub fn refused(reason: &'static str, detail: String) -> Failure {
    failure(Verdict::Dead, reason, detail)
}

/// The store gave no answer: to be tried again after that time.
pub fn unavailable(detail: &str, after: Option<Duration>) -> Failure {
    failure(Verdict::Retry { after }, "directory_unavailable", detail.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn judge() -> Judge {
        Judge::new(&config::Directory {
            data_dir: PathBuf::new(),
            encryption_secret: Some(Secret::new("s")),
            encryption_secret_old: None,
            cache_ttl: Duration::ZERO,
            cache_size: 0,
            warmup: false,
            fallback: None,
            pool: (0, 0),
            mongodb: None,
        })
    }

    #[test]
    fn an_encrypted_token_is_remembered_and_a_plaintext_one_or_a_failure_is_not() {
        let judge = judge();
        let stored = judge.keys.encrypt(&Secret::new("EAAG")).expect("key");
        for _ in 0..2 {
            assert_eq!(judge.read_token(stored.reveal()).map(|t| t.secret), Ok(Secret::new("EAAG")));
        }
        assert_eq!(judge.memo.lock().len(), 1);
        assert!(judge.read_token("EAAG-plain").is_ok());
        assert!(judge.read_token(&"ab".repeat(40)).is_err());
        assert_eq!(judge.memo.lock().len(), 1);
        judge.clear();
        assert!(judge.memo.lock().is_empty());
    }

    #[test]
    fn what_is_told_is_bounded() {
        let judge = judge();
        for n in 0..3 * TOLD_MAX {
            judge.tell(log::Level::Trace, &[&n.to_le_bytes()], "trouble");
        }
        assert!(judge.told.lock().len() <= TOLD_MAX);
    }
}
