//! The edge: may_minihttp with a guard around it, the routes, the rate limits.
//!
//! may_minihttp gives one coroutine and one service to each connection and knows neither deadlines nor
//! limits. It tells us a connection's descriptor when it begins ([`Server`]'s factory) and drops the service
//! when it ends; everything that the guard does hangs on these two ends and on the calls between them:
//! - `connection`: the service; framing checked before the body, answers in order, the last word of a
//!   connection;
//! - `table`, `sweep`: deadlines and limits, by `shutdown(2)` on what is late, from one coroutine beside;
//! - `fd`: the system calls, the only unsafe lines;
//! - `head`, `rate`, `access`: PURE: header lines, rate limits, who asks; `answer`, `routes`: what is said,
//!   and where;
//! - `post`: the way to the 200; `room`, `reading`: memory for large bodies, and the thread that reads them.
//!
//! Why the way to the 200 is shaped like this: of the 13.7 us that it costs the workers (two shared cores of a VM,
//! see `inbox` for the rest) 7 are one send and two recv. A connection's state (stack, may_minihttp's buffers) has
//! mostly left the caches when its next request comes, but not for another core's: it is resumed where its events
//! are polled. What is left is spent on the signature, the items and the hand-over to the committer, so there is
//! nothing else: one pass over the header lines into a value on the stack, one buffer per connection, two looks at
//! the clock, three atomic swaps for the sweeper, no lock that anybody else takes, no allocation, no log line, and
//! an answer that is known beforehand.
//!
//! One edge stays: may_minihttp looks for the end of the stream before it looks at what came in front of it.
//! A client that ends its half in the same instant as it ends its request is told 503 and to send it again;
//! nothing was stored then.

mod access;
mod answer;
mod connection;
mod counters;
mod fd;
mod head;
mod post;
mod rate;
mod reading;
mod room;
mod routes;
mod sweep;
mod table;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use may::coroutine::JoinHandle;
use may_minihttp::HttpServiceFactory;
use parking_lot::Mutex;

use self::connection::Connection;
use self::counters::{ACCEPTED, Cut};
use self::rate::{Budget, Class, Table as RateTable};
use self::reading::Reader;
use self::table::Table;
use crate::inbox::Inbox;
use crate::ops::{Console, machine};
use crate::webhook::signature::Verifier;
use crate::{clock, config};

pub use self::counters::METRICS;

/// A header may take this many bytes.
pub const HEADER_MAX: u64 = 64 << 10;
/// Answers that a client has not read may take this many bytes, the last one aside.
pub const UNREAD_MAX: u64 = 1 << 20;
/// All large bodies that are under way may take this many bytes together.
pub const LARGE_BODIES_MAX: usize = 256 << 20;
/// Descriptors that are not for clients: the store, outgoing calls, the epoll instances.
pub const RESERVED_FILES: u64 = 512;
/// More open files than this are not asked for.
const OPEN_FILES_MAX: u64 = 1 << 20;
/// Connections over MAX_CONNECTIONS that may be on their way out before accepting pauses.
const SURPLUS_MAX: usize = 64;

/// What all connections share.
struct Shared {
    http: config::Http,
    webhook: config::Webhook,
    max_connections: usize,
    /// Descriptors from here on are the reserve.
    max_fd: i64,
    verifier: Verifier,
    inbox: Arc<dyn Inbox>,
    console: Arc<dyn Console>,
    table: Table,
    rates: Mutex<(RateTable, Budget)>,
    large_bodies: AtomicUsize,
    reader: Reader,
    draining: AtomicBool,
    stopping: AtomicBool,
    gone: AtomicBool,
    progress: AtomicU64,
    accept: OnceLock<JoinHandle<()>>,
}

impl Shared {
    fn limit(&self, class: Class) -> u32 {
        let rates = &self.http.rates;
        match class {
            Class::Health => rates.health,
            Class::Ready => rates.ready,
            Class::Metrics => rates.metrics,
            Class::Admin => rates.admin,
            Class::Unverified => rates.unverified,
            Class::Webhook => rates.webhook,
        }
    }

    /// One request of `class`. Err: not now, and for how many microseconds.
    fn take(&self, class: Class, client: IpAddr, now_us: u64) -> Result<(), u64> {
        match self.limit(class) {
            0 => Ok(()),
            limit => self.rates.lock().0.take(class, client, limit, now_us),
        }
    }

    /// Whether a large body may be read to check its signature. Err: not now, and for how many microseconds.
    fn may_check(&self, client: IpAddr, bytes: u64, now_us: u64) -> Result<(), u64> {
        let mut rates = self.rates.lock();
        if rates.0.is_over(Class::Unverified, client, self.limit(Class::Unverified), now_us) {
            return rates.1.take(bytes, now_us);
        }
        Ok(())
    }

    fn accept_is_dead(&self) -> bool {
        self.accept.get().is_some_and(JoinHandle::is_done)
    }
}

struct Factory(Arc<Shared>);

impl HttpServiceFactory for Factory {
    type Service = Connection;

