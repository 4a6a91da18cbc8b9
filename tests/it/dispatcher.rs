//! The dispatcher on real coroutines between an inbox in memory and runners that sleep, fail, hold and panic.

mod world;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whatsapp_webhook::clock;
use whatsapp_webhook::dispatcher::lanes::{Limits, QUANTUM};
use whatsapp_webhook::dispatcher::{Dispatcher, Outcome};
use whatsapp_webhook::failure::Scope;
use whatsapp_webhook::inbox::{Feed, State};
use world::{Entry, PATIENCE, World, again, job_number, pause, wait_until};

#[test]
fn a_conversation_is_answered_in_order_and_what_arrives_meanwhile_is_one_turn() {
    let world = World::new(Vec::new());
    let dispatcher = world.start(100, |world, job| {
        clock::sleep(Duration::from_millis(30));
        world.answer(job)
    });
    world.offer(&[(1, 1)]);
    wait_until("the first turn runs", || dispatcher.gauges().running == 1);
    for _ in 0..20 {
        world.offer(&[(1, 1), (1, 1), (1, 1)]);
    }
    world.wait_for_answers(61);
    assert_eq!(world.turns_of(1), [1, 50, 10], "one, then all that arrived meanwhile, 50 at most");
    world.assert_each_once_in_order();
}

#[test]
fn ten_thousand_slow_conversations_of_one_number_do_not_wait_for_each_other() {
    let world = World::new(Vec::new());
    let dispatcher = world.start(11_000, |world, job| {
        clock::sleep(Duration::from_secs(2));
        world.answer(job)
    });
    let started = clock::monotonic();
    for chunk in 0..100 {
        world.offer(&(0..100).map(|n| (1, chunk * 100 + n)).collect::<Vec<_>>());
    }
    wait_until("all run at once", || dispatcher.gauges().running == 10_000);
    world.wait_for_answers(10_000);
    let took = clock::monotonic() - started;
    assert!(took < Duration::from_secs(12), "{took:?}");
    world.assert_each_once_in_order();
}

#[test]
fn a_flood_of_one_number_does_not_delay_another() {
    let world = World::new(Vec::new());
    let flood = 1;
    let _dispatcher = world.start(50, |world, job| {
        clock::sleep(Duration::from_millis(2));
        world.answer(job)
    });
    for chunk in 0..50 {
        world.offer(&(0..100).map(|n| (flood, chunk * 100 + n)).collect::<Vec<_>>());
    }
    wait_until("the flood is under way", || world.answered() > 500);
    let before = world.answered();
    world.offer(&[(2, 77_777)]);
    wait_until("the other is answered", || !world.turns_of(77_777).is_empty());
    let turns = world.place_of(77_777) - before;
    // those that ran already, and one go of the flood; a margin for what ends between the count and the offer
    let bound = 50 + 2 * QUANTUM as usize + 50;
    assert!(turns <= bound, "{turns} turns of the flood went first");
    world.wait_for_answers(5_001);
    world.assert_each_once_in_order();
}

#[test]
fn a_backlog_of_100_000_is_worked_off_within_the_memory_bound() {
    let items: Vec<(u64, u64)> = (0..100_000).map(|n| (1 + n % 20_000 % 3, n % 20_000)).collect();
    let world = World::new(items);
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let slot: Arc<Mutex<Option<Arc<Dispatcher>>>> = Arc::default();
    let of_runner = slot.clone();
    let dispatcher = world.start(200, move |world, job| {
        if let Some(dispatcher) = &*of_runner.lock().expect("no panic under it") {
            seen.fetch_max(dispatcher.gauges().waiting, SeqCst);
        }
        may::coroutine::yield_now();
        world.answer(job)
    });
    *slot.lock().expect("no panic under it") = Some(dispatcher.clone());
    // fresh work meanwhile, behind the backlog of its conversation
    for n in 0..1000 {
        world.offer(&[(1 + n % 3, n)]);
    }
    world.wait_for_answers(101_000);
    assert!(most.load(SeqCst) <= 4 * 2_000, "{} works in memory", most.load(SeqCst));
    wait_until("live again", || dispatcher.gauges().behind == 0);
    world.assert_each_once_in_order();
    slot.lock().expect("no panic under it").take();
}

