//! The numbers at Graph: each looked at with its own token, several at a time; and our clock beside Graph's.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::ANSWER_WITHIN;
use super::businesses::Number;
use super::report::{Level, Report, word};
use crate::clock;
use crate::config::Config;
use crate::failure::Failure;
use crate::graph::look::{Looker, Number as Shown, Seen};
use crate::ops::machine;

/// Numbers that are looked at without `--all`.
const NUMBERS_MAX: usize = 50;
/// Calls at once. So many in a row without an answer, and none is made any more.
const AT_ONCE: usize = 8;
/// A clock that is off by more: look at it, and wrong. A message's age is judged by it.
const CLOCK_OFF: Duration = Duration::from_secs(30);
const CLOCK_WRONG: Duration = Duration::from_secs(300);

/// Looks at them until `end`.
pub fn look(config: &Config, report: &Report, numbers: &[Number], all: bool, end: Duration) {
    let asked = if all { numbers } else { &numbers[..numbers.len().min(NUMBERS_MAX)] };
    let looker = Looker::new(&config.graph, ANSWER_WITHIN);
    let seen =
        if asked.is_empty() { vec![Some(looker.anybody(ANSWER_WITHIN))] } else { ask(&looker, asked, end) };
    let seen_some = || seen.iter().flatten();
    if !seen_some().any(|seen| seen.answered) {
        let why = seen_some().find_map(|seen| seen.number.as_ref().err());
        let why = why.map_or("no time was left to ask it", |failure| &failure.detail);
        let text = format!(
            "no answer from GRAPH_API_URL, so no reply goes out: {why}; check this machine's name server, route and \
             firewall (TCP 443 out) and its clock; {} number(s) were not looked at",
            asked.len()
        );
        report.fail("graph", text);
    } else if asked.is_empty() {
        report.ok("graph", "GRAPH_API_URL answers; there is no number to look at");
    } else {
        for (number, seen) in asked.iter().zip(&seen) {
            one(number, seen.as_ref(), report);
        }
    }
    if asked.len() < numbers.len() {
        let text = format!(
            "{} more number(s) were not looked at; `doctor --all` looks at all",
            numbers.len() - asked.len()
        );
        report.skip("graph", text);
    }
    version(config, seen_some(), report);
    time(seen_some(), report);
}

