//! The dispatcher on real coroutines between an inbox in memory and runners that sleep, fail, hold and panic.

mod world;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
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
    let is_over = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&is_over);
    let dispatcher = world.start(11_000, move |world, job| {
        while !waits.load(SeqCst) {
            clock::sleep(Duration::from_millis(500));
        }
        world.answer(job)
    });
    for chunk in 0..100 {
        world.offer(&(0..100).map(|n| (1, chunk * 100 + n)).collect::<Vec<_>>());
    }
    // none of them ends before all have begun
    wait_until("all run at once", || dispatcher.gauges().running == 10_000);
    let started = clock::monotonic();
    is_over.store(true, SeqCst);
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
    // a panic takes its time where its backtrace is printed: the pauses between two tries are cut short until it is over
    wait_until("the answer to the other message", || {
        dispatcher.wake_all();
        world.answered() > 0
    });
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
