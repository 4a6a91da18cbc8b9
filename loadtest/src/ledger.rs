//! PURE but for its locks. Who said what and what came back: every message once, in order, from the right
//! number to the right customer.
//!
//! A conversation keeps only what is open: a message leaves as soon as it is acknowledged and answered, and with it all
//! before it. So memory follows the server's backlog, not the length of the run; [`OPEN_MAX`] bounds it. Times are
//! microseconds since the start.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{flood, names};

/// Messages that may be open over all conversations; who reaches it ends the load. 8 bytes each.
pub const OPEN_MAX: u64 = 8_000_000;
/// Examples that are kept of what went wrong.
const EXAMPLES_MAX: usize = 5;
/// A stored time counts this many microseconds, so that 32 bits last for 11 hours.
const TICK_US: u64 = 10;

/// All conversations.
pub struct Ledger {
    businesses: u32,
    /// From here on conversations are the flood's.
    flood_first: u32,
    conversations: Box<[Mutex<Conversation>]>,
    open: AtomicU64,
    answered: AtomicU64,
    acknowledged: AtomicU64,
    wrong: Mutex<Wrong>,
}

/// What was found wrong while replies came in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// Answers to a message that had been answered.
    pub doubled: u64,
    /// First answers that came after the answer of a later message of their conversation.
    pub out_of_order: u64,
    /// Answers from another number than was written to, or to another customer.
    pub stray: u64,
    /// Words in replies that no message held.
    pub unknown: u64,
    /// Some of them, in words.
    pub examples: Vec<String>,
}

/// The end: what became of every message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Messages posted, duplicates not counted.
    pub sent: u64,
    /// Of them, how many got a 200.
    pub acknowledged: u64,
    /// Of them, how many were answered at least once.
    pub answered: u64,
    /// Acknowledged and never answered.
    pub lost: u64,
    /// The rest.
    pub wrong: Wrong,
}

#[derive(Default)]
struct Conversation {
    /// The place of the first open message.
    base: u32,
    open: VecDeque<Open>,
    /// One more than the latest place that was answered.
    reached: u32,
}

#[derive(Clone, Copy)]
struct Open {
    sent_ticks: u32,
    acknowledged: bool,
    answered: bool,
}

enum Answer {
    First { sent_us: u64, late: bool },
    Again,
    NeverSent,
}

impl Ledger {
    /// For conversations 0 .. `conversations`.
    pub fn new(conversations: u32, businesses: u32) -> Self {
        Self::with_flood(conversations, businesses, 0)
    }

    /// The same, and after them so many with the business that is flooded.
    pub fn with_flood(conversations: u32, businesses: u32, flooded: u32) -> Self {
        Self {
            businesses,
            flood_first: conversations,
            conversations: (0..conversations + flooded).map(|_| Mutex::default()).collect(),
            open: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            wrong: Mutex::default(),
        }
    }

    /// The business that a conversation is held with.
    pub fn business(&self, conversation: u32) -> u32 {
        if conversation < self.flood_first { conversation % self.businesses } else { flood::BUSINESS }
    }

    /// Enters the next message of a conversation, and returns its place.
    pub fn sent(&self, conversation: u32, at_us: u64) -> u32 {
        self.open.fetch_add(1, Relaxed);
        self.conversations[conversation as usize].lock().sent(at_us)
    }

    /// The message got its 200.
    pub fn acknowledged(&self, conversation: u32, nth: u32) {
        self.acknowledged.fetch_add(1, Relaxed);
        let left = self.conversations[conversation as usize].lock().acknowledged(nth);
        self.open.fetch_sub(left, Relaxed);
    }

    /// A reply went out. `on_first` gets each message's conversation and the microseconds from its posting to this first
    /// answer.
    pub fn replied(
        &self,
        number: &str,
        to: &str,
        text: &str,
        at_us: u64,
        mut on_first: impl FnMut(u32, u64),
    ) {
        let mut words = 0;
        for word in text.split_whitespace() {
            words += 1;
            match names::place(word) {
                Some((conversation, _)) if conversation as usize >= self.conversations.len() => {
                    self.note(|w| &mut w.unknown, || format!("a reply holds {word}, which nobody said"));
                }
                Some((conversation, nth)) => {
                    self.answered(number, to, (conversation, nth), at_us, &mut on_first);
                }
                None => self.note(|w| &mut w.unknown, || "a reply holds a word that nobody said".to_owned()),
            }
        }
        if words == 0 {
            self.note(|w| &mut w.unknown, || "a reply without text".to_owned());
        }
    }

