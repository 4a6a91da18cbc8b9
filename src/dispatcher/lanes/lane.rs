//! One conversation: what runs, what is tried again, what waits. No sums, no neighbours.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Job, Task};
use crate::inbox::{OpenTurn, Position, Work};

/// What a panicked run was about. Its job is gone; what of it is still open stands on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Of its works, in order; empty if it was an open turn.
    pub positions: Vec<Position>,
    /// Panics in a row of this lane, this one included.
    pub attempt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Listed in its number's `ready`.
    Ready,
    /// A task of it is under way.
    Running,
    /// For a time.
    Waiting(Duration),
    /// For its open turns, which are still on disk.
    Blocked,
}

pub(super) struct Lane {
    pub(super) stand: Stand,
    /// First of all: what a panic lost.
    pub(super) lost: Option<Lost>,
    /// The job that is tried again.
    pub(super) retry: Option<Box<Job>>,
    /// Open turns of an earlier run: after an open turn that is tried again, before fresh works.
    pub(super) opens: VecDeque<OpenTurn>,
    /// In order of arrival.
    waiting: Vec<Work>,
    waiting_bytes: u64,
    /// Of the job that runs or is tried again.
    pub(super) job_bytes: u64,
    /// The works that run.
    pub(super) out: Vec<Position>,
    pub(super) panics: u32,
}

impl Lane {
    pub(super) fn new(stand: Stand) -> Self {
        Self {
            stand,
            lost: None,
            retry: None,
            opens: VecDeque::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            job_bytes: 0,
            out: Vec::new(),
            panics: 0,
        }
    }

    /// Adds a work; it stands behind those that arrived before it, even if it was put back later (a replay).
    pub(super) fn push(&mut self, work: Work, bytes: u64) {
        self.waiting_bytes += bytes;
        if self.waiting.last().is_none_or(|last| last.position < work.position) {
            return self.waiting.push(work);
        }
        let at = self.waiting.partition_point(|before| before.position < work.position);
        self.waiting.insert(at, work);
    }

    /// Works of the job that shall wait instead; they are older than those that wait.
    pub(super) fn push_back(&mut self, works: Vec<Work>) {
        let each = self.job_bytes / (works.len() as u64 + 1);
        for work in works {
            self.job_bytes -= each;
            self.push(work, each);
        }
    }

    /// Works that wait here, tried before or not.
    pub(super) fn items(&self) -> usize {
        let retry = match self.retry.as_deref() {
            Some(Job::Fresh { works, .. }) => works.len(),
            Some(Job::Open { .. }) | None => 0,
        };
        retry + self.waiting.len() + self.lost.as_ref().map_or(0, |lost| lost.positions.len())
    }

    /// Something that goes before fresh works.
    pub(super) fn has_first(&self) -> bool {
        self.lost.is_some() || self.retry.is_some() || !self.opens.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.has_first() && self.waiting.is_empty()
    }

    /// The next task; the lane runs.
    pub(super) fn take(&mut self, most: usize) -> Task {
        self.stand = Stand::Running;
        if let Some(lost) = self.lost.take() {
            self.out.clone_from(&lost.positions);
            return Task::Recover(lost);
        }
        let is_retry_first = matches!(self.retry.as_deref(), Some(Job::Open { .. })) || self.opens.is_empty();
        if let Some(job) = self.retry.take_if(|_| is_retry_first) {
            if let Job::Fresh { works, .. } = &*job {
                self.out.extend(works.iter().map(|work| work.position));
            }
            return Task::Run(*job);
        }
        if let Some(turn) = self.opens.pop_front() {
            return Task::Run(Job::Open { turn, attempt: 0 });
        }
        let works = self.take_fresh(most);
        self.out.extend(works.iter().map(|work| work.position));
        Task::Run(Job::Fresh { works, attempt: 0 })
    }

    fn take_fresh(&mut self, most: usize) -> Vec<Work> {
        let count = self.waiting.len();
        if count <= most {
            self.job_bytes += std::mem::take(&mut self.waiting_bytes);
            return std::mem::take(&mut self.waiting);
        }
        let bytes = self.waiting_bytes * most as u64 / count as u64;
        self.waiting_bytes -= bytes;
        self.job_bytes += bytes;
        self.waiting.drain(..most).collect()
    }

    /// Positions of all works in memory, in no order.
    pub(super) fn positions(&self) -> impl Iterator<Item = Position> {
        let retry = match self.retry.as_deref() {
            Some(Job::Fresh { works, .. }) => works.as_slice(),
            Some(Job::Open { .. }) | None => &[],
        };
        let lost = self.lost.as_ref().map_or(&[][..], |lost| &lost.positions);
        let works = retry.iter().chain(&self.waiting).map(|work| work.position);
        works.chain(lost.iter().chain(&self.out).copied())
    }
}
