//! A TCP proxy before a MongoDB server: counts commands; freezes, delays, refuses, cuts, and loses
//! answers on demand.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::wire::{self, Frame};

/// What happens to what passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Each command waits this long.
    Delay(Duration),
    /// Connections are accepted and nothing is forwarded either way, until the mode changes.
    Freeze,
    /// Connections are closed as soon as they are accepted, those that were open at once.
    Refuse,
    /// A command of this name reaches the server; instead of its answer comes the end of the connection.
    LoseAnswer(&'static str),
}

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Mutex<SocketAddr>,
    mode: Mutex<Mode>,
    changed: Condvar,
    is_over: AtomicBool,
    commands: Mutex<HashMap<String, usize>>,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            mode: Mutex::new(Mode::Pass),
            changed: Condvar::new(),
            is_over: AtomicBool::new(false),
            commands: Mutex::default(),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is_over.load(SeqCst) {
                    break;
                }
                accepting.accept(client);
            }
        });
        Self { address, shared }
    }

    /// With the database `whatsapp`.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/whatsapp", self.address)
    }

    pub fn set(&self, mode: Mode) {
        let cuts = mode == Mode::Refuse;
        *self.shared.mode.lock() = mode;
        self.shared.changed.notify_all();
        if cuts {
            self.cut();
        }
    }

    /// Ends every connection that is open now.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Commands of this name on `businesses` that came since the start.
    pub fn commands(&self, name: &str) -> usize {
        self.shared.commands.lock().get(name).copied().unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, SeqCst);
        self.set(Mode::Refuse);
        // wakes the one that accepts
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, client: TcpStream) {
        if *self.mode.lock() == Mode::Refuse {
            return;
        }
        let upstream = *self.upstream.lock();
        let Ok(server) = TcpStream::connect_timeout(&upstream, Duration::from_secs(1)) else { return };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let pair = || (client.try_clone().expect("cloned"), server.try_clone().expect("cloned"));
        self.open.lock().extend([pair().0, pair().1]);
        // bytes of the answers that are still let through; none set: all
        let left = Arc::new(Mutex::new(None));
        let (shared, (client, server), limit) = (Arc::clone(self), pair(), Arc::clone(&left));
        std::thread::spawn(move || shared.commands_from(client, server, &limit));
        let (shared, (client, server)) = (Arc::clone(self), pair());
        std::thread::spawn(move || shared.answers_from(server, client, &left));
    }

    fn wait_while_frozen(&self) {
        let mut mode = self.mode.lock();
        while *mode == Mode::Freeze && !self.is_over.load(SeqCst) {
            self.changed.wait(&mut mode);
        }
    }

    fn commands_from(&self, mut client: TcpStream, mut server: TcpStream, left: &Mutex<Option<usize>>) {
        while let Ok(frame) = Frame::read(&mut client) {
            let command = frame.command().unwrap_or_default();
            let name = wire::name(&command).to_owned();
            if command.get_str(&name).is_ok_and(|collection| collection == "businesses") {
                *self.commands.lock().entry(name.clone()).or_default() += 1;
            }
            self.wait_while_frozen();
            let mode = self.mode.lock().clone();
            match mode {
                Mode::Delay(time) => std::thread::sleep(time),
                Mode::LoseAnswer(of) if of == name => *left.lock() = Some(0),
                _ => {}
            }
            if server.write_all(&frame.0).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
    }

    fn answers_from(&self, mut server: TcpStream, mut client: TcpStream, left: &Mutex<Option<usize>>) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = server.read(&mut buffer) {
            self.wait_while_frozen();
            let limit = *left.lock();
            let most = limit.map_or(n, |limit| limit.min(n));
            if client.write_all(&buffer[..most]).is_err() || limit.is_some() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
    }
}
