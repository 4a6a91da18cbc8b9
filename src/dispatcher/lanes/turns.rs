//! The life of a turn: started in its number's place, ended, tried again, recovered after a panic.

use std::cmp::Reverse;
use std::time::Duration;

use super::lane::{Lane, Lost, Stand};
use super::{
    Job, Key, LOOK_EVERY, Lanes, Outcome, PANICS_ALONE, QUANTUM, RESERVE_MAX, Stage, Start, Task, Timer,
};
use crate::dispatcher::backoff;
use crate::dispatcher::holds::Gate;
use crate::inbox::{OpenTurn, Work};

impl Lanes {
    /// Appends to `out` what may start now, until it holds `most`. Fewer: nothing more can start until
    /// something else happens.
    ///
    /// Numbers take turns. While more than the reserve is free everyone may start; in the reserve only a
    /// number that runs less than `max_turns / (active numbers + 1)`. So a flood leaves room for others at
    /// once, and what it holds above its share comes back as its turns end.
    pub fn start(&mut self, out: &mut Vec<Start>, most: usize, now: Duration) {
        if self.stage != Stage::Running {
            return;
        }
        let mut passed = 0;
        while out.len() < most && self.running < self.limits.max_turns && passed < self.ring.len() {
            let Some(&id) = self.ring.front() else { break };
            match self.next_of(id, now) {
                Next::Start { start, is_last } => {
                    passed = 0;
                    self.burst += 1;
                    out.push(start);
                    if is_last {
                        self.ring.pop_front();
                        self.burst = 0;
                    } else if self.burst >= QUANTUM {
                        self.ring.rotate_left(1);
                        self.burst = 0;
                    }
                }
                Next::Pass => {
                    passed += 1;
                    self.burst = 0;
                    self.ring.rotate_left(1);
                }
                Next::Leave => {
                    self.burst = 0;
                    self.ring.pop_front();
                    self.forget_if_idle(id);
                }
            }
        }
    }

    /// The job that was started for `key` ended.
    pub fn done(&mut self, key: Key, outcome: Outcome, now: Duration) {
        if !self.ended(key) {
            return;
        }
        match outcome {
            // a job without works would run for ever
            Outcome::Again { job: Job::Fresh { works, .. }, .. }
            | Outcome::Hold { job: Job::Fresh { works, .. }, .. }
                if works.is_empty() =>
            {
                self.release_job(key);
                self.probe_unsure(key, now);
            }
            Outcome::Done => {
                self.release_job(key);
                self.lift_probed(key, true, true);
            }
            Outcome::Expired => {
                self.release_job(key);
                self.probe_unsure(key, now);
            }
            Outcome::Again { job, after } => {
                let seed = backoff::next_seed(&mut self.seed);
                let wait = backoff::wish_or(after, backoff::retry(job.attempt(), seed));
                self.put_back(key, job, Some(now + wait));
                self.probe_unsure(key, now);
            }
            Outcome::Hold { job, scope, after } => self.hold(key, job, scope, after, now),
        }
        self.let_go(key.number, now);
        self.refresh(key.number);
    }

    /// The run of what was started for `key` panicked and took its job with it.
    pub fn panicked(&mut self, key: Key, now: Duration) {
        self.lose(key, 1, now);
    }

    /// What a panic lost could not be looked up: again by backoff.
    pub fn unrecovered(&mut self, key: Key, now: Duration) {
        self.lose(key, 0, now);
    }

    fn lose(&mut self, key: Key, panics: u32, now: Duration) {
        let positions =
            self.lanes.get_mut(&key).map(|lane| std::mem::take(&mut lane.out)).unwrap_or_default();
        if !self.ended(key) {
            return;
        }
        let seed = backoff::next_seed(&mut self.seed);
        let at = self.change(key, |lane| {
            lane.panics = lane.panics.saturating_add(panics);
            let at = now + backoff::retry(lane.panics, seed);
            lane.lost = Some(Lost { positions, attempt: lane.panics });
            lane.stand = Stand::Waiting(at);
            at
        });
        if let Some(at) = at {
            self.timers.push(Reverse((at, Timer::Lane(key))));
        }
        self.probe_unsure(key, now);
        self.refresh(key.number);
    }

