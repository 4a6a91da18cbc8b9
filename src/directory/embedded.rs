//! Businesses in the embedded store: tables `businesses` and `business_numbers`.
//!
//! Reads go through read-only connections on named threads, so they wait for no commit and block no worker;
//! writes open a guest beside the committer and are one transaction each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use super::store::{Claim, Page, Record, Store, StoreError, Swap, TokenField};
use crate::blocking::{NotRun, Pool};
use crate::secret::Secret;
use crate::store::{self, OpenError};
use crate::{clock, config};

/// Threads that read, with a connection each.
const READERS: usize = 2;
/// Questions that may wait for a thread.
const QUEUE: usize = 1024;
/// The longest a read may take, waiting included.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// The longest a write may take; the committer steps aside for it, another guest may not.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

const COLUMNS: &str = "b.id, b.name, b.sub_domain, b.waba_id, b.access_token, b.refresh_token, \
     b.token_expires_at, b.enabled, b.active, b.meta_app";

/// See the file's head.
pub struct Embedded {
    data_dir: PathBuf,
    pool: Pool,
    readers: Arc<Mutex<Vec<Connection>>>,
}

impl Embedded {
    /// Opens the store in DATA_DIR, creating it as needed.
    pub fn open(config: &config::Directory) -> Result<Self, OpenError> {
        let data_dir = config.data_dir.clone();
        let connection = reader(&data_dir)?;
        let readers = Arc::new(Mutex::new(vec![connection]));
        Ok(Self { data_dir, pool: Pool::new("directory", READERS, QUEUE), readers })
    }

    fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (data_dir, readers) = (self.data_dir.clone(), self.readers.clone());
        let job = move || {
            let idle = readers.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => reader(&data_dir).map_err(|e| e.to_string())?,
            };
            // a connection that failed is not used again
            let answer = question(&connection).map_err(|e| e.to_string())?;
            readers.lock().push(connection);
            Ok(answer)
        };
        self.pool.run(job, READ_WITHIN).map_err(not_run)?.map_err(StoreError::Unavailable)
    }

    fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let data_dir = self.data_dir.clone();
        let job = move || {
            let unavailable = |e: rusqlite::Error| StoreError::Unavailable(e.to_string());
            let mut guest = store::guest(&data_dir).map_err(|e| StoreError::Unavailable(e.to_string()))?;
            let transaction = guest
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(unavailable)?;
            let done = change(&transaction).map_err(unavailable)??;
            transaction.commit().map_err(unavailable)?;
            Ok(done)
        };
        self.pool.run(job, WRITE_WITHIN).map_err(|why| match why {
            NotRun::Late => StoreError::Unknown("it did not answer in time".to_owned()),
            NotRun::Full | NotRun::Panicked => not_run(why),
        })?
    }
}

fn not_run(why: NotRun) -> StoreError {
    StoreError::Unavailable(
        match why {
            NotRun::Full => "too many questions wait for it",
            NotRun::Late => "it did not answer in time",
            NotRun::Panicked => "a query panicked",
        }
        .to_owned(),
    )
}

/// A connection for reading. Makes the store first if it is not there; refuses one of a later version.
fn reader(data_dir: &Path) -> Result<Connection, OpenError> {
    let sqlite = |e| OpenError::Sqlite(data_dir.join(store::FILE), e);
    if data_dir.join(store::FILE).exists() {
        let connection = store::open_read_only(data_dir)?;
        if store::version(&connection).map_err(sqlite)? > 0 {
            return Ok(connection);
        }
    }
    drop(store::open(data_dir)?);
    store::open_read_only(data_dir)
}

impl Store for Embedded {
    fn by_number(&self, phone_number_id: &str) -> Result<Vec<Record>, StoreError> {
        let number = phone_number_id.to_owned();
        self.read(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM business_numbers n JOIN businesses b ON b.id = n.business \
                 WHERE n.phone_number_id = ?1 ORDER BY b.id"
            );
            records(connection, &sql, params![number])
        })
    }

    fn by_subdomain(&self, sub_domain: &str) -> Result<Vec<Record>, StoreError> {
        let sub_domain = sub_domain.to_owned();
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM businesses b WHERE b.sub_domain = ?1");
            records(connection, &sql, params![sub_domain])
        })
    }

    fn page(&self, from: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let after = from.unwrap_or_default().to_owned();
        let records = self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM businesses b WHERE b.id > ?1 ORDER BY b.id LIMIT ?2");
            records(connection, &sql, params![after, limit as i64])
        })?;
        let next = records.last().filter(|_| records.len() == limit).map(|record| record.id.clone());
        Ok(Page { records, next })
    }

    fn upsert(&self, records: Vec<Record>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            for record in &records {
                put(transaction, record)?;
            }
            let claims = claims(transaction, &records)?;
            Ok(if claims.is_empty() { Ok(()) } else { Err(StoreError::Claimed(claims)) })
        })
    }

    fn remove(&self, sub_domain: &str) -> Result<bool, StoreError> {
        let sub_domain = sub_domain.to_owned();
        self.write(move |transaction| {
            let removed =
                transaction.execute("DELETE FROM businesses WHERE sub_domain = ?1", [sub_domain])?;
            Ok(Ok(removed > 0))
        })
    }

    fn swap_tokens(&self, swaps: Vec<Swap>) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let mut swapped = 0;
            for swap in &swaps {
                let column = match swap.field {
                    TokenField::Access => "access_token",
                    TokenField::Refresh => "refresh_token",
                };
                let sql = format!("UPDATE businesses SET {column} = ?3 WHERE id = ?1 AND {column} = ?2");
                swapped += transaction.prepare_cached(&sql)?.execute(params![
                    swap.id,
                    swap.from.reveal(),
                    swap.to.reveal()
                ])?;
            }
            Ok(Ok(swapped))
        })
    }

    fn check(&self) -> Result<(), StoreError> {
        self.read(|connection| connection.query_row("SELECT 1", [], |_| Ok(())))
    }
}

