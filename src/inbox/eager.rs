//! Asks the kernel to let the committer run as soon as it wakes.
//!
//! Everybody waits for it, and it needs a fifth of a core; but on cores that are full the scheduler lets a thread that
//! wakes wait for the others' time slices (3 ms each). A thread that asks for short slices is taken first, and gets no
//! more time than the others.

/// The shortest slice that the kernel grants, in nanoseconds.
const SLICE_NS: u64 = 100_000;

/// For the calling thread. Kernels before 6.12 ignore it; one that refuses it changes nothing.
#[allow(unsafe_code, reason = "the call has no safe wrapper")]
pub fn ask_for_short_slices() {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all-zero bytes are a valid sched_attr, which is numbers only.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes to the local, which is that large.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if known != 0 || attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return; // somebody chose another policy for us
    }
    attributes.size = size;
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads `size` bytes of the local.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