#[test]
fn a_panic_is_tried_again_and_never_answers_twice() {
    let world = World::new(Vec::new());
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let _dispatcher = world.start(10, move |world, job| {
        match counted.fetch_add(1, SeqCst) {
            0 => panic!("before the answer was stored"),
            1 => {
                world.store_turn(&job);
                panic!("after it was stored");
            }
            _ => {}
        }
        world.answer(job)
    });
    world.offer(&[(1, 1), (1, 1)]);
    world.wait_for_answers(2);
    assert_eq!(runs.load(SeqCst), 3);
    assert_eq!(
        *world.opened.lock().expect("no panic under it"),
        [1],
        "the stored answer was sent, not asked for again"
    );
    world.assert_each_once_in_order();
}

#[test]
fn a_message_that_always_panics_ends_dead_alone_and_the_lane_goes_on() {
    let world = World::new(Vec::new());
    let dispatcher = world.start(10, move |world, job| {
        assert_ne!(world.first_of(&job), 1, "a panic on this one, always");
        world.answer(job)
    });
    world.offer(&[(1, 1), (1, 1)]);
    for _ in 0..20 {
        pause(20);
        dispatcher.wake_all();
    }
    world.wait_for_answers(1);
    let states = world.states();
    assert_eq!((states[0], states[1]), (State::Dead, State::Sent));
}

#[test]
fn a_held_number_stands_still_until_its_probe_gets_through() {
    let world = World::new(Vec::new());
    let is_mended = Arc::new(AtomicUsize::new(0));
    let mended = is_mended.clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let tried = tries.clone();
    let dispatcher = world.start(4, move |world, job| {
        if job_number(&job) == 1 && mended.load(SeqCst) == 0 {
            tried.fetch_add(1, SeqCst);
            return Outcome::Hold { job: again(job), scope: Scope::Business, after: None };
        }
        world.answer(job)
    });
    for n in 0..50 {
        world.offer(&[(1, n), (2, 100 + n)]);
    }
    world.wait_for_answers(50);
    pause(100);
    assert!(tries.load(SeqCst) <= 4, "only those that ran when it was held: {}", tries.load(SeqCst));
    assert_eq!(dispatcher.gauges().holds, 1);
    is_mended.store(1, SeqCst);
    pause(100);
    assert_eq!(world.answered(), 50, "held for half a minute at least");
    dispatcher.lift();
    world.wait_for_answers(100);
    assert_eq!(dispatcher.gauges().holds, 0);
    world.assert_each_once_in_order();
}

#[test]
fn a_pair_over_its_limit_holds_only_its_own_lane() {
    let world = World::new(Vec::new());
    let _dispatcher = world.start(4, |world, job| {
        if world.first_of(&job) == 1 && job.attempt() == 0 {
            return Outcome::Hold {
                job: again(job),
                scope: Scope::Pair,
                after: Some(Duration::from_millis(300)),
            };
        }
        world.answer(job)
    });
    let began = clock::monotonic();
    world.offer(&[(1, 1), (1, 2), (2, 3)]);
    world.wait_for_answers(2);
    assert!(world.turns_of(1).is_empty());
    world.wait_for_answers(3);
    assert!(clock::monotonic() - began >= Duration::from_millis(300));
}

#[test]
fn a_drain_waits_for_what_runs_and_starts_nothing() {
    let world = World::new(Vec::new());
    let dispatcher = world.start(5, |world, job| {
        clock::sleep(Duration::from_millis(200));
        world.answer(job)
    });
    world.offer(&(0..20).map(|n| (1, n)).collect::<Vec<_>>());
    wait_until("five run", || dispatcher.gauges().running >= 4);
    assert_eq!(dispatcher.drain(PATIENCE), 0);
    let answered = world.answered();
    assert!(answered <= 10, "{answered}");
    world.offer(&[(1, 99)]);
    pause(300);
    assert_eq!(world.answered(), answered);

    let world = World::new(Vec::new());
    let dispatcher = world.start(5, |world, job| {
        clock::sleep(Duration::from_secs(3));
        world.answer(job)
    });
    world.offer(&[(1, 1)]);
    wait_until("it runs", || dispatcher.gauges().running == 1);
    assert_eq!(dispatcher.drain(Duration::from_millis(50)), 1, "it says what it did not wait for");
}

