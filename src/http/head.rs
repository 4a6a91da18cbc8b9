//! PURE: what a request's header lines say, found in one pass, and whether they frame its body in one way
//! only.
//!
//! may_minihttp believes the first Content-Length, panics on one that is no number, and knows no transfer
//! coding. So a request gets as far as its body only if it has at most one Content-Length, of digits alone,
//! and no Transfer-Encoding: whoever stands in front of us can't see another end of the body than we do.

use crate::webhook::signature::HEADER_LEN;

/// Bytes of X-Forwarded-For that are looked at: the last ones, which the nearest proxy wrote.
pub const FORWARDED_MAX: usize = 512;

/// Why the body's end can't be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFraming {
    /// Any Transfer-Encoding: 501.
    TransferEncoding,
    /// Several Content-Lengths, or one that is not digits: 400.
    Length,
}

/// The X-Hub-Signature-256 line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// There is none.
    Absent,
    /// One of the right size.
    Given([u8; HEADER_LEN]),
    /// Several, or one of another size.
    Malformed,
}

/// The Expect line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is none.
    Nothing,
    /// `100-continue`.
    Continue,
    /// Something that nobody defined: 417.
    Unknown,
}

/// What the edge needs of the header lines. Owned, since the lines are gone once the body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Content-Length; `usize::MAX` for one that does not fit.
    pub length: Option<usize>,
    /// Who signed.
    pub signature: Signature,
    /// `Connection: close`, or HTTP/1.0 (whatever it asks for).
    pub close: bool,
    /// Whether the client waits for an interim answer.
    pub expect: Expect,
    /// There is a line that proxies add (X-Forwarded-*, Forwarded, X-Real-IP, Via).
    pub forwarded: bool,
}

/// Reads the lines of a request of HTTP/1.`version`. `hops` is emptied and gets the end of all
/// X-Forwarded-For lines.
pub fn read<'h>(
    version: u8,
    lines: impl Iterator<Item = (&'h str, &'h [u8])>,
    hops: &mut Vec<u8>,
) -> Result<Head, BadFraming> {
    hops.clear();
    let mut head = Head {
        length: None,
        signature: Signature::Absent,
        close: version == 0,
        expect: Expect::Nothing,
        forwarded: false,
    };
    for (name, value) in lines {
        // by size first: of the lines that a request usually has, few share one
        match name.len() {
            14 if name.eq_ignore_ascii_case("content-length") => {
                if head.length.is_some() {
                    return Err(BadFraming::Length);
                }
                head.length = Some(length(value).ok_or(BadFraming::Length)?);
            }
            19 if name.eq_ignore_ascii_case("x-hub-signature-256") => {
                head.signature = match (head.signature, value.try_into()) {
                    (Signature::Absent, Ok(value)) => Signature::Given(value),
                    _ => Signature::Malformed,
                };
            }
            10 if name.eq_ignore_ascii_case("connection") => head.close |= has_token(value, b"close"),
            17 if name.eq_ignore_ascii_case("transfer-encoding") => return Err(BadFraming::TransferEncoding),
            6 if name.eq_ignore_ascii_case("expect") => {
                let known = value.eq_ignore_ascii_case(b"100-continue");
                head.expect = if known { Expect::Continue } else { Expect::Unknown };
            }
            15 if name.eq_ignore_ascii_case("x-forwarded-for") => {
                head.forwarded = true;
                add_hops(hops, value);
            }
            3..=18 if is_forwarding(name) => head.forwarded = true,
            _ => {}
        }
    }
    if version == 0 && head.expect == Expect::Continue {
        head.expect = Expect::Nothing; // RFC 9110, 10.1.1
    }
    Ok(head)
}

fn is_forwarding(name: &str) -> bool {
    const OTHERS: [&str; 3] = ["forwarded", "x-real-ip", "via"];
    name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"))
        || OTHERS.iter().any(|other| name.eq_ignore_ascii_case(other))
}

fn length(value: &[u8]) -> Option<usize> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        value.iter().fold(0_usize, |n, digit| n.saturating_mul(10).saturating_add(usize::from(digit - b'0'))),
    )
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|b| *b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

