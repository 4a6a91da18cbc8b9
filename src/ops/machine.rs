//! What the kernel says of the machine and of this process in it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A volume on which a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// What this user may still write.
    pub free_bytes: u64,
    /// Which file system: its magic number (statfs(2)).
    pub magic: u64,
}

/// The volume of a path that is there.
#[allow(unsafe_code, reason = "statfs has no safe wrapper in the standard library")]
pub fn volume(path: &Path) -> io::Result<Volume> {
    let path = c_path(path)?;
    // SAFETY: all-zero bytes are a valid statfs.
    let mut seen: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in NUL; the kernel writes one statfs, to a local that outlives the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut seen) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // a magic number is 32 bits, sign-extended where the field is longer
    let magic = u64::from(seen.f_type as u32);
    Ok(Volume { free_bytes: seen.f_bavail.saturating_mul(seen.f_bsize as u64), magic })
}

/// Whether this user may write the file or the folder; root may, but not on a read-only volume.
#[allow(unsafe_code, reason = "faccessat has no safe wrapper in the standard library")]
pub fn may_write(path: &Path) -> io::Result<()> {
    let folder = if path.is_dir() { libc::X_OK } else { 0 };
    let path = c_path(path)?;
    // SAFETY: the path ends in NUL and outlives the call; nothing of ours is written.
    let rc = unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | folder, libc::AT_EACCESS) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many files a process of this user may open, once it has asked for all that it may have.
pub fn open_files_max() -> io::Result<u64> {
    open_files().map(|limit| limit.rlim_max)
}

/// Raises the soft limit of open files to the hard one, at most to `at_most`; the limit that holds now.
#[allow(unsafe_code, reason = "setrlimit has no safe wrapper in the standard library")]
pub fn raise_open_files(at_most: u64) -> u64 {
    let Ok(limit) = open_files() else { return 1024 };
    let wanted = limit.rlim_max.min(at_most);
    if wanted > limit.rlim_cur {
        let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max };
        // SAFETY: the kernel reads one rlimit, from a local that outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            return wanted;
        }
    }
    limit.rlim_cur
}

#[allow(unsafe_code, reason = "getrlimit has no safe wrapper in the standard library")]
fn open_files() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit, to a local that outlives the call.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if rc == 0 { Ok(limit) } else { Err(io::Error::last_os_error()) }
}

/// Whether something keeps the clock right (NTP); `None` where the kernel doesn't tell.
#[allow(unsafe_code, reason = "adjtimex has no safe wrapper in the standard library")]
pub fn is_clock_kept() -> Option<bool> {
    // SAFETY: all-zero bytes are a valid timex; its modes of 0 make the call one that only reads.
    let mut seen: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one timex, to a local that outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut seen) };
    (state >= 0).then_some(state != libc::TIME_ERROR && seen.status & libc::STA_UNSYNC == 0)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_there_has_a_volume_and_can_be_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = volume(folder.path()).expect("seen");
        assert!(seen.free_bytes > 0 && seen.magic > 0, "{seen:?}");
        assert!(may_write(folder.path()).is_ok());
        let absent = folder.path().join("absent");
        assert!(may_write(&absent).is_err() && volume(&absent).is_err());
        assert_eq!(volume(Path::new("/proc")).expect("seen").magic, 0x9fa0);
        assert!(open_files_max().expect("a limit") > 0);
    }
}
