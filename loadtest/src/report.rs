//! PURE. From figures to about ten lines, and which of them are red.

use serde::{Deserialize, Serialize};

use crate::apart::Times;
use crate::figures::Figures;
use crate::flood::{FLOODS, Flooded};
use crate::judge::{self, State};
use crate::large::LargeBodies;
use crate::ledger::Tally;
use crate::timing::{Quantiles, ms};

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Not as it should be.
    pub red: bool,
    /// What it is about.
    pub name: String,
    /// The figures.
    pub text: String,
}

fn line(red: bool, name: &str, text: String) -> Line {
    Line { red, name: name.to_owned(), text }
}

/// The report, in order.
pub fn lines(figures: &Figures) -> Vec<Line> {
    let statuses = figures.asked.statuses;
    let mut lines = vec![load(figures), requests(figures), latency(figures), rule(figures)];
    if !statuses {
        lines.extend([answers(figures), answer_latency(figures)]);
    }
    lines.extend(figures.flooded.as_ref().map(|flooded| flood(figures, flooded)));
    lines.extend(figures.large.as_ref().map(|bodies| large(figures, bodies)));
    lines.extend([server(figures), generator(figures)]);
    lines.extend(figures.directory.as_ref().filter(|d| d.store != "embedded").map(|_| directory(figures)));
    if !statuses {
        lines.push(graph(figures));
    }
    lines.push(reconciled(figures));
    for trouble in figures.trouble.iter().chain(&figures.bad_end) {
        lines.push(line(true, "trouble", trouble.clone()));
    }
    lines
}

fn load(figures: &Figures) -> Line {
    let cut = if figures.interrupted { "; INTERRUPTED, partial figures" } else { "" };
    let text = format!("{}; bodies of {} B; seed {}{cut}", figures.what, figures.body_bytes, figures.seed);
    line(false, "load", text)
}

fn requests(figures: &Figures) -> Line {
    let rate = figures.rate();
    let missed = judge::reached(figures) == Some(false);
    let red = figures.given_up > 0
        || figures.refused > figures.busy
        || figures.broken > 0
        || figures.acked == 0
        || missed
        || figures.asked.min_rate.is_some_and(|least| rate < least as f64);
    let mut text = format!(
        "{} signed durable 200s in {:.1} s = {rate:.0}/s; duplicates {}, 503 {}, other answers {}, broken connections {}, \
         never a 200 {}",
        figures.acked,
        figures.seconds(),
        figures.duplicates,
        figures.busy,
        figures.refused - figures.busy,
        figures.broken,
        figures.given_up
    );
    if let (true, Some(asked)) = (missed, figures.asked.rate) {
        let reached = figures.messages_a_second();
        text.push_str(&format!("; ASKED FOR {asked}/s, REACHED {reached:.0}/s"));
    }
    line(red && !figures.interrupted, "requests", text)
}

fn latency(figures: &Figures) -> Line {
    let red = figures.asked.max_p99.is_some_and(|most| figures.ack.p99 > most * 1000);
    let from = if figures.asked.rate.is_some() { "from the intended time" } else { "request to 200" };
    let service = &figures.service;
    let text = format!(
        "{} ({from}); raw service time p50 {} p99 {}{}",
        figures.ack,
        ms(service.p50),
        ms(service.p99),
        quiet(&figures.quiet_ack, &figures.ack)
    );
    line(red, "200", text)
}

/// Those that met no stall of the machine.
fn quiet(quiet: &Quantiles, all: &Quantiles) -> String {
    if all.count == 0 {
        return String::new();
    }
    let share = quiet.count as f64 * 100.0 / all.count as f64;
    let Quantiles { p50, p99, p999, .. } = *quiet;
    format!(
        "; the {share:.0} % that met no stall of the machine: p50 {} p99 {} p99.9 {} ms",
        ms(p50),
        ms(p99),
        ms(p999)
    )
}

