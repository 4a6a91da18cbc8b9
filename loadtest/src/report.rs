//! PURE. From figures to about ten lines, and which of them are red.

use std::time::Duration;

use crate::ledger::Tally;
use crate::timing::Quantiles;

/// Everything that was counted and measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What was done, in words.
    pub what: String,
    /// Statuses only: nothing is answered.
    pub statuses: bool,
    /// Stopped before the end.
    pub interrupted: bool,
    /// Why the load or the drain ended early, if it did.
    pub trouble: Vec<String>,
    /// How long the load ran.
    pub elapsed: Duration,
    /// 200s within that time, duplicates included.
    pub acked: u64,
    /// 200s over all.
    pub acked_in_all: u64,
    /// Duplicates among them.
    pub duplicates: u64,
    /// Other statuses, and how many of them were 503.
    pub refused: (u64, u64),
    /// Broken connections.
    pub broken: u64,
    /// Requests that never got a 200.
    pub given_up: u64,
    /// Average body, in bytes.
    pub body_bytes: u64,
    /// Request to 200.
    pub ack: Quantiles,
    /// Message to answer.
    pub answer: Quantiles,
    /// From the end of the load to the last answer.
    pub drained: Duration,
    /// Of the server while loaded.
    pub cpu_loaded: Duration,
    /// Of the server in all.
    pub cpu: Duration,
    /// The most that was resident, in bytes.
    pub rss_peak: u64,
    /// The most descriptors, and those after the users left.
    pub fds: (u64, u64),
    /// Of this process while loaded.
    pub own_cpu: Duration,
    /// Messages that the simulated Graph accepted.
    pub graph_sends: u64,
    /// Connections that it accepted.
    pub graph_connections: u64,
    /// What the real Graph would have refused, and the first such in words.
    pub graph_refused: (u64, Option<String>),
    /// Messages whose reply id had been sent before.
    pub graph_doubled: u64,
    /// The ids.
    pub tally: Tally,
    /// How the server ended, if not well.
    pub bad_end: Option<String>,
    /// Bounds given: 200s a second, p99 to the 200 in ms, p99 to the answer in ms, MiB.
    pub bounds: Bounds,
}

/// What makes a figure red.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// 200s a second, at least.
    pub rate: Option<u64>,
    /// To the 200, in ms.
    pub p99: Option<u64>,
    /// To the answer, in ms.
    pub answer_p99: Option<u64>,
    /// Resident, in MiB.
    pub rss: Option<u64>,
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Not as it should be.
    pub red: bool,
    /// What it is about.
    pub name: &'static str,
    /// The figures.
    pub text: String,
}

