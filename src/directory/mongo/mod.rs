//! Businesses in MongoDB: the collection `businesses`, its documents as other programs write them.
//!
//! The original's query and projection answer a lookup. The driver blocks its caller and has no deadline of its
//! own for a call, so calls run on named threads, MONGODB_MAX_POOL_SIZE or 32 of them, and whoever asks waits no
//! longer than [`READ_WITHIN`] or [`WRITE_WITHIN`]; a call that a frozen server holds comes back when the
//! driver's monitor has noticed, and its late answer is dropped. The client is made by the first call, so a
//! server that is away at the start delays nothing.
//!
//! Nothing assumes one server: reads prefer the primary, writes wait for a journaled majority, and both are
//! tried again through a fail-over. A document is changed field by field: what it holds besides stays.

mod client;
mod error;
mod fields;
mod found;
mod indexes;
mod lookup;
mod write;

use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::options::{Acknowledgment, CollectionOptions, WriteConcern};
use mongodb::sync::Collection;

use self::client::Calls;
use super::store::{IndexState, Page, Record, Store, StoreError, Swap};
use crate::config::mongodb::Mongodb;

/// The collection.
pub const COLLECTION: &str = "businesses";
/// The longest a lookup may take, waiting for a thread included: a little over the driver's own search for a
/// server, whose error says more than that it is late.
pub const READ_WITHIN: Duration = Duration::from_millis(5_500);
/// The longest one step of a change may take.
pub const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// See the file's head.
pub struct Mongo {
    calls: Calls,
}

impl Mongo {
    /// Asks no server yet.
    pub fn new(config: &Mongodb) -> Self {
        Self { calls: Calls::new(config) }
    }

    /// What kind of server it is, and which indexes are there: changes nothing.
    pub fn look(&self) -> Result<Seen, StoreError> {
        self.calls.read(|database| {
            let hello = database.run_command(doc! { "hello": 1 }).run()?;
            let replica_set = hello.get_str("setName").ok().map(str::to_owned);
            Ok(Seen { replica_set, indexes: indexes::look(&database.collection(COLLECTION))? })
        })
    }
}

/// What [`Mongo::look`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name; `None`: a server alone.
    pub replica_set: Option<String>,
    /// By name; `None`: it is not there.
    pub indexes: Vec<(&'static str, Option<IndexState>)>,
}

impl Store for Mongo {
    fn by_number(&self, phone_number_id: &str) -> Result<Vec<Record>, StoreError> {
        let number = phone_number_id.to_owned();
        self.calls.read(move |database| lookup::by_number(&database.collection(COLLECTION), &number))
    }

    fn by_subdomain(&self, sub_domain: &str) -> Result<Vec<Record>, StoreError> {
        let sub_domain = sub_domain.to_owned();
        self.calls.read(move |database| lookup::by_subdomain(&database.collection(COLLECTION), &sub_domain))
    }

    fn page(&self, from: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let from = from.map(str::to_owned);
        self.calls
            .read(move |database| lookup::page(&database.collection(COLLECTION), from.as_deref(), limit))
    }

    fn upsert(&self, records: Vec<Record>) -> Result<(), StoreError> {
        write::upsert(&self.calls, records)
    }

    fn remove(&self, sub_domain: &str) -> Result<bool, StoreError> {
        write::remove(&self.calls, sub_domain)
    }

    fn swap_tokens(&self, swaps: Vec<Swap>) -> Result<usize, StoreError> {
        write::swap_tokens(&self.calls, swaps)
    }

    fn ensure_indexes(&self) -> Result<Vec<(&'static str, IndexState)>, StoreError> {
        self.calls.write(|database| indexes::ensure(&safely_written(database)))
    }

    fn check(&self) -> Result<(), StoreError> {
        self.calls.read(|database| lookup::check(&database.collection(COLLECTION)))
    }
}

/// What is confirmed has reached the journals of a majority, so that no fail-over undoes it.
fn safely_written(database: &mongodb::sync::Database) -> Collection<Document> {
    let concern =
        WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(WRITE_WITHIN / 2).build();
    let options = CollectionOptions::builder().write_concern(concern).build();
    database.collection_with_options(COLLECTION, options)
}
