//! What a run has to be repeated on: processor, memory, kernel, disk, versions.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::timing::{Quantiles, ms};

/// The machine and the versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: u64,
    /// The processor's name.
    pub processor: String,
    /// Memory, in bytes.
    pub memory: u64,
    /// The kernel.
    pub kernel: String,
    /// File system and device of the server's data, with the mount's options.
    pub disk: String,
    /// A page written and synced there before the load, in microseconds.
    pub sync: Quantiles,
    /// What the server says to `--version`.
    pub server: String,
    /// This program's version.
    pub loadtest: String,
    /// The commit of the sources, if git knows one.
    pub commit: String,
    /// Whether this program was built with optimizations.
    pub is_release: bool,
}

impl Machine {
    /// The disk alone, in words.
    pub fn sync_in_words(&self) -> String {
        let Quantiles { count, p50, p99, p999, .. } = self.sync;
        if count == 0 {
            return "not measured".to_owned();
        }
        format!("a page written and synced p50 {}  p99 {}  p99.9 {} ms", ms(p50), ms(p99), ms(p999))
    }

    /// Looks around. `data`: where the server keeps its data.
    pub fn look(server: &Path, data: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or_else(String::new, |(_, v)| v.trim().to_owned())
        };
        let kib: u64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            processor: field(&cpu, "model name"),
            memory: kib << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            disk: disk(&read("/proc/self/mountinfo"), data),
            sync: crate::disk::probe(data),
            server: said(Command::new(server).arg("--version")),
            loadtest: env!("CARGO_PKG_VERSION").to_owned(),
            commit: said(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(here)),
            is_release: !cfg!(debug_assertions),
        }
    }
}

fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Type, device and options of the mount that holds `folder`: the longest mount point that begins its path.
fn disk(mountinfo: &str, folder: &Path) -> String {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        let mut after = after.split(' ');
        let (kind, device, options) = (after.next()?, after.next()?, after.next()?);
        folder.starts_with(point).then(|| (point.len(), format!("{kind} on {device} ({options})")))
    });
    // of two mounts on one point the later one is on top
    mounts.max_by_key(|(length, _)| *length).map(|(_, words)| words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_that_of_the_deepest_mount() {
        let mountinfo = "22 1 8:1 / / rw,relatime - ext4 /dev/vda rw\n\
                         30 22 0:5 / /tmp rw - tmpfs tmpfs rw,size=1g\n\
                         31 22 8:2 / /tmp/data rw shared:7 - xfs /dev/vdb rw\n";
        assert_eq!(disk(mountinfo, Path::new("/var/x")), "ext4 on /dev/vda (rw)");
        assert_eq!(disk(mountinfo, Path::new("/tmp/x")), "tmpfs on tmpfs (rw,size=1g)");
        assert_eq!(disk(mountinfo, Path::new("/tmp/data/x")), "xfs on /dev/vdb (rw)");
        assert_eq!(disk("nonsense", Path::new("/")), "");
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let machine = Machine::look(Path::new("/nowhere"), Path::new("/nowhere"));
        assert_eq!(machine.sync_in_words(), "not measured");
        assert!(machine.cores > 0 && machine.memory > 0 && !machine.kernel.is_empty());
        assert_eq!(machine.server, "");
    }
}
