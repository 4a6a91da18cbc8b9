//! Random interleavings of offers, pages, ends of turns, holds, panics and replays, against a plain list of
//! items: each is delivered exactly once, in order within its conversation, and memory stays within its
//! bound.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{Key, Lanes, Limits, Read, Start, Task};
use crate::dispatcher::{Job, Outcome};
use crate::event::{ItemId, Path};
use crate::failure::Scope;
use crate::inbox::{Page, Position, Work};

const NUMBERS: u64 = 3;
const CONVERSATIONS: u64 = 4;

const LIMITS: Limits = Limits {
    max_turns: 4,
    turn_items_max: 3,
    number_items_max: 6,
    number_items_min: 2,
    items_max: 14,
    bytes_max: 4000,
    number_bytes_max: 1000,
    page_items_max: 4,
    opens_max: 4,
};

#[derive(Clone, Debug)]
enum Action {
    /// A group commit with these (number, conversation) pairs.
    Commit(Vec<(u64, u64)>),
    /// The committer's next offers, so many commits.
    Offer(usize),
    /// The items table catches up.
    Derive,
    /// Turns are started, so many at most.
    Start(usize),
    /// A running turn ends.
    Finish(usize, End),
    /// A page is asked for.
    Read,
    /// The store answers it.
    Answer(usize),
    /// Its answer arrives; or an error.
    Arrive(usize, bool),
    /// An operator puts dead items back; the process learns of it later.
    Replay,
    /// It asks which numbers are open.
    Learn,
    /// It has the answer.
    Rewind,
    /// Time passes, seconds.
    Wait(u64),
    /// Credentials changed.
    Lift(bool),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Done,
    Dead,
    Again,
    Hold(Scope),
    /// Before anything was stored; or after the answer was.
    Panic(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    Answered,
    Dead,
}

#[derive(Clone, Debug)]
struct Stored {
    work: Work,
    state: State,
    was_replayed: bool,
    deliveries: usize,
}

/// A page under way: asked, then answered, then it arrives.
struct Pending {
    read: Read,
    answer: Option<Page>,
}

struct World {
    lanes: Lanes,
    now: Duration,
    items: BTreeMap<Position, Stored>,
    commits: u64,
    offers: std::collections::VecDeque<Vec<Work>>,
    derived: Position,
    reads: Vec<Pending>,
    running: Vec<(Key, Task)>,
    /// What must come back as it was: a retry.
    retries: HashMap<Key, Vec<Position>>,
    /// The newest first delivery of a conversation.
    newest: HashMap<Key, Position>,
    learned: Option<(Vec<u64>, Position)>,
    must_learn: bool,
    is_open: bool,
}

impl World {
    fn new() -> Self {
        Self {
            lanes: Lanes::new(LIMITS, 1),
            now: Duration::ZERO,
            items: BTreeMap::new(),
            commits: 0,
            offers: Default::default(),
            derived: Position::default(),
            reads: Vec::new(),
            running: Vec::new(),
            retries: HashMap::new(),
            newest: HashMap::new(),
            learned: None,
            must_learn: false,
            is_open: false,
        }
    }

    fn commit(&mut self, items: &[(u64, u64)]) {
        self.commits += 1;
        let body: Arc<[u8]> = Arc::from(vec![0; 40]);
        let works: Vec<Work> = items
            .iter()
            .enumerate()
            .map(|(index, (number, conversation))| Work {
                id: ItemId { timestamp: self.commits, key: index as u64 },
                position: Position {
                    commit: self.commits,
                    body: 0,
                    path: Path { entry: 0, change: 0, index: index as u32 },
                },
                number: *number,
                conversation: *conversation,
                received_ms: 0,
                app: number % 2,
                body: body.clone(),
            })
            .collect();
        for work in &works {
            let stored =
                Stored { work: work.clone(), state: State::Pending, was_replayed: false, deliveries: 0 };
            self.items.insert(work.position, stored);
        }
        self.offers.push_back(works);
    }

