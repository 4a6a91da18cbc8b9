//! One keep-alive connection that posts and reads the status: HTTP/1.1 as far as the server under test speaks it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use may::net::TcpStream;
use whatsapp_webhook::clock;

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 16 << 10;

/// Connects when it has to.
pub struct Client {
    to: SocketAddr,
    timeout: Duration,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    /// `timeout`: for connecting, and for each read.
    pub fn new(to: SocketAddr, timeout: Duration) -> Self {
        Self { to, timeout, stream: None, buffer: vec![0; 1024] }
    }

    /// Opens the connection, if it is not open.
    pub fn connect(&mut self) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.to, self.timeout);
            clock::back_to_worker();
            let stream = stream?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.timeout))?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Posts a whole request and returns the answer's status. After an error the next post connects anew.
    pub fn post(&mut self, request: &[u8]) -> io::Result<u16> {
        self.connect()?;
        let Some(mut stream) = self.stream.take() else { return Err(ErrorKind::NotConnected.into()) };
        stream.write_all(request)?;
        let answer = read(&mut stream, &mut self.buffer)?;
        if !answer.closes {
            self.stream = Some(stream);
        }
        Ok(answer.status)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Head and body, in bytes.
    length: usize,
    closes: bool,
}

fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Answer> {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).inspect_err(|_| clock::back_to_worker())?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        match parse(&buffer[..filled])? {
            Some(answer) if answer.length == filled => return Ok(answer),
            Some(answer) if answer.length < filled => return Err(bad("bytes after the answer")),
            _ if filled == buffer.len() && filled >= ANSWER_MAX => return Err(bad("an answer without end")),
            _ if filled == buffer.len() => buffer.resize(filled * 2, 0),
            _ => {}
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// The answer as far as its head is whole.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad("a head that is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|line| line.get(..3))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| bad("no status line"))?;
    let mut answer = Answer { status, length: end + 4, closes: false };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            answer.length += value.trim().parse::<usize>().map_err(|_| bad("a bad Content-Length"))?;
        } else if name.eq_ignore_ascii_case("connection") {
            answer.closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_how_long_the_answer_is() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 2\r\n\r\nok";
        let answer = Answer { status: 200, length: bytes.len(), closes: false };
        assert_eq!(parse(bytes).expect("good"), Some(answer));
        assert_eq!(parse(&bytes[..20]).expect("good so far"), None);
    }

    #[test]
    fn a_closing_answer_is_seen() {
        let bytes = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = parse(bytes).expect("good").expect("whole");
        assert_eq!((answer.status, answer.closes), (503, true));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for bytes in [&b"HTTP/2 200\r\n\r\n"[..], b"\xff\r\n\r\n", b"HTTP/1.1 2x0 \r\n\r\n"] {
            assert!(parse(bytes).is_err());
        }
    }
}
