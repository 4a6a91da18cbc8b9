//! Whether the machine itself stands nearly still. On some virtual machines all that writes to memory or calls the kernel
//! takes 3 to 15 times its CPU time for 50 to 100 ms, again and again, and no time is reported as stolen. What is measured
//! then tells of the machine, not of the server.
//!
//! So a thread does the same small work all the time, writes to some pages and calls of the kernel, and compares the CPU
//! time that it takes to its median. A request is quiet if nothing was slow from [`AFTER_US`] before it to its end.

use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use whatsapp_webhook::clock;

use crate::drive::Load;
use crate::sys::{now_us, own_thread_cpu};

/// What piled up in a stall is done this long after it, in microseconds.
pub const AFTER_US: u64 = 100_000;
/// No stall and what piles up in it makes a request take longer, in microseconds: what did is counted, whenever it was.
const LONGEST_US: u64 = 400_000;
/// How often the work is done; it takes about 10 us.
const EVERY: Duration = Duration::from_millis(2);
/// So many times its median is slow.
const SLOW: u32 = 4;
/// Pages that it writes to.
const PAGES: usize = 64;
const PAGE: usize = 4096;
/// Bytes that it passes through a pipe.
const CALLS: usize = 10;
/// How long a part of a load is, in microseconds: the system counts CPU time in hundredths of a second.
const PART_US: u64 = 250_000;
/// Times of which the median is taken, ..
const KEPT: usize = 512;
/// .. anew after so many.
const ANEW: usize = 64;

/// When it was slow.
#[derive(Debug, Default)]
pub struct Stalls {
    /// The last time, plus one; 0: never.
    slow_us: AtomicU64,
}

impl Stalls {
    /// Whether nothing was slow for a request that came at `from_us` and ends now; or it took so long that no stall explains
    /// it.
    pub fn is_quiet(&self, from_us: u64) -> bool {
        if now_us().saturating_sub(from_us) > LONGEST_US {
            return true;
        }
        !self.was_any(from_us)
    }

    /// Whether anything was slow since `from_us`, or shortly before.
    fn was_any(&self, from_us: u64) -> bool {
        let slow_us = self.slow_us.load(Relaxed);
        slow_us > 0 && slow_us + AFTER_US >= from_us
    }

    fn was_slow(&self, at_us: u64) {
        self.slow_us.store(at_us + 1, Relaxed);
    }
}

/// Looks out for stalls as long as the load lives.
///
/// # Errors
/// There is no thread or pipe for it.
pub fn watch(load: Weak<Load>) -> std::io::Result<()> {
    let (mut reader, mut writer) = std::io::pipe()?;
    let look_out = move || {
        let mut pages = vec![1_u8; PAGES * PAGE];
        let mut usual = Usual::default();
        while let Some(load) = load.upgrade() {
            let Some(took) = work(&mut pages, &mut reader, &mut writer) else { return };
            if usual.is_slow(took) {
                load.stalls.was_slow(now_us());
            }
            drop(load);
            clock::sleep(EVERY);
        }
    };
    std::thread::Builder::new().name("stalls".to_owned()).spawn(look_out).map(drop)
}

/// The CPU that each 200 took in those parts of a load that met no stall.
pub struct QuietCpu {
    since_us: u64,
    cpu: Duration,
    acked: u64,
    quiet_cpu: Duration,
    quiet_acked: u64,
}

impl QuietCpu {
    /// At the begin of the load, with the server's CPU time and the 200s so far.
    pub fn new(cpu: Duration, acked: u64) -> Self {
        Self { since_us: now_us(), cpu, acked, quiet_cpu: Duration::ZERO, quiet_acked: 0 }
    }

    /// Whether the next part is over.
    pub fn is_due(&self) -> bool {
        now_us() >= self.since_us + PART_US
    }

    /// A part is over.
    pub fn look(&mut self, stalls: &Stalls, cpu: Duration, acked: u64) {
        if !stalls.was_any(self.since_us) {
            self.quiet_cpu += cpu.saturating_sub(self.cpu);
            self.quiet_acked += acked - self.acked;
        }
        (self.since_us, self.cpu, self.acked) = (now_us(), cpu, acked);
    }

