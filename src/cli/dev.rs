//! `dev`: the server, a simulated Meta and a chat in the terminal, with no setting and no account.
//!
//! What is typed goes the whole way: signed webhook, durable inbox, agent, Graph call with the business's token. From a
//! pipe, each line waits for its reply. AGENT and its variables are those of the environment and of `.env`, so that one's
//! own agent can be tried; everything else is made up, and its data folder is removed at the end.

use std::collections::HashMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failed, log_to_stderr};
use crate::app::App;
use crate::clock;
use crate::config::read;
use crate::config::vars::Vars;
use crate::inbox::Inbox;
use crate::ops::process;
use crate::sandbox::{Options, Sandbox, Sent};
use crate::secret::Secret;

const NUMBER: &str = "106540352242922";
const CUSTOMER: &str = "16505551234";
const NAME: &str = "You";
/// How long one reply may take beyond the agent's own retries.
const REPLY_MAX: Duration = Duration::from_secs(300);
/// After which a word is said about a reply that does not come.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// How often it is looked whether something is still pending.
const LOOK: Duration = Duration::from_millis(20);
/// A reply that comes this long after all is settled belongs to nothing.
const SETTLED: Duration = Duration::from_millis(100);
/// Variables that are passed on.
const PASSED: [&str; 10] = [
    "AGENT",
    "AGENT_URL",
    "AGENT_API_KEY",
    "AGENT_MODEL",
    "AGENT_PROMPT",
    "AGENT_TIMEOUT",
    "AGENT_ATTEMPTS",
    "AGENT_FALLBACK_TEXT",
    "AGENT_HISTORY",
    "AGENT_HISTORY_MAX_AGE",
];

/// A folder that is removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("whatsapp-webhook-dev-{}", random()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn random() -> String {
    let mut bytes = [0; 16];
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}

/// Runs until the end of input.
///
/// # Errors
/// It can't start, or a line could not be answered. That the agent has no reply to it is no failure.
pub fn run() -> Result<(), Failed> {
    let surroundings = Vars::from_process();
    log_to_stderr(&surroundings, "warn");
    process::configure_coroutines(0);
    let folder = Folder::make().map_err(|e| format!("a temporary folder: {e}"))?;
    remove_on_signal(&folder.0)?;
    let (secret, token) = (random(), random());
    let meta = Sandbox::start(Options::new(
        Secret::new(secret.as_str()),
        vec![super::sandbox::number(NUMBER, &token)],
    ))
    .map_err(|e| format!("the simulated Meta: {e}"))?;
    let vars = settings(&surroundings, &folder.0, &meta.url(), &secret, &token);
    let agent = vars.get("AGENT").cloned().unwrap_or_else(|| "echo".to_owned());
    let problems = surroundings.into_problems();
    if !problems.is_empty() {
        return Err(Failed::Config(problems));
    }
    let config = read::config(Vars::from_map(vars)).map_err(Failed::Config)?;
    let app = App::start(&config).map_err(|e| e.to_string())?;
    meta.set_webhook_url(&format!("http://{}/webhook", app.address()));
    let (tell, replies) = channel();
    meta.on_sent(Box::new(move |sent| drop(tell.send(shown(sent)))));
    let outcome = chat(&meta, &*app.inbox(), &replies, &agent);
    app.drain()?;
    outcome.map_err(Failed::Other)
}

fn settings(
    surroundings: &Vars,
    folder: &Path,
    graph: &str,
    secret: &str,
    token: &str,
) -> HashMap<String, String> {
    let mut vars: HashMap<String, String> =
        PASSED.iter().filter_map(|name| Some(((*name).to_owned(), surroundings.text(name)?))).collect();
    let made_up = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATA_DIR", &folder.to_string_lossy()),
        ("GRAPH_API_URL", graph),
        ("WHATSAPP_VERIFY_TOKEN", &random()),
        ("WHATSAPP_APP_SECRET", secret),
        ("ENCRYPTION_SECRET", &random()),
        ("WHATSAPP_PHONE_NUMBER_ID", NUMBER),
        ("WHATSAPP_TOKEN", token),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    vars.extend(made_up);
    vars
}

fn chat(meta: &Sandbox, inbox: &dyn Inbox, replies: &Receiver<String>, agent: &str) -> Result<(), String> {
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        say(&format!("You are a customer; the business answers with the agent `{agent}`. End with Ctrl-D."))?;
    }
    let mut failed = 0;
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line.map_err(|e| format!("standard input: {e}"))?;
        let line = String::from_utf8_lossy(&line);
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        if !is_terminal {
            say(&format!("you: {text}"))?;
        }
        meta.say(NUMBER, CUSTOMER, NAME, text);
        let answered = wait(meta, inbox, replies)?;
        let counts = inbox.counts();
        let left = counts.pending + counts.parked + counts.dead;
        if left > failed {
            say(&format!(
                "(no reply: {} message(s) pending, {} parked, {} dead; standard error has the reason)",
                counts.pending, counts.parked, counts.dead
            ))?;
        } else if !answered {
            say("(no reply: the agent has none to this)")?;
        }
        failed = left;
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} message(s) got no reply")) }
}

fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| format!("standard output: {e}"))
}

/// Prints replies until nothing is under way. False if none came.
fn wait(meta: &Sandbox, inbox: &dyn Inbox, replies: &Receiver<String>) -> Result<bool, String> {
    let begun = clock::monotonic();
    let until = begun + REPLY_MAX;
    let mut told = false;
    let mut answered = false;
    let mut settled_since = None;
    while clock::monotonic() < until {
        if let Ok(reply) = replies.recv_timeout(LOOK) {
            say(&format!("business: {reply}"))?;
            answered = true;
            settled_since = None;
        }
        if !answered && !told && clock::monotonic() - begun > TELL_AFTER {
            told = true;
            say("(waiting; after 45 messages at once Meta lets a business send one person one every 6 s)")?;
        }
        let counts = inbox.counts();
        let quiet = meta.wait_quiet(Duration::ZERO) && counts.pending == 0;
        if !quiet {
            settled_since = None;
            continue;
        }
        let since = *settled_since.get_or_insert_with(clock::monotonic);
        // an item is counted a moment after its webhook got its 200
        if answered || clock::monotonic() - since > 20 * SETTLED {
            return Ok(answered);
        }
    }
    Ok(answered)
}

/// A text as it is, anything else as its JSON.
fn shown(sent: &Sent) -> String {
    sent.text().unwrap_or_else(|| sent.body.get().to_owned())
}

/// Ctrl-C leaves no folder behind.
fn remove_on_signal(folder: &Path) -> Result<(), Failed> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
    let folder = folder.to_owned();
    let listen = move || {
        if signals.forever().next().is_some() {
            let _ = std::fs::remove_dir_all(&folder);
            std::process::exit(130);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map_err(|e| format!("signals: {e}"))?;
    Ok(())
}
