//! What it costs a turn or a call of Graph to take a place and give it back, with 20 numbers that have some: at once, and
//! handed from one to the next that waits.

use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::time::Duration;

use whatsapp_webhook::turnstile::places::{Places, Rule};

use crate::judge::Band;
use crate::pair::{Case, Pairs};

const NUMBERS: u64 = 20;
const NOW: Duration = Duration::from_secs(1);
const RULE: Rule = Rule { least: 32, most: 1_000, per_second: 20_000, window: 2, window_per_second: 4_000 };
/// More than all windows together, which are three times as wide with so many numbers.
const FULL: Rule = Rule { least: 4 * 2 * NUMBERS as usize, ..RULE };
const AT_ONCE: Band = Band(2.0, 5.0);
const HANDED_ON: Band = Band(5.0, 12.0);

/// All of them.
pub fn bench(pairs: &mut Pairs) {
    let mut places: Places<u64> = Places::new(RULE);
    (0..NUMBERS).for_each(|number| assert!(places.take(number, false, NOW), "the first of its number"));
    let mut counts: HashMap<u64, usize> = (0..NUMBERS).map(|number| (number, 1)).collect();
    let mut next = numbers();
    let mut next_of_floor = numbers();
    pairs.calls(
        Case { group: "turnstile", name: "at once", per: 1, floor: "a count in a HashMap", band: AT_ONCE },
        || {
            let number = black_box(next());
            let taken = places.take(number, false, NOW);
            places.give(number, NOW);
            taken && !places.has_next()
        },
        || {
            let number = black_box(next_of_floor());
            *counts.entry(number).or_default() += 1;
            counts.get_mut(&number).map(|count| *count -= 1)
        },
    );
    // every number has all that it may have, and one waits: each place that is given back goes to the next
    let mut places: Places<u64> = Places::new(FULL);
    (0..2).for_each(|number| assert!(places.take(number, false, NOW), "so that nobody is alone"));
    (0..2).for_each(|number| places.give(number, NOW));
    // round by round, since windows grow with the numbers
    while (0..NUMBERS).filter(|number| places.take(*number, false, NOW)).count() > 0 {}
    (0..NUMBERS).for_each(|number| places.wait(number, false, number, NOW));
    assert!(!places.has_next(), "all have what they may have");
    let mut queues: HashMap<u64, VecDeque<u64>> =
        (0..NUMBERS).map(|number| (number, VecDeque::from([number]))).collect();
    let mut next = numbers();
    let mut next_of_floor = numbers();
    pairs.calls(
        Case {
            group: "turnstile",
            name: "handed on",
            per: 1,
            floor: "a queue in a HashMap",
            band: HANDED_ON,
        },
        || {
            let number = black_box(next());
            places.wait(number, false, number, NOW);
            places.give(number, NOW);
            assert_eq!(places.hand_out(NOW).len(), 1, "to the one that waits");
        },
        || {
            let number = black_box(next_of_floor());
            let queue = queues.entry(number).or_default();
            queue.push_back(number);
            queue.pop_front()
        },
    );
}

/// One number after the other.
fn numbers() -> impl FnMut() -> u64 {
    let mut at = 0;
    move || {
        at = (at + 1) % NUMBERS;
        at
    }
}
