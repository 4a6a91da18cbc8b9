//! One keep-alive connection that posts and reads the status.
//!
//! A read has no timer of its own: a request would pay for setting it and taking it away. Instead a [`Watch`] tells
//! that an answer is awaited, and a [`Watchdog`] that looks at all of them now and then ends what takes too long.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

use may::io::{WaitIo, WaitIoWaker};
use may::net::TcpStream;
use parking_lot::Mutex;
use whatsapp_webhook::clock;

use crate::answer::{Answer, Answers, bad};

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 16 << 10;
/// Events of a connection whose other side is gone; they are told once.
const GONE: usize = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as usize;
/// Instead of the number of a post: there will be none any more.
const LEFT: u64 = u64::MAX;

/// Connects when it has to. For coroutines only.
pub struct Client {
    to: SocketAddr,
    connect_timeout: Duration,
    line: Option<Line>,
    buffer: Vec<u8>,
    answers: Answers,
    watch: Arc<Watch>,
}

struct Line {
    stream: TcpStream,
    /// The other side is known to be gone: no event will tell of it again.
    is_gone: bool,
}

/// Whether an answer is awaited.
#[derive(Default)]
pub struct Watch {
    /// Counts up with the beginning and the end of each post, so it is odd while one is under way.
    turn: AtomicU64,
    /// The turn that has taken too long.
    overdue: AtomicU64,
    waker: Mutex<Option<WaitIoWaker>>,
}

impl Client {
    /// Nobody ends an answer that never comes, but who looks at [`Client::watch`].
    pub fn new(to: SocketAddr, connect_timeout: Duration) -> Self {
        let watch = Arc::default();
        Self { to, connect_timeout, line: None, buffer: vec![0; 1024], answers: Answers::default(), watch }
    }

    /// For the watchdog.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Opens the connection, if it is not open.
    pub fn connect(&mut self) -> io::Result<()> {
        if self.line.is_none() {
            let stream = TcpStream::connect_timeout(&self.to, self.connect_timeout);
            clock::back_to_worker();
            let stream = stream?;
            stream.set_nodelay(true)?;
            *self.watch.waker.lock() = Some(stream.waker());
            self.line = Some(Line { stream, is_gone: false });
        }
        Ok(())
    }

    /// Posts a whole request and returns the answer's status. After an error the next post connects anew.
    pub fn post(&mut self, request: &[u8]) -> io::Result<u16> {
        self.connect()?;
        let Some(mut line) = self.line.take() else { return Err(ErrorKind::NotConnected.into()) };
        let turn = self.watch.turn.load(Relaxed) + 1;
        self.watch.turn.store(turn, Relaxed);
        let answer = line.write(request, &self.watch).and_then(|()| {
            let read = |buffer: &mut [u8], is_first| line.read(buffer, is_first, &self.watch);
            self::read(&mut self.buffer, &mut self.answers, read)
        });
        self.watch.turn.store(turn + 1, Relaxed);
        let answer = answer?;
        if !answer.closes {
            self.line = Some(line);
        }
        Ok(answer.status)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.watch.turn.store(LEFT, Relaxed);
    }
}

impl Line {
    fn write(&mut self, mut bytes: &[u8], watch: &Watch) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.ready(watch, |stream| stream.write(bytes))?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// The first read waits before it tries: an answer that takes a commit is never there at once. Later ones try
    /// before they wait, as the event may have told of their bytes too.
    fn read(&mut self, buffer: &mut [u8], is_first: bool, watch: &Watch) -> io::Result<usize> {
        if is_first && !self.is_gone {
            self.wait();
        }
        self.ready(watch, |stream| stream.read(buffer))
    }

    fn ready(
        &mut self,
        watch: &Watch,
        mut call: impl FnMut(&mut &std::net::TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match call(&mut self.stream.inner()) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                done => return done,
            }
            if watch.is_overdue() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.wait();
        }
    }

    /// Until there was any event since the last wait.
    fn wait(&mut self) {
        self.is_gone |= self.stream.wait_io() & GONE != 0;
    }
}

impl Watch {
    fn is_overdue(&self) -> bool {
        self.overdue.load(Acquire) == self.turn.load(Relaxed)
    }

    /// Ends this post, if it is still under way.
    fn end(&self, turn: u64) {
        self.overdue.store(turn, Release);
        if let Some(waker) = &*self.waker.lock() {
            waker.wakeup();
        }
    }
}

/// Ends posts that take too long.
pub struct Watchdog {
    timeout: Duration,
    watches: Vec<Arc<Watch>>,
    /// The turn of each as it was first seen, and when that was.
    seen: Vec<(u64, Duration)>,
}

impl Watchdog {
    /// No answer may take longer than `timeout`, and as long as it takes until the next look.
    pub fn new(timeout: Duration, watches: Vec<Arc<Watch>>) -> Self {
        let seen = vec![(0, Duration::ZERO); watches.len()];
        Self { timeout, watches, seen }
    }

    /// Looks at all; false: no client is left.
    pub fn look(&mut self, now: Duration) -> bool {
        let mut is_over = true;
        for (watch, (turn, since)) in self.watches.iter().zip(&mut self.seen) {
            let current = watch.turn.load(Relaxed);
            is_over &= current == LEFT;
            if current != *turn {
                (*turn, *since) = (current, now);
            } else if current % 2 == 1 && current != LEFT && now.saturating_sub(*since) >= self.timeout {
                watch.end(current);
            }
        }
        !is_over
    }
}