fn rule(figures: &Figures) -> Line {
    let rules = judge::meta(figures);
    let word = |rule: &judge::Rule| match rule.state {
        State::Pass => "pass",
        State::Fail => "FAIL",
        State::NotMeasured => "not measured",
    };
    let text: Vec<String> =
        rules.iter().map(|rule| format!("{}: {} ({})", rule.rule, word(rule), rule.text)).collect();
    let red = rules.iter().any(|rule| rule.state == State::Fail) && !figures.interrupted;
    line(red, "Meta's rule", text.join("; "))
}

fn answers(figures: &Figures) -> Line {
    let text = format!(
        "{} of {} messages in {} replies, {:.0} messages/s end to end; the last {:.1} s after the end of the load",
        figures.tally.answered,
        figures.tally.acknowledged,
        figures.meta.sent,
        figures.answers_a_second(),
        figures.drained as f64 / 1e6
    );
    line(figures.tally.answered < figures.tally.acknowledged && !figures.interrupted, "answers", text)
}

fn answer_latency(figures: &Figures) -> Line {
    let red = figures.asked.max_answer_p99.is_some_and(|most| figures.answer.p99 > most * 1000);
    let mut text = format!("{} (message to its reply at Graph)", figures.answer);
    text.push_str(&quiet(&figures.quiet_answer, &figures.answer));
    if let Some((ratio, business)) = figures.unfairness() {
        text.push_str(&format!("; slowest business ({business}) {ratio:.1}x the median p99"));
    }
    line(red, "end to end", text)
}

fn flood(figures: &Figures, flooded: &Flooded) -> Line {
    let Flooded { messages, took_us, times } = flooded;
    let took: Vec<String> = took_us.iter().map(|us| format!("{:.1}", *us as f64 / 1e6)).collect();
    let ratio = times.ratio();
    let text = format!(
        "{messages} messages to business {}, all answered after {} s; {}",
        crate::flood::BUSINESS,
        took.join(", "),
        apart(times, "end to end"),
    );
    let too_much = figures.asked.max_flood_ratio.is_some_and(|most| ratio.is_none_or(|ratio| ratio > most));
    let incomplete = took_us.len() < FLOODS as usize && !figures.interrupted;
    line(incomplete || too_much, "flood", text)
}

fn large(figures: &Figures, large: &LargeBodies) -> Line {
    let LargeBodies { posted, bytes, without_200, took, times } = large;
    let text = format!(
        "{posted} bodies of {:.2} MB, {without_200} without a 200; to it p50 {} max {} ms; {}",
        *bytes as f64 / 1e6,
        ms(took.p50),
        ms(took.max),
        apart(times, "time to the 200"),
    );
    let is_missing = (*posted == 0 || *without_200 > 0) && !figures.interrupted;
    let is_slow = |most: u64| times.beside.count == 0 || times.beside.p99 > most * 1000;
    let too_slow = figures.asked.max_large_p99.is_some_and(is_slow);
    line(is_missing || too_slow, "large bodies", text)
}

/// What the others noticed; `of` names their times.
fn apart(times: &Times, of: &str) -> String {
    let Times { beside, without, beside_all, without_all } = times;
    format!(
        "the others' {of} meanwhile p50 {} p99 {} ms (with the machine's stalls p99 {}; {} of {} met none), at other times \
         p50 {} p99 {} ms (with them p99 {}): p99 {}",
        ms(beside.p50),
        ms(beside.p99),
        ms(beside_all.p99),
        beside.count,
        beside_all.count,
        ms(without.p50),
        ms(without.p99),
        ms(without_all.p99),
        times.ratio().map_or_else(|| "not to be compared".to_owned(), |ratio| format!("{ratio:.1}x"))
    )
}

fn server(figures: &Figures) -> Line {
    let server = &figures.server;
    let mib = server.rss_peak as f64 / f64::from(1 << 20);
    let mut text = format!(
        "CPU {:.1} us a 200 while loaded ({:.1} without stalls of the machine), {:.1} us over all; RSS at most {mib:.1} MiB; descriptors at most {}, {} after the \
         users left",
        figures.cpu_per_ack(),
        server.cpu_per_quiet_ack,
        figures.cpu_per_ack_in_all(),
        server.fds_peak,
        server.fds_after
    );
    if server.commits > 0 {
        let each = server.items as f64 / server.commits as f64;
        text.push_str(&format!("; {} commits, {each:.1} messages each", server.commits));
        if let Some(us) = server.commit_p99 {
            text.push_str(&format!(", p99 at most {} ms", ms(us)));
        }
    }
    line(figures.asked.max_rss.is_some_and(|most| mib > most as f64), "server", text)
}