fn add_hops(hops: &mut Vec<u8>, value: &[u8]) {
    if !hops.is_empty() {
        hops.push(b',');
    }
    hops.extend_from_slice(&value[value.len().saturating_sub(FORWARDED_MAX)..]);
    let surplus = hops.len().saturating_sub(FORWARDED_MAX);
    hops.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(lines: &[(&str, &str)]) -> Result<Head, BadFraming> {
        read(1, lines.iter().map(|(name, value)| (*name, value.as_bytes())), &mut Vec::new())
    }

    #[test]
    fn one_length_of_digits_or_none() {
        assert_eq!(of(&[]).map(|h| h.length), Ok(None));
        assert_eq!(of(&[("content-LENGTH", "0042")]).map(|h| h.length), Ok(Some(42)));
        assert_eq!(of(&[("Content-Length", &"9".repeat(40))]).map(|h| h.length), Ok(Some(usize::MAX)));
        for bad in ["", "+5", "-5", "5 ", " 5", "5,5", "5, 5", "0x5", "5.0", "1e3", "five", "5 5", "٥"] {
            assert_eq!(of(&[("Content-Length", bad)]), Err(BadFraming::Length), "{bad:?}");
        }
        assert_eq!(of(&[("Content-Length", "5"), ("content-length", "5")]), Err(BadFraming::Length));
    }

    #[test]
    fn any_transfer_coding_is_refused() {
        for value in ["chunked", "identity", "", "gzip, chunked", "\u{b}chunked"] {
            assert_eq!(of(&[("Transfer-Encoding", value)]), Err(BadFraming::TransferEncoding));
        }
        let both = [("Content-Length", "5"), ("transfer-ENCODING", "chunked")];
        assert_eq!(of(&both), Err(BadFraming::TransferEncoding));
    }

    #[test]
    fn two_signatures_are_none() {
        let good = format!("sha256={}", "a".repeat(64));
        let given = of(&[("X-Hub-Signature-256", &good)]).expect("framing");
        assert!(matches!(given.signature, Signature::Given(value) if value == good.as_bytes()));
        let twice = of(&[("X-Hub-Signature-256", &good), ("x-hub-signature-256", &good)]).expect("framing");
        assert_eq!(twice.signature, Signature::Malformed);
        let short = of(&[("X-Hub-Signature-256", "sha256=00")]).expect("framing");
        assert_eq!(short.signature, Signature::Malformed);
    }

    #[test]
    fn close_is_a_token_among_others_and_http_1_0_always_closes() {
        assert!(of(&[("Connection", "keep-alive, Close")]).expect("framing").close);
        assert!(!of(&[("Connection", "closed")]).expect("framing").close);
        let lines = [("Connection", "keep-alive".as_bytes())];
        assert!(read(0, lines.into_iter(), &mut Vec::new()).expect("framing").close);
    }

    #[test]
    fn the_nearest_hops_are_kept() {
        let mut hops = vec![1, 2, 3];
        let far = "1.1.1.1, ".repeat(200);
        let lines = [("X-Forwarded-For", far.as_bytes()), ("x-forwarded-for", b"203.0.113.9")];
        assert!(read(1, lines.into_iter(), &mut hops).expect("framing").forwarded);
        assert!(hops.ends_with(b",203.0.113.9") && hops.len() == FORWARDED_MAX);
    }

    #[test]
    fn what_proxies_add_is_noticed() {
        for name in ["Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host", "x-forwarded-proto"] {
            assert!(of(&[(name, "x")]).expect("framing").forwarded, "{name}");
        }
        assert!(!of(&[("User-Agent", "x"), ("Host", "x")]).expect("framing").forwarded);
    }

    proptest! {
        #[test]
        fn a_length_that_passes_is_one_that_the_crate_can_parse(value in "[ -~]{0,24}") {
            if let Ok(head) = of(&[("Content-Length", &value)])
                && let Some(n) = head.length
                && n != usize::MAX
            {
                prop_assert_eq!(value.parse::<usize>(), Ok(n));
            }
        }
    }
}
