//! The driver's client on threads of its own: made when it is first needed, each call with a deadline, tried
//! again through a fail-over. Of the deadline at most half goes by in the queue.

use std::sync::Arc;
use std::time::Duration;

use mongodb::options::{ClientOptions, ReadPreference, SelectionCriteria};
use mongodb::sync::{Client, Database};
use parking_lot::Mutex;

use super::error::{self, Cause};
use super::{READ_WITHIN, WRITE_WITHIN};
use crate::blocking::{NotRun, Pool};
use crate::clock;
use crate::config::mongodb::Mongodb;
use crate::directory::store::StoreError;

/// Calls that may wait for a thread.
const QUEUE: usize = 4096;
/// Calls at once, however large the pool: a server that answers in 10 ms gets 3,200 questions a second through
/// them, and one that is slow is not made slower by hundreds of them.
const THREADS_MAX: usize = 32;
/// Until a server is connected, and until one that can answer is found; the original's.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// After which an idle connection is closed; the original's.
const IDLE: Duration = Duration::from_secs(60);
/// How often the monitor looks at each server: a frozen one is noticed after this and [`CONNECT_WITHIN`].
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The specification's `minHeartbeatFrequencyMS`.
const HEARTBEAT_MIN: Duration = Duration::from_millis(500);
/// Pauses between attempts of one call.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// See the file's head.
pub struct Calls {
    pool: Pool,
    source: Arc<Source>,
}

struct Source {
    config: Mongodb,
    database: Mutex<Option<Database>>,
}

impl Calls {
    /// Starts the threads.
    pub fn new(config: &Mongodb) -> Self {
        let threads = config.max_pool_size.clamp(1, THREADS_MAX);
        let source = Source { config: config.clone(), database: Mutex::new(None) };
        Self { pool: Pool::new("mongodb", threads, QUEUE), source: Arc::new(source) }
    }

    /// A question, answered within [`READ_WITHIN`].
    pub fn read<T: Send + 'static>(
        &self,
        call: impl Fn(&Database) -> mongodb::error::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.call(READ_WITHIN, call).map_err(|missed| match missed {
            Missed::NotRun(why) => StoreError::Unavailable(not_run(why).to_owned()),
            Missed::Failed(cause) => StoreError::Unavailable(cause.text),
        })
    }

    /// A change within [`WRITE_WITHIN`]; it must be one that can be done twice.
    pub fn write<T: Send + 'static>(
        &self,
        call: impl Fn(&Database) -> mongodb::error::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.call(WRITE_WITHIN, call).map_err(|missed| match missed {
            Missed::NotRun(NotRun::Late) => StoreError::Unknown(not_run(NotRun::Late).to_owned()),
            Missed::NotRun(why) => StoreError::Unavailable(not_run(why).to_owned()),
            Missed::Failed(cause) if cause.may_be_done => StoreError::Unknown(cause.text),
            Missed::Failed(cause) => StoreError::Unavailable(cause.text),
        })
    }

    fn call<T: Send + 'static>(
        &self,
        within: Duration,
        call: impl Fn(&Database) -> mongodb::error::Result<T> + Send + 'static,
    ) -> Result<T, Missed> {
        let source = Arc::clone(&self.source);
        let deadline = clock::monotonic() + within;
        let job = move || {
            // begun with little time left it would be late: the server would work for nobody, and go on doing so
            // as long as more is asked than it can answer
            if clock::monotonic() + within / 2 > deadline {
                return Err(Missed::NotRun(NotRun::Full));
            }
            source.attempts(deadline, call).map_err(Missed::Failed)
        };
        self.pool.run(job, within).map_err(Missed::NotRun)?
    }
}

enum Missed {
    NotRun(NotRun),
    Failed(Cause),
}

impl Source {
    /// Until it succeeds, fails for a reason that stays, or another attempt like the last one would pass the
    /// deadline.
    #[allow(clippy::disallowed_methods, reason = "runs on a thread for blocking work, never on a worker")]
    fn attempts<T>(
        &self,
        deadline: Duration,
        call: impl Fn(&Database) -> mongodb::error::Result<T>,
    ) -> Result<T, Cause> {
        let mut pauses = PAUSES.iter().chain(std::iter::repeat(&PAUSES[PAUSES.len() - 1]));
        let mut may_be_done = false;
        loop {
            let begun = clock::monotonic();
            let error = match self.database().and_then(|database| call(&database)) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let mut cause = error::cause(&error, &self.config.uri);
            // whatever the last attempt came to, one before it may have done it
            may_be_done |= cause.may_be_done;
            let pause = *pauses.next().expect("the last pause repeats");
            let now = clock::monotonic();
            if !error::is_passing(&error) || now + pause + (now - begun) >= deadline {
                cause.may_be_done = may_be_done;
                return Err(cause);
            }
            log::debug!("mongodb: tried again: {}", cause.text);
            std::thread::sleep(pause);
        }
    }

    /// The database, through the client that all calls share.
    fn database(&self) -> mongodb::error::Result<Database> {
        let mut shared = self.database.lock();
        if let Some(database) = &*shared {
            return Ok(database.clone());
        }
        let options = options(&self.config)?;
        let database = Client::with_options(options)?.database(&self.config.database);
        *shared = Some(database.clone());
        Ok(database)
    }
}

/// What the URI says, and the original's settings where it says nothing. A name of `mongodb+srv://` is looked up
/// here.
fn options(config: &Mongodb) -> mongodb::error::Result<ClientOptions> {
    let mut options = ClientOptions::parse(config.uri.reveal()).run()?;
    options.max_pool_size = Some(config.max_pool_size as u32);
    options.min_pool_size = Some(config.min_pool_size as u32);
    options.connect_timeout.get_or_insert(CONNECT_WITHIN);
    options.server_selection_timeout.get_or_insert(CONNECT_WITHIN);
    options.max_idle_time.get_or_insert(IDLE);
    // less than that the driver refuses at every call
    options.heartbeat_freq = Some(options.heartbeat_freq.unwrap_or(HEARTBEAT).max(HEARTBEAT_MIN));
    options.retry_reads.get_or_insert(true);
    options.retry_writes.get_or_insert(true);
    let preferred = SelectionCriteria::ReadPreference(ReadPreference::PrimaryPreferred { options: None });
    options.selection_criteria.get_or_insert(preferred);
    options.app_name.get_or_insert_with(|| "whatsapp-webhook".to_owned());
    Ok(options)
}

const fn not_run(why: NotRun) -> &'static str {
    match why {
        NotRun::Full => "MongoDB: too many questions wait for it",
        NotRun::Late => "MongoDB did not answer in time",
        NotRun::Panicked => "MongoDB's driver panicked",
    }
}