#[test]
fn open_turns_go_before_fresh_work_of_their_conversation() {
    let conversations: Vec<(u64, u64)> = (0..3_000).map(|n| (1 + n % 5, n)).collect();
    let world = World::new(conversations.clone());
    for (number, conversation) in &conversations {
        world.add_open_turn(*number, *conversation);
        world.add_open_turn(*number, *conversation);
    }
    let mut limits = Limits::new(100);
    limits.opens_max = 500;
    let dispatcher = world.start_with(limits, |world, job| {
        may::coroutine::yield_now();
        world.answer(job)
    });
    assert!(dispatcher.gauges().opens <= 500);
    world.wait_for_answers(3_000);
    let log = world.log.lock().expect("no panic under it");
    let mut opens: HashMap<u64, Vec<i64>> = HashMap::new();
    for entry in log.iter() {
        match entry {
            Entry::Open { conversation, id } => opens.entry(*conversation).or_default().push(*id),
            Entry::Fresh { conversation, .. } => {
                let ids = opens.get(conversation).map(Vec::as_slice).unwrap_or_default();
                assert!(ids.len() == 2 && ids[0] < ids[1], "both open turns first, in order: {ids:?}");
            }
        }
    }
}

#[test]
fn a_replay_of_another_process_is_answered_and_doubles_nothing() {
    let world = World::new(Vec::new());
    let is_mended = Arc::new(AtomicUsize::new(0));
    let mended = is_mended.clone();
    let dispatcher = world.start(20, move |world, job| {
        clock::sleep(Duration::from_millis(1));
        if mended.load(SeqCst) == 0 && world.first_of(&job) % 3 == 0 {
            return world.kill(&job);
        }
        world.answer(job)
    });
    for n in 0..300 {
        world.offer(&[(1 + n % 2, n)]);
    }
    wait_until("the rest is dead", || world.states().iter().all(|s| *s != State::Pending));
    let dead = world.states().iter().filter(|s| **s == State::Dead).count();
    assert_eq!(dead, 100);
    is_mended.store(1, SeqCst);
    world.replay();
    for n in 0..300 {
        world.offer(&[(1 + n % 2, n)]);
        if n % 50 == 0 {
            Feed::rewind(&*dispatcher);
        }
    }
    world.wait_for_answers(600);
    wait_until("live again", || dispatcher.gauges().behind == 0);
    assert_eq!(world.answered(), 600);
}

#[test]
fn a_store_that_fails_to_read_is_asked_again() {
    let world = World::new((0..500).map(|n| (1, n)).collect());
    world.failures.store(5, SeqCst);
    let _dispatcher = world.start(10, |world, job| world.answer(job));
    world.wait_for_answers(500);
    world.assert_each_once_in_order();
}
<<<<<<< HEAD

fn dispatcher_feed(dispatcher: &Arc<Dispatcher>) -> &dyn Feed {
    &**dispatcher
}

fn pause(ms: u64) {
    clock::sleep(Duration::from_millis(ms));
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = clock::monotonic() + PATIENCE;
    while !is_so() {
        assert!(clock::monotonic() < until, "waited in vain: {what}");
        pause(2);
    }
}

fn again(job: Job) -> Job {
    match job {
        Job::Fresh { works, attempt } => Job::Fresh { works, attempt: attempt + 1 },
        Job::Open { turn, attempt } => Job::Open { turn, attempt: attempt + 1 },
    }
}

fn job_number(job: &Job) -> u64 {
    match job {
        Job::Fresh { works, .. } => works[0].number,
        Job::Open { turn, .. } => turn.number,
    }
}

#[derive(Debug)]
enum Entry {
    Fresh { conversation: u64, keys: Vec<u64> },
    Open { conversation: u64, id: TurnId },
}

struct Stored {
    work: Work,
    state: State,
}

/// The inbox: what a store would know, and what was answered, in order.
struct World {
    items: Mutex<BTreeMap<u64, Stored>>,
    turns: Mutex<BTreeMap<TurnId, OpenTurn>>,
    feed: Mutex<Option<Arc<dyn Feed>>>,
    next: AtomicU64,
    log: Mutex<Vec<Entry>>,
    opened: Mutex<Vec<TurnId>>,
    answered: AtomicUsize,
    failures: AtomicUsize,
}

struct Run<F>(Arc<World>, F);

impl<F: Fn(&World, Job) -> Outcome + Send + Sync + 'static> Runner for Run<F> {
    fn run(&self, job: Job) -> Outcome {
        (self.1)(&self.0, job)
    }
}

impl World {
    fn new(items: Vec<(u64, u64)>) -> Arc<Self> {
        static MAY: Once = Once::new();
        MAY.call_once(|| {
            may::config().set_workers(2).set_stack_size(64 * 1024);
        });
        let world = Arc::new(Self {
            items: Mutex::default(),
            turns: Mutex::default(),
            feed: Mutex::default(),
            next: AtomicU64::new(1),
            log: Mutex::default(),
            opened: Mutex::default(),
            answered: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        });
        world.commit(&items);
        world
    }

