//! The other side of [`crate::meta`]: the process that is the simulated Meta, and the agent if one is wanted.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use whatsapp_webhook::clock;
use whatsapp_webhook::sandbox::wire::{self, After, Request};
use whatsapp_webhook::sandbox::{Fault, Number, Options, Sandbox, What};
use whatsapp_webhook::secret::Secret;

use crate::meta::{Behaviour, Stats};
use crate::{names, sys};

/// Messages that the sandbox itself keeps: the run's ledger has what counts.
const KEEP: usize = 16;
/// How often what happened is told.
const TELL_EVERY: Duration = Duration::from_millis(5);
/// How often counts are told, in rounds of [`TELL_EVERY`].
const COUNT_EVERY: u32 = 40;
/// Bytes that may wait to be told.
const UNTOLD_MAX: usize = 64 << 20;
/// What goes wrong, evenly, when something shall.
const FAULTS: [What; 6] = [
    What::Graph(131_056),
    What::Html500,
    What::AcceptThenReset,
    What::AcceptThen500,
    What::AcceptThenHalf,
    What::DelayMs(500),
];

#[derive(Default)]
struct Told {
    lines: Mutex<Vec<u8>>,
    untold: AtomicU64,
}

/// Runs until the end of standard input. `behaviour`: JSON.
pub fn run(behaviour: &str) -> ExitCode {
    match serde_json::from_str(behaviour).map_err(io::Error::from).and_then(|b| simulate(&b)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("loadtest: the simulated Meta: {e}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(behaviour: &Behaviour) -> io::Result<()> {
    sys::set_epoch(behaviour.epoch_us);
    sys::open_files_max();
    let sandbox = Arc::new(sandbox(behaviour)?);
    let told = Arc::new(Told::default());
    let teller = Arc::clone(&told);
    sandbox.on_sent(Box::new(move |sent| {
        let text = sent.text().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut lines = teller.lines.lock();
        if lines.len() > UNTOLD_MAX {
            teller.untold.fetch_add(1, Relaxed);
            return;
        }
        let (number, to, at, words) = (&sent.phone_number_id, &sent.to, sys::now_us(), words.join(" "));
        let _ = writeln!(lines, "r {number} {to} {at} {words}");
    }));
    let calls = Arc::new(AtomicU64::new(0));
    let agent = behaviour.agent_delay_ms.map(|ms| {
        let service = Agent { delay: Duration::from_millis(ms), calls: Arc::clone(&calls) };
        wire::Server::start(std::net::SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(service))
    });
    let agent = agent.transpose()?;
    let agent_url = agent.as_ref().map_or_else(|| "-".to_owned(), |a| format!("http://{}/agent", a.addr()));
    println!("ready {} {agent_url}", sandbox.url());
    let (tell_end, end) = sync_channel::<()>(0);
    let of_thread = Arc::clone(&sandbox);
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if let Some(url) = line.strip_prefix("url ") {
                of_thread.set_webhook_url(url.trim());
            }
        }
        drop(tell_end);
    })?;
    for round in 1.. {
        let is_over = end.recv_timeout(TELL_EVERY) == Err(RecvTimeoutError::Disconnected);
        let lines = std::mem::take(&mut *told.lines.lock());
        let mut out = io::stdout().lock();
        out.write_all(&lines)?;
        if is_over || round % COUNT_EVERY == 0 {
            let stats = stats(&sandbox, told.untold.load(Relaxed), calls.load(Relaxed));
            writeln!(out, "s {}", serde_json::to_string(&stats).map_err(io::Error::from)?)?;
        }
        out.flush()?;
        if is_over {
            break;
        }
    }
    Ok(())
}

fn sandbox(behaviour: &Behaviour) -> io::Result<Sandbox> {
    let number = |business| Number {
        phone_number_id: names::number(business),
        waba_id: names::waba(business),
        display_phone_number: names::display(business),
        token: Secret::new(names::token(business)),
    };
    let numbers = (0..behaviour.businesses).map(number).collect();
    let secret = Secret::new(&behaviour.app_secret);
    let sandbox = Sandbox::start(Options {
        statuses: behaviour.receipts,
        keep: KEEP,
        ..Options::new(secret, numbers)
    })?;
    if behaviour.faults > 0 {
        let each = behaviour.faults as f64 / 100.0 / FAULTS.len() as f64;
        for what in FAULTS {
            sandbox.faults().add(Fault::always(what).probability(each));
        }
    }
    Ok(sandbox)
}

fn stats(sandbox: &Sandbox, untold: u64, agent_calls: u64) -> Stats {
    let webhooks = sandbox.webhooks();
    let first = sandbox.violations().first().map(|v| format!("code {}: {}", v.code, v.what));
    Stats {
        sent: sandbox.sent_count(),
        reads: sandbox.reads().len() as u64,
        connections: sandbox.connections(),
        doubled: sandbox.doubled(),
        violations: sandbox.violation_count(),
        first_violation: first,
        faults_hit: sandbox.faults().hits(),
        webhooks_pending: webhooks.pending,
        webhooks_delivered: webhooks.delivered,
        webhooks_failed: webhooks.failed,
        agent_calls,
        untold,
    }
}

/// An operator's own agent: says what it heard, after a while.
struct Agent {
    delay: Duration,
    calls: Arc<AtomicU64>,
}

#[derive(Deserialize)]
struct Asked {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    text: Option<Text>,
}

#[derive(Deserialize)]
struct Text {
    body: String,
}

impl wire::Service for Agent {
    fn call(&self, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        self.calls.fetch_add(1, Relaxed);
        let Ok(asked) = serde_json::from_slice::<Asked>(request.body) else {
            wire::answer(out, 400, "text/plain", &[], b"not understood\n");
            return After::Keep;
        };
        if !self.delay.is_zero() {
            clock::sleep(self.delay);
        }
        let heard: Vec<String> =
            asked.messages.into_iter().filter_map(|message| message.text.map(|text| text.body)).collect();
        let text = serde_json::to_string(&heard.join("\n")).expect("a string is JSON");
        wire::answer(out, 200, "application/json", &[], format!(r#"{{"text":{text}}}"#).as_bytes());
        After::Keep
    }
}
