//! The commands, one file each. Exit codes: 0 drained or done, 1 failed, 64 usage or configuration.

pub mod business;
pub mod check;
pub mod dev;
pub mod doctor;
pub mod inbox;
pub mod indexes;
pub mod key;
pub mod sandbox;
pub mod serve;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::vars::{Problem, Vars};
use crate::config::{Directory, read};
use crate::ops::stderr;

/// Exit code for wrong usage or configuration (EX_USAGE of sysexits.h).
pub const USAGE: u8 = 64;

/// How long the end of the process waits for somebody to read its last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// What a command came to.
pub enum Failed {
    /// The configuration is wrong: all of it.
    Config(Vec<Problem>),
    /// The command can't be run as it was typed, or a setting that it needs is not there; with what to do.
    Usage(String),
    /// Anything else, with what to do.
    Other(String),
    /// The command's own lines say it.
    Told,
}

impl From<String> for Failed {
    fn from(message: String) -> Self {
        Self::Other(message)
    }
}

/// WhatsApp webhook server: verify, store durably, 200 at once; then let an agent answer.
#[derive(Parser)]
#[command(name = "whatsapp-webhook", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (the default)
    Serve,
    /// Try it: the server, a simulated Meta and a chat in this terminal; no setting, no account
    Dev,
    /// Run the simulated Meta alone
    #[command(after_help = sandbox::OVER_HTTP)]
    Sandbox(sandbox::Args),
    /// Read the configuration and print everything that is wrong with it
    Check,
    /// `check`, then the world: store, MongoDB, tokens, Graph, clock, machine; what is wrong, and what to do
    Doctor(doctor::Args),
    /// Add, list, show, remove, import or export businesses
    #[command(subcommand)]
    Business(business::Command),
    /// Re-encrypt the stored tokens with a new ENCRYPTION_SECRET
    #[command(subcommand)]
    Key(key::Command),
    /// Make the indexes that the directory needs in MongoDB
    Indexes,
    /// Look into the inbox; put dead or parked messages back
    #[command(subcommand)]
    Inbox(inbox::Command),
}

/// Parses the arguments, runs the command, and turns its outcome into an exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = Arguments::command().try_get_matches_from(arguments);
    let arguments = match command.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(),
        Command::Dev => dev::run(),
        Command::Sandbox(args) => sandbox::run(args),
        Command::Check => check::run(),
        Command::Doctor(args) => doctor::run(&args),
        Command::Business(command) => business(command),
        Command::Key(command) => with_directory(|config, out| key::run(&command, config, out)),
        Command::Indexes => with_directory(|config, out| indexes::run(config, out).map_err(Failed::Other)),
        Command::Inbox(command) => inbox::run(&command),
    };
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Config(problems)) => {
            for problem in problems {
                stderr::line(&problem.to_string());
            }
            ExitCode::from(USAGE)
        }
        Err(Failed::Usage(message)) => {
            stderr::line(&format!("whatsapp-webhook: {message}"));
            ExitCode::from(USAGE)
        }
        Err(Failed::Other(message)) => {
            stderr::line(&format!("whatsapp-webhook: {message}"));
            ExitCode::FAILURE
        }
        Err(Failed::Told) => ExitCode::FAILURE,
    };
    stderr::flush(FLUSH_WITHIN);
    code
}

fn business(command: business::Command) -> Result<(), Failed> {
    let mut input = business::input(&command);
    with_directory(|config, out| business::run(command, config, out, &mut *input))
}

/// Runs a command on the directory, in whichever store is configured.
fn with_directory(
    command: impl FnOnce(&Directory, &mut dyn Write) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let vars = Vars::from_process();
    log_to_stderr(&vars, "warn");
    crate::ops::process::configure_coroutines(1);
    let directory = read::directory_only(vars).map_err(Failed::Config)?;
    let mut out = std::io::stdout().lock();
    let outcome = command(&directory, &mut out);
    out.flush().map_err(|e| format!("standard output: {e}"))?;
    outcome
}

/// Other crates' lines that show bytes of calls (and so tokens) or come per connection: off unless asked for by name.
const QUIET: [(&str, &str); 5] =
    [("may_minihttp", "off"), ("may", "warn"), ("ureq_proto", "off"), ("ureq", "warn"), ("rustls", "warn")];

/// env_logger with RUST_LOG, else `level`.
fn log_to_stderr(vars: &Vars, level: &str) {
    let mut filter = vars.text("RUST_LOG").unwrap_or_else(|| level.to_owned());
    for (name, limit) in QUIET {
        if !filter.split(',').any(|part| part.split('=').next() == Some(name)) {
            filter.push_str(&format!(",{name}={limit}"));
        }
    }
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(&filter).format_timestamp_millis();
    let _ = builder.target(env_logger::Target::Pipe(Box::new(stderr::Log))).try_init();
}
