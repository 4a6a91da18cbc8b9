//! Findings: their layout, their count, and what they come to.

use std::cell::Cell;
use std::io::Write;

use crossbeam_channel::Sender;

use crate::cli::Failed;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It can't be told from here.
    Skip,
    /// It works, and somebody should look at it.
    Warn,
    /// Messages are lost, late or not answered as long as it is so.
    Fail,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skip => "skip",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Of what.
    pub what: &'static str,
    /// What was found and, if it is not as it should be, what to do.
    pub text: String,
}

/// Where a part says what it found.
pub struct Report(Sender<Finding>);

impl Report {
    pub fn new(findings: Sender<Finding>) -> Self {
        Self(findings)
    }

    pub fn ok(&self, what: &'static str, text: impl Into<String>) {
        self.say(Level::Ok, what, text);
    }

    pub fn skip(&self, what: &'static str, text: impl Into<String>) {
        self.say(Level::Skip, what, text);
    }

    pub fn warn(&self, what: &'static str, text: impl Into<String>) {
        self.say(Level::Warn, what, text);
    }

    pub fn fail(&self, what: &'static str, text: impl Into<String>) {
        self.say(Level::Fail, what, text);
    }

    pub fn say(&self, level: Level, what: &'static str, text: impl Into<String>) {
        // nobody listens any more once all time is used up
        let _ = self.0.send(Finding { level, what, text: text.into() });
    }
}

/// Says at most so many, and how many more there were.
pub struct Few<'a> {
    report: &'a Report,
    what: &'static str,
    left: Cell<usize>,
    more: Cell<usize>,
    worst: Cell<Level>,
}

impl<'a> Few<'a> {
    pub fn of(report: &'a Report, what: &'static str, most: usize) -> Self {
        Self { report, what, left: Cell::new(most), more: Cell::new(0), worst: Cell::new(Level::Ok) }
    }

    pub fn say(&self, level: Level, text: impl Into<String>) {
        if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            self.report.say(level, self.what, text);
        } else {
            self.more.set(self.more.get() + 1);
            self.worst.set(self.worst.get().max(level));
        }
    }

    /// To be called at the end.
    pub fn end(self, how: &str) {
        if self.more.get() > 0 {
            let text = format!("{} more findings like these; {how}", self.more.get());
            self.report.say(self.worst.get(), self.what, text);
        }
    }
}

/// A word of a command as a shell takes it: others choose names as they like.
pub fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Prints, and counts what it prints.
#[derive(Default)]
pub struct Tally {
    counts: [usize; 4],
    is_broken: bool,
}

impl Tally {
    /// One line, at once: what follows may take its time.
    pub fn print(&mut self, finding: &Finding) {
        self.counts[finding.level as usize] += 1;
        // others write to what was read: no line end and no control of a terminal of theirs
        let text: String =
            finding.text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        self.line(&format!("{:<4} {:<8} {text}", finding.level.as_str(), finding.what));
    }

    /// The last line, and what it all comes to.
    pub fn end(mut self) -> Result<(), Failed> {
        let [ok, skipped, warnings, failed] = self.counts;
        self.line(&format!("{ok} ok, {warnings} to look at, {failed} wrong, {skipped} not told from here"));
        match (failed, self.is_broken) {
            (0, false) => Ok(()),
            (0, true) => Err(Failed::Other("standard output can't be written".to_owned())),
            _ => Err(Failed::Told),
        }
    }

    fn line(&mut self, line: &str) {
        let mut out = std::io::stdout().lock();
        self.is_broken |= writeln!(out, "{line}").and_then(|()| out.flush()).is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_word_to_a_shell() {
        for (name, shown) in
            [("cafe-1.x_y", "cafe-1.x_y"), ("", "''"), ("a b", "'a b'"), ("a';b", r"'a'\'';b'")]
        {
            assert_eq!(word(name), shown);
        }
    }

    #[test]
    fn what_is_too_much_is_counted_and_as_bad_as_the_worst_of_it() {
        let (sender, findings) = crossbeam_channel::unbounded();
        let report = Report::new(sender);
        let few = Few::of(&report, "business", 2);
        for level in [Level::Warn, Level::Warn, Level::Warn, Level::Fail] {
            few.say(level, "x");
        }
        few.end("see elsewhere");
        let last = findings.try_iter().last().expect("a finding");
        assert_eq!((last.level, &*last.text), (Level::Fail, "2 more findings like these; see elsewhere"));
    }
}
