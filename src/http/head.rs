//! One pass over the header lines of a request: what the edge needs, checked, without allocation.

use may_minihttp::Request;

use super::reply::Refused;
use crate::event::BODY_MAX;

/// A signature header is 71 bytes; what is longer can't be one.
const SIGNATURE_MAX: usize = 96;
/// Of X-Forwarded-For only the end counts.
const FORWARDED_MAX: usize = 512;

/// What the request's header says. Kept per connection; [`Head::read`] refills it.
#[derive(Default)]
pub struct Head {
    pub method: Method,
    pub length: usize,
    pub has_length: bool,
    pub close: bool,
    pub expects_continue: bool,
    pub text_preferred: bool,
    pub has_forwarding: bool,
    signature: Option<Vec<u8>>,
    signature_is_there: bool,
    authorization: Option<String>,
    forwarded_for: String,
}

/// The methods that a route may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    #[default]
    Other,
}

impl Head {
    /// Refills it from `request`; `Err` if its body can't be told from the next request, or is too large.
    pub fn read(&mut self, request: &Request<'_, '_, '_>) -> Result<(), Refused> {
        self.reset(request);
        let mut refused = None;
        for header in request.headers() {
            let (name, value) = (header.name, header.value);
            // by length first: one comparison for most headers
            match name.len() {
                6 if name.eq_ignore_ascii_case("accept") => self.text_preferred = prefers_text(value),
                6 if name.eq_ignore_ascii_case("expect") => {
                    self.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
                }
                9 if name.eq_ignore_ascii_case("forwarded") => self.has_forwarding = true,
                9 if name.eq_ignore_ascii_case("x-real-ip") => self.has_forwarding = true,
                10 if name.eq_ignore_ascii_case("connection") => self.connection(value),
                13 if name.eq_ignore_ascii_case("authorization") => {
                    self.authorization = std::str::from_utf8(value).ok().map(str::to_owned);
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    refused = refused.or(self.content_length(value).err());
                }
                15 if name.eq_ignore_ascii_case("x-forwarded-for") => self.forwarded(value),
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    refused = Some(Refused::TransferCoding)
                }
                19 if name.eq_ignore_ascii_case("x-hub-signature-256") => self.sign(value),
                _ => {}
            }
        }
        if self.method == Method::Post && !self.has_length {
            refused = refused.or(Some(Refused::LengthRequired));
        }
        refused.map_or(Ok(()), Err)
    }

    fn reset(&mut self, request: &Request<'_, '_, '_>) {
        self.method = match request.method() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            _ => Method::Other,
        };
        self.length = 0;
        self.has_length = false;
        self.close = request.version() == 0;
        self.expects_continue = false;
        self.text_preferred = false;
        self.has_forwarding = false;
        self.signature_is_there = false;
        self.authorization = None;
        self.forwarded_for.clear();
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|b| *b == b',') {
            let token = token.trim_ascii();
            self.close |= token.eq_ignore_ascii_case(b"close");
            if token.eq_ignore_ascii_case(b"keep-alive") {
                // HTTP/1.0 with keep-alive would need an answer of that version: it is closed all the same
            }
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refused> {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        if self.has_length || !digits {
            return Err(Refused::BadLength);
        }
        self.has_length = true;
        let length =
            value.iter().try_fold(0_usize, |n, d| n.checked_mul(10)?.checked_add(usize::from(d - b'0')));
        match length {
            Some(length) if length <= BODY_MAX => {
                self.length = length;
                Ok(())
            }
            _ => Err(Refused::TooLarge),
        }
    }

    /// Several lines are one list.
    fn forwarded(&mut self, value: &[u8]) {
        self.has_forwarding = true;
        let Ok(text) = std::str::from_utf8(value) else { return };
        let tail = text.get(text.len().saturating_sub(FORWARDED_MAX)..).unwrap_or_default();
        if self.forwarded_for.len() + tail.len() <= 2 * FORWARDED_MAX {
            if !self.forwarded_for.is_empty() {
                self.forwarded_for.push(',');
            }
            self.forwarded_for.push_str(tail);
        }
    }

    /// A second signature line makes it a wrong one.
    fn sign(&mut self, value: &[u8]) {
        let kept = self.signature.get_or_insert_default();
        if self.signature_is_there {
            kept.clear();
        } else {
            kept.clear();
            kept.extend_from_slice(&value[..value.len().min(SIGNATURE_MAX)]);
        }
        self.signature_is_there = true;
    }

    pub fn signature(&self) -> Option<&[u8]> {
        if self.signature_is_there { self.signature.as_deref() } else { None }
    }

    pub fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    pub fn forwarded_for(&self) -> &str {
        &self.forwarded_for
    }
}

/// Whether `Accept` puts text/plain or OpenMetrics before JSON. `*/*` alone means JSON.
fn prefers_text(accept: &[u8]) -> bool {
    let Ok(accept) = std::str::from_utf8(accept) else { return false };
    let quality = |kinds: &[&str]| {
        let of_kind = accept.split(',').filter_map(|part| {
            let mut words = part.split(';').map(str::trim);
            let kind = words.next()?;
            kinds.iter().any(|k| kind.eq_ignore_ascii_case(k)).then_some(())?;
            let q = words.find_map(|w| w.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok());
            Some(q.unwrap_or(1.0))
        });
        of_kind.fold(0.0, f32::max)
    };
    let text = quality(&["text/plain", "application/openmetrics-text"]);
    text > 0.0 && text >= quality(&["application/json"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_text_and_a_browser_or_curl_gets_json() {
        assert!(prefers_text(
            b"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
        ));
        assert!(prefers_text(b"text/plain"));
        assert!(!prefers_text(b"*/*"));
        assert!(!prefers_text(b"application/json"));
        assert!(!prefers_text(b"text/plain;q=0.5, application/json"));
        assert!(!prefers_text(b"text/html,application/xhtml+xml,*/*;q=0.8"));
    }

    #[test]
    fn a_length_is_digits_once_and_bounded() {
        let with = |values: &[&str]| {
            let mut head = Head::default();
            values.iter().try_for_each(|v| head.content_length(v.as_bytes())).map(|()| head.length)
        };
        assert_eq!(with(&["476"]), Ok(476));
        assert_eq!(with(&["4194304"]), Ok(BODY_MAX));
        assert_eq!(with(&["4194305"]), Err(Refused::TooLarge));
        assert_eq!(with(&["99999999999999999999999999"]), Err(Refused::TooLarge));
        for bad in ["", "+5", "-1", "5 5", "0x10", "5,5", "١"] {
            assert_eq!(with(&[bad]), Err(Refused::BadLength), "{bad}");
        }
        assert_eq!(with(&["5", "5"]), Err(Refused::BadLength));
    }
}