    fn derive(&mut self) {
        self.derived = self.items.keys().next_back().copied().unwrap_or_default();
    }

    fn open_numbers(&self) -> (Vec<u64>, Position) {
        let mut numbers: Vec<u64> = self
            .items
            .values()
            .filter(|i| i.state == State::Pending && i.work.position <= self.derived)
            .map(|i| i.work.number)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        (numbers, self.derived)
    }

    fn answer(&self, read: Read) -> Page {
        let works: Vec<Work> = self
            .items
            .values()
            .filter(|i| i.state == State::Pending && i.work.number == read.number)
            .filter(|i| i.work.position > read.after && i.work.position <= self.derived)
            .take(read.limit)
            .map(|i| i.work.clone())
            .collect();
        Page { works, covered: self.derived }
    }

    fn start(&mut self, most: usize) {
        let mut out = Vec::new();
        self.lanes.start(&mut out, most, self.now);
        for Start { key, task } in out {
            assert!(self.running.iter().all(|(other, _)| *other != key), "two turns of one lane");
            if let Task::Run(job) = &task {
                self.check_job(key, job);
            }
            self.running.push((key, task));
        }
    }

    fn check_job(&mut self, key: Key, job: &Job) {
        let Job::Fresh { works, attempt } = job else { panic!("no turn was open") };
        let positions: Vec<_> = works.iter().map(|work| work.position).collect();
        assert!(!positions.is_empty() && positions.len() <= LIMITS.turn_items_max);
        assert!(positions.is_sorted_by(|a, b| a < b), "out of order: {positions:?}");
        match self.retries.remove(&key) {
            Some(expected) => assert_eq!(positions, expected, "a retry keeps its works"),
            None => {
                assert_eq!(*attempt, 0);
                for position in &positions {
                    let item = self.items.get_mut(position).expect("it was committed");
                    assert_eq!(item.state, State::Pending, "delivered after its end: {position:?}");
                    item.deliveries += 1;
                    assert_eq!(item.deliveries, 1, "delivered twice: {position:?}");
                    if !item.was_replayed {
                        let newest = self.newest.insert(key, *position);
                        assert!(newest < Some(*position), "{position:?} after {newest:?}");
                    }
                }
            }
        }
    }

    fn finish(&mut self, nth: usize, end: End) {
        if self.running.is_empty() {
            return;
        }
        let (key, task) = self.running.remove(nth % self.running.len());
        let Task::Run(job) = task else { return self.recover(key, task) };
        let Job::Fresh { works, attempt } = job else { panic!("no turn was open") };
        let positions: Vec<_> = works.iter().map(|work| work.position).collect();
        let job = Job::Fresh { works, attempt: attempt + 1 };
        match end {
            End::Done | End::Panic(true) => self.settle(&positions, State::Answered),
            End::Dead => self.settle(&positions, State::Dead),
            End::Again | End::Hold(_) | End::Panic(false) => {
                self.retries.insert(key, positions);
            }
        }
        match end {
            End::Done => self.lanes.done(key, Outcome::Done, self.now),
            End::Dead => self.lanes.done(key, Outcome::Expired, self.now),
            End::Again => self.lanes.done(key, Outcome::Again { job, after: None }, self.now),
            End::Hold(scope) => {
                let after = (attempt % 2 == 0).then_some(Duration::from_secs(3));
                self.lanes.done(key, Outcome::Hold { job, scope, after }, self.now);
            }
            End::Panic(_) => self.lanes.panicked(key, self.now),
        }
    }

