//! PURE. What a run is judged by: Meta's own rule for webhook servers, whether the asked rate was reached, and whether
//! this program was the limit.

use serde::Serialize;

use crate::figures::Figures;
use crate::timing::ms;

/// Meta: the median of the time to the 200, in microseconds. Source of all three:
/// <https://developers.facebook.com/documentation/business-messaging/whatsapp/throughput>
const MEDIAN_US: u64 = 250_000;
/// Meta: less than 1 % may take more than a second.
const OVER_SECOND_PPM: u64 = 10_000;
/// Meta: statuses for each outgoing message.
const STATUSES: f64 = 3.0;
/// Meta's example of a large number: 1,000 outgoing messages a second, 30 % of them replied to.
const LARGEST: f64 = 3_300.0;
/// Of the rate that was asked for, what must be reached.
pub const REACHED: f64 = 0.98;
/// Above this the 99th percentile of this program's own lateness spoils latencies, in microseconds.
const LATE_US: u64 = 5_000;
/// Of all cores, the share in percent above which the machine is full.
const FULL: f64 = 90.0;
/// The same, above which others spoil the figures.
const OTHERS: f64 = 10.0;

/// How a rule was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was.
    Pass,
    /// It was not.
    Fail,
    /// This run can't tell.
    NotMeasured,
}

/// A rule and how it was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its words.
    pub rule: &'static str,
    /// How it was met.
    pub state: State,
    /// The figures.
    pub text: String,
}

/// Meta's rule.
pub fn meta(figures: &Figures) -> Vec<Rule> {
    let pass = |is_met| if is_met { State::Pass } else { State::Fail };
    let ack = &figures.ack;
    let measured = |state| if ack.count == 0 { State::NotMeasured } else { state };
    vec![
        Rule {
            rule: "median to the 200 at most 250 ms",
            state: measured(pass(ack.p50 <= MEDIAN_US)),
            text: format!("{} ms", ms(ack.p50)),
        },
        Rule {
            rule: "less than 1 % over one second",
            state: measured(pass(ack.over_second_ppm < OVER_SECOND_PPM)),
            text: format!("{} %", ack.over_second_ppm as f64 / 1e4),
        },
        capacity(figures),
    ]
}

/// Capacity for 3 x outgoing + 1 x incoming.
fn capacity(figures: &Figures) -> Rule {
    let rule = "capacity for 3 x outgoing + 1 x incoming messages";
    if figures.asked.receipts && figures.tally.acknowledged > 0 {
        let (outgoing, incoming) = (figures.meta.sent as f64, figures.tally.acknowledged as f64);
        let wanted = STATUSES * outgoing + incoming;
        let got = figures.meta.webhooks_delivered as f64 + incoming;
        let seconds = ((figures.elapsed + figures.drained) as f64 / 1e6).max(1e-6);
        let text = format!(
            "{outgoing:.0} outgoing and {incoming:.0} incoming need {wanted:.0} 200s; {got:.0} were given, {:.0} a second",
            got / seconds
        );
        return Rule { rule, state: if got >= wanted { State::Pass } else { State::Fail }, text };
    }
    let rate = figures.rate() * figures.asked.batch.max(1) as f64;
    let outgoing = rate / (STATUSES + 0.3);
    let text = format!(
        "{rate:.0} updates/s with their 200: what {outgoing:.0} outgoing messages/s with 30 % replies make (Meta's largest \
         example: 1,000/s, 3,300 updates/s)"
    );
    let state = match figures.asked.rate {
        _ if rate >= LARGEST => State::Pass,
        Some(asked) if (asked as f64) < LARGEST => State::NotMeasured,
        _ => State::Fail,
    };
    Rule { rule, state, text }
}

/// Whether the asked rate was reached; `None` in a closed loop.
pub fn reached(figures: &Figures) -> Option<bool> {
    let asked = figures.asked.rate?;
    Some(figures.messages_a_second() >= asked as f64 * REACHED)
}

