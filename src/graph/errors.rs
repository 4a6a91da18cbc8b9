//! What an answer of the Graph API that is no success means: one `match` on `error.code`. Pure.
//!
//! Meta: "build on `code` and `details`", not on subcodes, HTTP statuses or texts, which change
//! (<https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes>). The
//! status only decides where there is no code that this version knows. A send has no idempotency key, so
//! whatever may have been sent is `Unknown`, never `Retry`.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::failure::{Failure, Reason, Scope, Source, Verdict};
use crate::net::CallError;
use crate::secret::{Secret, masked};

/// The longest detail, in characters.
pub const DETAIL_MAX: usize = 300;
/// The longest wish of the other side that is honoured.
const AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// 131057: a throughput upgrade takes "up to a minute".
const MAINTENANCE: Duration = Duration::from_secs(60);
/// 130429 without a wish: the limit counts per second, so a longer hold would only build a backlog.
const THROUGHPUT: Duration = Duration::from_secs(2);
/// 131048: the number is held for this long, see [`verdict`].
const SPAM_HOLD: Duration = Duration::from_secs(3600);
/// 134101: "try again in ten minutes".
const CAMPAIGN_SYNC: Duration = Duration::from_secs(600);
/// Words that can be a token: nothing else in Meta's messages is so long.
const TOKEN_MIN: usize = 40;
/// Code 1 is "an invalid request or a possible server error": what is not named by a status after it is sent once more, and
/// only once, since a request that is invalid stays so.
pub const ONCE_MORE: &str = "graph_1";
/// Digits in a row that can be a phone number; error codes have at most six.
const NUMBER_MIN: usize = 7;

/// The part of an error that is used. Everything else is skipped.
#[derive(Debug, Default, Deserialize)]
struct GraphError<'a> {
    #[serde(default, borrow)]
    code: Option<&'a RawValue>,
    #[serde(default, borrow)]
    message: Option<&'a RawValue>,
    #[serde(default, borrow)]
    is_transient: Option<&'a RawValue>,
    /// An object with `details`; some servers send a string.
    #[serde(default, borrow)]
    error_data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Wrapped<'a> {
    #[serde(borrow)]
    error: GraphError<'a>,
}

#[derive(Deserialize)]
struct ErrorData {
    details: String,
}

/// One entry of `x-business-use-case-usage`; the time is in minutes.
#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    estimated_time_to_regain_access: u64,
}

/// What an answer means that is not the success which was asked for. Header names in lower case. `token`: the one of the
/// call, which its text may repeat.
pub fn classify(status: u16, headers: &[(String, String)], body: &[u8], token: &Secret) -> Failure {
    let Some((code, error)) = parse(body) else {
        let detail = format!("HTTP {status} without a Graph error, {} bytes", body.len());
        return failure(without_code(status, headers), format!("graph_http_{status}").into(), detail);
    };
    let mut verdict = verdict(code, headers).unwrap_or_else(|| unknown_code(status));
    let is_transient = error.is_transient.is_some_and(|raw| raw.get() == "true");
    if verdict == Verdict::Dead && is_transient && status < 500 {
        verdict = Verdict::Retry { after: retry_after(headers) };
    }
    failure(verdict, Reason::graph(code), detail(&error, token))
}

/// What it means that there was no answer.
pub fn no_answer(error: &CallError, token: &Secret) -> Failure {
    let (verdict, reason) = match (error.may_have_arrived, error.timed_out) {
        (false, _) => (Verdict::Retry { after: None }, "graph_connect"),
        (true, true) => (Verdict::Unknown, "graph_timeout"),
        (true, false) => (Verdict::Unknown, "graph_reset"),
    };
    failure(verdict, Reason::fixed(reason), cleaned(&error.detail, token))
}

