//! PURE: whose request this is, and who may administrate.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ring::hmac;

use crate::secret::Secret;

/// The client's address: the peer, or the last X-Forwarded-For hop that is not a trusted proxy.
///
/// `hops` are the X-Forwarded-For lines joined by commas. They count only if the peer is trusted, and only as
/// far back as every hop between is: what stands before the first untrusted hop was written by it. A hop that
/// is no address ends the search at the hop that reported it.
pub fn client(peer: IpAddr, hops: &[u8], trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut nearest = peer.to_canonical();
    for hop in hops.rsplit(|b| *b == b',') {
        if !is_trusted(nearest) {
            break;
        }
        match address(hop.trim_ascii()) {
            Some(hop) => nearest = hop,
            None => break,
        }
    }
    nearest
}

/// `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:567`, with or without quotes.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    parsed.ok().map(|address: IpAddr| address.to_canonical())
}

/// Whether an admin request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Granted,
    /// 401: ADMIN_TOKEN is set, and the bearer is not it.
    Unauthorized,
    /// 403: no ADMIN_TOKEN, and the request does not come from this machine itself.
    Forbidden,
}

/// `authorization`: the value of the line, `None` where there is none or there are several.
pub fn admit(
    token: Option<&Secret>,
    authorization: Option<&[u8]>,
    peer: Option<IpAddr>,
    forwarded: bool,
) -> Admission {
    let Some(token) = token.filter(|token| !token.reveal().is_empty()) else {
        let local = peer.is_some_and(|peer| peer.to_canonical().is_loopback()) && !forwarded;
        return if local { Admission::Granted } else { Admission::Forbidden };
    };
    let bearer = authorization.and_then(bearer).unwrap_or_default();
    if same(token.reveal().as_bytes(), bearer) { Admission::Granted } else { Admission::Unauthorized }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares digests, so that the time tells neither where nor by how much they differ.
fn same(ours: &[u8], theirs: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"admin token");
    hmac::verify(&key, theirs, hmac::sign(&key, ours).as_ref()).is_ok()
}

/// Whether `accept` prefers Prometheus text (text/plain or openmetrics) to JSON. Where it has no preference:
/// JSON.
pub fn prefers_text(accept: &[u8]) -> bool {
    let accept = String::from_utf8_lossy(&accept[..accept.len().min(1024)]).to_ascii_lowercase();
    let text = ["text/plain", "application/openmetrics-text"].map(|kind| weight(&accept, kind));
    text[0].max(text[1]) > weight(&accept, "application/json")
}

/// In thousandths; the most specific range that matches counts (RFC 9110, 12.5.1).
fn weight(accept: &str, kind: &str) -> u32 {
    let group = kind.split_once('/').map_or("", |(group, _)| group);
    let mut best = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let specific = match parts.next() {
            Some(name) if name == kind => 3,
            Some(name) if name.strip_suffix("/*") == Some(group) => 2,
            Some("*/*") => 1,
            _ => continue,
        };
        let q =
            parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        let q = (q.clamp(0.0, 1.0) * 1000.0) as u32;
        if specific > best.0 {
            best = (specific, q);
        } else if specific == best.0 {
            best.1 = best.1.max(q);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted() -> Vec<IpNet> {
        ["127.0.0.0/8", "::1/128", "10.0.0.0/8"].map(|net| net.parse().expect("net")).into()
    }

    fn client_of(peer: &str, hops: &str) -> String {
        client(peer.parse().expect("address"), hops.as_bytes(), &trusted()).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(client_of("203.0.113.1", "198.51.100.1"), "203.0.113.1");
        assert_eq!(client_of("127.0.0.1", "198.51.100.1"), "198.51.100.1");
        assert_eq!(client_of("::ffff:127.0.0.1", "198.51.100.1"), "198.51.100.1");
        assert_eq!(client_of("127.0.0.1", "6.6.6.6, 198.51.100.1 , 10.1.2.3"), "198.51.100.1");
        assert_eq!(client_of("127.0.0.1", ""), "127.0.0.1");
        assert_eq!(client_of("127.0.0.1", "10.9.9.9,10.1.2.3"), "10.9.9.9");
        assert_eq!(client_of("127.0.0.1", "6.6.6.6, unknown"), "127.0.0.1");
        assert_eq!(client_of("127.0.0.1", "6.6.6.6,,"), "127.0.0.1");
    }

    #[test]
    fn hops_may_have_ports_and_brackets() {
        assert_eq!(client_of("::1", "198.51.100.1:4711"), "198.51.100.1");
        assert_eq!(client_of("::1", "[2001:db8::1]:4711"), "2001:db8::1");
        assert_eq!(client_of("::1", "\"[2001:db8::1]\""), "2001:db8::1");
    }

    #[test]
    fn with_a_token_only_its_bearer_is_admitted() {
        let token = Secret::new("open sesame");
        let admit = |value: Option<&str>| {
            let local = Some(IpAddr::from([127, 0, 0, 1]));
            super::admit(Some(&token), value.map(str::as_bytes), local, false)
        };
        assert_eq!(admit(Some("Bearer open sesame")), Admission::Granted);
        assert_eq!(admit(Some("bearer  open sesame")), Admission::Granted);
        for wrong in
            [None, Some(""), Some("Bearer "), Some("Bearer open sesam"), Some("open sesame"), Some("Basic x")]
        {
            assert_eq!(admit(wrong), Admission::Unauthorized, "{wrong:?}");
        }
    }

    #[test]
    fn without_a_token_only_this_machine_itself_is() {
        let peer = |text: &str| Some(text.parse().expect("address"));
        assert_eq!(admit(None, None, peer("127.0.0.1"), false), Admission::Granted);
        assert_eq!(admit(None, None, peer("::ffff:127.0.0.9"), false), Admission::Granted);
        assert_eq!(admit(None, None, peer("127.0.0.1"), true), Admission::Forbidden);
        assert_eq!(admit(None, None, peer("10.0.0.1"), false), Admission::Forbidden);
        assert_eq!(admit(None, Some(b"Bearer "), None, false), Admission::Forbidden);
    }

    #[test]
    fn json_unless_text_is_preferred() {
        for text in [
            "text/plain",
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/json;q=0.4, text/*",
            "TEXT/PLAIN",
        ] {
            assert!(prefers_text(text.as_bytes()), "{text}");
        }
        for json in [
            "",
            "*/*",
            "application/json",
            "application/json, text/plain;q=0.9",
            "text/html,*/*;q=0.8",
            "text/plain;q=0",
        ] {
            assert!(!prefers_text(json.as_bytes()), "{json}");
        }
    }
}