    /// Runs on the accept loop's coroutine, so waiting here is what keeps surplus connections in the kernel's
    /// queue.
    fn new_service(&self, id: usize) -> Connection {
        let shared = &self.0;
        let fd = i32::try_from(id).expect("may_minihttp's id is the descriptor, an int");
        ACCEPTED.inc();
        fd::set_nodelay(fd);
        let mut connection = Connection::new(Arc::clone(shared), fd, sweep::now_ms());
        let surplus = shared.table.open() > shared.max_connections || i64::from(fd) >= shared.max_fd;
        if surplus || shared.stopping.load(Acquire) {
            connection.refuse(if surplus { Cut::Surplus } else { Cut::Drained });
            // those refused are closed by their own coroutines: let them, or descriptors run out and the loop
            // spins
            for _ in 0..100 {
                if shared.table.open() <= shared.max_connections + SURPLUS_MAX
                    && i64::from(fd) < shared.max_fd
                {
                    break;
                }
                clock::sleep(Duration::from_millis(1));
            }
        }
        connection
    }
}

/// The running edge.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// Open files that the edge needs for so many connections, its reserve included.
pub const fn files_for(connections: usize) -> u64 {
    connections as u64 + RESERVED_FILES + SURPLUS_MAX as u64
}

/// Listens on `http.listen` and serves until [`Server::drain`]. Fails with `AddrInUse` if anybody else
/// listens there (may's listener alone would share the port), with `InvalidInput` if there are too few open
/// files.
pub fn serve(
    http: config::Http,
    webhook: config::Webhook,
    inbox: Arc<dyn Inbox>,
    console: Arc<dyn Console>,
) -> io::Result<Server> {
    let files = machine::raise_open_files(OPEN_FILES_MAX.max(files_for(http.max_connections)));
    let room = files.saturating_sub(files_for(0));
    if room == 0 {
        let least = files_for(1);
        let text =
            format!("{files} open files are too few (ulimit -n, LimitNOFILE=): at least {least} are needed");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if room < http.max_connections as u64 {
        log::warn!("MAX_CONNECTIONS is {room} now: the process may only open {files} files");
    }
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
    let shared = Arc::new(Shared {
        max_connections: http.max_connections.min(room as usize),
        max_fd: files as i64 - (RESERVED_FILES / 4) as i64,
        verifier: Verifier::new(&webhook.apps, webhook.allow_unsigned),
        http,
        webhook,
        inbox,
        console,
        table: Table::default(),
        rates: Mutex::new((RateTable::new(u64::from_le_bytes(seed)), Budget::default())),
        large_bodies: AtomicUsize::new(0),
        reader: Reader::new(),
        draining: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        progress: AtomicU64::new(0),
        accept: OnceLock::new(),
    });
    let reservation = fd::reserve(shared.http.listen)?;
    let address = reservation.address;
    let accept = Factory(Arc::clone(&shared)).start(address)?;
    drop(reservation);
    let _ = shared.accept.set(accept);
    let swept = Arc::clone(&shared);
    let _detached = may::go!(move || sweep::run(&swept));
    Ok(Server { shared, address })
}

impl Server {
    /// Where it listens; the real port where LISTEN has 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.table.open()
    }

    /// Grows several times a second as long as the accept loop lives and the sweeper gets its turn.
    pub fn progress(&self) -> u64 {
        self.shared.progress.load(Relaxed)
    }

    /// Closes the listening socket; waits (at most a second) until it is closed. Open connections go on.
    pub fn stop_accepting(&self) {
        if self.shared.stopping.swap(true, AcqRel) {
            return;
        }
        let Some(accept) = self.shared.accept.get() else { return };
        for _ in 0..1000 {
            fd::cancel(accept);
            if accept.is_done() {
                return;
            }
            clock::sleep(Duration::from_millis(1));
        }
        log::warn!("the accept loop does not end");
    }

    /// Ends idle connections at once and lets those in a request finish, at most `within`; how many had to be
    /// cut.
    pub fn drain(&self, within: Duration) -> usize {
        self.stop_accepting();
        self.shared.draining.store(true, Release);
        let deadline = clock::monotonic() + within;
        let mut all = Vec::new();
        while sweep::end_idle(&self.shared, &mut all) > 0 {
            if clock::monotonic() >= deadline {
                let cut = sweep::end_all(&self.shared, &mut all);
                self.wait_until_empty(CUT_WAIT);
                return cut;
            }
            clock::sleep(Duration::from_millis(5));
        }
        0
    }

    fn wait_until_empty(&self, within: Duration) {
        let deadline = clock::monotonic() + within;
        while self.connections() > 0 && clock::monotonic() < deadline {
            clock::sleep(Duration::from_millis(5));
        }
    }
}

/// How long connections that were cut get to notice.
const CUT_WAIT: Duration = Duration::from_millis(300);

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        self.shared.draining.store(true, Release);
        sweep::end_all(&self.shared, &mut Vec::new());
        self.shared.gone.store(true, Release);
    }
}