/// What happens next, by code; `None` for a code that is not known. In the order of Meta's table.
///
/// 131048 ("spam rate limit hit") counts against one phone number's quality, and every further attempt makes
/// it worse: the number is held for an hour at a time, so that the reply still goes out if the limit is
/// lifted in time. A number or account that must first be set right (registration, display name, payment) is
/// held rather than its replies lost. 131053 (our media could not be fetched) is the content's fault, so it
/// is dead, as are the limits for registration and templates, which no reply meets.
fn verdict(code: i64, headers: &[(String, String)]) -> Option<Verdict> {
    let after = retry_after(headers);
    let park = |scope, after| Verdict::Park { scope, after };
    Some(match code {
        // the token; 102 and 104 are the platform's "session expired" and "a token is required"
        0 | 102 | 104 | 190 => park(Scope::Business, None),
        // its permissions
        3 | 10 | 200..=299 | 131005 => park(Scope::Business, None),
        // the account: policy, lock, payment, terms
        368 | 131031 | 131042 | 134011 => park(Scope::Business, None),
        // the number: display name, registration
        131037 | 131045 | 133010 => park(Scope::Number, None),
        // limits, by what they count
        4 => park(Scope::App, after),
        80007 => park(Scope::Business, regain_access(headers).or(after)),
        130429 => park(Scope::Number, after.or(Some(THROUGHPUT))),
        131056 => park(Scope::Pair, after),
        131057 => park(Scope::Number, after.or(Some(MAINTENANCE))),
        131048 => park(Scope::Number, after.or(Some(SPAM_HOLD))),
        17 | 613 | 80000..=80099 => Verdict::Retry { after },
        134101 => Verdict::Retry { after: after.or(Some(CAMPAIGN_SYNC)) },
        // the other side failed, perhaps after it had sent
        1 | 2 | 131000 | 131016 | 133004 => Verdict::Unknown,
        // the request
        33 | 100 | 131008 | 131009 | 131021 | 131051..=131053 | 135000 => Verdict::Dead,
        // the recipient, the window, the country
        130403 | 130472 | 130497 | 131026 | 131030 | 131047 | 131049 | 131050 => Verdict::Dead,
        // BSUIDs, marketing rules, classification
        131055 | 131062..=131064 | 134100 | 134102 => Verdict::Dead,
        // templates and flows, registration and PIN
        132000..=132099 | 133000..=133099 => Verdict::Dead,
        _ => return None,
    })
}

/// A code that this version does not know.
fn unknown_code(status: u16) -> Verdict {
    if status >= 500 { Verdict::Unknown } else { Verdict::Dead }
}

/// An answer that is not the Graph API's: a proxy's, a load balancer's, or a wrong GRAPH_API_URL.
fn without_code(status: u16, headers: &[(String, String)]) -> Verdict {
    match status {
        429 => Verdict::Retry { after: retry_after(headers) },
        408 | 200..=299 | 500.. => Verdict::Unknown,
        _ => Verdict::Dead,
    }
}

fn failure(verdict: Verdict, reason: Reason, detail: String) -> Failure {
    Failure { source: Source::Graph, verdict, reason, detail }
}

fn parse(body: &[u8]) -> Option<(i64, GraphError<'_>)> {
    let error = serde_json::from_slice::<Wrapped<'_>>(body).ok()?.error;
    let code = error.code?.get().trim_matches('"').parse().ok()?;
    Some((code, error))
}

fn detail(error: &GraphError<'_>, token: &Secret) -> String {
    let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
    let message = error.message.and_then(text).unwrap_or_default();
    let data = error.error_data.and_then(|raw| {
        serde_json::from_str::<ErrorData>(raw.get()).map(|data| data.details).ok().or_else(|| text(raw))
    });
    match data {
        Some(details) => cleaned(&format!("{message}: {details}"), token),
        None => cleaned(&message, token),
    }
}

/// One line of at most [`DETAIL_MAX`] characters, without the token, what can be another one, or a phone number.
fn cleaned(text: &str, token: &Secret) -> String {
    // before the words are looked at: a token may consist of several, and may be cut where the text is
    let text = if token.reveal().is_empty() { text.to_owned() } else { text.replace(token.reveal(), "***") };
    let mut clean = String::new();
    let mut word = String::new();
    // more is never needed, however long the text is
    let text = text.chars().take(DETAIL_MAX * 4).chain(std::iter::once(' '));
    for c in text {
        if c.is_alphanumeric() || matches!(c, '_' | '-' | '|' | '.' | '+' | '/' | '=') {
            word.push(c);
            continue;
        }
        push_word(&mut clean, &word);
        word.clear();
        clean.push(if c.is_control() { ' ' } else { c });
    }
    let clean = clean.trim();
    match clean.char_indices().nth(DETAIL_MAX) {
        Some(_) => clean.chars().take(DETAIL_MAX - 1).chain(std::iter::once('…')).collect(),
        None => clean.to_owned(),
    }
}

fn push_word(clean: &mut String, word: &str) {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    let letters = word.chars().filter(|c| c.is_alphabetic()).count();
    if word.chars().count() >= TOKEN_MIN || (word.starts_with("EAA") && word.len() > 8) {
        clean.push_str("***");
    } else if digits >= NUMBER_MIN && letters == 0 {
        clean.push_str(&masked(word));
    } else {
        clean.push_str(word);
    }
}

