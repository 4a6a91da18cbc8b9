//! Listening, sweeping, draining.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use may_minihttp::HttpServiceFactory;
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};

use super::fd;
use super::routes::Edge;
use super::service::Factory;
use crate::clock;
use crate::config;
use crate::inbox::Inbox;
use crate::ops::Console;

/// How often a drain looks whether the last connection has gone.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long the listener may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// The running edge.
pub struct Server {
    edge: Arc<Edge>,
    address: SocketAddr,
    accept: Mutex<Option<may::coroutine::JoinHandle<()>>>,
    progress: Arc<AtomicU64>,
}

/// Listens and serves until it is drained.
///
/// # Errors
/// The address can't be bound; also when another process listens there, which the crate's SO_REUSEPORT would hide.
pub fn serve(
    http: config::Http,
    webhook: config::Webhook,
    inbox: Arc<dyn Inbox>,
    console: Arc<dyn Console>,
) -> io::Result<Server> {
    let edge = Arc::new(Edge::new(&http, &webhook, inbox, console));
    // kept until the crate has bound the same address, so that nobody else gets the port
    let (reserved, address) = reserve(http.listen)?;
    let accept = Factory(Arc::clone(&edge)).start(address)?;
    drop(reserved);
    let progress = Arc::new(AtomicU64::new(0));
    sweep(&edge, &progress)?;
    Ok(Server { edge, address, accept: Mutex::new(Some(accept)), progress })
}

/// Bound, not listening: SO_REUSEPORT lets the crate bind it too.
fn reserve(listen: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    if listen.port() != 0 {
        drop(TcpListener::bind(listen)?);
    }
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&listen.into())?;
    let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no IP address"))?;
    Ok((socket, address))
}

/// A thread looks after the connections; each look also wakes a coroutine, whose running shows that the workers do.
fn sweep(edge: &Arc<Edge>, progress: &Arc<AtomicU64>) -> io::Result<()> {
    let (edge, progress) = (Arc::downgrade(edge), Arc::clone(progress));
    std::thread::Builder::new().name("edge-sweeper".to_owned()).spawn(move || {
        loop {
            let Some(every) = edge.upgrade().map(|edge| edge.guard.every()) else { return };
            clock::sleep(every);
            let Some(edge) = edge.upgrade() else { return };
            edge.guard.sweep();
            let progress = Arc::clone(&progress);
            let _detached = may::go!(move || progress.fetch_add(1, Ordering::Relaxed));
        }
    })?;
    Ok(())
}

impl Server {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.edge.guard.open()
    }

    /// Grows at least once a second while sweeper and workers run.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Closes the listening socket; what is connected goes on.
    pub fn stop_accepting(&self) {
        let Some(accept) = self.accept.lock().take() else { return };
        fd::cancel(accept.coroutine());
        let until = clock::monotonic() + CLOSE_MAX;
        while !accept.is_done() && clock::monotonic() < until {
            clock::sleep(DRAIN_LOOK);
        }
    }

    /// Closes idle connections, lets those in a request finish with `Connection: close`, and cuts what is left after
    /// `within`; how many were cut.
    pub fn drain(&self, within: Duration) -> usize {
        self.edge.guard.draining.store(true, Ordering::Release);
        let until = clock::monotonic() + within;
        while self.edge.guard.open() > 0 && clock::monotonic() < until {
            self.edge.guard.sweep();
            clock::sleep(DRAIN_LOOK);
        }
        self.edge.guard.cut_all()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}