/// Whether this program was the limit, in words.
pub fn generator(figures: &Figures) -> (bool, String) {
    let shares = [
        figures.own_cpu,
        figures.meta_cpu,
        figures.server.cpu_loaded,
        figures.mongodb_cpu,
        figures.others_cpu,
    ];
    let shares = shares.map(|cpu| figures.share_of_cores(cpu));
    let [own, meta, server, mongodb, others] = shares;
    let is_late = figures.lag.p99 > LATE_US;
    let is_full = shares.iter().sum::<f64>() > FULL;
    let verdict = if is_full && others > OTHERS {
        "the machine was full, and other processes had a good part of it: only ratios within one run count"
    } else if is_full && own > server {
        "LIKELY THE LIMIT: all cores were busy, and this program took more of them than the server"
    } else if is_full {
        "shares full cores with the server: rates are of both together, and latencies hold its part"
    } else if is_late {
        "woke up late: latencies hold that"
    } else {
        "not the limit"
    };
    let ferretdb = if mongodb > 0.0 { format!(", FerretDB {mongodb:.0} %") } else { String::new() };
    let text = format!(
        "{verdict}; of all cores it took {own:.0} %, the simulated Meta {meta:.0} %, the server {server:.0} %{ferretdb}, \
         others {others:.0} %; woke up late by p50 {}, p99 {} ms; the disk before the load: {}",
        ms(figures.lag.p50),
        ms(figures.lag.p99),
        figures.machine.sync_in_words()
    );
    (is_late || is_full, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Asked, Server};
    use crate::machine::Machine;
    use crate::timing::Quantiles;

    fn figures() -> Figures {
        Figures {
            elapsed: 1_000_000,
            acked: 4_000,
            ack: Quantiles { count: 4_000, p50: 1_000, ..Quantiles::default() },
            asked: Asked { batch: 1, ..Asked::default() },
            machine: Machine { cores: 2, ..Machine::default() },
            ..Figures::default()
        }
    }

    fn states(figures: &Figures) -> Vec<State> {
        meta(figures).into_iter().map(|rule| rule.state).collect()
    }

    #[test]
    fn metas_rule_is_passed_failed_or_not_measured() {
        use State::{Fail, NotMeasured, Pass};
        assert_eq!(states(&figures()), [Pass, Pass, Pass]);
        let mut slow = figures();
        (slow.ack.p50, slow.ack.over_second_ppm, slow.acked) = (250_001, 10_000, 3_000);
        assert_eq!(states(&slow), [Fail, Fail, Fail]);
        slow.asked.rate = Some(3_000);
        assert_eq!(states(&slow)[2], NotMeasured);
        assert_eq!(states(&Figures::default())[..2], [NotMeasured, NotMeasured]);
    }

    #[test]
    fn with_receipts_every_status_must_get_its_200() {
        let mut figures = figures();
        figures.asked.receipts = true;
        (figures.meta.sent, figures.tally.acknowledged, figures.meta.webhooks_delivered) = (10, 10, 29);
        assert_eq!(meta(&figures)[2].state, State::Fail);
        figures.meta.webhooks_delivered = 30;
        assert_eq!(meta(&figures)[2].state, State::Pass);
    }

    #[test]
    fn a_rate_that_was_not_reached_is_seen_and_duplicates_do_not_help() {
        let mut figures = figures();
        assert_eq!(reached(&figures), None);
        figures.asked.rate = Some(4_000);
        assert_eq!(reached(&figures), Some(true));
        figures.duplicates_loaded = 100;
        assert_eq!(reached(&figures), Some(false));
    }

    #[test]
    fn full_cores_or_a_late_wake_up_are_told() {
        assert!(!generator(&figures()).0);
        let full = Figures {
            own_cpu: 1_200_000,
            server: Server { cpu_loaded: 700_000, ..Server::default() },
            ..figures()
        };
        let (is_limit, text) = generator(&full);
        assert!(is_limit && text.starts_with("LIKELY THE LIMIT"), "{text}");
        let late = Figures { lag: Quantiles { p99: 20_000, ..Quantiles::default() }, ..figures() };
        assert!(generator(&late).0);
    }
}
