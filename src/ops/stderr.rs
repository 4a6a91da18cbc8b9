//! Standard error that nobody waits for.
//!
//! A log line is written from wherever it is said, also from the two workers that answer everybody; a pipe that its reader
//! has stopped to read (a stuck collector, a stopped journal) would hold them for ever. So lines go through a bounded
//! queue to a thread that writes them, and what doesn't fit is counted and left out. The descriptor itself is pointed to
//! nowhere meanwhile: may_minihttp writes a line to it for every request that is no HTTP, which anybody can send.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::metrics::{Counter, Metric};

/// Lines that may wait; 100 to 300 bytes each.
const LINES_MAX: usize = 4096;
/// Bytes that are written at once.
const WRITE_MAX: usize = 64 << 10;

/// Lines that were left out.
static DROPPED: Counter =
    Counter::new("log_lines_dropped_total", "Log lines left out since nobody read standard error.");

/// What this module counts.
pub static METRICS: &[&dyn Metric] = &[&DROPPED];

static QUEUE: OnceLock<Sender<Message>> = OnceLock::new();

enum Message {
    Text(Vec<u8>),
    /// Everything before it is written.
    Flush(Sender<()>),
}

/// From now on standard error belongs to the thread that it starts. Once in a process, before anything is said.
pub fn take_over() -> io::Result<()> {
    let real = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let nowhere = File::options().write(true).open("/dev/null")?;
    let (sender, receiver) = bounded(LINES_MAX);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(real, &receiver, &DROPPED))?;
    point_stderr_to(&nowhere)?;
    let _ = QUEUE.set(sender);
    Ok(())
}

#[allow(unsafe_code, reason = "dup2 has no safe wrapper in the standard library")]
fn point_stderr_to(file: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open, and the call touches no memory of ours.
    let rc = unsafe { libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says a line.
pub fn line(text: &str) {
    match QUEUE.get() {
        Some(queue) => send(queue, format!("{text}\n").into_bytes(), &DROPPED),
        None => eprintln!("{text}"),
    }
}

/// Waits until what was said so far is written, at most `within`.
pub fn flush(within: Duration) {
    let Some(queue) = QUEUE.get() else { return };
    let (done, written) = bounded(1);
    if queue.send_timeout(Message::Flush(done), within).is_ok() {
        let _ = written.recv_timeout(within);
    }
}

/// Where env_logger writes; whole lines.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match QUEUE.get() {
            Some(queue) => send(queue, bytes.to_vec(), &DROPPED),
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(queue: &Sender<Message>, text: Vec<u8>, dropped: &Counter) {
    if queue.try_send(Message::Text(text)).is_err() {
        dropped.inc();
    }
}

fn write_all(mut to: impl Write, from: &Receiver<Message>, dropped: &Counter) {
    let mut told = 0;
    let mut bytes = Vec::new();
    while let Ok(first) = from.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Message::Text(text) => bytes.extend_from_slice(&text),
                Message::Flush(done) => flushed.push(done),
            }
            if bytes.len() < WRITE_MAX {
                next = from.try_recv().ok();
            }
        }
        let count = dropped.value();
        if count > told {
            let text = format!("{} lines of the log were left out: nobody read them\n", count - told);
            bytes.extend_from_slice(text.as_bytes());
            told = count;
        }
        // who has closed it wants no log
        let _ = to.write_all(&bytes);
        bytes.clear();
        for done in flushed {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order_and_a_flush_waits_for_them() {
        static NONE: Counter = Counter::new("none", "None.");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (sender, receiver) = bounded(LINES_MAX);
        let thread = std::thread::spawn(move || write_all(writer, &receiver, &NONE));
        for n in 0..3000 {
            send(&sender, format!("{n}\n").into_bytes(), &NONE);
        }
        let (done, written) = bounded(1);
        sender.send(Message::Flush(done)).expect("somebody takes it");
        written.recv_timeout(Duration::from_secs(10)).expect("it was written");
        drop(sender);
        thread.join().expect("no panic");
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).expect("text");
        assert_eq!(text, (0..3000).map(|n| format!("{n}\n")).collect::<String>());
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_and_is_told_what_it_missed() {
        static SOME: Counter = Counter::new("some", "Some.");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (sender, receiver) = bounded(LINES_MAX);
        let thread = std::thread::spawn(move || write_all(writer, &receiver, &SOME));
        for _ in 0..3 * LINES_MAX {
            send(&sender, [[b'x'; 199].as_slice(), b"\n"].concat(), &SOME);
        }
        let missed = SOME.value();
        assert!(missed > 0);
        drop(sender);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).expect("text");
        thread.join().expect("no panic");
        // it may have been told of them in parts
        let told = text
            .lines()
            .filter_map(|line| line.split_once(" lines of the log were left out")?.0.parse::<u64>().ok());
        assert_eq!(told.sum::<u64>(), missed, "{}", text.len());
    }
}
