//! The few system calls that the standard library has no safe words for.
#![allow(
    unsafe_code,
    reason = "signals to a child, limits and the kind of a file system have no safe wrapper here"
)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Where [`now_us`] begins, in microseconds of the system's monotonic clock.
static EPOCH_US: AtomicU64 = AtomicU64::new(0);

/// Microseconds of the clock that all processes of this machine share.
pub fn monotonic_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes into `time`, which outlives it.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
    }
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// From when on [`now_us`] counts; once, at the start, the same in every process of a run.
pub fn set_epoch(us: u64) {
    EPOCH_US.store(us, Relaxed);
}

/// Microseconds since the epoch of the run.
pub fn now_us() -> u64 {
    monotonic_us().saturating_sub(EPOCH_US.load(Relaxed))
}

/// Asks a child that was not waited for yet to stop.
pub fn terminate(child: &Child) {
    // SAFETY: a plain system call; the child was not reaped, so its id is still its own.
    unsafe {
        libc::kill(child.id() as libc::pid_t, libc::SIGTERM);
    }
}

/// Kills a child that was not waited for yet, and all of its group, which it must be the leader of.
pub fn kill_group(child: &Child) {
    // SAFETY: a plain system call; the child was not reaped, so its id is still its own and its group's.
    unsafe {
        libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL);
    }
}

/// The child is killed when the thread that starts it ends, however that happens.
pub fn dies_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// How many descriptors a process may open (`ulimit -n`), after raising the soft limit as far as it goes.
pub fn open_files_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls; `limit` outlives both.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return u64::MAX;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    limit.rlim_cur
}

/// CPU time of this process so far, user and system.
pub fn own_cpu() -> Duration {
    // SAFETY: all-zero bytes are a valid rusage; the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let span = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}

/// CPU time of the calling thread so far.
pub fn own_thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes into `time`, which outlives it.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
    }
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Clock ticks in a second, as /proc counts them.
pub fn ticks_per_second() -> u64 {
    // SAFETY: a plain library call.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// Whether a folder lies in memory, where an fsync costs nothing.
pub fn is_in_memory(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else { return false };
    // SAFETY: all-zero bytes are a valid statfs; `path` is NUL-terminated and both outlive the call.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::statfs(path.as_ptr(), &raw mut stat) != 0 {
            return false;
        }
        stat.f_type
    };
    kind == libc::TMPFS_MAGIC || kind == 0x8584_58f6 // ramfs
}