/// Posts once on a connection of its own, and blocks the thread meanwhile.
pub fn post_once(to: SocketAddr, timeout: Duration, request: &[u8]) -> io::Result<u16> {
    let mut stream = std::net::TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(request)?;
    let read = |buffer: &mut [u8], _| stream.read(buffer);
    self::read(&mut vec![0; 1024], &mut Answers::default(), read).map(|answer| answer.status)
}

fn read(
    buffer: &mut Vec<u8>,
    answers: &mut Answers,
    mut read: impl FnMut(&mut [u8], bool) -> io::Result<usize>,
) -> io::Result<Answer> {
    let mut filled = 0;
    loop {
        let read = read(&mut buffer[filled..], filled == 0)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        match answers.parse(&buffer[..filled])? {
            Some(answer) if answer.length == filled => return Ok(answer),
            Some(answer) if answer.length < filled => return Err(bad("bytes after the answer")),
            _ if filled == buffer.len() && filled >= ANSWER_MAX => return Err(bad("an answer without end")),
            _ if filled == buffer.len() => buffer.resize(filled * 2, 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const REQUEST: &[u8] = b"POST / HTTP/1.1\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LONG: Duration = Duration::from_secs(10);

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    fn in_a_coroutine<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = std::sync::mpsc::channel();
        may::go!(move || tell.send(run()));
        told.recv_timeout(LONG).expect("it ends")
    }

    fn take(stream: &mut TcpStream) {
        stream.read_exact(&mut [0; REQUEST.len()]).expect("a request");
    }

    #[test]
    fn an_answer_may_come_in_pieces_and_the_connection_stays() {
        let (listener, to) = listener();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().expect("one").0;
            for cut in [OK.len(), 1, 17, OK.len() - 1] {
                take(&mut stream);
                stream.set_nodelay(true).expect("set");
                stream.write_all(&OK[..cut]).expect("written");
                clock::sleep(Duration::from_millis(20));
                stream.write_all(&OK[cut..]).expect("written");
            }
        });
        let statuses = in_a_coroutine(move || {
            let mut client = Client::new(to, LONG);
            [0; 4].map(|_| client.post(REQUEST).expect("an answer"))
        });
        assert_eq!(statuses, [200; 4]);
        server.join().expect("no panic");
    }

    #[test]
    fn a_server_that_left_is_seen_before_and_after_a_post() {
        let (listener, to) = listener();
        let server = std::thread::spawn(move || {
            // shut after an answer, and kept open as a lingering close does: no event comes any more
            let mut stream = listener.accept().expect("one").0;
            take(&mut stream);
            stream.write_all(OK).expect("written");
            stream.shutdown(std::net::Shutdown::Write).expect("shut");
            let mut next = listener.accept().expect("another").0;
            take(&mut next);
            drop(next);
            drop(stream);
        });
        let kinds = in_a_coroutine(move || {
            let mut client = Client::new(to, LONG);
            assert_eq!(client.post(REQUEST).expect("an answer"), 200);
            clock::sleep(Duration::from_millis(50));
            [0; 2].map(|_| client.post(REQUEST).expect_err("none").kind())
        });
        assert_eq!(kinds, [ErrorKind::UnexpectedEof; 2]);
        server.join().expect("no panic");
    }

    #[test]
    fn a_post_that_takes_too_long_is_ended_whether_it_reads_or_writes() {
        // nobody accepts: the kernel takes the connections and what fits into its buffers
        let (_listener, to) = listener();
        let mut client = Client::new(to, LONG);
        let mut dog = Watchdog::new(Duration::from_millis(100), vec![Arc::clone(client.watch())]);
        let (tell, told) = std::sync::mpsc::channel();
        may::go!(move || {
            let read = client.post(REQUEST).expect_err("no answer").kind();
            let written = client.post(&vec![b'x'; 64 << 20]).expect_err("not taken").kind();
            drop(client);
            tell.send([read, written])
        });
        let end = clock::monotonic() + LONG;
        while dog.look(clock::monotonic()) {
            assert!(clock::monotonic() < end);
            clock::sleep(Duration::from_millis(10));
        }
        assert_eq!(told.recv_timeout(LONG).expect("both ended"), [ErrorKind::TimedOut; 2]);
    }

    #[test]
    fn only_a_post_that_is_under_way_for_so_long_is_overdue() {
        let watch = Arc::new(Watch::default());
        let mut dog = Watchdog::new(Duration::from_secs(30), vec![Arc::clone(&watch)]);
        let mut look = |seconds, turn: u64| {
            watch.turn.store(turn, Relaxed);
            (dog.look(Duration::from_secs(seconds)), watch.is_overdue())
        };
        assert_eq!(look(100, 2), (true, false));
        assert_eq!(look(200, 2), (true, false));
        assert_eq!(look(201, 3), (true, false));
        assert_eq!(look(230, 3), (true, false));
        assert_eq!(look(231, 3), (true, true));
        assert_eq!(look(232, 5), (true, false));
        assert_eq!(look(300, LEFT), (false, false));
    }
}
