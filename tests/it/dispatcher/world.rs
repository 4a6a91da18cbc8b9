//! An inbox in memory, and what was answered, in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use whatsapp_webhook::clock;
use whatsapp_webhook::dispatcher::lanes::Limits;
use whatsapp_webhook::dispatcher::{Dispatcher, Job, Outcome, Runner};
use whatsapp_webhook::event::{ItemId, Path, Recipient, Said};
use whatsapp_webhook::failure::{Failure, Reason, Source, Verdict};
use whatsapp_webhook::inbox::{
    Counts, Evidence, Feed, Inbox, NewTurn, OpenTurn, Page, Position, Refusal, State, Ticket, TurnId, Work,
};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn pause(ms: u64) {
    clock::sleep(Duration::from_millis(ms));
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = clock::monotonic() + PATIENCE;
    while !is_so() {
        assert!(clock::monotonic() < until, "waited in vain: {what}");
        pause(2);
    }
}

pub fn again(job: Job) -> Job {
    match job {
        Job::Fresh { works, attempt } => Job::Fresh { works, attempt: attempt + 1 },
        Job::Open { turn, attempt } => Job::Open { turn, attempt: attempt + 1 },
    }
}

pub fn job_number(job: &Job) -> u64 {
    match job {
        Job::Fresh { works, .. } => works[0].number,
        Job::Open { turn, .. } => turn.number,
    }
}

#[derive(Debug)]
pub enum Entry {
    Fresh { conversation: u64, keys: Vec<u64> },
    Open { conversation: u64, id: TurnId },
}

struct Stored {
    work: Work,
    state: State,
}

/// The inbox: what a store would know, and what was answered, in order.
pub struct World {
    items: Mutex<BTreeMap<u64, Stored>>,
    turns: Mutex<BTreeMap<TurnId, OpenTurn>>,
    feed: Mutex<Option<Arc<dyn Feed>>>,
    next: AtomicU64,
    pub log: Mutex<Vec<Entry>>,
    pub opened: Mutex<Vec<TurnId>>,
    answered: AtomicUsize,
    pub failures: AtomicUsize,
}

struct Run<F>(Arc<World>, F);

impl<F: Fn(&World, Job) -> Outcome + Send + Sync + 'static> Runner for Run<F> {
    fn run(&self, job: Job) -> Outcome {
        (self.1)(&self.0, job)
    }
}

impl World {
    pub fn new(items: Vec<(u64, u64)>) -> Arc<Self> {
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

    pub fn start(
        self: &Arc<Self>,
        max_turns: usize,
        run: impl Fn(&World, Job) -> Outcome + Send + Sync + 'static,
    ) -> Arc<Dispatcher> {
        self.start_with(Limits::new(max_turns), run)
    }

    pub fn start_with(
        self: &Arc<Self>,
        limits: Limits,
        run: impl Fn(&World, Job) -> Outcome + Send + Sync + 'static,
    ) -> Arc<Dispatcher> {
        let runner = Arc::new(Run(self.clone(), run));
        Dispatcher::start_with(Arc::new(Fake(self.clone())), runner, limits).expect("the fake can be read")
    }

    pub fn commit(&self, items: &[(u64, u64)]) -> Vec<Work> {
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

    pub fn offer(&self, items: &[(u64, u64)]) {
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
    pub fn first_of(&self, job: &Job) -> u64 {
        Self::keys(job).first().copied().unwrap_or(0)
    }

    pub fn answer(&self, job: Job) -> Outcome {
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

    pub fn kill(&self, job: &Job) -> Outcome {
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

    pub fn store_turn(&self, job: &Job) {
        let Job::Fresh { works, .. } = job else { return };
        let turn = self.add_open_turn(works[0].number, works[0].conversation);
        let keys = Self::keys(job);
        self.set(&keys, State::Answered);
        let mut turns = self.turns.lock().expect("no panic under it");
        turns.get_mut(&turn).expect("just added").items = works.iter().map(|work| work.id).collect();
    }

    pub fn add_open_turn(&self, number: u64, conversation: u64) -> TurnId {
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

    pub fn replay(&self) {
        for item in self.items.lock().expect("no panic under it").values_mut() {
            if item.state == State::Dead {
                item.state = State::Pending;
            }
        }
        let feed = self.feed.lock().expect("no panic under it").clone();
        feed.expect("the dispatcher was started").rewind();
    }

    pub fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }

    pub fn wait_for_answers(&self, count: usize) {
        wait_until(&format!("{count} answers"), || self.answered() >= count);
        assert_eq!(self.answered(), count);
    }

    pub fn states(&self) -> Vec<State> {
        self.items.lock().expect("no panic under it").values().map(|item| item.state).collect()
    }

    /// Sizes of the conversation's turns.
    pub fn turns_of(&self, conversation: u64) -> Vec<usize> {
        let log = self.log.lock().expect("no panic under it");
        let sizes = log.iter().filter_map(|entry| match entry {
            Entry::Fresh { conversation: c, keys } if *c == conversation => Some(keys.len()),
            _ => None,
        });
        sizes.collect()
    }

    /// How many turns ended before the conversation's first.
    pub fn place_of(&self, conversation: u64) -> usize {
        let log = self.log.lock().expect("no panic under it");
        let is_it =
            |entry: &Entry| matches!(entry, Entry::Fresh { conversation: c, .. } if *c == conversation);
        log.iter().position(is_it).expect("it was answered")
    }

    pub fn assert_each_once_in_order(&self) {
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
    fn ticket(&self, _: usize) -> Box<dyn Ticket> {
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
                source: Source::Inbox,
                verdict: Verdict::Retry { after: None },
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
    fn sending(&self, _: &str, _: u64) -> Result<Option<Evidence>, Failure> {
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
