//! MongoDB frozen, killed, not there at the start: no webhook fails, who is known is answered, the others are as soon
//! as it is back.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::json;
use whatsapp_webhook::failure::Verdict;

use super::failover::business;
use super::ferretdb::Ferretdb;
use super::original::Original;
use super::peer::{Peer, Reaction};
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

#[test]
fn while_it_is_frozen_and_hundreds_wait_who_is_known_is_answered_at_once_and_all_are_soon_after() {
    const WAITING: u64 = 700;
    let database = Ferretdb::start();
    // a few businesses with many numbers each: this server reads all documents for every number
    let numbers: Vec<String> = (0..=WAITING).map(|n| (FIRST + n).to_string()).collect();
    let businesses = numbers.chunks(50).enumerate();
    let documents: Vec<_> = businesses
        .map(|(n, of)| json!({"subDomain": format!("biz{n}"), "whatsappPhoneNumberIds": of, "token": "same"}))
        .collect();
    Original::new(&database.uri()).write(&documents);
    let numbers: Vec<(&str, &str)> = numbers.iter().map(|n| (n.as_str(), "same")).collect();
    let world = world(&database.uri(), &numbers, &[("WARMUP_CACHE", "false")]);
    post(&world, 0, "0");
    assert!(world.meta.wait_sent(1, SOON));
    database.freeze();
    // two messages each, of two customers
    for n in 1..=WAITING {
        post(&world, n, &format!("1000{n}"));
        post(&world, n, &format!("2000{n}"));
    }
    std::thread::sleep(Duration::from_secs(2));
    let mut known = 1;
    for n in 0..12 {
        let asked = Instant::now();
        post(&world, 0, &format!("3000{n}"));
        known += 1;
        until("who is known is answered", Duration::from_secs(1), || world.meta.sent_count() == known);
        std::thread::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed()));
    }
    assert_eq!(world.errors("what is known is served"), 1, "{}", world.service.log());
    database.thaw();
    let thawed = Instant::now();
    let all = known + 2 * WAITING;
    assert!(world.meta.wait_sent(all, SOON), "{} of {all}", world.meta.sent_count());
    eprintln!("all of {WAITING} numbers answered {:?} after the thaw", thawed.elapsed());
    until("nothing is pending", SOON, || world.service.is_idle());
    assert_eq!((world.meta.sent_count(), world.meta.doubled()), (all, 0));
    assert!(world.meta.violations().is_empty(), "{:?}", world.meta.violations());
    assert_eq!(world.told("business store: it answers"), 2, "{}", world.service.log());
}

/// An agent that fails each time: how often it was asked.
fn failing_agent() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 16 << 10];
            if stream.read(&mut request).is_ok_and(|n| n > 0) {
                count.fetch_add(1, SeqCst);
                let head = "HTTP/1.1 500 Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
            }
        }
    });
    (url, asked)
}

#[test]
fn an_outage_takes_none_of_the_agents_attempts() {
    let peer = Peer::start();
    peer.always("find", Reaction::Error(13, "Unauthorized", &[]));
    let (url, asked) = failing_agent();
    let extra = [
        ("AGENT", "http"),
        ("AGENT_URL", &*url),
        ("AGENT_ATTEMPTS", "3"),
        ("AGENT_FALLBACK_TEXT", "later"),
        ("WARMUP_CACHE", "false"),
    ];
    let world = world(&peer.uri(), &[("5000", "token-0")], &extra);
    post(&world, 0, "100");
    until("tried four times", 2 * SOON, || {
        let (_, text) = world.service.get("/metrics/prometheus");
        let retried = r#"turns_total{outcome="retried"}"#;
        let line = text.lines().find(|line| line.contains(retried));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).is_some_and(|n| n >= 4)
    });
    assert_eq!(asked.load(SeqCst), 0);
    let mut business = business(5000);
    business.insert("whatsappAccessToken", "token-0");
    peer.put(business);
    peer.heal();
    world.settles_with(&["later"]);
    assert_eq!(asked.load(SeqCst), 3);
}
