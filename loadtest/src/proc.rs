//! What /proc says of the server: CPU time, memory, descriptors.

use std::fs;
use std::time::Duration;

use crate::sys;

/// One look at a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// User and system, all threads.
    pub cpu: Duration,
    /// Resident now, in bytes.
    pub rss_bytes: u64,
    /// The most that was resident, in bytes.
    pub rss_peak_bytes: u64,
    /// Open descriptors.
    pub fds: u64,
}

/// Looks; `None` if the process is gone.
pub fn look(pid: u32) -> Option<Look> {
    let ticks = cpu_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Look {
        cpu: Duration::from_secs_f64(ticks as f64 / sys::ticks_per_second() as f64),
        rss_bytes: kib(&status, "VmRSS:")? << 10,
        rss_peak_bytes: kib(&status, "VmHWM:")? << 10,
        fds: descriptors(pid),
    })
}

/// Since Linux 6.2 the size of the folder is their number: an older one has to list thousands of them.
fn descriptors(pid: u32) -> u64 {
    let folder = format!("/proc/{pid}/fd");
    match fs::metadata(&folder).map_or(0, |folder| folder.len()) {
        // a server that forbids dumps hides its descriptors from others than root
        0 => fs::read_dir(&folder).map_or(0, |entries| entries.count() as u64),
        count => count,
    }
}

/// A process and all its descendants together; zeros if there is none. Time of those that ended is theirs who waited.
pub fn tree(pid: u32) -> Look {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        all.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        at += 1;
    }
    all.into_iter().filter_map(look).fold(Look::default(), |sum, one| Look {
        cpu: sum.cpu + one.cpu,
        rss_bytes: sum.rss_bytes + one.rss_bytes,
        rss_peak_bytes: sum.rss_peak_bytes + one.rss_peak_bytes,
        fds: sum.fds + one.fds,
    })
}

fn parent(stat: &str) -> Option<u32> {
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse().ok()
}

/// CPU time of all processes of the machine, and what a hypervisor took away.
pub fn machine_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    Duration::from_secs_f64(busy_ticks(&stat).unwrap_or(0) as f64 / sys::ticks_per_second() as f64)
}

/// user, nice, system, irq, softirq, steal: all but idle and iowait. Guests are part of user.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = fields.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum())
}

/// utime + stime. The second field is the program's name in brackets and may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn kib(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_shifts_nothing() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(cpu_ticks("7 (x"), None);
    }

    #[test]
    fn idle_and_waiting_cores_are_not_busy() {
        assert_eq!(busy_ticks("cpu  1 2 4 1000 1000 8 16 32 64 64\ncpu0 9"), Some(63));
        assert_eq!(busy_ticks(""), None);
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let look = look(std::process::id()).expect("it runs");
        assert!(look.rss_bytes > 0 && look.rss_peak_bytes >= look.rss_bytes && look.fds > 2);
        let listed = fs::read_dir("/proc/self/fd").expect("our own").count() as u64;
        assert!(listed.abs_diff(descriptors(std::process::id())) < 50, "other tests open some meanwhile");
        assert_eq!(super::look(u32::MAX), None);
        assert_eq!(parent("7 (a) b (c) S 12 7"), Some(12));
        assert!(tree(std::process::id()).rss_bytes > 0);
    }
}
