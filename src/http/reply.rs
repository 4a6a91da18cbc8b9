//! The answers that are written straight to a descriptor, and the ones that routes give.
//!
//! may_minihttp encodes an [`Answer`] after `call`; `encoded_len` knows how many bytes that makes, for the bound on what a
//! peer leaves unread.

use may_minihttp::Response;

/// Above MAX_CONNECTIONS, or while draining.
pub const SURPLUS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// Header or body did not come in time.
pub const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// More header than 64 KiB or 16 lines.
pub const LARGE_HEADER: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\nContent-Length: 68\r\nConnection: close\r\n\r\n{\"error\":\"more than 16 header lines or 64 KiB of header (or no HTTP)\"}";
/// Not HTTP.
pub const MALFORMED: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 40\r\nConnection: close\r\n\r\n{\"error\":\"this is not a proper request\"}";
/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Why a request's body is not read: the answer is written directly and the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No Content-Length on a POST.
    LengthRequired,
    /// Above [`crate::event::BODY_MAX`].
    TooLarge,
    /// Several lengths, or one that is not all digits.
    BadLength,
    /// Any Transfer-Encoding.
    TransferCoding,
}

impl Refused {
    /// The complete answer.
    pub fn words(self) -> &'static [u8] {
        match self {
            Self::LengthRequired => b"HTTP/1.1 411 Length Required\r\nContent-Type: application/json\r\nContent-Length: 45\r\nConnection: close\r\n\r\n{\"error\":\"a POST needs one Content-Length\"}  ",
            Self::TooLarge => b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\nContent-Length: 40\r\nConnection: close\r\n\r\n{\"error\":\"the body is larger than 4 MiB\"}",
            Self::BadLength => b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 41\r\nConnection: close\r\n\r\n{\"error\":\"Content-Length is not a number\"}",
            Self::TransferCoding => b"HTTP/1.1 501 Not Implemented\r\nContent-Type: application/json\r\nContent-Length: 44\r\nConnection: close\r\n\r\n{\"error\":\"transfer codings are not accepted\"}",
        }
    }
}

const JSON: &str = "Content-Type: application/json";
const TEXT: &str = "Content-Type: text/plain; charset=utf-8";
const PROMETHEUS: &str = "Content-Type: text/plain; version=0.0.4; charset=utf-8";

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Text,
    Prometheus,
}

/// An answer of a route.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub form: Form,
    pub body: Body,
    /// A whole header line without its end.
    pub extra: Option<&'static str>,
}

#[derive(Debug)]
pub enum Body {
    Fixed(&'static str),
    Made(Vec<u8>),
}

impl Answer {
    pub const fn fixed(status: u16, body: &'static str) -> Self {
        Self { status, form: Form::Json, body: Body::Fixed(body), extra: None }
    }

    pub const fn with(status: u16, body: &'static str, extra: &'static str) -> Self {
        Self { status, form: Form::Json, body: Body::Fixed(body), extra: Some(extra) }
    }

    pub const fn made(status: u16, form: Form, body: Vec<u8>) -> Self {
        Self { status, form, body: Body::Made(body), extra: None }
    }

    /// Fills the crate's response in; how many bytes it will encode. `head`: without the body.
    pub fn write(self, response: &mut Response<'_>, head: bool) -> u64 {
        let reason = reason(self.status);
        if self.status != 200 {
            response.status_code(usize::from(self.status), reason);
        }
        let form = match self.form {
            Form::Json => JSON,
            Form::Text => TEXT,
            Form::Prometheus => PROMETHEUS,
        };
        response.header(form);
        let mut headers = form.len() + 2;
        if let Some(extra) = self.extra {
            response.header(extra);
            headers += extra.len() + 2;
        }
        let length = match self.body {
            _ if head => 0,
            Body::Fixed(text) => {
                response.body(text);
                text.len()
            }
            Body::Made(bytes) => {
                let length = bytes.len();
                response.body_vec(bytes);
                length
            }
        };
        encoded_len(self.status, reason, headers, length)
    }
}

/// Bytes that may_minihttp 0.1.11 makes of a response: `HTTP/1.1 200 Ok`, Server, Date (29 characters), Content-Length.
fn encoded_len(status: u16, reason: &str, headers: usize, body: usize) -> u64 {
    let reason = if status == 200 { 2 } else { reason.len() };
    let digits = body.checked_ilog10().map_or(1, |n| n as usize + 1);
    let fixed =
        "HTTP/1.1 200 ".len() + "\r\nServer: M\r\nDate: ".len() + 29 + "\r\nContent-Length: ".len() + 4;
    (fixed + reason + digits + headers + body) as u64
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

/// `Retry-After` for a wait: a line from a fixed set, rounded up.
pub fn retry_after(seconds: u64) -> &'static str {
    match seconds {
        0..=1 => "Retry-After: 1",
        2 => "Retry-After: 2",
        3..=5 => "Retry-After: 5",
        6..=10 => "Retry-After: 10",
        11..=20 => "Retry-After: 20",
        21..=30 => "Retry-After: 30",
        _ => "Retry-After: 60",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_direct_answer_has_the_length_that_it_says() {
        let refused =
            [Refused::LengthRequired, Refused::TooLarge, Refused::BadLength, Refused::TransferCoding]
                .map(Refused::words);
        for words in refused.into_iter().chain([SURPLUS, LATE, LARGE_HEADER, MALFORMED]) {
            let text = std::str::from_utf8(words).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).expect("a length");
            assert_eq!(length.parse::<usize>().expect("a number"), body.len(), "{text}");
        }
    }
}