    /// What the disk still has of a lost job: its open turns and those of its works that are not answered.
    /// Returns the job to run now, in place of the task; `None`: nothing is left, end it with
    /// [`Outcome::Done`].
    pub fn recovered(
        &mut self,
        key: Key,
        attempt: u32,
        opens: Vec<OpenTurn>,
        mut works: Vec<Work>,
    ) -> Option<Job> {
        let lane = self.lanes.get_mut(&key)?;
        let known: Vec<_> = lane.opens.iter().map(|turn| turn.id).collect();
        let opens: Vec<_> = opens.into_iter().filter(|turn| !known.contains(&turn.id)).collect();
        self.opens += opens.len();
        self.change(key, |lane| {
            for turn in opens.into_iter().rev() {
                lane.opens.push_front(turn);
            }
            lane.out.clear();
            if attempt >= PANICS_ALONE && works.len() > 1 {
                lane.push_back(works.split_off(1));
            }
            if !works.is_empty() {
                lane.retry = Some(Box::new(Job::Fresh { works, attempt }));
            }
        });
        if !self.lanes.get(&key)?.has_first() {
            return None;
        }
        match self.take(key)? {
            Task::Run(job) => Some(job),
            Task::Recover(_) => None,
        }
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Duration) {
        while let Some(&Reverse((at, timer))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Lane(key) => {
                    if self.lanes.get(&key).is_some_and(|lane| lane.stand == Stand::Waiting(at)) {
                        self.make_ready(key);
                        self.refresh(key.number);
                    }
                }
                Timer::Number(id) => {
                    self.let_go(id, now);
                    self.reopen_number(id);
                }
                Timer::App(app) => self.reopen_app(app),
                Timer::Page(id) => {
                    if let Some(number) = self.numbers.get_mut(&id).filter(|n| n.page_at == Some(at)) {
                        number.page_at = None;
                        self.refresh(id);
                    }
                }
                Timer::Look => {
                    self.is_looking = false;
                    self.look_again();
                }
            }
        }
        if self.behind > 0 && !self.is_looking {
            self.is_looking = true;
            self.timers.push(Reverse((now + LOOK_EVERY, Timer::Look)));
        }
    }

    /// The next job of the number at the front of the ring.
    fn next_of(&mut self, id: u64, now: Duration) -> Next {
        let share = self.limits.max_turns / (self.active + 1);
        let reserve = RESERVE_MAX.min(self.limits.max_turns / 8);
        let free = self.limits.max_turns - self.running;
        let Some(number) = self.numbers.get_mut(&id) else { return Next::Leave };
        let Some(&conversation) = number.ready.front() else {
            number.is_queued = false;
            return Next::Leave;
        };
        let app = number.app.and_then(|app| self.apps.get_mut(&app));
        let own = number.hold.as_ref().map_or(Gate::Open, |hold| hold.gate(now));
        let apps = app.as_ref().map_or(Gate::Open, |app| app.hold.gate(now));
        if own.max(apps) == Gate::Shut {
            number.is_queued = false;
            number.is_shut = true;
            if let Some(app) = app.filter(|_| apps == Gate::Shut) {
                app.shut.push(id);
            }
            return Next::Leave;
        }
        if free <= reserve && number.running > 0 && number.running >= share {
            return Next::Pass;
        }
        let key = Key { number: id, conversation };
        if let Some(hold) = &mut number.hold {
            hold.probe_with(key);
        }
        if let Some(app) = app {
            app.hold.probe_with(key);
        }
        number.ready.pop_front();
        match self.take(key) {
            Some(task) => {
                self.running += 1;
                let mut is_last = false;
                if let Some(number) = self.numbers.get_mut(&id) {
                    number.running += 1;
                    is_last = number.ready.is_empty();
                    number.is_queued = !is_last;
                }
                self.want_page(id);
                Next::Start { start: Start { key, task }, is_last }
            }
            None => Next::Pass,
        }
    }

    /// Takes the next task out of the lane, which runs from now on.
    fn take(&mut self, key: Key) -> Option<Task> {
        let most = self.limits.turn_items_max;
        let opens = self.lanes.get(&key)?.opens.len();
        let task = self.change(key, |lane| lane.take(most))?;
        self.opens -= opens - self.lanes.get(&key).map_or(opens, |lane| lane.opens.len());
        Some(task)
    }

    /// Changes a lane and carries over what that changes in the sums.
    fn change<T>(&mut self, key: Key, change: impl FnOnce(&mut Lane) -> T) -> Option<T> {
        let lane = self.lanes.get_mut(&key)?;
        let before = lane.items();
        let result = change(lane);
        let after = lane.items();
        if before != after {
            self.waiting = self.waiting + after - before;
            if let Some(number) = self.numbers.get_mut(&key.number) {
                number.waiting = number.waiting + after - before;
            }
        }
        Some(result)
    }

    /// A running task came to its end, whatever it was. False: there was none.
    fn ended(&mut self, key: Key) -> bool {
        let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.stand == Stand::Running) else {
            return false;
        };
        lane.out.clear();
        self.running -= 1;
        if let Some(number) = self.numbers.get_mut(&key.number) {
            number.running -= 1;
        }
        true
    }

    /// A job is through: its bytes are free, and the lane goes on or is dropped.
    fn release_job(&mut self, key: Key) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let bytes = std::mem::take(&mut lane.job_bytes);
        lane.panics = 0;
        self.bytes -= bytes;
        let is_unloaded = self.unloaded.contains_key(&key);
        let is_empty = lane.is_empty();
        let is_ready = lane.has_first() || (!is_empty && !is_unloaded);
        lane.stand = if is_ready { Stand::Ready } else { Stand::Blocked };
        let Some(number) = self.numbers.get_mut(&key.number) else { return };
        number.bytes -= bytes;
        if is_ready {
            number.ready.push_back(key.conversation);
        } else if is_empty {
            number.lanes -= 1;
            self.lanes.remove(&key);
        }
    }

    /// The job waits in its lane: until `at`, or at the front of its number if `None`.
    pub(super) fn put_back(&mut self, key: Key, job: Job, at: Option<Duration>) {
        self.change(key, |lane| {
            lane.panics = 0;
            lane.retry = Some(Box::new(job));
            lane.stand = at.map_or(Stand::Ready, Stand::Waiting);
        });
        if let Some(at) = at {
            self.timers.push(Reverse((at, Timer::Lane(key))));
        } else if let Some(number) = self.numbers.get_mut(&key.number) {
            number.ready.push_front(key.conversation);
        }
    }

    /// A lane that stood for another reason can start.
    pub(super) fn make_ready(&mut self, key: Key) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.stand = Stand::Ready;
        if let Some(number) = self.numbers.get_mut(&key.number) {
            number.ready.push_back(key.conversation);
        }
    }
}

enum Next {
    Start {
        start: Start,
        /// Of its number, which left the ring.
        is_last: bool,
    },
    /// Not now, but without a reason that ends by itself.
    Pass,
    /// It left the ring.
    Leave,
}