fn generator(figures: &Figures) -> Line {
    let each = figures.own_cpu as f64 / figures.acked.max(1) as f64;
    line(false, "generator", format!("{}; CPU {each:.1} us a 200", judge::generator(figures).1))
}

fn directory(figures: &Figures) -> Line {
    let directory = figures.directory.clone().unwrap_or_default();
    let messages = figures.tally.acknowledged.max(1) as f64;
    let text = format!(
        "{}, {} businesses: cache hit rate {:.2} %, {:.4} queries a message ({} queries), {} evicted, {} failures",
        directory.store,
        figures.asked.businesses,
        directory.hit_rate() * 100.0,
        directory.queries() as f64 / messages,
        directory.queries(),
        directory.evicted,
        directory.failures
    );
    line(directory.failures > 0, "directory", text)
}

fn graph(figures: &Figures) -> Line {
    let (meta, wrong) = (&figures.meta, &figures.tally.wrong);
    let mut text = format!(
        "{} connections; refused {}, reply ids sent twice {}, wrong number or customer {}, words nobody said {}, out of \
         order {}",
        meta.connections, meta.violations, meta.doubled, wrong.stray, wrong.unknown, wrong.out_of_order
    );
    if figures.asked.faults > 0 {
        text.push_str(&format!("; faults made {}", meta.faults_hit));
    }
    if figures.asked.receipts {
        text.push_str(&format!(
            "; statuses {} with a 200, {} without",
            meta.webhooks_delivered, meta.webhooks_pending
        ));
    }
    if let Some(first) = &meta.first_violation {
        text.push_str("; first refused: ");
        text.push_str(first);
    }
    let pending = meta.webhooks_pending > 0 && !figures.interrupted;
    let red = pending
        || meta.untold > 0
        || [meta.violations, meta.doubled, wrong.stray, wrong.unknown, wrong.out_of_order]
            .iter()
            .any(|n| *n > 0);
    line(red, "graph", text)
}