    /// As the runner does it: what is still open of the lost job runs again, in the same place.
    fn recover(&mut self, key: Key, task: Task) {
        let Task::Recover(lost) = task else { panic!("only recoveries") };
        let open = lost.positions.iter().filter_map(|p| self.items.get(p));
        let works: Vec<Work> = open.filter(|i| i.state == State::Pending).map(|i| i.work.clone()).collect();
        let is_any = !works.is_empty();
        if lost.attempt >= super::PANICS_ALONE && is_any {
            self.retries.insert(key, vec![works[0].position]);
            for work in &works[1..] {
                let item = self.items.get_mut(&work.position).expect("it was committed");
                (item.was_replayed, item.deliveries) = (true, 0);
            }
        }
        match self.lanes.recovered(key, lost.attempt, Vec::new(), works) {
            Some(job) => {
                assert!(is_any);
                self.check_job(key, &job);
                self.running.push((key, Task::Run(job)));
            }
            None => {
                assert!(!is_any);
                self.lanes.done(key, Outcome::Done, self.now);
            }
        }
    }

    fn settle(&mut self, positions: &[Position], state: State) {
        for position in positions {
            self.items.get_mut(position).expect("it was committed").state = state;
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Commit(items) => self.commit(items),
            Action::Offer(count) => {
                let works = (0..*count).filter_map(|_| self.offers.pop_front()).flatten().collect();
                self.lanes.offer(works);
            }
            Action::Derive => self.derive(),
            Action::Start(most) => self.start(*most),
            Action::Finish(nth, end) => self.finish(*nth, *end),
            Action::Read => {
                if let Some(read) = self.lanes.next_read() {
                    self.reads.push(Pending { read, answer: None });
                }
            }
            Action::Answer(nth) => {
                if !self.reads.is_empty() {
                    let at = nth % self.reads.len();
                    if self.reads[at].answer.is_none() {
                        self.reads[at].answer = Some(self.answer(self.reads[at].read));
                    }
                }
            }
            Action::Arrive(nth, is_error) => self.arrive(*nth, *is_error),
            Action::Replay => self.replay(),
            Action::Learn => self.learned = self.must_learn.then(|| self.open_numbers()),
            Action::Rewind => self.rewind(),
            Action::Wait(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.lanes.tick(self.now);
            }
            Action::Lift(is_all) => {
                if *is_all {
                    self.lanes.wake_all()
                } else {
                    self.lanes.lift()
                }
            }
        }
        self.check_bounds();
    }

    fn arrive(&mut self, nth: usize, is_error: bool) {
        if self.reads.is_empty() {
            return;
        }
        let Pending { read, answer } = self.reads.remove(nth % self.reads.len());
        match answer {
            Some(_) | None if is_error => self.lanes.page_failed(read.number, self.now),
            Some(page) => drop(self.lanes.page(read.number, page, self.now)),
            None => drop(self.lanes.page(read.number, self.answer(read), self.now)),
        }
    }

    fn replay(&mut self) {
        if !self.is_open {
            return;
        }
        // what is not in the table yet can't be put back by another process
        let derived = self.derived;
        let is_dead = |i: &&mut Stored| i.state == State::Dead && i.work.position <= derived;
        for item in self.items.values_mut().filter(is_dead) {
            (item.state, item.was_replayed, item.deliveries) = (State::Pending, true, 0);
            self.must_learn = true;
            self.learned = None;
        }
    }

    fn rewind(&mut self) {
        if let Some((numbers, head)) = self.learned.take() {
            self.must_learn = false;
            self.lanes.rewind(&numbers, head);
        }
    }

    fn open(&mut self) {
        let (numbers, head) = self.open_numbers();
        self.lanes.opened(&numbers, head);
        self.is_open = true;
    }

    fn check_bounds(&self) {
        let gauges = self.lanes.gauges();
        assert_eq!(gauges.running, self.running.len());
        assert!(gauges.running <= LIMITS.max_turns);
        let came_back = LIMITS.max_turns * LIMITS.turn_items_max;
        let retried: usize = self.retries.values().map(Vec::len).sum();
        assert!(gauges.waiting <= LIMITS.items_max + retried.max(came_back) + NUMBERS as usize, "{gauges:?}");
        for id in 0..NUMBERS {
            let waiting = self.lanes.numbers.get(&id).map_or(0, |n| n.waiting);
            assert!(waiting <= LIMITS.number_items_max + retried, "{waiting} wait");
        }
        let lanes = &self.lanes.lanes;
        assert_eq!(gauges.waiting, lanes.values().map(super::Lane::items).sum::<usize>());
        assert_eq!(gauges.behind, self.lanes.numbers.values().filter(|n| n.cursor.is_behind()).count());
    }

