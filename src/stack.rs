//! Stacks of coroutines, and giving back what a long wait does not need of one.
//!
//! A stack keeps every page that its deepest call ever touched: TLS and a body's JSON touch 40 KiB, and thousands of
//! coroutines wait for their agents at once. What lies below the frame that waits is dead, so its pages go back to the
//! kernel; they come back empty when they are touched again.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Stack of a coroutine, in bytes: TLS works from 64 KiB in release builds; debug builds need about twice as much.
pub const BYTES: usize = if cfg!(debug_assertions) { 512 << 10 } else { 128 << 10 };
/// The deepest part is not given back: it begins with `generator`'s mark, and where exactly is not known here.
const DEEPEST: usize = BYTES / 4;
/// What is left below the frame that gives back: the call's own return address, and the red zone of 128 bytes.
const RED_ZONE: usize = 256;
const PAGE: usize = 4 << 10;
/// So many may wait with whole stacks: giving back costs a system call and some page faults.
const WHOLE_MAX: usize = 256;

may::coroutine_local!(static BEGIN: Cell<usize> = Cell::new(0));

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Call first thing on a coroutine with a stack of [`BYTES`]; elsewhere [`wait`] gives nothing back.
#[inline(never)]
pub fn begin() {
    let words = BYTES / size_of::<usize>();
    if !may::coroutine::is_coroutine() || may::coroutine::current().stack_size() != words {
        return;
    }
    BEGIN.with(|begin| begin.set(here()));
}

/// A wait that may take seconds: without the stack's unused pages, where many wait like this.
#[inline(never)]
pub fn wait<T>(work: impl FnOnce() -> T) -> T {
    struct Waits;
    impl Drop for Waits {
        fn drop(&mut self) {
            WAITING.fetch_sub(1, Relaxed);
        }
    }
    let waiting = WAITING.fetch_add(1, Relaxed);
    let _waits = Waits;
    if waiting >= WHOLE_MAX && may::coroutine::is_coroutine() {
        give_back();
    }
    work()
}

/// An address in the caller's frame, or just below it.
#[inline(never)]
fn here() -> usize {
    let local = 0u8;
    std::hint::black_box(&raw const local).addr()
}

#[inline(never)]
#[allow(unsafe_code, reason = "madvise has no safe wrapper in the standard library")]
fn give_back() {
    let begin = BEGIN.with(Cell::get);
    if begin == 0 {
        return;
    }
    let low = (begin - BYTES + DEEPEST).next_multiple_of(PAGE);
    let high = (here() - RED_ZONE) / PAGE * PAGE;
    if low < high {
        // SAFETY: a page-aligned range of this coroutine's own stack. It ends below this frame and so holds nothing that
        // is in use; it begins inside of the stack, since `begin` is less than DEEPEST away from the stack's upper end.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(low), high - low, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches so many bytes of stack below, and returns what it wrote there, so that nothing is left out.
    #[inline(never)]
    fn dig(bytes: usize) -> u64 {
        let mut here = [0u8; 1 << 10];
        std::hint::black_box(&mut here)[bytes % 1024] = 1;
        let below = if bytes > here.len() { dig(bytes - here.len()) } else { 0 };
        below + u64::from(here[bytes % 1024])
    }

    /// Pages of this process that are in memory.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number")
    }

    #[test]
    fn a_wait_gives_back_what_is_below_it_and_nothing_above() {
        let deep = BYTES / 2;
        crate::ops::process::configure_coroutines(2);
        let digs = move || {
            begin();
            let mut above = [7u8; 4096];
            let dug = dig(deep);
            let (before, after) = (resident(), {
                WAITING.fetch_add(WHOLE_MAX, Relaxed);
                let after = wait(resident);
                WAITING.fetch_sub(WHOLE_MAX, Relaxed);
                after
            });
            let again = dig(deep);
            std::hint::black_box(&mut above);
            (dug == again && above == [7u8; 4096], before.saturating_sub(after))
        };
        // other tests take memory meanwhile: the best of some
        let given = (0..20).map(|_| may::go!(digs).join().expect("no panic"));
        let given: Vec<_> =
            given.inspect(|(is_whole, _)| assert!(is_whole)).map(|(_, pages)| pages).collect();
        assert!(given.iter().any(|pages| *pages >= deep / PAGE / 2), "{given:?} pages");
    }

    #[test]
    fn on_a_thread_nothing_is_given_back() {
        WAITING.fetch_add(WHOLE_MAX, Relaxed);
        assert_eq!(wait(|| 1), 1);
        WAITING.fetch_sub(WHOLE_MAX, Relaxed);
    }
}