    fn start(
        self: &Arc<Self>,
        max_turns: usize,
        run: impl Fn(&World, Job) -> Outcome + Send + Sync + 'static,
    ) -> Arc<Dispatcher> {
        self.start_with(Limits::new(max_turns), run)
    }

    fn start_with(
        self: &Arc<Self>,
        limits: Limits,
        run: impl Fn(&World, Job) -> Outcome + Send + Sync + 'static,
    ) -> Arc<Dispatcher> {
        let runner = Arc::new(Run(self.clone(), run));
        Dispatcher::start_with(Arc::new(Fake(self.clone())), runner, limits).expect("the fake can be read")
    }

    fn commit(&self, items: &[(u64, u64)]) -> Vec<Work> {
        let mut stored = self.items.lock().expect("no panic under it");
        let body: Arc<[u8]> = Arc::from(&b"{}"[..]);
        let works = items.iter().map(|(number, conversation)| {
            let key = self.next.fetch_add(1, SeqCst);
            let work = Work {
                id: ItemId { timestamp: 1, key },
                position: Position { commit: key, body: 0, path: Path::default() },
                number: *number,
                conversation: *conversation,
                received_ms: 0,
                app: 0,
                body: body.clone(),
            };
            stored.insert(key, Stored { work: work.clone(), state: State::Pending });
            work
        });
        works.collect()
    }

    fn offer(&self, items: &[(u64, u64)]) {
        let works = self.commit(items);
        let feed = self.feed.lock().expect("no panic under it").clone();
        feed.expect("the dispatcher was started").offer(works);
    }

    fn keys(job: &Job) -> Vec<u64> {
        match job {
            Job::Fresh { works, .. } => works.iter().map(|work| work.id.key).collect(),
            Job::Open { turn, .. } => turn.items.iter().map(|id| id.key).collect(),
        }
    }

    /// The number of its first item, from 1.
    fn first_of(&self, job: &Job) -> u64 {
        Self::keys(job).first().copied().unwrap_or(0)
    }

    fn answer(&self, job: Job) -> Outcome {
        let keys = Self::keys(&job);
        let entry = match &job {
            Job::Fresh { works, .. } => {
                Entry::Fresh { conversation: works[0].conversation, keys: keys.clone() }
            }
            Job::Open { turn, .. } => {
                self.turns.lock().expect("no panic under it").remove(&turn.id).expect("sent once");
                self.opened.lock().expect("no panic under it").push(turn.id);
                Entry::Open { conversation: turn.conversation, id: turn.id }
            }
        };
        self.set(&keys, State::Sent);
        self.log.lock().expect("no panic under it").push(entry);
        self.answered.fetch_add(keys.len(), SeqCst);
        Outcome::Done
    }

    fn kill(&self, job: &Job) -> Outcome {
        self.set(&Self::keys(job), State::Dead);
        Outcome::Done
    }

    fn set(&self, keys: &[u64], state: State) {
        let mut items = self.items.lock().expect("no panic under it");
        for key in keys {
            let item = items.get_mut(key).expect("it was stored");
            assert!(item.state == State::Pending || item.state == State::Answered, "{key} ended already");
            item.state = state;
        }
    }

    fn store_turn(&self, job: &Job) {
        let Job::Fresh { works, .. } = job else { return };
        let turn = self.add_open_turn(works[0].number, works[0].conversation);
        let keys = Self::keys(job);
        self.set(&keys, State::Answered);
        let mut turns = self.turns.lock().expect("no panic under it");
        turns.get_mut(&turn).expect("just added").items = works.iter().map(|work| work.id).collect();
    }

    fn add_open_turn(&self, number: u64, conversation: u64) -> TurnId {
        let mut turns = self.turns.lock().expect("no panic under it");
        let id = turns.len() as TurnId + 1;
        let turn = OpenTurn {
            id,
            items: Vec::new(),
            number,
            conversation,
            phone_number_id: number.to_string(),
            to: Recipient::Phone(conversation.to_string()),
            stored_ms: 0,
            replies: Vec::new(),
        };
        turns.insert(id, turn);
        id
    }

    fn replay(&self) {
        for item in self.items.lock().expect("no panic under it").values_mut() {
            if item.state == State::Dead {
                item.state = State::Pending;
            }
        }
        let feed = self.feed.lock().expect("no panic under it").clone();
        feed.expect("the dispatcher was started").rewind();
    }

    fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }

    fn wait_for_answers(&self, count: usize) {
        wait_until(&format!("{count} answers"), || self.answered() >= count);
        assert_eq!(self.answered(), count);
    }

    fn states(&self) -> Vec<State> {
        self.items.lock().expect("no panic under it").values().map(|item| item.state).collect()
    }

    /// Sizes of the conversation's turns.
    fn turns_of(&self, conversation: u64) -> Vec<usize> {
        let log = self.log.lock().expect("no panic under it");
        let sizes = log.iter().filter_map(|entry| match entry {
            Entry::Fresh { conversation: c, keys } if *c == conversation => Some(keys.len()),
            _ => None,
        });
        sizes.collect()
    }

    /// How many turns ended before the conversation's first.
    fn place_of(&self, conversation: u64) -> usize {
        let log = self.log.lock().expect("no panic under it");
        let is_it =
            |entry: &Entry| matches!(entry, Entry::Fresh { conversation: c, .. } if *c == conversation);
        log.iter().position(is_it).expect("it was answered")
    }

    fn assert_each_once_in_order(&self) {
        let log = self.log.lock().expect("no panic under it");
        let mut newest: HashMap<u64, u64> = HashMap::new();
        let mut count = 0;
        for entry in log.iter() {
            let Entry::Fresh { conversation, keys } = entry else { continue };
            for key in keys {
                let newest = newest.insert(*conversation, *key);
                assert!(newest < Some(*key), "{key} after {newest:?}");
                count += 1;
            }
        }
        let opened = self.opened.lock().expect("no panic under it").len();
        assert!(opened > 0 || count == self.states().len(), "each once");
    }
}

struct Fake(Arc<World>);

impl Inbox for Fake {
    fn forget(&self, _: &str) {}

    fn ticket(&self) -> Box<dyn Ticket> {
        unreachable!("not the dispatcher's")
    }
    fn unhealthy(&self) -> Option<Refusal> {
        None
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
    fn feed(&self, feed: Arc<dyn Feed>) {
        *self.0.feed.lock().expect("no panic under it") = Some(feed);
    }
    fn open_numbers(&self) -> Result<(Vec<u64>, Position), Failure> {
        let items = self.0.items.lock().expect("no panic under it");
        let mut numbers: Vec<u64> =
            items.values().filter(|i| i.state == State::Pending).map(|i| i.work.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok((numbers, items.values().next_back().map(|i| i.work.position).unwrap_or_default()))
    }
    fn pending(&self, number: u64, after: Position, limit: usize) -> Result<Page, Failure> {
        if self.0.failures.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Failure {
                source: whatsapp_webhook::failure::Source::Inbox,
                verdict: whatsapp_webhook::failure::Verdict::Retry { after: None },
                reason: Reason::fixed("store_unreadable"),
                detail: String::new(),
            });
        }
        let items = self.0.items.lock().expect("no panic under it");
        let open = items
            .range(after.commit..)
            .filter(|(_, i)| i.state == State::Pending && i.work.number == number && i.work.position > after);
        let works: Vec<Work> = open.take(limit).map(|(_, i)| i.work.clone()).collect();
        let covered = items.values().next_back().map(|i| i.work.position).unwrap_or_default();
        Ok(Page { works, covered })
    }
    fn open_turns(&self, after: TurnId, limit: usize) -> Result<Vec<OpenTurn>, Failure> {
        let turns = self.0.turns.lock().expect("no panic under it");
        Ok(turns.range(after + 1..).take(limit).map(|(_, turn)| turn.clone()).collect())
    }
    fn history(&self, _: &str, _: usize) -> Result<Vec<Said>, Failure> {
        unreachable!("not the dispatcher's")
    }
    fn answered(&self, _: NewTurn) -> Result<OpenTurn, Failure> {
        unreachable!("not the dispatcher's")
    }
    fn sending(&self, _: &str, _: u64) -> Result<(), Failure> {
        unreachable!("not the dispatcher's")
    }
    fn sent(&self, _: &str, _: &str) {}
    fn unsent(&self, _: &str) {}
    fn reply_dead(&self, _: &str, _: &Reason, _: &str) {}
    fn evidence(&self, _: &str, _: Duration) -> Option<Evidence> {
        None
    }
    fn settle(&self, items: &[ItemId], state: State, _: &Reason, _: &str) {
        self.0.set(&items.iter().map(|id| id.key).collect::<Vec<_>>(), state);
    }
    fn close(&self) -> Result<(), Failure> {
        Ok(())
    }
}
=======
>>>>>>> c06001b27a29d20282a1559e743c52d17c06216e