    /// Microseconds a 200; 0 if no part was quiet.
    pub fn per_ack(&self) -> f64 {
        if self.quiet_acked == 0 { 0.0 } else { self.quiet_cpu.as_secs_f64() * 1e6 / self.quiet_acked as f64 }
    }
}

/// CPU time of the work; `None` if it can't be done.
fn work(pages: &mut [u8], reader: &mut PipeReader, writer: &mut PipeWriter) -> Option<Duration> {
    let begun = own_thread_cpu();
    for at in (0..pages.len()).step_by(PAGE) {
        pages[at] = pages[at].wrapping_add(1);
    }
    black_box(&pages);
    for _ in 0..CALLS {
        writer.write_all(&[1]).ok()?;
        reader.read_exact(&mut [0]).ok()?;
    }
    Some(own_thread_cpu().saturating_sub(begun))
}

/// What the work usually takes.
#[derive(Default)]
struct Usual {
    kept: Vec<Duration>,
    next: usize,
    median: Option<Duration>,
}

impl Usual {
    /// Whether this one took much longer; nothing does before the median is known.
    fn is_slow(&mut self, took: Duration) -> bool {
        if self.kept.len() < KEPT {
            self.kept.push(took);
        } else {
            self.kept[self.next % KEPT] = took;
        }
        self.next += 1;
        if self.next.is_multiple_of(ANEW) {
            let mut sorted = self.kept.clone();
            sorted.sort_unstable();
            self.median = Some(sorted[sorted.len() / 2]);
        }
        self.median.is_some_and(|median| took > median * SLOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_quiet_if_nothing_was_slow_shortly_before_it_or_during_it_or_it_took_too_long_for_that() {
        let stalls = Stalls::default();
        assert!(!stalls.was_any(0));
        stalls.was_slow(1_000_000);
        assert!(stalls.was_any(900_000) && stalls.was_any(1_000_000) && stalls.was_any(1_100_001));
        assert!(!stalls.was_any(1_100_002));
        let now = now_us() + 2 * LONGEST_US;
        stalls.was_slow(now);
        assert!(!stalls.is_quiet(now), "a stall explains it");
        assert!(stalls.is_quiet(0) == (now_us() > LONGEST_US), "no stall takes as long as since then");
    }

    #[test]
    fn the_cpu_of_parts_with_a_stall_is_left_out() {
        let (stalls, ms) = (Stalls::default(), Duration::from_millis);
        let mut quiet = QuietCpu::new(ms(100), 1_000);
        quiet.since_us = 10_000_000;
        assert_eq!(quiet.per_ack(), 0.0);
        quiet.look(&stalls, ms(120), 2_000);
        assert_eq!(quiet.per_ack(), 20.0);
        stalls.was_slow(quiet.since_us + 5);
        quiet.look(&stalls, ms(220), 3_000);
        assert_eq!(quiet.per_ack(), 20.0);
    }

    #[test]
    fn slow_is_many_times_the_median_and_a_change_for_good_is_not() {
        let us = Duration::from_micros;
        let mut usual = Usual::default();
        assert!((0..ANEW as u64 - 1).all(|n| !usual.is_slow(us(9 + n % 3))));
        assert!(!usual.is_slow(us(10)));
        assert!(usual.is_slow(us(41)) && !usual.is_slow(us(40)));
        let slow = (0..2 * KEPT).filter(|_| usual.is_slow(us(50))).count();
        assert!(slow < KEPT && !usual.is_slow(us(50)) && usual.is_slow(us(201)));
    }

    #[test]
    fn the_work_takes_some_time() {
        let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
        let took = work(&mut vec![0; PAGES * PAGE], &mut reader, &mut writer);
        assert!(
            took.is_some_and(|took| took > Duration::ZERO && took < Duration::from_millis(100)),
            "{took:?}"
        );
    }
}
