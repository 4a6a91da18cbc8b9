//! PURE. The answer to a post: its status, how long it is, and whether the connection is over with it. HTTP/1.1 as far
//! as the server under test and its peers speak it.

use std::io::{self, ErrorKind};

/// The longest answer that is remembered, in bytes.
const REMEMBERED_MAX: usize = 512;

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Head and body, in bytes.
    pub length: usize,
    /// The connection ends with it.
    pub closes: bool,
}

/// Reads one answer after the other. Nearly all are, byte by byte, the one before, and that one has been read already.
#[derive(Default)]
pub struct Answers {
    last: Vec<u8>,
    read: Option<Answer>,
}

impl Answers {
    /// What [`parse`] says of these bytes.
    ///
    /// # Errors
    /// They begin no answer; why.
    pub fn parse(&mut self, bytes: &[u8]) -> io::Result<Option<Answer>> {
        if self.read.is_some() && bytes == self.last {
            return Ok(self.read);
        }
        let read = parse(bytes)?;
        if read.is_some_and(|answer| answer.length == bytes.len() && answer.length <= REMEMBERED_MAX) {
            self.last.clear();
            self.last.extend_from_slice(bytes);
            self.read = read;
        }
        Ok(read)
    }
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

/// Something that is not HTTP.
pub fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            assert!(Answers::default().parse(bytes).is_err());
        }
    }

    fn answer() -> impl Strategy<Value = Vec<u8>> {
        let status = prop::sample::select(vec!["200 OK", "200 ", "503 Service Unavailable", "2x0", ""]);
        let header = prop::sample::select(vec![
            "Content-Length: 0",
            "content-length:2",
            "Content-Length: x",
            "Connection: close",
            "Connection: keep-alive",
            "Date: Thu, 01 Jan 1970 00:00:00 GMT",
            "no header",
        ]);
        let body = prop::sample::select(vec!["", "ok", "longer than it says"]);
        (status, prop::collection::vec(header, 0..4), body).prop_map(|(status, headers, body)| {
            let head: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
            format!("HTTP/1.1 {status}\r\n{head}\r\n{body}").into_bytes()
        })
    }

    proptest! {
        /// However the answers come, whole or in pieces, often the same or never: what is remembered changes nothing.
        #[test]
        fn what_is_remembered_changes_nothing(
            kinds in prop::collection::vec(answer(), 1..4),
            reads in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..200), 0..40),
        ) {
            let mut answers = Answers::default();
            for (kind, cut) in reads {
                let whole = kind.get(&kinds);
                for bytes in [&whole[..cut.min(whole.len())], whole] {
                    let (read, again) = (answers.parse(bytes), parse(bytes));
                    prop_assert_eq!(read.map_err(|e| e.to_string()), again.map_err(|e| e.to_string()));
                }
            }
        }
    }
}
