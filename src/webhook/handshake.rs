//! The GET with which Meta checks a callback address: the right verify token gets its challenge back.
//!
//! `?hub.mode=subscribe&hub.challenge=<anything>&hub.verify_token=<token>`
//! `developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/create-webhook-endpoint`
//! The challenge is documented as an int and as a random string: it is echoed, never read as a number.
//! Overridden callbacks carry their own token, so any of several may come.

use std::borrow::Cow;

use ring::hmac;

use crate::secret::Secret;

/// The longest query string that is looked at, in bytes. Meta's has about 100.
pub const QUERY_MAX: usize = 4096;

/// Why there is no challenge to echo. The edge answers 403 to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Longer than [`QUERY_MAX`].
    TooLong,
    /// A parameter is missing, given twice, empty or not UTF-8, or the mode is not `subscribe`.
    Malformed,
    /// None of our tokens.
    WrongToken,
}

/// The challenge to answer with (200, `text/plain`, nothing around it) for the raw query string `query`,
/// without `?`.
///
/// Tokens are compared in a time that depends neither on where they differ nor on which of them fits. An
/// empty token of ours fits nothing.
pub fn challenge(query: &[u8], tokens: &[Secret]) -> Result<Vec<u8>, Refused> {
    if query.len() > QUERY_MAX {
        return Err(Refused::TooLong);
    }
    let (mut mode, mut challenge, mut token) = (None, None, None);
    for (name, value) in form_urlencoded::parse(query) {
        let slot: &mut Option<Cow<'_, str>> = match &*name {
            "hub.mode" => &mut mode,
            "hub.challenge" => &mut challenge,
            "hub.verify_token" => &mut token,
            _ => continue,
        };
        // bytes that are not UTF-8 were decoded to U+FFFD, and what is echoed must be what was sent
        if slot.replace(value).is_some()
            || slot.as_ref().is_some_and(|v| v.is_empty() || v.contains('\u{fffd}'))
        {
            return Err(Refused::Malformed);
        }
    }
    let (Some(mode), Some(challenge), Some(token)) = (mode, challenge, token) else {
        return Err(Refused::Malformed);
    };
    if mode != "subscribe" {
        return Err(Refused::Malformed);
    }
    if !is_one_of(&token, tokens) {
        return Err(Refused::WrongToken);
    }
    Ok(challenge.into_owned().into_bytes())
}

/// Compares digests, so that neither content nor length shows in the time; looks at every token.
fn is_one_of(token: &str, tokens: &[Secret]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"verify token");
    tokens.iter().fold(false, |found, ours| {
        let digest = hmac::sign(&key, ours.reveal().as_bytes());
        let same = hmac::verify(&key, token.as_bytes(), digest.as_ref()).is_ok();
        found | (same & !ours.reveal().is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(query: &str) -> Result<Vec<u8>, Refused> {
        challenge(query.as_bytes(), &[Secret::new("one"), Secret::new("zwei & drei"), Secret::new("")])
    }

    #[test]
    fn the_right_token_gets_its_challenge() {
        let asked = ask("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=one");
        assert_eq!(asked, Ok(b"1158201444".to_vec()));
    }

    #[test]
    fn any_order_other_parameters_and_escapes_are_fine() {
        let asked = ask("x=1&hub.verify_token=zwei+%26%20drei&hub%2Echallenge=a%20b%2Bc&hub.mode=subscribe&");
        assert_eq!(asked, Ok(b"a b+c".to_vec()));
    }

    #[test]
    fn a_challenge_is_not_read_as_a_number() {
        for text in ["007", "99999999999999999999999999", "-0", "1e3", "abc"] {
            let asked = ask(&format!("hub.mode=subscribe&hub.challenge={text}&hub.verify_token=one"));
            assert_eq!(asked, Ok(text.as_bytes().to_vec()));
        }
    }

    #[test]
    fn a_wrong_token_is_refused() {
        for token in ["One", "on", "onee", "one%00", "zwei"] {
            let asked = ask(&format!("hub.mode=subscribe&hub.challenge=1&hub.verify_token={token}"));
            assert_eq!(asked, Err(Refused::WrongToken), "{token}");
        }
    }

    #[test]
    fn what_is_missing_doubled_empty_or_odd_is_refused() {
        for query in [
            "",
            "hub.mode=subscribe",
            "hub.mode=subscribe&hub.challenge=1",
            "hub.challenge=1&hub.verify_token=one",
            "hub.mode=subscribe&hub.verify_token=one",
            "hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=one",
            "hub.mode=Subscribe&hub.challenge=1&hub.verify_token=one",
            "hub.mode=subscribe&hub.challenge=&hub.verify_token=one",
            "hub.mode=subscribe&hub.challenge=1&hub.verify_token=",
            "hub.mode=subscribe&hub.challenge=1&hub.challenge=2&hub.verify_token=one",
            "hub.mode=subscribe&hub.challenge=1&hub.verify_token=one&hub.verify_token=two",
            "hub.mode=subscribe&hub.challenge=%ff&hub.verify_token=one",
        ] {
            assert_eq!(ask(query), Err(Refused::Malformed), "{query}");
        }
    }

    #[test]
    fn an_endless_query_is_refused() {
        let query =
            format!("hub.mode=subscribe&hub.challenge={}&hub.verify_token=one", "1".repeat(QUERY_MAX));
        assert_eq!(ask(&query), Err(Refused::TooLong));
    }
}