fn reconciled(figures: &Figures) -> Line {
    if figures.asked.statuses {
        let text = "statuses only: nothing to answer, nothing to lose".to_owned();
        return line(false, "reconciled", text);
    }
    let Tally { sent, acknowledged, answered, lost, wrong } = &figures.tally;
    let pending = if figures.interrupted { "pending when stopped" } else { "lost" };
    let mut text = format!(
        "sent {sent}, acknowledged {acknowledged}, answered {answered}: {pending} {lost}, doubled {}",
        wrong.doubled
    );
    for example in wrong.examples.iter().filter(|_| !figures.interrupted || wrong.doubled > 0) {
        text.push_str("; ");
        text.push_str(example);
    }
    let unequal = sent != acknowledged || acknowledged != answered || *lost > 0;
    line(wrong.doubled > 0 || (unequal && !figures.interrupted), "reconciled", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Asked;
    use crate::ledger::Wrong;

    fn good() -> Figures {
        let tally = Tally { sent: 4000, acknowledged: 4000, answered: 4000, ..Tally::default() };
        let asked = Asked { batch: 1, ..Asked::default() };
        Figures { elapsed: 1_000_000, acked: 4000, acked_in_all: 4000, tally, asked, ..Figures::default() }
    }

    fn red(figures: &Figures) -> Vec<String> {
        lines(figures).into_iter().filter(|l| l.red).map(|l| l.name).collect()
    }

    #[test]
    fn a_good_run_has_no_red_line_and_says_so() {
        assert_eq!(red(&good()), [""; 0]);
        let lines = lines(&good());
        assert!(lines.iter().any(|l| l.text.ends_with("lost 0, doubled 0")), "{lines:?}");
        assert_eq!(lines.len(), 10);
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
        assert_eq!(wrong(|f| f.tally.wrong = Wrong { out_of_order: 1, ..Wrong::default() }), ["graph"]);
        assert_eq!(wrong(|f| f.tally.wrong.stray = 1), ["graph"]);
        assert_eq!(wrong(|f| f.tally.wrong.unknown = 1), ["graph"]);
        assert_eq!(wrong(|f| f.meta.violations = 1), ["graph"]);
        assert_eq!(wrong(|f| f.meta.doubled = 1), ["graph"]);
        assert_eq!(wrong(|f| f.meta.webhooks_pending = 1), ["graph"]);
        assert_eq!(wrong(|f| f.meta.untold = 1), ["graph"]);
        assert_eq!(wrong(|f| f.given_up = 1), ["requests"]);
        assert_eq!(wrong(|f| f.broken = 1), ["requests"]);
        assert_eq!(wrong(|f| (f.refused, f.busy) = (2, 1)), ["requests"]);
        assert_eq!(wrong(|f| f.asked.min_rate = Some(10_000)), ["requests"]);
        assert_eq!(wrong(|f| f.asked.rate = Some(10_000)), ["requests"]);
        assert_eq!(wrong(|f| f.bad_end = Some("died".to_owned())), ["trouble"]);
        assert_eq!(wrong(|f| f.ack.p99 = 1_000_000), [""; 0]);
        assert_eq!(wrong(|f| (f.ack.p99, f.asked.max_p99) = (1_000_000, Some(100))), ["200"]);
        assert_eq!(wrong(|f| (f.ack.count, f.ack.p50) = (1, 300_000)), ["Meta's rule"]);
    }

    #[test]
    fn a_flood_is_told_of_and_red_where_it_is_not_over_or_the_others_felt_it() {
        let quantiles = |p99| Quantiles { count: 1, p99, ..Quantiles::default() };
        let (beside, without) = (quantiles(30_000), quantiles(10_000));
        let flooded = Flooded {
            messages: 5,
            took_us: vec![500_000; 3],
            times: Times { beside, without, ..Times::default() },
        };
        let mut figures = Figures { flooded: Some(flooded), ..good() };
        assert_eq!(red(&figures), [""; 0]);
        assert!(lines(&figures).iter().any(|line| line.text.ends_with("p99 3.0x")));
        figures.asked.max_flood_ratio = Some(2.5);
        assert_eq!(red(&figures), ["flood"]);
        figures.asked.max_flood_ratio = None;
        figures.flooded.as_mut().expect("there is one").took_us.pop();
        assert_eq!(red(&figures), ["flood"]);
    }

    #[test]
    fn large_bodies_are_told_of_and_red_where_one_got_no_200_or_the_others_felt_it() {
        let beside = Quantiles { count: 1, p99: 30_000, ..Quantiles::default() };
        let times = Times { beside, ..Times::default() };
        let large = LargeBodies { posted: 3, bytes: 2_990_000, times, ..LargeBodies::default() };
        let mut figures = Figures { large: Some(large), ..good() };
        assert_eq!(red(&figures), [""; 0]);
        assert!(
            lines(&figures).iter().any(|line| line.text.starts_with("3 bodies of 2.99 MB, 0 without a 200"))
        );
        figures.asked.max_large_p99 = Some(20);
        assert_eq!(red(&figures), ["large bodies"]);
        figures.asked.max_large_p99 = Some(30);
        assert_eq!(red(&figures), [""; 0]);
        figures.large.as_mut().expect("there are some").times.beside.count = 0;
        assert_eq!(red(&figures), ["large bodies"], "nothing was measured");
        figures.asked.max_large_p99 = None;
        figures.large.as_mut().expect("there are some").without_200 = 1;
        assert_eq!(red(&figures), ["large bodies"]);
    }

    #[test]
    fn a_rate_that_was_not_reached_is_not_told_as_if_it_were() {
        let mut figures = good();
        figures.asked.rate = Some(10_000);
        let text = lines(&figures).remove(1).text;
        assert!(text.ends_with("ASKED FOR 10000/s, REACHED 4000/s"), "{text}");
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