    fn answered(
        &self,
        number: &str,
        to: &str,
        (conversation, nth): (u32, u32),
        at_us: u64,
        on_first: &mut dyn FnMut(u32, u64),
    ) {
        let message = || format!("m{conversation}.{nth}");
        let business = self.business(conversation);
        if number != names::number(business) || to != names::customer(conversation) {
            self.note(|w| &mut w.stray, || format!("{} answered from {number} to {to}", message()));
            return;
        }
        let (answer, left) = self.conversations[conversation as usize].lock().answered(nth);
        self.open.fetch_sub(left, Relaxed);
        match answer {
            Answer::First { sent_us, late } => {
                self.answered.fetch_add(1, Relaxed);
                on_first(conversation, at_us.saturating_sub(sent_us));
                if late {
                    self.note(
                        |w| &mut w.out_of_order,
                        || format!("{} answered after a later one", message()),
                    );
                }
            }
            Answer::Again => self.note(|w| &mut w.doubled, || format!("{} answered again", message())),
            Answer::NeverSent => {
                self.note(|w| &mut w.unknown, || format!("a reply holds {}, which nobody said", message()));
            }
        }
    }

    fn note(&self, which: impl Fn(&mut Wrong) -> &mut u64, example: impl FnOnce() -> String) {
        let mut wrong = self.wrong.lock();
        *which(&mut wrong) += 1;
        if wrong.examples.len() < EXAMPLES_MAX {
            wrong.examples.push(example());
        }
    }

    /// Messages that are not both acknowledged and answered yet, or wait behind such a one.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// First answers so far.
    pub fn answers(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Acknowledged messages that still wait for their answer, about.
    pub fn waiting(&self) -> u64 {
        self.acknowledged.load(Relaxed).saturating_sub(self.answered.load(Relaxed))
    }

    /// Counts everything. Call when nothing is posted any more.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally { wrong: self.wrong.lock().clone(), ..Tally::default() };
        for (id, conversation) in self.conversations.iter().enumerate() {
            let conversation = conversation.lock();
            let settled = u64::from(conversation.base);
            tally.sent += settled + conversation.open.len() as u64;
            tally.acknowledged += settled;
            tally.answered += settled;
            for (offset, message) in conversation.open.iter().enumerate() {
                tally.acknowledged += u64::from(message.acknowledged);
                tally.answered += u64::from(message.answered);
                if message.acknowledged && !message.answered {
                    tally.lost += 1;
                    if tally.wrong.examples.len() < EXAMPLES_MAX {
                        let nth = conversation.base as usize + offset;
                        tally.wrong.examples.push(format!("m{id}.{nth} acknowledged, never answered"));
                    }
                }
            }
        }
        tally
    }
}

impl Conversation {
    fn sent(&mut self, at_us: u64) -> u32 {
        let nth = self.base + self.open.len() as u32;
        let sent_ticks = (at_us / TICK_US) as u32;
        self.open.push_back(Open { sent_ticks, acknowledged: false, answered: false });
        nth
    }

    fn acknowledged(&mut self, nth: u32) -> u64 {
        if let Some(message) = nth.checked_sub(self.base).and_then(|n| self.open.get_mut(n as usize)) {
            message.acknowledged = true;
        }
        self.settle()
    }

    fn answered(&mut self, nth: u32) -> (Answer, u64) {
        let Some(offset) = nth.checked_sub(self.base) else { return (Answer::Again, 0) };
        let Some(message) = self.open.get_mut(offset as usize) else { return (Answer::NeverSent, 0) };
        if message.answered {
            return (Answer::Again, 0);
        }
        message.answered = true;
        let answer =
            Answer::First { sent_us: u64::from(message.sent_ticks) * TICK_US, late: nth < self.reached };
        self.reached = self.reached.max(nth + 1);
        (answer, self.settle())
    }

