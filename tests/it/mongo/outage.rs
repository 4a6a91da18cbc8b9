//! MongoDB frozen, killed, not there at the start: no webhook fails, who is known is answered, the others are as soon
//! as it is back.

use std::time::{Duration, Instant};

use whatsapp_webhook::failure::Verdict;

use super::ferretdb::Ferretdb;
use super::original::Original;
use super::proxy::{Mode, Proxy};
use super::{World, directory, world};
use crate::harness::{SOON, message, now, until};

const FIRST: u64 = 5000;

fn numbers(count: u64) -> Vec<(String, String)> {
    (0..count).map(|n| ((FIRST + n).to_string(), format!("token-{n}"))).collect()
}

fn ten(database: &Ferretdb, uri: &str, extra: &[(&str, &str)]) -> World {
    Original::new(&database.uri()).many(10, FIRST);
    let numbers = numbers(10);
    let numbers: Vec<(&str, &str)> = numbers.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    world(uri, &numbers, extra)
}

/// Posts a message to the number `n` and has its 200.
fn post(world: &World, n: u64, text: &str) {
    let body =
        message(&(FIRST + n).to_string(), &format!("49151{text}"), &format!("wamid.{text}"), text, now());
    assert_eq!(world.service.post(body.as_bytes()), Some(200), "{text}");
}

/// Numbers 0 to 4 are known, 5 to 9 are not. Away for `seconds` under load.
fn away(seconds: u64, leave: impl FnOnce(&mut Ferretdb), come_back: impl FnOnce(&mut Ferretdb)) {
    let mut database = Ferretdb::start();
    // the time to live is over before the outage is
    let world = ten(&database, &database.uri(), &[("WARMUP_CACHE", "false"), ("BUSINESS_CACHE_TTL", "2")]);
    for n in 0..5 {
        post(&world, n, &format!("0{n}"));
    }
    assert!(world.meta.wait_sent(5, SOON));
    leave(&mut database);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut known, mut unknown) = (0, 0);
    while Instant::now() < end {
        let n = (known + unknown) % 10;
        post(&world, n, &format!("{}", 100 + known + unknown));
        if n < 5 {
            known += 1
        } else {
            unknown += 1
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    world.database_is("disconnected", SOON);
    until("who is known is answered meanwhile", SOON, || world.meta.sent_count() >= 5 + known);
    assert!(
        world.meta.sent().iter().all(|sent| sent.phone_number_id.parse::<u64>().expect("digits") < FIRST + 5)
    );
    come_back(&mut database);
    world.database_is("healthy", SOON);
    assert!(
        world.meta.wait_sent(5 + known + unknown, 4 * SOON),
        "{} of {}",
        world.meta.sent_count(),
        5 + known + unknown
    );
    until("nothing is pending", SOON, || world.service.is_idle());
    assert_eq!((world.meta.sent_count(), world.meta.doubled()), (5 + known + unknown, 0));
    assert!(world.meta.violations().is_empty(), "{:?}", world.meta.violations());
}

#[test]
fn killed_under_load_no_webhook_fails_and_all_are_answered() {
    away(8, Ferretdb::kill, Ferretdb::restart);
}

#[test]
fn frozen_under_load_no_webhook_fails_and_all_are_answered() {
    away(8, |database| database.freeze(), |database| database.thaw());
}

#[test]
#[ignore = "takes two minutes: the same for 60 s each, run with --ignored"]
fn sixty_seconds_of_either() {
    away(60, Ferretdb::kill, Ferretdb::restart);
    away(60, |database| database.freeze(), |database| database.thaw());
}

#[test]
fn a_start_without_it_is_ready_and_recovers_by_itself() {
    let mut database = Ferretdb::start();
    Original::new(&database.uri()).many(10, FIRST);
    database.kill();
    let numbers = numbers(1);
    let numbers: Vec<(&str, &str)> = numbers.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let world = world(&database.uri(), &numbers, &[]);
    until("ready", SOON, || world.service.get("/ready").0 == 200);
    let (status, health) = world.service.get("/health");
    assert!(status == 200 && health.contains(r#""status":"healthy""#), "{health}");
    assert!(health.contains(r#""database":"disconnected""#), "{health}");
    post(&world, 0, "100");
    until("it is told", SOON, || world.errors("no server of MONGODB_URI can be reached") == 1);
    database.restart();
    world.database_is("healthy", SOON);
    world.settles_with(&["100"]);
    until("warmed up", SOON, || world.told("businesses loaded into the cache") == 1);
}

#[test]
fn a_frozen_server_holds_nobody_beyond_the_deadline() {
    let database = Ferretdb::start();
    Original::new(&database.uri()).many(1, FIRST);
    let proxy = Proxy::start(database.address);
    let directory = directory(&proxy.uri());
    directory.check();
    proxy.set(Mode::Freeze);
    let asked = Instant::now();
    let failure = directory.by_number(&FIRST.to_string()).expect_err("frozen");
    assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
    assert!(matches!(failure.verdict, Verdict::Retry { .. }), "{failure:?}");
    proxy.set(Mode::Pass);
    until("it is found again", SOON, || directory.by_number(&FIRST.to_string()).is_ok());
}