/// In their order; `None`: not asked.
fn ask(looker: &Looker, numbers: &[Number], end: Duration) -> Vec<Option<Seen>> {
    let (next, silent, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let seen: Mutex<Vec<Option<Seen>>> = Mutex::new(numbers.iter().map(|_| None).collect());
    let work = || {
        loop {
            let nth = next.fetch_add(1, Relaxed);
            let left = end.saturating_sub(clock::monotonic()).min(ANSWER_WITHIN);
            let Some(number) = numbers.get(nth).filter(|_| !left.is_zero() && !is_over.load(Relaxed)) else {
                return;
            };
            let answer = looker.number(&number.token, &number.phone_number_id, left);
            if answer.answered {
                silent.store(0, Relaxed);
            } else if silent.fetch_add(1, Relaxed) + 1 >= AT_ONCE {
                is_over.store(true, Relaxed);
            }
            seen.lock()[nth] = Some(answer);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(numbers.len()) {
            scope.spawn(work);
        }
    });
    seen.into_inner()
}

fn one(number: &Number, seen: Option<&Seen>, report: &Report) {
    let name = number.sub_domain.as_deref().unwrap_or("WHATSAPP_PHONE_NUMBER_ID");
    let head = format!("{name} {}", number.phone_number_id);
    match seen.map(|seen| &seen.number) {
        Some(Ok(shown)) => {
            let (level, text) = shown_as(shown);
            report.say(level, "graph", format!("{head}: {text}"));
        }
        Some(Err(failure)) => {
            let (level, mend) = meaning(failure, number);
            report.say(level, "graph", format!("{head}: {} {}; {mend}", failure.reason, failure.detail));
        }
        None => {
            report.skip("graph", format!("{head}: not asked, for Graph did not answer in time; try again"))
        }
    }
}

fn shown_as(shown: &Shown) -> (Level, String) {
    let name = shown.verified_name.as_deref().unwrap_or("no name");
    let status = shown.status.as_deref().unwrap_or("CONNECTED");
    let quality = shown.quality_rating.as_deref().unwrap_or("UNKNOWN");
    let text = format!("\"{name}\", {status}, quality {quality}");
    match (status, quality) {
        ("BANNED" | "DELETED" | "MIGRATED" | "DISCONNECTED" | "UNVERIFIED" | "PENDING", _) => {
            (Level::Fail, format!("{text}; it can't send; see WhatsApp Manager, phone numbers"))
        }
        ("CONNECTED" | "UNKNOWN", "GREEN" | "UNKNOWN" | "NA") => (Level::Ok, text),
        _ => (Level::Warn, format!("{text}; Meta limits such numbers; see WhatsApp Manager, phone numbers")),
    }
}

/// How bad it is, and what to do.
fn meaning(failure: &Failure, number: &Number) -> (Level, String) {
    let renew = match &number.sub_domain {
        Some(name) => format!(
            "make a new one in Meta's Business settings and store it: `business add --subdomain {}`",
            word(name)
        ),
        None => "make a new one in Meta's Business settings and set WHATSAPP_TOKEN".to_owned(),
    };
    let code = failure.reason.as_str().strip_prefix("graph_").unwrap_or_default();
    match code.parse::<i64>() {
        Ok(0 | 102 | 104 | 190) => (Level::Fail, format!("its token expired or was revoked: {renew}")),
        Ok(33 | 100) => {
            let text = "its token does not see this number: is the phone_number_id right (Meta's id, not the number \
                        itself), and does the token's user have the WhatsApp account it is in?";
            (Level::Fail, text.to_owned())
        }
        Ok(3 | 10 | 200..=299 | 131_005) => {
            let text = "its token may not look at the number (whatsapp_business_management); sending needs \
                        whatsapp_business_messaging: give the token's user both";
            (Level::Warn, text.to_owned())
        }
        Ok(4 | 17 | 613 | 80_000..=80_099 | 130_429) => {
            (Level::Warn, "Meta was asked too often; try again in an hour".to_owned())
        }
        Ok(368 | 131_031) => {
            (Level::Fail, "Meta has locked the account; see WhatsApp Manager, account quality".to_owned())
        }
        Ok(1 | 2 | 131_000 | 131_016 | 131_057 | 133_004) => {
            (Level::Warn, "Meta has trouble of its own (https://metastatus.com); try again".to_owned())
        }
        Ok(_) => (Level::Fail, "see Meta's list of error codes".to_owned()),
        Err(_) if code == "bad_number" => {
            (Level::Fail, "store Meta's id of the number, which is digits".to_owned())
        }
        Err(_) if code.starts_with("http_5") => {
            (Level::Warn, "Meta has trouble of its own (https://metastatus.com); try again".to_owned())
        }
        Err(_) if code.starts_with("http_") => (
            Level::Fail,
            "that is not the Graph API; is GRAPH_API_URL right, or a proxy in between?".to_owned(),
        ),
        // others were answered
        Err(_) => (Level::Warn, "this one had no answer; try again".to_owned()),
    }
}

/// A version that Meta has ended is answered by a later one.
fn version<'a>(config: &Config, mut seen: impl Iterator<Item = &'a Seen>, report: &Report) {
    let asked = &config.graph.version;
    if let Some(other) = seen.find_map(|seen| seen.version.as_ref().filter(|version| *version != asked)) {
        let text =
            format!("GRAPH_API_VERSION is {asked}, and {other} answers: Meta has ended it; set {other}");
        report.warn("graph", text);
    }
}

fn time<'a>(seen: impl Iterator<Item = &'a Seen>, report: &Report) {
    let surest = seen.filter_map(|seen| seen.ahead_ms).min_by_key(|(_, sure)| *sure);
    let mend = "mend: timedatectl set-ntp true (or chrony)";
    let (level, text) = match surest {
        None => (Level::Skip, "Graph gave no Date to compare this machine's with".to_owned()),
        Some((ahead, sure)) => {
            let off = Duration::from_millis(ahead.unsigned_abs().saturating_sub(sure));
            let which = if ahead > 0 { "ahead of" } else { "behind" };
            let text = format!(
                "{} s {which} Graph's, and the age of messages is judged by it; {mend}",
                off.as_secs()
            );
            if off > CLOCK_WRONG {
                (Level::Fail, text)
            } else if off > CLOCK_OFF {
                (Level::Warn, text)
            } else {
                (Level::Ok, format!("as Graph's, give or take {} s", off.as_secs() + 1))
            }
        }
    };
    match machine::is_clock_kept() {
        Some(false) => {
            let text = format!("{text}; the kernel says that nothing keeps it right; {mend}");
            report.say(level.max(Level::Warn), "clock", text);
        }
        Some(true) => report.say(level, "clock", format!("{text}; the kernel says that it is kept right")),
        None => report.say(level, "clock", text),
    }
}
