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
const RULE: Rule = Rule { least: 32, most: 1_000, per_second: 20_000, window: 6, window_per_second: 16_000 };
/// As much as all windows together.
const FULL: Rule = Rule { least: 6 * NUMBERS as usize + 64, ..RULE };
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
            places.take(number, false, NOW) && places.give(number, NOW).is_empty()
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
    (0..2).for_each(|number| assert!(places.give(number, NOW).is_empty()));
    for number in 0..NUMBERS {
        (0..RULE.window).for_each(|_| assert!(places.take(number, false, NOW), "within its window"));
        places.wait(number, false, number, NOW);
    }
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
            assert_eq!(places.give(number, NOW).len(), 1, "to the one that waits");
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
