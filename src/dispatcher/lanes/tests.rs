//! What the lanes promise, one sentence a test. Random interleavings are in `model.rs`.

use std::sync::Arc;

use super::*;
use crate::event::{ItemId, Path, Recipient};
use crate::failure::Scope;
use crate::inbox::{OpenTurn, Page};

const S: Duration = Duration::from_secs(1);

struct Bed {
    lanes: Lanes,
    next: u64,
    now: Duration,
    body: Arc<[u8]>,
}

impl Bed {
    fn new(max_turns: usize) -> Self {
        let mut lanes = Lanes::new(Limits::new(max_turns), 3);
        lanes.opened(&[], Position::default());
        Self { lanes, next: 1, now: Duration::ZERO, body: Arc::from(&b"{}"[..]) }
    }

    fn work(&mut self, number: u64, conversation: u64, app: u64) -> Work {
        let commit = self.next;
        self.next += 1;
        Work {
            id: ItemId { timestamp: 0, key: commit },
            position: Position { commit, body: 0, path: Path::default() },
            number,
            conversation,
            received_ms: 0,
            app,
            body: self.body.clone(),
        }
    }

    fn offer(&mut self, number: u64, conversations: impl IntoIterator<Item = u64>) -> usize {
        let works = conversations.into_iter().map(|c| self.work(number, c, number % 2)).collect();
        self.lanes.offer(works)
    }

    fn start(&mut self, most: usize) -> Vec<(Key, Job)> {
        let mut out = Vec::new();
        self.lanes.start(&mut out, most, self.now);
        let job = |start: Start| match start.task {
            Task::Run(job) => (start.key, job),
            Task::Recover(lost) => panic!("nothing panicked: {lost:?}"),
        };
        out.into_iter().map(job).collect()
    }

    fn start_all(&mut self) -> Vec<(Key, Job)> {
        self.start(usize::MAX)
    }

    fn done(&mut self, started: Vec<(Key, Job)>) {
        for (key, _) in started {
            self.lanes.done(key, Outcome::Done, self.now);
        }
    }

    fn hold(&mut self, (key, job): (Key, Job), scope: Scope) {
        self.lanes.done(key, Outcome::Hold { job, scope, after: None }, self.now);
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.lanes.tick(self.now);
    }

    fn running_of(&self, number: u64) -> usize {
        self.lanes.numbers.get(&number).map_or(0, |n| n.running)
    }
}

fn keys(job: &Job) -> Vec<u64> {
    match job {
        Job::Fresh { works, .. } => works.iter().map(|work| work.id.key).collect(),
        Job::Open { .. } => Vec::new(),
    }
}

fn numbers(started: &[(Key, Job)]) -> Vec<u64> {
    started.iter().map(|(key, _)| key.number).collect()
}

fn open_turn(id: i64, number: u64, conversation: u64) -> OpenTurn {
    OpenTurn {
        id,
        items: Vec::new(),
        number,
        conversation,
        phone_number_id: String::new(),
        to: Recipient::Phone(String::new()),
        stored_ms: 0,
        replies: Vec::new(),
    }
}

#[test]
fn a_retry_keeps_its_works_and_later_ones_wait_behind_it() {
    let mut bed = Bed::new(10);
    bed.offer(1, [7, 7]);
    let (key, job) = bed.start_all().remove(0);
    assert_eq!(keys(&job), [1, 2]);
    bed.offer(1, [7]);
    let Job::Fresh { works, attempt } = job else { panic!("fresh") };
    let job = Job::Fresh { works, attempt: attempt + 1 };
    bed.lanes.done(key, Outcome::Again { job, after: Some(S * 9) }, bed.now);
    bed.offer(1, [7]);
    bed.wait(S * 8);
    assert!(bed.start_all().is_empty(), "not before its time");
    bed.wait(S);
    let started = bed.start_all();
    assert_eq!((keys(&started[0].1), started[0].1.attempt()), (vec![1, 2], 1));
    bed.done(started);
    let started = bed.start_all();
    assert_eq!((keys(&started[0].1), started[0].1.attempt()), (vec![3, 4], 0));
    bed.done(started);
    assert_eq!(bed.lanes.gauges(), Gauges::default(), "idle lanes and numbers are forgotten");
    assert!(bed.lanes.numbers.is_empty());
}