    /// Lets go of what is settled; how many that were.
    fn settle(&mut self) -> u64 {
        let mut left = 0;
        while self.open.front().is_some_and(|message| message.acknowledged && message.answered) {
            self.open.pop_front();
            self.base += 1;
            left += 1;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: fn(u32, u64) = |_, _| {};

    /// `count` messages of conversation `c`, sent and acknowledged.
    fn said(ledger: &Ledger, c: u32, count: u32) {
        for _ in 0..count {
            let nth = ledger.sent(c, 0);
            ledger.acknowledged(c, nth);
        }
    }

    fn reply(ledger: &Ledger, c: u32, text: &str) {
        let number = names::number(ledger.business(c));
        ledger.replied(&number, &names::customer(c), text, 0, NONE);
    }

    #[test]
    fn all_answered_once_and_in_order_is_clean_and_leaves_nothing_behind() {
        let ledger = Ledger::new(2, 2);
        said(&ledger, 0, 3);
        said(&ledger, 1, 1);
        reply(&ledger, 0, "m0.0\nm0.1");
        reply(&ledger, 1, "m1.0");
        reply(&ledger, 0, "m0.2");
        let tally = ledger.tally();
        assert_eq!((tally.sent, tally.acknowledged, tally.answered, tally.lost), (4, 4, 4, 0));
        assert_eq!(tally.wrong, Wrong::default());
        assert_eq!((ledger.open(), ledger.waiting()), (0, 0));
    }

    #[test]
    fn a_message_without_an_answer_is_lost() {
        let ledger = Ledger::new(1, 1);
        said(&ledger, 0, 3);
        reply(&ledger, 0, "m0.0\nm0.2");
        let tally = ledger.tally();
        assert_eq!((tally.lost, tally.answered), (1, 2));
        assert_eq!(tally.wrong.examples, ["m0.1 acknowledged, never answered"]);
    }

    #[test]
    fn what_got_no_200_is_not_lost() {
        let ledger = Ledger::new(1, 1);
        ledger.sent(0, 0);
        let tally = ledger.tally();
        assert_eq!((tally.sent, tally.acknowledged, tally.lost), (1, 0, 0));
    }

    #[test]
    fn a_second_answer_is_doubled_early_or_late() {
        let ledger = Ledger::new(1, 1);
        said(&ledger, 0, 2);
        reply(&ledger, 0, "m0.1");
        reply(&ledger, 0, "m0.1");
        reply(&ledger, 0, "m0.0");
        reply(&ledger, 0, "m0.0");
        let tally = ledger.tally();
        assert_eq!((tally.wrong.doubled, tally.wrong.out_of_order, tally.lost), (2, 1, 0));
    }

    #[test]
    fn an_answer_from_another_number_or_to_another_customer_is_a_stray_and_the_message_stays_lost() {
        let ledger = Ledger::new(2, 2);
        said(&ledger, 0, 1);
        ledger.replied(&names::number(1), &names::customer(0), "m0.0", 0, NONE);
        ledger.replied(&names::number(0), &names::customer(1), "m0.0", 0, NONE);
        let tally = ledger.tally();
        assert_eq!((tally.wrong.stray, tally.lost), (2, 1));
    }

    #[test]
    fn words_that_nobody_said_are_seen() {
        let ledger = Ledger::new(1, 1);
        for text in ["m0.0", "m7.0", "hello", ""] {
            reply(&ledger, 0, text);
        }
        assert_eq!(ledger.tally().wrong.unknown, 4);
        assert_eq!(ledger.tally().wrong.doubled, 0);
    }

    #[test]
    fn an_answer_may_come_before_the_200_was_read() {
        let ledger = Ledger::new(1, 1);
        let nth = ledger.sent(0, 1_000);
        let mut latency = 0;
        ledger.replied(&names::number(0), &names::customer(0), "m0.0", 4_000, |_, us| latency = us);
        assert_eq!((ledger.open(), latency), (1, 3_000));
        ledger.acknowledged(0, nth);
        assert_eq!(ledger.open(), 0);
        reply(&ledger, 0, "m0.0");
        assert_eq!(ledger.tally().wrong.doubled, 1);
    }

    proptest! {
        /// Any history of answers is judged as a plain list of them says.
        #[test]
        fn agrees_with_a_plain_list(count in 0_u32..40, answers in prop::collection::vec(0_u32..40, 0..80)) {
            let ledger = Ledger::new(1, 1);
            said(&ledger, 0, count);
            for nth in &answers {
                reply(&ledger, 0, &format!("m0.{nth}"));
            }
            let mut first = Vec::new();
            let (mut doubled, mut late, mut unknown) = (0, 0, 0);
            for nth in answers {
                if nth >= count {
                    unknown += 1;
                } else if first.contains(&nth) {
                    doubled += 1;
                } else {
                    late += u64::from(first.iter().any(|other| *other > nth));
                    first.push(nth);
                }
            }
            let tally = ledger.tally();
            prop_assert_eq!(tally.answered, first.len() as u64);
            prop_assert_eq!(tally.lost, u64::from(count) - first.len() as u64);
            let wrong = (tally.wrong.doubled, tally.wrong.out_of_order, tally.wrong.unknown);
            prop_assert_eq!(wrong, (doubled, late, unknown));
        }
    }
}
