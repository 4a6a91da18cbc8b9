//! `serve`: read the configuration, start, be ready, wait for the end, drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{FLUSH_WITHIN, Failed, log_to_stderr};
use crate::app::{App, End};
use crate::config::vars::Vars;
use crate::config::{Config, read};
use crate::ops::{Console, process, stderr};

/// How often the watchdog looks at the progress of edge and committer where no service manager asks for it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Runs the server until it is told to stop.
pub fn run() -> Result<(), Failed> {
    stderr::take_over().map_err(|e| format!("standard error: {e}"))?;
    let vars = Vars::from_process();
    log_to_stderr(&vars, "info");
    process::log_panics();
    let config = read::config(vars).map_err(Failed::Config)?;
    process::harden();
    process::configure_coroutines(config.workers);
    warn(&config);
    let app = App::start(&config).map_err(|e| Failed::Other(e.to_string()))?;
    listen_to_signals(&app)?;
    stderr::line(&format!("listening on http://{}", app.address()));
    notify(&[sd_notify::NotifyState::Ready]);
    let end = watch(&app);
    notify(&[sd_notify::NotifyState::Stopping]);
    log::info!("stopping");
    let drained = app.drain();
    match end {
        End::Failed(detail) => Err(Failed::Other(detail)),
        End::Stop => drained.map_err(Failed::Other),
    }
}

fn warn(config: &Config) {
    for option in config.directory.mongodb.iter().flat_map(|mongodb| &mongodb.dropped) {
        log::warn!("MONGODB_URI: its option {option} is left out: this driver has no such setting");
    }
    if config.webhook.apps.is_empty() {
        log::warn!(
            "ANYONE CAN POST: WHATSAPP_ALLOW_UNSIGNED is true and no WHATSAPP_APP_SECRET is set, so webhooks are \
             believed without a signature; never run this on the internet"
        );
    } else if config.webhook.allow_unsigned {
        log::warn!(
            "ANYONE CAN POST: WHATSAPP_ALLOW_UNSIGNED is true, so webhooks without a signature are believed although \
             an app secret is set; remove it"
        );
    }
}

/// Waits for the end; feeds the service manager's watchdog only while edge and committer make progress.
fn watch(app: &App) -> End {
    let every = sd_notify::watchdog_enabled().map_or(LOOK_EVERY, |limit| limit / 3);
    let mut last = app.progress();
    loop {
        if let Some(end) = app.wait(every) {
            return end;
        }
        let now = app.progress();
        if now.0 != last.0 && now.1 != last.1 {
            notify(&[sd_notify::NotifyState::Watchdog]);
        } else {
            log::error!("no progress in the edge or the committer since the last look");
        }
        last = now;
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // without a service manager there is nobody to tell
    let _ = sd_notify::notify(states);
}

/// SIGTERM and SIGINT: drain; a second one ends at once. SIGHUP: clear the cache.
fn listen_to_signals(app: &App) -> Result<(), Failed> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| format!("signals: {e}"))?;
    let (stop, console) = (app.stopper(), app.console());
    let stopping = Arc::new(AtomicBool::new(false));
    let listen = move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                console.clear_cache();
            } else if stopping.swap(true, Ordering::Relaxed) {
                let why = "stopped at once by a second signal; what is pending is in the inbox";
                stderr::line(&format!("whatsapp-webhook: {why}"));
                stderr::flush(FLUSH_WITHIN);
                std::process::exit(1);
            } else {
                let _ = stop.try_send(End::Stop);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map_err(|e| format!("signals: {e}"))?;
    Ok(())
}