#[test]
fn after_panics_in_a_row_the_works_run_one_by_one() {
    let mut bed = Bed::new(10);
    let works: Vec<Work> = (0..3).map(|_| bed.work(1, 7, 0)).collect();
    bed.lanes.offer(works.clone());
    let (key, _) = bed.start_all().remove(0);
    let mut sizes = Vec::new();
    for _ in 0..PANICS_ALONE {
        bed.lanes.panicked(key, bed.now);
        bed.wait(S * 300);
        let mut out = Vec::new();
        bed.lanes.start(&mut out, 9, bed.now);
        let Task::Recover(lost) = out.remove(0).task else { panic!("first what was lost") };
        let job = bed.lanes.recovered(key, lost.attempt, Vec::new(), works.clone()).expect("all is open");
        sizes.push(keys(&job).len());
    }
    assert_eq!(sizes, [3, 3, 3, 1]);
    bed.lanes.done(key, Outcome::Done, bed.now);
    let rest = bed.start_all();
    assert_eq!(keys(&rest[0].1), [2, 3]);
    bed.done(rest);
    assert_eq!(bed.lanes.gauges(), Gauges::default());
}

#[test]
fn numbers_take_turns_in_quanta() {
    let mut bed = Bed::new(10_000);
    bed.offer(1, 0..100);
    bed.offer(2, 100..200);
    bed.offer(3, 200..203);
    let started = numbers(&bed.start(30));
    let expected: Vec<u64> =
        [[1; 8].as_slice(), &[2; 8], &[3; 3], &[1; 8], &[2; 3]].into_iter().flatten().copied().collect();
    assert_eq!(started, expected);
}

#[test]
fn a_flood_leaves_room_for_the_first_turns_of_others() {
    let mut bed = Bed::new(64);
    bed.offer(1, 0..1_000);
    assert_eq!(bed.start_all().len(), 56, "an eighth stays free");
    bed.offer(2, 1_000..1_003);
    assert_eq!(numbers(&bed.start_all()), [2, 2, 2], "at once, though nothing of the flood has ended");
}

#[test]
fn a_number_alone_has_all_but_the_reserve() {
    let mut bed = Bed::new(11_000);
    for chunk in 0..10 {
        assert_eq!(bed.offer(1, chunk * 1_000..chunk * 1_000 + 1_000), 0);
        assert_eq!(bed.start_all().len(), 1_000);
    }
    assert_eq!(bed.lanes.gauges().running, 10_000);
}

#[test]
fn when_turns_are_scarce_no_number_keeps_more_than_its_share() {
    let mut bed = Bed::new(64);
    bed.offer(1, 0..2_000);
    let mut running = std::collections::VecDeque::from(bed.start_all());
    for number in 2..=4 {
        bed.offer(number, number * 10_000..number * 10_000 + 2_000);
    }
    running.extend(bed.start_all());
    for _ in 0..200 {
        let first = running.pop_front().into_iter().collect();
        bed.done(first);
        running.extend(bed.start_all());
    }
    assert!(bed.lanes.gauges().running >= 56, "{}", bed.lanes.gauges().running);
    for number in 1..=4 {
        let held = bed.running_of(number);
        assert!((8..=64 / 4 + 8).contains(&held), "number {number} runs {held}");
    }
}

