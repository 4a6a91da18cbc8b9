//! Stacks of coroutines, and giving back what a long wait does not need of one.
//!
//! A stack keeps every page that its deepest call ever touched: TLS and a body's JSON touch 40 KiB, and thousands of
//! coroutines wait for their agents at once. What lies below the frame that waits is dead, so its pages go back to the
//! kernel; they come back empty when they are touched again.

use std::cell::Cell;
use std::ops::Range;
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

/// What lies below the caller's frame and may be given back.
#[inline(never)]
fn unused() -> Option<Range<usize>> {
    let begin = BEGIN.with(Cell::get);
    let low = (begin.checked_sub(BYTES)? + DEEPEST).next_multiple_of(PAGE);
    let high = (here() - RED_ZONE) / PAGE * PAGE;
    (low < high).then_some(low..high)
}

#[inline(never)]
#[allow(unsafe_code, reason = "madvise has no safe wrapper in the standard library")]
fn give_back() {
    let Some(unused) = unused() else { return };
    let start = std::ptr::with_exposed_provenance_mut(unused.start);
    // SAFETY: a page-aligned range of this coroutine's own stack. It ends RED_ZONE below a frame that this call has ended,
    // which was below this one's, and so holds nothing that is in use; it begins inside of the stack, since `begin` is
    // less than DEEPEST away from the stack's upper end.
    unsafe { libc::madvise(start, unused.len(), libc::MADV_DONTNEED) };
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

    /// Pages of this coroutine's unused stack that are in memory, the one next to the caller's frame aside.
    #[inline(never)]
    #[allow(unsafe_code, reason = "mincore has no safe wrapper in the standard library")]
    fn resident() -> usize {
        let unused = unused().expect("a coroutine that has begun");
        let mut pages = vec![0u8; unused.len() / PAGE - 1];
        let start = std::ptr::with_exposed_provenance_mut(unused.start);
        // SAFETY: only asks about the range, which is mapped, and has a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(start, pages.len() * PAGE, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn a_wait_gives_back_what_is_below_it_and_nothing_above() {
        let deep = BYTES / 2;
        let digs = move || {
            begin();
            let mut above = [7u8; 4096];
            let dug = dig(deep);
            let before = resident();
            WAITING.fetch_add(WHOLE_MAX, Relaxed);
            let after = wait(resident);
            WAITING.fetch_sub(WHOLE_MAX, Relaxed);
            let again = dig(deep);
            std::hint::black_box(&mut above);
            (dug == again && above == [7u8; 4096], before, after)
        };
        let sized = may::coroutine::Builder::new().stack_size(BYTES / size_of::<usize>());
        let (is_whole, before, after) = may::go!(sized, digs).expect("memory").join().expect("no panic");
        assert!(is_whole && before >= deep / PAGE - 8 && after <= 1, "{is_whole} {before} {after}");
    }

    #[test]
    fn on_a_thread_nothing_is_given_back() {
        WAITING.fetch_add(WHOLE_MAX, Relaxed);
        assert_eq!(wait(|| 1), 1);
        WAITING.fetch_sub(WHOLE_MAX, Relaxed);
    }
}