/// `Retry-After` in seconds; a date is ignored.
fn retry_after(headers: &[(String, String)]) -> Option<Duration> {
    let seconds: u64 = header(headers, "retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(AFTER_MAX))
}

/// The longest `estimated_time_to_regain_access`, which is in minutes; `None` if none is above 0.
fn regain_access(headers: &[(String, String)]) -> Option<Duration> {
    let header = header(headers, "x-business-use-case-usage")?;
    let usage: HashMap<String, Vec<Usage>> = serde_json::from_str(header).ok()?;
    let minutes = usage.values().flatten().map(|usage| usage.estimated_time_to_regain_access).max()?;
    (minutes > 0).then(|| Duration::from_secs(minutes.saturating_mul(60)).min(AFTER_MAX))
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Secret {
        Secret::new("shop-token-1")
    }

    fn coded(code: i64, status: u16, headers: &[(&str, &str)]) -> Verdict {
        let body = format!("{{\"error\":{{\"message\":\"m\",\"code\":{code},\"fbtrace_id\":\"x\"}}}}");
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let failure = classify(status, &headers, body.as_bytes(), &token());
        assert_eq!(failure.reason.as_str(), format!("graph_{code}"));
        failure.verdict
    }

    fn park(scope: Scope, seconds: Option<u64>) -> Verdict {
        Verdict::Park { scope, after: seconds.map(Duration::from_secs) }
    }

    fn retry(seconds: Option<u64>) -> Verdict {
        Verdict::Retry { after: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn every_row_of_the_table_has_its_verdict() {
        let rows: &[(&[i64], Verdict)] = &[
            (&[0, 104, 190], park(Scope::Business, None)),
            (&[3, 10, 200, 299, 131005], park(Scope::Business, None)),
            (&[368, 131031, 131042, 134011], park(Scope::Business, None)),
            (&[131037, 131045, 133010], park(Scope::Number, None)),
            (&[4], park(Scope::App, None)),
            (&[80007], park(Scope::Business, None)),
            (&[130429], park(Scope::Number, Some(2))),
            (&[131056], park(Scope::Pair, None)),
            (&[131057], park(Scope::Number, Some(60))),
            (&[131048], park(Scope::Number, Some(3600))),
            (&[17, 613, 80000, 80004, 80008], retry(None)),
            (&[134101], retry(Some(600))),
            (&[1, 2, 131000, 131016, 133004], Verdict::Unknown),
            (&[33, 100, 131008, 131009, 131021, 131051, 131052, 131053, 135000], Verdict::Dead),
            (&[130403, 130472, 130497, 131026, 131030, 131047, 131049, 131050], Verdict::Dead),
            (&[131055, 131062, 131063, 131064, 134100, 134102], Verdict::Dead),
            (&[132000, 132001, 132005, 132007, 132012, 132015, 132016, 132018], Verdict::Dead),
            (&[132068, 132069, 133000, 133008, 133009, 133015, 133016], Verdict::Dead),
        ];
        for (codes, verdict) in rows {
            for code in *codes {
                // whatever the status
                for status in [200, 400, 401, 403, 404, 429, 500, 503] {
                    assert_eq!(coded(*code, status, &[]), *verdict, "{code} with {status}");
                }
            }
        }
    }

    #[test]
    fn what_is_sent_once_more_is_code_1() {
        assert_eq!(Reason::graph(1).as_str(), ONCE_MORE);
    }

    #[test]
    fn an_unknown_code_goes_by_the_status() {
        assert_eq!(coded(999_999, 400, &[]), Verdict::Dead);
        assert_eq!(coded(999_999, 500, &[]), Verdict::Unknown);
    }

    #[test]
    fn a_wish_in_the_headers_is_honoured() {
        let wish = &[("retry-after", "42")];
        assert_eq!(coded(4, 429, wish), park(Scope::App, Some(42)));
        assert_eq!(coded(130429, 429, wish), park(Scope::Number, Some(42)));
        assert_eq!(coded(613, 429, wish), retry(Some(42)));
        let usage = r#"{"1":[{"type":"whatsapp","estimated_time_to_regain_access":7}],"2":[{}]}"#;
        assert_eq!(
            coded(80007, 400, &[("x-business-use-case-usage", usage)]),
            park(Scope::Business, Some(420))
        );
        assert_eq!(
            coded(80007, 400, &[("x-business-use-case-usage", "not json")]),
            park(Scope::Business, None)
        );
        assert_eq!(coded(4, 429, &[("retry-after", "99999999999")]), park(Scope::App, Some(24 * 3600)));
        assert_eq!(
            coded(4, 429, &[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")]),
            park(Scope::App, None)
        );
    }

    #[test]
    fn a_transient_error_with_a_4xx_is_tried_again() {
        let body = br#"{"error":{"message":"m","code":100,"is_transient":true}}"#;
        assert_eq!(classify(400, &[], body, &token()).verdict, retry(None));
        assert_eq!(classify(500, &[], body, &token()).verdict, Verdict::Dead);
        let body = br#"{"error":{"message":"m","code":2,"is_transient":true}}"#;
        assert_eq!(classify(400, &[], body, &token()).verdict, Verdict::Unknown);
    }

    #[test]
    fn what_is_not_a_graph_error_goes_by_the_status() {
        for body in
            ["<html>Bad Gateway</html>", "", "{\"error\":\"x\"}", "[]", "{\"error\":{\"message\":\"m\"}}"]
        {
            let failure = classify(502, &[], body.as_bytes(), &token());
            assert_eq!(
                (failure.verdict, failure.reason.as_str()),
                (Verdict::Unknown, "graph_http_502"),
                "{body}"
            );
            let verdict = |status| classify(status, &[], body.as_bytes(), &token()).verdict;
            assert_eq!(verdict(404), Verdict::Dead);
            assert_eq!(verdict(429), retry(None));
            assert_eq!(verdict(200), Verdict::Unknown);
        }
    }

    #[test]
    fn details_are_taken_from_either_form_and_hold_no_secret() {
        let object =
            br#"{"error":{"message":"(#130429) Rate limit hit","code":130429,"error_data":{"details":"d"}}}"#;
        assert_eq!(classify(400, &[], object, &token()).detail, "(#130429) Rate limit hit: d");
        let string = br#"{"error":{"message":"m","code":"100","error_data":"d"}}"#;
        assert_eq!(classify(400, &[], string, &token()).detail, "m: d");
        let meta_token = "EAAG".to_owned() + &"x7".repeat(90);
        let body = format!(
            r#"{{"error":{{"message":"Malformed access token {meta_token}\n for +16505551234","code":190}}}}"#
        );
        let detail = classify(401, &[], body.as_bytes(), &token()).detail;
        assert_eq!(detail, "Malformed access token ***  for …1234");
        let long = format!(
            r#"{{"error":{{"message":"{}","code":1,"error_data":{{"details":7}}}}}}"#,
            "é ".repeat(5000)
        );
        assert_eq!(classify(500, &[], long.as_bytes(), &token()).detail.chars().count(), DETAIL_MAX);
    }

    #[test]
    fn the_token_of_the_call_is_in_no_detail_whatever_it_looks_like() {
        for secret in ["shop-token-1", "two words", "12345678", "0", "a/b", "ä\"é"] {
            let token = Secret::new(secret);
            let text = serde_json::to_string(&format!("{}is {secret}.", "x ".repeat(145))).expect("a text");
            let body =
                format!(r#"{{"error":{{"message":{text},"code":190,"error_data":{{"details":{text}}}}}}}"#);
            let detail = classify(401, &[], body.as_bytes(), &token).detail;
            assert!(detail.contains("is ***.") && !detail.contains(secret), "{secret}: {detail}");
            let error =
                CallError { may_have_arrived: true, timed_out: false, detail: format!("at {secret}") };
            assert_eq!(no_answer(&error, &token).detail, "at ***");
        }
        assert_eq!(
            classify(400, &[], br#"{"error":{"message":"m","code":1}}"#, &Secret::new("")).detail,
            "m"
        );
    }

    #[test]
    fn a_call_without_an_answer_is_tried_again_only_if_it_did_not_arrive() {
        let ended = |may_have_arrived, timed_out| {
            let failure = no_answer(
                &CallError { may_have_arrived, timed_out, detail: "POST host: refused".into() },
                &token(),
            );
            (failure.verdict, failure.reason.as_str().to_owned())
        };
        assert_eq!(ended(false, false), (retry(None), "graph_connect".into()));
        assert_eq!(ended(false, true), (retry(None), "graph_connect".into()));
        assert_eq!(ended(true, true), (Verdict::Unknown, "graph_timeout".into()));
        assert_eq!(ended(true, false), (Verdict::Unknown, "graph_reset".into()));
    }

    proptest! {
        #[test]
        fn no_body_is_too_strange(
            status in 100u16..600,
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let failure = classify(status, &[], &body, &token());
            prop_assert!(failure.detail.chars().count() <= DETAIL_MAX);
        }

        #[test]
        fn a_detail_is_one_bounded_line(text in "\\PC*|(.|\\n){0,900}") {
            let clean = cleaned(&text, &token());
            prop_assert!(clean.chars().count() <= DETAIL_MAX && !clean.contains(char::is_control));
        }
    }
}