#[test]
fn a_held_number_is_probed_by_one_job_with_growing_waits_and_then_goes_on() {
    let mut bed = Bed::new(100);
    bed.offer(1, [1, 2, 3]);
    bed.offer(2, [4]);
    let mut started = bed.start_all();
    assert_eq!(started.len(), 4);
    bed.done(started.split_off(3));
    for held in started {
        bed.hold(held, Scope::Business);
    }
    bed.offer(1, [5]);
    bed.offer(2, [6]);
    let others = bed.start_all();
    assert_eq!(numbers(&others), [2], "others go on");
    bed.done(others);
    let mut least = 30;
    for _ in 0..4 {
        bed.wait(S * least - S / 1000);
        assert!(bed.start_all().is_empty(), "held for {least} s at least");
        bed.wait(S * least / 2 + S / 1000);
        let mut probe = bed.start_all();
        assert_eq!(numbers(&probe), [1], "one job goes first");
        assert!(keys(&probe[0].1)[0] <= 3, "a held one");
        bed.hold(probe.remove(0), Scope::Business);
        assert!(bed.start_all().is_empty());
        least = (least * 2).min(200);
    }
    bed.wait(S * 300);
    let probe = bed.start_all();
    assert_eq!(probe.len(), 1);
    bed.done(probe);
    let rest = bed.start_all();
    assert_eq!(rest.len(), 3, "all of it at once");
    bed.done(rest);
    assert_eq!(bed.lanes.gauges(), Gauges::default());
}

#[test]
fn a_probe_that_fails_otherwise_hands_the_probe_on() {
    let mut bed = Bed::new(100);
    bed.offer(1, [1, 2]);
    for held in bed.start_all() {
        bed.hold(held, Scope::Business);
    }
    bed.wait(S * 45);
    let (key, job) = bed.start_all().remove(0);
    bed.lanes.done(key, Outcome::Again { job, after: Some(S * 1000) }, bed.now);
    let next = bed.start_all();
    assert_eq!(next.len(), 1);
    assert_ne!(next[0].0, key);
    bed.done(next);
    assert_eq!(bed.lanes.gauges().holds, 0);
}

#[test]
fn a_probe_that_was_too_old_hands_the_probe_on_and_lifts_nothing() {
    let mut bed = Bed::new(100);
    bed.offer(1, [1, 2, 3]);
    for held in bed.start_all() {
        bed.hold(held, Scope::Business);
    }
    bed.wait(S * 45);
    for left in [3, 2] {
        let probe = bed.start_all();
        assert_eq!(probe.len(), 1, "of {left}");
        bed.lanes.done(probe[0].0, Outcome::Expired, bed.now);
        assert_eq!(bed.lanes.gauges().holds, 1);
    }
    let last = bed.start_all().remove(0);
    bed.lanes.done(last.0, Outcome::Expired, bed.now);
    assert_eq!(bed.lanes.gauges(), Gauges::default(), "nothing is left that the hold could hold");
}

#[test]
fn a_hold_ends_with_the_last_work_that_it_could_hold() {
    let mut bed = Bed::new(100);
    bed.offer(1, [1, 2]);
    let mut started = bed.start_all();
    let from_before = started.remove(1);
    bed.hold(started.remove(0), Scope::Business);
    bed.wait(S * 45);
    let probe = bed.start_all().remove(0);
    bed.lanes.done(probe.0, Outcome::Expired, bed.now);
    assert_eq!(bed.lanes.gauges().holds, 1, "another one still runs");
    bed.done(vec![from_before]);
    assert_eq!(bed.lanes.gauges(), Gauges::default());
}

#[test]
fn an_app_limit_holds_every_number_of_the_app_and_no_other() {
    let mut bed = Bed::new(100);
    for number in [1, 2, 3, 5] {
        bed.offer(number, [number * 10]);
    }
    for started in bed.start_all() {
        match started.0.number {
            1 => bed.hold(started, Scope::App),
            _ => bed.done(vec![started]),
        }
    }
    for number in [1, 2, 3, 5, 7] {
        bed.offer(number, [number * 10 + 1]);
    }
    assert_eq!(numbers(&bed.start_all()), [2], "2 came through the other app");
    bed.wait(S * 45);
    let probe = bed.start_all();
    assert_eq!(probe.len(), 1, "one probe for the app");
    bed.done(probe);
    let mut rest = numbers(&bed.start_all());
    rest.sort_unstable();
    assert_eq!(rest.len(), 4, "{rest:?}");
    assert_eq!(bed.lanes.gauges().holds, 0);
}

