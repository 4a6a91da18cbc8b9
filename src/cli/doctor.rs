//! `doctor`: the configuration, then the world that it names; one line a finding, with what to do.
//!
//! Nothing is changed: the store is opened for reading (one probe file beside it is written and removed), the directory
//! is only asked, and a number is only looked at. Four parts run at once, each with deadlines of its own, so that it
//! ends within [`ALL_WITHIN`] whatever hangs; their lines come in a fixed order. No line holds a token, a password or a
//! customer's number.

mod businesses;
mod machine;
mod numbers;
mod report;
mod store;

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use self::report::{Finding, Level, Report, Tally};
use super::{Failed, log_to_stderr};
use crate::config::vars::{Problem, Vars};
use crate::config::{Config, read};
use crate::ops::process;
use crate::{clock, net};

/// The whole command, without `--all`.
const ALL_WITHIN: Duration = Duration::from_secs(29);
/// The same with it: thousands of numbers take their time.
const EVERY_NUMBER_WITHIN: Duration = Duration::from_secs(600);
/// What is left for the lines at the end.
const SPARE: Duration = Duration::from_secs(2);
/// One connection or answer of something near.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Meta sends a message again for so long; a duplicate that comes after INBOX_RETENTION is answered twice.
const REDELIVERED_FOR: Duration = Duration::from_secs(7 * 86_400);

/// Options of `doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Look at every number, not at the first 50 only
    #[arg(long)]
    all: bool,
    /// The public address, like https://webhook.example.com: whether it leads to this service
    #[arg(long, value_name = "HTTPS_URL")]
    url: Option<String>,
}

/// Runs it. An error if something is wrong; warnings are none.
pub fn run(args: &Args) -> Result<(), Failed> {
    let vars = Vars::from_process();
    log_to_stderr(&vars, "off");
    process::end_on_broken_pipe();
    let config = read::config(vars).map_err(Failed::Config)?;
    if args.url.as_ref().is_some_and(|url| !url.starts_with("https://")) {
        let what = "must begin with https://: Meta calls nothing else".to_owned();
        return Err(Failed::Config(vec![Problem { name: "--url".to_owned(), what }]));
    }
    process::configure_coroutines(1);
    let end = clock::monotonic() + if args.all { EVERY_NUMBER_WITHIN } else { ALL_WITHIN };
    let within = end - SPARE;
    let mut tally = Tally::default();
    for finding in settings(&config) {
        tally.print(&finding);
    }
    let (all, url) = (args.all, args.url.clone());
    let parts = [
        part("store", &config, store::look)?,
        part("business", &config, move |config, report| {
            let numbers = businesses::look(config, report, within);
            numbers::look(config, report, &numbers, all, within);
        })?,
        part("agent", &config, agent)?,
        part("machine", &config, move |config, report| machine::look(config, report, url.as_deref()))?,
    ];
    for (what, findings) in parts {
        // what came before its end counts, also if the end doesn't come
        loop {
            match findings.recv_timeout(end.saturating_sub(clock::monotonic())) {
                Ok(finding) => tally.print(&finding),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let text = "does not end: a disk or a server hangs; the lines above say how far it came";
                    tally.print(&Finding { level: Level::Fail, what, text: text.to_owned() });
                    break;
                }
            }
        }
    }
    tally.end()
}

type Part = (&'static str, Receiver<Finding>);

/// Runs a part on a thread of its own, which is left behind if it hangs.
fn part(
    what: &'static str,
    config: &Config,
    look: impl FnOnce(&Config, &Report) + Send + 'static,
) -> Result<Part, Failed> {
    let (sender, findings) = unbounded();
    let config = config.clone();
    let report = Report::new(sender);
    std::thread::Builder::new()
        .name(what.to_owned())
        .spawn(move || look(&config, &report))
        .map_err(|e| format!("a thread: {e}"))?;
    Ok((what, findings))
}

/// What is allowed and seldom meant.
fn settings(config: &Config) -> Vec<Finding> {
    let mut texts = Vec::new();
    for option in config.directory.mongodb.iter().flat_map(|mongodb| &mongodb.dropped) {
        texts.push(format!("MONGODB_URI: this driver has no option {option}, so it is left out; remove it"));
    }
    if config.webhook.allow_unsigned {
        let text = "WHATSAPP_ALLOW_UNSIGNED is true: ANYONE CAN POST; remove it, and set WHATSAPP_APP_SECRET";
        texts.push(text.to_owned());
    }
    if config.inbox.retention < REDELIVERED_FOR {
        let text = "INBOX_RETENTION is below 7 days, for which Meta sends a message again: a late duplicate is \
                    answered twice; set 8d";
        texts.push(text.to_owned());
    }
    if texts.is_empty() {
        return vec![Finding {
            level: Level::Ok,
            what: "config",
            text: "nothing is wrong with it".to_owned(),
        }];
    }
    texts.into_iter().map(|text| Finding { level: Level::Warn, what: "config", text }).collect()
}

/// Connects to the agent's host and asks it for nothing: an answer could cost money.
fn agent(config: &Config, report: &Report) {
    let Some(url) = config.agent.url.as_ref().filter(|_| config.agent.kind != crate::config::AgentKind::Echo)
    else {
        return report.ok("agent", "echo: customers hear what they say (AGENT chooses another)");
    };
    let options = net::Options { pool_size: 1, connect_timeout: ANSWER_WITHIN, is_patient: false };
    match net::client::Client::new(options).reach(url, ANSWER_WITHIN) {
        Ok(()) => report.ok("agent", "AGENT_URL's host takes connections (it was asked for nothing)"),
        Err(e) => report.fail(
            "agent",
            format!(
                "AGENT_URL can't be reached: {}; is it running, and are the name, the port and its certificate right?",
                e.detail
            ),
        ),
    }
}