    /// Everything that can happen happens, without failures: nothing may be left.
    fn quiesce(&mut self) {
        self.derive();
        while let Some(works) = self.offers.pop_front() {
            self.lanes.offer(works);
        }
        if self.must_learn {
            self.learned = Some(self.open_numbers());
            self.rewind();
        }
        // as the scheduler does it: time passes only to the next timer, so a wake-up that nobody asked for is
        // missed here
        for _ in 0..5000 {
            self.lanes.tick(self.now);
            while let Some(read) = self.lanes.next_read() {
                self.reads.push(Pending { read, answer: None });
            }
            self.start(usize::MAX);
            if self.reads.is_empty() && self.running.is_empty() {
                let Some(at) = self.lanes.next_timer() else { break };
                self.now = self.now.max(at);
            }
            self.arrive(0, false);
            self.finish(0, End::Done);
            self.check_bounds();
        }
        for item in self.items.values() {
            assert_ne!(item.state, State::Pending, "lost: {item:?}\n{:?}", self.lanes);
        }
        let gauges = self.lanes.gauges();
        assert_eq!((gauges.lanes, gauges.waiting, gauges.bytes, gauges.behind), (0, 0, 0, 0));
        assert_eq!((self.lanes.active, self.lanes.reserved, self.lanes.reading), (0, 0, 0));
        self.commit(&[(0, 0)]);
        self.derive();
        self.lanes.offer(self.offers.pop_front().unwrap_or_default());
        self.start(1);
        self.finish(0, End::Done);
        assert_eq!(self.lanes.gauges().lanes, 0);
        assert!(self.lanes.numbers.is_empty(), "idle numbers are forgotten: {:?}", self.lanes.numbers);
    }
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let item = (0..NUMBERS, 0..CONVERSATIONS).prop_map(|(n, c)| (n, n * 100 + c));
    let scope = prop_oneof![Just(Scope::Pair), Just(Scope::Number), Just(Scope::Business), Just(Scope::App)];
    let end = prop_oneof![
        8 => Just(End::Done),
        2 => Just(End::Dead),
        1 => Just(End::Again),
        2 => scope.prop_map(End::Hold),
        1 => any::<bool>().prop_map(End::Panic),
    ];
    let action = prop_oneof![
        6 => prop::collection::vec(item, 1..6).prop_map(Action::Commit),
        6 => (1_usize..4).prop_map(Action::Offer),
        2 => Just(Action::Derive),
        6 => (1_usize..5).prop_map(Action::Start),
        8 => (any::<usize>(), end).prop_map(|(nth, end)| Action::Finish(nth, end)),
        4 => Just(Action::Read),
        3 => any::<usize>().prop_map(Action::Answer),
        4 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(nth, e)| Action::Arrive(nth, e)),
        1 => Just(Action::Replay),
        1 => Just(Action::Learn),
        1 => Just(Action::Rewind),
        3 => (0_u64..40).prop_map(Action::Wait),
        1 => any::<bool>().prop_map(Action::Lift),
    ];
    prop::collection::vec(action, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_item_is_delivered_once_and_in_order(actions in actions(), before_open in 0_usize..20) {
        let mut world = World::new();
        let before_open = before_open.min(actions.len());
        for (nth, action) in actions.iter().enumerate() {
            if nth == before_open {
                world.open();
            }
            world.act(action);
        }
        if !world.is_open {
            world.open();
        }
        world.quiesce();
    }
}