fn records(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Record>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut records = statement.query_map(params, record)?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut numbers = connection.prepare_cached(
        "SELECT phone_number_id FROM business_numbers WHERE business = ?1 ORDER BY phone_number_id",
    )?;
    for record in &mut records {
        record.phone_number_ids =
            numbers.query_map([&record.id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    }
    Ok(records)
}

/// All but the numbers, in the order of [`COLUMNS`].
fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        id: row.get(0)?,
        name: row.get(1)?,
        sub_domain: row.get(2)?,
        waba_id: row.get(3)?,
        phone_number_ids: Vec::new(),
        access_token: row.get::<_, Option<String>>(4)?.map(Secret::new),
        refresh_token: row.get::<_, Option<String>>(5)?.map(Secret::new),
        token_expires_at: row.get(6)?,
        enabled: row.get(7)?,
        active: row.get(8)?,
        meta_app: row.get(9)?,
        fault: None,
    })
}

fn put(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let id = id_for(transaction, record)?;
    transaction.execute(
        "INSERT INTO businesses (id, name, sub_domain, waba_id, access_token, refresh_token, token_expires_at,
                                 enabled, active, meta_app)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (id) DO UPDATE SET
             name = excluded.name, sub_domain = excluded.sub_domain, waba_id = excluded.waba_id,
             access_token = excluded.access_token, refresh_token = excluded.refresh_token,
             token_expires_at = excluded.token_expires_at, enabled = excluded.enabled,
             active = excluded.active, meta_app = excluded.meta_app",
        params![
            id,
            record.name,
            record.sub_domain,
            record.waba_id,
            record.access_token.as_ref().map(Secret::reveal),
            record.refresh_token.as_ref().map(Secret::reveal),
            record.token_expires_at,
            record.enabled,
            record.active,
            record.meta_app,
        ],
    )?;
    transaction.execute("DELETE FROM business_numbers WHERE business = ?1", [&id])?;
    for number in &record.phone_number_ids {
        transaction.execute(
            "INSERT OR IGNORE INTO business_numbers (phone_number_id, business) VALUES (?1, ?2)",
            params![number, id],
        )?;
    }
    Ok(())
}

/// The id of the business with that subdomain, else the record's own if it is free, else a new one.
fn id_for(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<String> {
    let mut same_name = transaction.prepare_cached("SELECT id FROM businesses WHERE sub_domain = ?1")?;
    if let Some(row) = same_name.query([&record.sub_domain])?.next()? {
        return row.get(0);
    }
    let mut same_id = transaction.prepare_cached("SELECT 1 FROM businesses WHERE id = ?1")?;
    if !record.id.is_empty() && !same_id.exists([&record.id])? {
        return Ok(record.id.clone());
    }
    Ok(new_id())
}

/// Like a MongoDB ObjectId: 4 bytes of seconds, 8 random ones, in hex.
fn new_id() -> String {
    let random = getrandom::u64().expect("the kernel's random numbers are there from boot");
    format!("{:08x}{random:016x}", clock::now() / 1000)
}

/// The numbers of `records` that more than one live business has now.
fn claims(transaction: &Transaction<'_>, records: &[Record]) -> rusqlite::Result<Vec<Claim>> {
    let mut owners = transaction.prepare_cached(
        "SELECT b.sub_domain FROM business_numbers n JOIN businesses b ON b.id = n.business
         WHERE n.phone_number_id = ?1 AND b.enabled AND b.active ORDER BY b.sub_domain",
    )?;
    let mut claims: Vec<Claim> = Vec::new();
    for number in records.iter().filter(|record| record.is_live()).flat_map(|record| &record.phone_number_ids)
    {
        let sub_domains: Vec<String> =
            owners.query_map([number], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let claim = Claim { phone_number_id: number.clone(), sub_domains };
        if claim.sub_domains.len() > 1 && !claims.contains(&claim) {
            claims.push(claim);
        }
    }
    Ok(claims)
}
