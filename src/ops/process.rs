//! What the process asks of the kernel before it does anything else. The only unsafe lines here are those calls.

use std::time::Duration;

use crate::stack;

/// Stacks that are kept for the next coroutine. They are taken in turn, so each of them ends up with the pages that the
/// deepest call touches (see `stack`): not more than short bursts need.
const STACKS_KEPT: usize = 256;
/// How long an idle worker sleeps in the kernel before it looks around.
const IDLE_POLL: Duration = Duration::from_millis(100);

/// Call before the first coroutine. `workers` 0: one per core.
pub fn configure_coroutines(workers: usize) {
    let config = may::config();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.set_workers(if workers == 0 { cores } else { workers });
    config.set_stack_size(stack::BYTES / size_of::<usize>());
    config.set_pool_capacity(STACKS_KEPT);
    config.set_worker_pin(false);
    config.set_timeout_ns(IDLE_POLL.as_nanos() as u64);
}

/// Who reads our output may stop to (`| head`): that ends us without a word, as it ends other commands. Not for a process
/// with connections.
#[allow(unsafe_code, reason = "signal has no safe wrapper in the standard library")]
pub fn end_on_broken_pipe() {
    // SAFETY: a plain system call on constants.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A panic ends one coroutine, and is a line of the log as everything else. Call before the first coroutine: the
/// crate beneath them asks this hook about real panics only, not about coroutines that are cancelled.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let said = panic.payload();
        let said =
            said.downcast_ref::<&str>().copied().or_else(|| said.downcast_ref::<String>().map(|s| &**s));
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        log::error!("panicked at {at}: {}", said.unwrap_or_default().escape_debug());
    }));
}

/// No core dumps, since they would hold tokens; no huge pages, since a connection's two buffers would take 2 MiB each; a
/// file-size limit is an error of the write that meets it, not a signal that kills.
#[allow(unsafe_code, reason = "prctl, setrlimit and signal have no safe wrapper in the standard library")]
pub fn harden() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on constants; `none` outlives the call that reads it.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
