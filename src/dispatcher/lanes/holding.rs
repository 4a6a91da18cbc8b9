//! Holds of numbers and apps: what begins one, what ends it, who goes as the probe.

use std::cmp::Reverse;
use std::time::Duration;

use super::lane::Stand;
use super::{App, Job, Key, Lanes, Timer};
use crate::dispatcher::backoff;
use crate::dispatcher::holds::{Gate, Hold};
use crate::failure::Scope;

impl Lanes {
    /// What was mended for the businesses (new credentials): their holds end at once. Limits of numbers and
    /// apps stay.
    pub fn lift(&mut self) {
        let held = |hold: &Option<Hold>| hold.as_ref().is_some_and(|hold| hold.scope() == Scope::Business);
        let ids: Vec<u64> = self.numbers.iter().filter(|(_, n)| held(&n.hold)).map(|(id, _)| *id).collect();
        for id in ids {
            self.lift_number(id);
        }
    }

    /// Every hold ends and every wait is over, retries' included.
    pub fn wake_all(&mut self) {
        for app in self.apps.keys().copied().collect::<Vec<_>>() {
            self.lift_app(app);
        }
        for id in self.numbers.iter().filter(|(_, n)| n.hold.is_some()).map(|(id, _)| *id).collect::<Vec<_>>()
        {
            self.lift_number(id);
        }
        let waiting = self.lanes.iter().filter(|(_, lane)| matches!(lane.stand, Stand::Waiting(_)));
        for key in waiting.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.make_ready(key);
            self.refresh(key.number);
        }
    }

    /// A job came back held.
    pub(super) fn hold(&mut self, key: Key, job: Job, scope: Scope, after: Option<Duration>, now: Duration) {
        let seed = backoff::next_seed(&mut self.seed);
        let app = self.numbers.get(&key.number).and_then(|number| number.app);
        match (scope, app) {
            (Scope::Pair, _) => {
                let wait = backoff::wish_or(after, backoff::pair(job.attempt(), seed));
                self.put_back(key, job, Some(now + wait));
                // it came as far as the pair's limit, so nothing larger stands in the way
                self.lift_probed(key, true, true);
            }
            (Scope::App, Some(app)) => {
                self.put_back(key, job, None);
                self.hold_app(app, key, after, now, seed);
                let own = self.numbers.get_mut(&key.number).and_then(|n| n.hold.as_mut());
                if let Some(hold) = own.filter(|hold| hold.is_probe(key)) {
                    hold.probe_again(now);
                    // it left the ring for its own hold; from now on it waits for the app's
                    self.reopen_number(key.number);
                }
            }
            (Scope::App | Scope::Number | Scope::Business, _) => {
                self.put_back(key, job, None);
                self.lift_probed(key, false, true);
                let Some(number) = self.numbers.get_mut(&key.number) else { return };
                match &mut number.hold {
                    Some(hold) => hold.held_again(key, scope, after, now, seed),
                    none => *none = Some(Hold::new(scope, after, now, seed)),
                }
                let until = number.hold.as_ref().map_or(now, Hold::until);
                self.timers.push(Reverse((until, Timer::Number(key.number))));
            }
        }
    }

    fn hold_app(&mut self, app: u64, key: Key, after: Option<Duration>, now: Duration, seed: u64) {
        let held = self
            .apps
            .entry(app)
            .and_modify(|app| app.hold.held_again(key, Scope::App, after, now, seed))
            .or_insert_with(|| App { hold: Hold::new(Scope::App, after, now, seed), shut: Vec::new() });
        let until = held.hold.until();
        self.timers.push(Reverse((until, Timer::App(app))));
    }

    /// The job of `key` got through: lifts the holds whose probe it was.
    pub(super) fn lift_probed(&mut self, key: Key, own: bool, app: bool) {
        let Some(number) = self.numbers.get(&key.number) else { return };
        let own = own && number.hold.as_ref().is_some_and(|hold| hold.is_probe(key));
        let app = if app && !self.apps.is_empty() { self.app_probed_by(key) } else { None };
        if own {
            self.lift_number(key.number);
        }
        if let Some(app) = app {
            self.lift_app(app);
        }
    }

    /// The job of `key` ended without a word about the holds whose probe it was: the next one is the probe.
    pub(super) fn probe_unsure(&mut self, key: Key, now: Duration) {
        let own = self.numbers.get_mut(&key.number).and_then(|number| number.hold.as_mut());
        if let Some(hold) = own.filter(|hold| hold.is_probe(key)) {
            hold.probe_again(now);
            self.reopen_number(key.number);
        }
        if self.apps.is_empty() {
            return;
        }
        if let Some(app) = self.app_probed_by(key) {
            if let Some(held) = self.apps.get_mut(&app) {
                held.hold.probe_again(now);
            }
            self.reopen_app(app);
        }
    }

    /// Whoever the hold kept out of the ring may look again.
    pub(super) fn reopen_number(&mut self, id: u64) {
        if let Some(number) = self.numbers.get_mut(&id) {
            number.is_shut = false;
            self.refresh(id);
        }
    }

    /// The same for the numbers of an app.
    pub(super) fn reopen_app(&mut self, app: u64) {
        let Some(app) = self.apps.get_mut(&app) else { return };
        for id in std::mem::take(&mut app.shut) {
            self.reopen_number(id);
        }
    }

    /// By the hold itself: the number's newest app may have changed while the probe ran.
    fn app_probed_by(&self, key: Key) -> Option<u64> {
        self.apps.iter().find(|(_, app)| app.hold.is_probe(key)).map(|(app, _)| *app)
    }

    /// A hold whose time is over and that has nothing left to hold goes with its number: nothing would end it.
    pub(super) fn let_go(&mut self, id: u64, now: Duration) {
        let is_idle = |number: &super::Number| {
            number.lanes == 0
                && !number.cursor.is_behind()
                && number.hold.as_ref().is_some_and(|hold| hold.gate(now) == Gate::Probe)
        };
        if self.numbers.get(&id).is_some_and(is_idle) {
            self.lift_number(id);
        }
    }

    fn lift_number(&mut self, id: u64) {
        if let Some(number) = self.numbers.get_mut(&id) {
            number.hold = None;
            self.reopen_number(id);
        }
    }

    fn lift_app(&mut self, app: u64) {
        self.reopen_app(app);
        self.apps.remove(&app);
    }
}