#[test]
fn new_credentials_lift_what_a_token_held_and_not_a_rate_limit() {
    let mut bed = Bed::new(100);
    bed.offer(1, [1]);
    bed.offer(2, [2]);
    for (started, scope) in bed.start_all().into_iter().zip([Scope::Business, Scope::Number]) {
        bed.hold(started, scope);
    }
    bed.lanes.lift();
    assert_eq!(numbers(&bed.start_all()), [1]);
    bed.lanes.wake_all();
    assert_eq!(numbers(&bed.start_all()), [2]);
}

#[test]
fn a_number_over_its_bound_falls_behind_alone() {
    let mut bed = Bed::new(10);
    assert_eq!(bed.offer(1, 0..2_100), 100);
    assert_eq!(bed.offer(2, 5_000..5_010), 0);
    let gauges = bed.lanes.gauges();
    assert_eq!((gauges.behind, gauges.waiting), (1, 2_010));
    assert_eq!(bed.lanes.next_read(), None, "no room yet");
}

#[test]
fn held_numbers_can_not_fill_the_memory_of_others() {
    let mut bed = Bed::new(10);
    for number in 0..200 {
        bed.offer(number, number * 10_000..number * 10_000 + 2_000);
    }
    let waiting = bed.lanes.gauges().waiting;
    assert!(waiting <= ITEMS_MAX + 200 * NUMBER_ITEMS_MIN, "{waiting} wait");
    assert_eq!(bed.offer(999, 9_990_000..9_990_060), 0, "there is always room for a number with little");
    for number in 1_000..3_000 {
        bed.offer(number, number * 10_000..number * 10_000 + 100);
    }
    let waiting = bed.lanes.gauges().waiting;
    assert!(waiting <= 2 * ITEMS_MAX + 2_000, "{waiting} wait: and for one work of any number");
}

#[test]
fn when_the_memory_is_full_of_held_works_a_number_takes_one_at_a_time() {
    let mut bed = Bed::new(10);
    bed.lanes.limits =
        Limits { items_max: 100, number_items_min: 20, number_items_max: 50, ..Limits::new(10) };
    for number in 1..=20 {
        bed.offer(number, 0..50);
        while let Some(held) = bed.start(1).pop() {
            bed.hold(held, Scope::Business);
        }
    }
    let held = bed.lanes.gauges().waiting;
    assert!(held >= 200, "{held} wait");
    let works = [1, 2, 3].map(|conversation| bed.work(99, conversation, 1));
    assert_eq!(bed.lanes.offer(works.to_vec()), 2, "one is taken");
    for left in &works[1..] {
        let started = bed.start_all();
        assert_eq!(numbers(&started), [99]);
        bed.done(started);
        let read = bed.lanes.next_read().expect("the rest is read from disk");
        assert_eq!((read.number, read.limit), (99, 1));
        bed.lanes.page(99, Page { covered: left.position, works: vec![left.clone()] }, bed.now);
    }
}

#[test]
fn large_bodies_count_by_their_bytes() {
    let mut bed = Bed::new(10);
    let mut left = 0;
    for conversation in 0..100 {
        bed.body = Arc::from(vec![0; 1 << 20]);
        left += bed.offer(1, [conversation]);
    }
    assert_eq!(left, 100 - 64);
    bed.body = Arc::from(vec![0; 1 << 20]);
    assert_eq!(bed.offer(2, 0..50), 0, "one body, however many items");
    assert!(bed.lanes.gauges().bytes < BYTES_MAX);
}