impl Figures {
    /// The report, in order.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = vec![self.load(), self.requests(), self.latency()];
        if !self.statuses {
            lines.extend([self.answers(), self.answer_latency()]);
        }
        lines.extend([self.server(), self.generator()]);
        if !self.statuses {
            lines.extend([self.graph(), self.order()]);
        }
        lines.push(self.reconciled());
        for trouble in self.trouble.iter().chain(&self.bad_end) {
            lines.push(Line { red: true, name: "trouble", text: trouble.clone() });
        }
        lines
    }

    /// 200s a second.
    fn rate(&self) -> f64 {
        self.acked as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn load(&self) -> Line {
        let cut = if self.interrupted { "; INTERRUPTED, partial figures" } else { "" };
        Line {
            red: false,
            name: "load",
            text: format!("{}; bodies of {} B{cut}", self.what, self.body_bytes),
        }
    }

    fn requests(&self) -> Line {
        let rate = self.rate();
        let red = self.given_up > 0
            || self.refused.0 > self.refused.1
            || self.broken > 0
            || self.acked == 0
            || self.bounds.rate.is_some_and(|least| rate < least as f64);
        let text = format!(
            "{} signed durable 200s in {:.1} s = {rate:.0}/s; duplicates {}, 503 {}, other answers {}, broken \
             connections {}, never a 200 {}",
            self.acked,
            self.elapsed.as_secs_f64(),
            self.duplicates,
            self.refused.1,
            self.refused.0 - self.refused.1,
            self.broken,
            self.given_up
        );
        Line { red: red && !self.interrupted, name: "requests", text }
    }

    fn latency(&self) -> Line {
        let red = self.bounds.p99.is_some_and(|most| self.ack.p99 > Duration::from_millis(most));
        Line { red, name: "200", text: format!("{} (request to 200)", self.ack) }
    }

    fn answers(&self) -> Line {
        let text = format!(
            "{} of {} messages in {} replies; the last {:.1} s after the end of the load",
            self.tally.answered,
            self.tally.acknowledged,
            self.graph_sends,
            self.drained.as_secs_f64()
        );
        let red = self.tally.answered < self.tally.acknowledged && !self.interrupted;
        Line { red, name: "answers", text }
    }

    fn answer_latency(&self) -> Line {
        let red = self.bounds.answer_p99.is_some_and(|most| self.answer.p99 > Duration::from_millis(most));
        Line { red, name: "end to end", text: format!("{} (message to its reply at Graph)", self.answer) }
    }

    fn server(&self) -> Line {
        let each = |cpu: Duration, count: u64| cpu.as_secs_f64() * 1e6 / count.max(1) as f64;
        let mib = self.rss_peak as f64 / f64::from(1 << 20);
        let text = format!(
            "CPU {:.1} us a 200 while loaded, {:.1} us over all; RSS at most {mib:.1} MiB; descriptors at most {}, {} \
             after the users left",
            each(self.cpu_loaded, self.acked),
            each(self.cpu, self.acked_in_all),
            self.fds.0,
            self.fds.1
        );
        let red = self.bounds.rss.is_some_and(|most| mib > most as f64);
        Line { red, name: "server", text }
    }

    fn generator(&self) -> Line {
        let each = self.own_cpu.as_secs_f64() * 1e6 / self.acked.max(1) as f64;
        let with = if self.statuses { "" } else { ", the simulated Graph included" };
        Line { red: false, name: "generator", text: format!("CPU {each:.1} us a 200{with}") }
    }

    fn graph(&self) -> Line {
        let (refused, first) = &self.graph_refused;
        let wrong = &self.tally.wrong;
        let mut text = format!(
            "{} connections; refused {refused}, reply ids sent twice {}, wrong number or customer {}, words nobody \
             said {}",
            self.graph_connections, self.graph_doubled, wrong.stray, wrong.unknown
        );
        if let Some(first) = first {
            text.push_str("; first refused: ");
            text.push_str(first);
        }
        let red = *refused > 0 || self.graph_doubled > 0 || wrong.stray > 0 || wrong.unknown > 0;
        Line { red, name: "graph", text }
    }

    fn order(&self) -> Line {
        let count = self.tally.wrong.out_of_order;
        Line {
            red: count > 0,
            name: "order",
            text: format!("{count} answered out of order in their conversation"),
        }
    }

    fn reconciled(&self) -> Line {
        if self.statuses {
            let text = "statuses only: nothing to answer, nothing to lose".to_owned();
            return Line { red: false, name: "reconciled", text };
        }
        let Tally { sent, acknowledged, answered, lost, wrong } = &self.tally;
        let pending = if self.interrupted { "pending when stopped" } else { "lost" };
        let mut text = format!(
            "sent {sent}, acknowledged {acknowledged}, answered {answered}: {pending} {lost}, doubled {}",
            wrong.doubled
        );
        for example in wrong.examples.iter().filter(|_| !self.interrupted || wrong.doubled > 0) {
            text.push_str("; ");
            text.push_str(example);
        }
        let unequal = sent != acknowledged || acknowledged != answered || *lost > 0;
        Line { red: wrong.doubled > 0 || (unequal && !self.interrupted), name: "reconciled", text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Wrong;

    fn good() -> Figures {
        let tally = Tally { sent: 9, acknowledged: 9, answered: 9, ..Tally::default() };
        Figures { elapsed: Duration::from_secs(1), acked: 9, acked_in_all: 9, tally, ..Figures::default() }
    }

    fn red(figures: &Figures) -> Vec<&'static str> {
        figures.lines().into_iter().filter(|l| l.red).map(|l| l.name).collect()
    }

    #[test]
    fn a_good_run_has_no_red_line_and_says_so() {
        assert_eq!(red(&good()), [""; 0]);
        let lines = good().lines();
        assert!(lines.iter().any(|l| l.text.ends_with("lost 0, doubled 0")), "{lines:?}");
        assert!(lines.len() <= 11, "about ten");
    }

    #[test]
    fn everything_that_is_wrong_is_red_on_its_line() {
        let wrong = |change: fn(&mut Figures)| {
            let mut figures = good();
            change(&mut figures);
            red(&figures)
        };
        assert_eq!(wrong(|f| f.tally.lost = 1), ["reconciled"]);
        assert_eq!(wrong(|f| f.tally.answered = 8), ["answers", "reconciled"]);
        assert_eq!(wrong(|f| f.tally.acknowledged = 8), ["reconciled"]);
        assert_eq!(wrong(|f| f.tally.wrong.doubled = 1), ["reconciled"]);
        assert_eq!(wrong(|f| f.tally.wrong = Wrong { out_of_order: 1, ..Wrong::default() }), ["order"]);
        assert_eq!(wrong(|f| f.tally.wrong.stray = 1), ["graph"]);
        assert_eq!(wrong(|f| f.tally.wrong.unknown = 1), ["graph"]);
        assert_eq!(wrong(|f| f.graph_refused.0 = 1), ["graph"]);
        assert_eq!(wrong(|f| f.graph_doubled = 1), ["graph"]);
        assert_eq!(wrong(|f| f.given_up = 1), ["requests"]);
        assert_eq!(wrong(|f| f.broken = 1), ["requests"]);
        assert_eq!(wrong(|f| f.refused = (2, 1)), ["requests"]);
        assert_eq!(wrong(|f| f.bounds.rate = Some(10)), ["requests"]);
        assert_eq!(wrong(|f| f.bad_end = Some("died".to_owned())), ["trouble"]);
        assert_eq!(wrong(|f| f.ack.p99 = Duration::from_secs(1)), [""; 0]);
        assert_eq!(
            wrong(|f| {
                f.ack.p99 = Duration::from_secs(1);
                f.bounds.p99 = Some(100);
            }),
            ["200"]
        );
    }

    #[test]
    fn an_interrupted_run_is_red_only_for_what_can_be_judged() {
        let mut figures = Figures { interrupted: true, broken: 3, ..good() };
        figures.tally.answered = 4;
        figures.tally.lost = 5;
        assert_eq!(red(&figures), [""; 0]);
        figures.tally.wrong.doubled = 1;
        assert_eq!(red(&figures), ["reconciled"]);
    }
}
