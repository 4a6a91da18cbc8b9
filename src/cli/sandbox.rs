//! `sandbox`: the simulated Meta alone, for trying the server or one's own agent without an account.

use std::net::SocketAddr;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failed, log_to_stderr};
use crate::config::read;
use crate::config::vars::Vars;
use crate::ops::process;
use crate::sandbox::{Number, Options, Sandbox};
use crate::secret::Secret;

/// What `--help` says of the requests that it takes besides the Graph API's.
pub const OVER_HTTP: &str = "Over HTTP, under /_sandbox/: POST say {\"phone_number_id\",\"from\",\"text\"} (a customer writes), \
GET sent, GET reads, GET violations, GET stats, POST faults (what goes wrong next, e.g. {\"what\":\"reset\"}), DELETE faults, \
POST numbers, POST reset";

/// The app secret where WHATSAPP_APP_SECRET is not set.
const TEST_SECRET: &str = "sandbox-app-secret";

const NUMBER_FORM: &str =
    "--number must be PHONE_NUMBER_ID:TOKEN, with a phone number id and a token of your choice";

/// Options of `sandbox`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the Graph API listens: GRAPH_API_URL of the server that is tried
    #[arg(long, default_value = "127.0.0.1:8010")]
    listen: SocketAddr,
    /// Where webhooks are posted
    #[arg(long, default_value = "http://127.0.0.1:8000/webhook")]
    webhook_url: String,
    /// A number and the token that may send from it; may be repeated
    #[arg(
        long = "number",
        value_name = "PHONE_NUMBER_ID:TOKEN",
        default_value = "106540352242922:sandbox-token"
    )]
    numbers: Vec<String>,
    /// First pause before a webhook without its 200 is posted again, in milliseconds; it doubles up to 64 times
    #[arg(long, default_value_t = 1000)]
    redeliver_after: u64,
    /// No webhooks about what was sent
    #[arg(long)]
    no_statuses: bool,
    /// Refuse what Meta's limit per pair refuses (131056)
    #[arg(long)]
    pair_limit: bool,
    /// Refuse what is above so many messages a second and number (130429)
    #[arg(long)]
    throughput: Option<u32>,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// An option that makes no sense, or an address that can't be bound.
pub fn run(args: Args) -> Result<(), Failed> {
    let vars = Vars::from_process();
    log_to_stderr(&vars, "info");
    process::configure_coroutines(0);
    let secret = read::app_secret_only(vars).map_err(Failed::Config)?;
    let stated = if secret.is_some() { "that of WHATSAPP_APP_SECRET" } else { TEST_SECRET };
    let mut numbers = Vec::new();
    for text in &args.numbers {
        let parts = text.split_once(':').filter(|(id, token)| !id.is_empty() && !token.is_empty());
        let (id, token) = parts.ok_or_else(|| Failed::Usage(NUMBER_FORM.to_owned()))?;
        numbers.push(number(id, token));
    }
    let first = numbers[0].phone_number_id.clone();
    let mut options = Options::new(secret.unwrap_or_else(|| Secret::new(TEST_SECRET)), numbers);
    options.listen = args.listen;
    options.webhook_url = Some(args.webhook_url.clone());
    options.redeliver_after = Duration::from_millis(args.redeliver_after.max(1));
    options.statuses = !args.no_statuses;
    options.pair_limit = args.pair_limit;
    options.throughput = args.throughput;
    let sandbox = Sandbox::start(options).map_err(|e| format!("--listen {}: {e}", args.listen))?;
    eprintln!("simulated Graph API on {} (set GRAPH_API_URL to it)", sandbox.url());
    eprintln!("webhooks go to {}, signed with the app secret {stated}", args.webhook_url);
    eprintln!(
        "say something: curl -s {}/_sandbox/say -d '{{\"phone_number_id\":\"{first}\",\"from\":\"16505551234\",\"text\":\"hello\"}}'",
        sandbox.url()
    );
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
    let _ = signals.forever().next();
    Ok(())
}

/// A number of a business that exists only here.
pub(super) fn number(id: &str, token: &str) -> Number {
    Number {
        phone_number_id: id.to_owned(),
        waba_id: "102290129340398".to_owned(),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(token),
    }
}