#[test]
fn when_the_bytes_are_used_up_a_number_keeps_one_work_at_a_time() {
    let mut bed = Bed::new(10);
    let limits = Limits { bytes_max: 1_000, number_bytes_max: 900, ..Limits::new(10) };
    bed.lanes = Lanes::new(limits, 1);
    bed.lanes.opened(&[], Position::default());
    bed.body = Arc::from(vec![0; 500]);
    for number in 1..=4 {
        let left: usize = (0..2)
            .map(|n| {
                bed.body = Arc::from(vec![0; 500]);
                bed.offer(number, [number * 10 + n])
            })
            .sum();
        assert_eq!(left, usize::from(number > 1), "number {number}");
    }
}

#[test]
fn a_page_in_pieces_brings_all_and_then_the_number_is_live() {
    let mut bed = Bed::new(10);
    let works: Vec<Work> = (0..600).map(|n| bed.work(1, n, 0)).collect();
    let head = works[599].position;
    let mut lanes = Lanes::new(Limits::new(10), 1);
    lanes.offer(works[598..].to_vec());
    lanes.opened(&[1], works[597].position);
    let mut count = 0;
    while let Some(read) = lanes.next_read() {
        assert_eq!(lanes.next_read(), None, "one page of a number at a time");
        let after = works.partition_point(|work| work.position <= read.after);
        let page: Vec<Work> = works[after..].iter().take(read.limit).cloned().collect();
        count += lanes.page(1, Page { works: page, covered: head }, Duration::ZERO);
    }
    assert_eq!((count, lanes.gauges().behind, lanes.gauges().waiting), (600, 0, 600));
}

#[test]
fn fresh_work_waits_for_open_turns_that_are_still_on_disk() {
    let mut limits = Limits::new(10);
    limits.opens_max = 2;
    let mut bed = Bed::new(10);
    bed.lanes = Lanes::new(limits, 1);
    let turns = [(1, 1), (2, 2), (3, 3), (4, 1), (5, 3)];
    let is_kept: Vec<bool> = turns.iter().map(|(id, c)| bed.lanes.note_turn(open_turn(*id, 1, *c))).collect();
    assert_eq!(is_kept, [true, true, false, false, false]);
    bed.lanes.opened(&[], Position::default());
    bed.offer(1, [1, 2, 3, 4]);
    let started = bed.start_all();
    let ids = |started: &[(Key, Job)]| -> Vec<i64> {
        let id = |job: &Job| if let Job::Open { turn, .. } = job { turn.id } else { 0 };
        started.iter().map(|(_, job)| id(job)).collect()
    };
    assert_eq!(ids(&started), [1, 2, 0], "two open turns; 4 has none; 3 waits for its own");
    bed.done(started);
    assert_eq!(ids(&bed.start_all()), [0], "2 goes on with fresh work, 1 and 3 wait");
    assert!(bed.lanes.wants_turns());
    for (id, conversation) in &turns[2..] {
        bed.lanes.load_turn(open_turn(*id, 1, *conversation));
    }
    assert!(!bed.lanes.wants_turns());
    let started = bed.start_all();
    assert_eq!(ids(&started), [3, 4]);
    bed.done(started);
    assert_eq!(ids(&bed.start_all()), [5, 0]);
}

#[test]
fn open_turns_that_were_settled_meanwhile_block_nobody() {
    let mut limits = Limits::new(10);
    limits.opens_max = 0;
    let mut bed = Bed::new(10);
    bed.lanes = Lanes::new(limits, 1);
    bed.lanes.note_turn(open_turn(1, 1, 1));
    bed.lanes.opened(&[], Position::default());
    bed.offer(1, [1]);
    assert!(bed.start_all().is_empty());
    bed.lanes.all_turns_loaded();
    assert_eq!(bed.start_all().len(), 1);
}

#[test]
fn a_drain_starts_nothing_and_leaves_offers_on_disk() {
    let mut bed = Bed::new(1);
    bed.offer(1, [1, 2]);
    let started = bed.start_all();
    bed.lanes.drain();
    assert_eq!(bed.offer(1, [3]), 1);
    bed.done(started);
    assert!(bed.start_all().is_empty());
    assert_eq!(bed.lanes.gauges().running, 0);
}
