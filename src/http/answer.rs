//! An answer: what it says, how it goes out through may_minihttp, how many bytes that makes on the wire, and
//! how it looks when the guard writes it itself (the last one of a connection, and those to HEAD).

use std::time::SystemTime;

use may_minihttp::Response;

/// Status codes that the edge uses.
pub fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// `Content-Type` lines.
pub mod content {
    /// JSON.
    pub const JSON: &str = "Content-Type: application/json";
    /// The challenge: text that a browser must not take for something else.
    pub const TEXT: &str = "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff";
    /// Prometheus.
    pub const PROMETHEUS: &str = "Content-Type: text/plain; version=0.0.4; charset=utf-8";
}

/// What the client is told.
#[derive(Debug)]
pub enum Body {
    /// Known when we were built.
    Fixed(&'static str),
    /// Made for this answer.
    Made(Vec<u8>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Fixed(text) => text.as_bytes(),
            Self::Made(bytes) => bytes,
        }
    }
}

/// An answer. Header lines are fixed texts, since may_minihttp takes no others.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub code: u16,
    /// One of [`content`].
    pub content: &'static str,
    /// Another header line: Allow, Retry-After, WWW-Authenticate.
    pub line: Option<&'static str>,
    /// After the header.
    pub body: Body,
}

impl Answer {
    /// JSON that is known beforehand.
    pub const fn fixed(code: u16, json: &'static str) -> Self {
        Self { code, content: content::JSON, line: None, body: Body::Fixed(json) }
    }

    /// JSON made now.
    pub fn made(code: u16, json: String) -> Self {
        Self { code, content: content::JSON, line: None, body: Body::Made(json.into_bytes()) }
    }

    /// With another header line.
    pub const fn with(mut self, line: &'static str) -> Self {
        self.line = Some(line);
        self
    }

    /// Gives it to may_minihttp; how many bytes that writes.
    pub fn put(self, closing: bool, out: &mut Response<'_>) -> u64 {
        let size = self.size() + if closing { CLOSE.len() + 2 } else { 0 };
        out.status_code(usize::from(self.code), reason(self.code)).header(self.content);
        if let Some(line) = self.line {
            out.header(line);
        }
        if closing {
            out.header(CLOSE);
        }
        match self.body {
            Body::Fixed(text) => out.body(text),
            Body::Made(bytes) => out.body_vec(bytes),
        }
        size as u64
    }

    /// What may_minihttp 0.1.11 makes of it (its `response.rs`, `encode`), in bytes.
    fn size(&self) -> usize {
        let body = self.body.bytes().len();
        let mut digits = itoa::Buffer::new();
        let lines = self.content.len() + 2 + self.line.map_or(0, |line| line.len() + 2);
        // it writes "Ok" for a 200, whatever it is given
        let reason = reason(self.code).len();
        FRAME + reason + digits.format(body).len() + lines + body
    }

    /// The last answer of a connection as bytes. `with_body` false: to HEAD.
    pub fn to_bytes(&self, with_body: bool) -> Vec<u8> {
        let body = self.body.bytes();
        let mut out = Vec::with_capacity(256 + body.len());
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(itoa::Buffer::new().format(self.code).as_bytes());
        out.push(b' ');
        out.extend_from_slice(reason(self.code).as_bytes());
        out.extend_from_slice(b"\r\nServer: M\r\nDate: ");
        out.extend_from_slice(httpdate::fmt_http_date(SystemTime::now()).as_bytes());
        out.extend_from_slice(b"\r\nContent-Length: ");
        out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
        for line in [Some(self.content), self.line, Some(CLOSE)].into_iter().flatten() {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(line.as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
        if with_body {
            out.extend_from_slice(body);
        }
        out
    }
}

const CLOSE: &str = "Connection: close";
/// Bytes of every answer of may_minihttp: `HTTP/1.1 200 `, `Server: M`, `Date:` with its 29, `Content-Length:
/// `, line ends.
const FRAME: usize = 13 + 19 + 29 + 18 + 4;

/// The answer to a body that is durable.
pub const ACK: Answer = Answer::fixed(200, "{\"status\":\"ok\"}");

/// `ACK` as may_minihttp would write it, for one that it could not write any more.
pub fn ack_bytes() -> Vec<u8> {
    let ack = ACK;
    let body = ack.body.bytes();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let head = format!(
        "HTTP/1.1 200 Ok\r\nServer: M\r\nDate: {date}\r\nContent-Length: {}\r\n{}\r\n\r\n",
        body.len(),
        ack.content
    );
    [head.as_bytes(), body].concat()
}

/// The nearest `Retry-After` line that is not too early.
pub fn retry_after(wait_us: u64) -> &'static str {
    const STEPS: [(u64, &str); 6] = [
        (1, "Retry-After: 1"),
        (2, "Retry-After: 2"),
        (5, "Retry-After: 5"),
        (10, "Retry-After: 10"),
        (30, "Retry-After: 30"),
        (60, "Retry-After: 60"),
    ];
    let seconds = wait_us.div_ceil(1_000_000);
    STEPS.iter().find(|(step, _)| *step >= seconds).unwrap_or(&STEPS[5]).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_ack_is_that_of_its_bytes() {
        assert_eq!(ACK.size(), ack_bytes().len());
    }

    #[test]
    fn an_answer_to_head_has_the_length_and_no_body() {
        let text = String::from_utf8(Answer::fixed(404, "{}").to_bytes(false)).expect("text");
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"), "{text}");
        assert!(
            text.contains("\r\nContent-Length: 2\r\n") && text.ends_with("Connection: close\r\n\r\n"),
            "{text}"
        );
    }

    #[test]
    fn a_wait_is_never_named_too_short() {
        assert_eq!(retry_after(1), "Retry-After: 1");
        assert_eq!(retry_after(1_000_001), "Retry-After: 2");
        assert_eq!(retry_after(600_000_000), "Retry-After: 60");
    }
}
