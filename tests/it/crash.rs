//! What was answered 200 is never lost and never answered twice: kill -9, a failing store, a large backlog.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use whatsapp_webhook::sandbox::{Number, Options, Sandbox};
use whatsapp_webhook::secret::Secret;

use crate::harness::{self, APP_SECRET, SOON, Service, settings, until};

const NUMBER: &str = "106540352242922";

fn meta() -> Sandbox {
    super::coroutines();
    let number = Number {
        phone_number_id: NUMBER.to_owned(),
        waba_id: "1001".to_owned(),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new("the-token"),
    };
    let mut options = Options::new(Secret::new(APP_SECRET), vec![number]);
    options.redeliver_after = Duration::from_millis(20);
    options.keep = 300_000;
    Sandbox::start(options).expect("starts")
}

fn shop(folder: &std::path::Path, graph: &str, extra: &[(&str, &str)]) -> HashMap<String, String> {
    let fallback = [
        ("WHATSAPP_PHONE_NUMBER_ID", NUMBER),
        ("WHATSAPP_TOKEN", "the-token"),
        ("GRAPH_API_URL", graph),
        ("RUST_LOG", "warn"),
    ];
    settings(folder, &[&fallback, extra].concat())
}

/// How often each text went out; a merged turn's reply holds several, a line each.
fn heard(meta: &Sandbox) -> HashMap<String, usize> {
    let mut heard = HashMap::new();
    for sent in meta.sent() {
        for line in sent.text().expect("a text").lines() {
            *heard.entry(line.to_owned()).or_default() += 1;
        }
    }
    heard
}

fn reconcile(meta: &Sandbox, said: usize) {
    let heard = heard(meta);
    let lost: Vec<_> = (0..said).filter(|n| !heard.contains_key(&format!("text {n}"))).collect();
    let doubled: Vec<_> = heard.iter().filter(|(_, count)| **count > 1).collect();
    assert!(lost.is_empty() && doubled.is_empty(), "of {said}: lost {lost:?}, doubled {doubled:?}");
    assert_eq!(heard.len(), said);
    assert_eq!(meta.doubled(), 0);
    assert!(meta.violations().is_empty(), "{:?}", meta.violations());
}

#[test]
fn twenty_rounds_of_kill_9_under_load_lose_and_double_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let meta = Arc::new(meta());
    let settings = shop(folder.path(), &meta.url(), &[("SEND_SETTLE", "6s")]);
    let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let talking = std::thread::spawn({
        let (meta, stop, said) = (Arc::clone(&meta), Arc::clone(&stop), Arc::clone(&said));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let n = said.fetch_add(1, Ordering::Relaxed);
                meta.say(NUMBER, &format!("1650{:07}", n % 997), "N", &format!("text {n}"));
                std::thread::sleep(Duration::from_millis(3));
            }
        }
    });
    for round in 0..20 {
        let service = Service::start(&settings);
        meta.set_webhook_url(&service.url("/webhook"));
        let before = meta.sent_count();
        // kill it at another point of its work each time
        let pause = Duration::from_millis(150 + 37 * round);
        let begun = Instant::now();
        while begun.elapsed() < pause || meta.sent_count() == before {
            assert!(begun.elapsed() < SOON, "nothing is answered in round {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        service.kill();
    }
    stop.store(true, Ordering::Relaxed);
    talking.join().expect("no panic");
    let service = Service::start(&settings);
    meta.set_webhook_url(&service.url("/webhook"));
    assert!(meta.wait_quiet(Duration::from_secs(60)), "{:?}", meta.webhooks());
    until("nothing is pending", Duration::from_secs(60), || service.is_idle());
    reconcile(&meta, said.load(Ordering::Relaxed));
    assert!(service.stop().success());
}

#[test]
fn a_restart_with_a_backlog_of_100_000_is_quick_small_and_complete() {
    const BODIES: usize = 100;
    const EACH: usize = 1000;
    let folder = tempfile::tempdir().expect("a folder");
    let meta = meta();
    // an agent that is not there: everything waits
    let deaf = [
        ("AGENT", "http"),
        ("AGENT_URL", "http://127.0.0.1:9/"),
        ("AGENT_ATTEMPTS", "100"),
        ("MAX_TURNS", "20"),
    ];
    let service = Service::start(&shop(folder.path(), &meta.url(), &deaf));
    for body in 0..BODIES {
        let changes: Vec<String> = (0..EACH)
            .map(|n| {
                let n = body * EACH + n;
                // two messages each: their order shows in the merged reply
                let from = format!("49{:08}", n % (BODIES * EACH / 2));
                harness::change(NUMBER, &from, &format!("wamid.{n}"), &format!("text {n}"), harness::now())
            })
            .collect();
        assert_eq!(service.post(harness::envelope(&changes).as_bytes()), Some(200));
    }
    until("all is pending", SOON, || service.count("pending") == (BODIES * EACH) as u64);
    service.kill();

    let begun = Instant::now();
    // turns at once are bounded: a coroutine's stack in a debug build is four times that of a release
    let service = Service::start(&shop(folder.path(), &meta.url(), &[("MAX_TURNS", "500")]));
    until("ready", SOON, || service.get("/ready").0 == 200);
    let ready = begun.elapsed();
    assert!(ready < Duration::from_secs(5), "ready after {ready:?}");
    let mut largest = 0;
    until("all is answered", Duration::from_secs(240), || {
        largest = largest.max(resident_mib(service.pid()));
        std::thread::sleep(Duration::from_millis(50));
        service.is_idle()
    });
    reconcile(&meta, BODIES * EACH);
    for sent in meta.sent() {
        let text = sent.text().expect("a text");
        let numbers: Vec<u32> =
            text.lines().map(|l| l.strip_prefix("text ").expect("ours").parse().expect("a number")).collect();
        assert!(numbers.is_sorted(), "{text}");
    }
    assert!(largest < 400, "{largest} MiB resident");
    println!("ready after {ready:?}, at most {largest} MiB");
}

#[test]
fn a_reply_that_waits_for_a_connection_was_not_sent_and_goes_out_at_once_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    // it takes connections and never answers: the only one is the first read receipt's
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}", deaf.local_addr().expect("bound"));
    let extra = [("GRAPH_POOL_SIZE", "1"), ("SEND_SETTLE", "10m")];
    let settings = shop(folder.path(), &url, &extra);
    let service = Service::start(&settings);
    let at = harness::now();
    for n in 0..3 {
        let from = format!("1650555123{n}");
        let body = harness::message(NUMBER, &from, &format!("wamid.{n}"), &format!("text {n}"), at);
        assert_eq!(service.post(body.as_bytes()), Some(200));
    }
    until("all answers are stored", SOON, || {
        let status = harness::command(&settings).args(["inbox", "status"]).output().expect("runs");
        String::from_utf8_lossy(&status.stdout).contains("3 turn(s) with replies to send")
    });
    // long enough for one to be marked as being sent, were it marked before it waits
    std::thread::sleep(Duration::from_secs(1));
    service.kill();
    let meta = meta();
    let service = Service::start(&shop(folder.path(), &meta.url(), &extra));
    assert!(meta.wait_sent(3, SOON));
    until("nothing is pending", SOON, || service.is_idle());
    reconcile(&meta, 3);
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[test]
fn a_failed_commit_refuses_everything_and_ends_the_process_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let meta = meta();
    let settings = shop(folder.path(), &meta.url(), &[("SEND_SETTLE", "5s")]);
    let mut service = Service::start(&settings);
    meta.set_webhook_url(&service.url("/webhook"));
    let at = harness::now();
    let body =
        |n: usize| harness::message(NUMBER, "16505551234", &format!("wamid.{n}"), &format!("text {n}"), at);
    assert_eq!(service.post(body(0).as_bytes()), Some(200));
    assert!(meta.wait_sent(1, SOON));
    until("nothing is pending", SOON, || service.is_idle());
    // no file of the process may grow any more: the next commit fails
    let limited = std::process::Command::new("prlimit")
        .args(["--fsize=4096:4096", "--pid", &service.pid().to_string()])
        .status();
    assert!(limited.is_ok_and(|s| s.success()), "prlimit (util-linux) is needed");
    let answers: Vec<_> = (1..4).map(|n| service.post(body(n).as_bytes())).collect();
    assert!(!answers.contains(&Some(200)), "{answers:?}");
    let ended = service.ended(SOON).expect("it ends by itself");
    assert_eq!(ended.code(), Some(1));
    assert!(service.log().contains("the store failed"), "{}", service.log());

    let service = Service::start(&settings);
    meta.set_webhook_url(&service.url("/webhook"));
    for n in 0..4 {
        assert_eq!(service.post(body(n).as_bytes()), Some(200), "sent again, as Meta does");
    }
    assert!(meta.wait_sent(2, SOON));
    until("nothing is pending", SOON, || service.is_idle());
    reconcile(&meta, 4);
}

#[test]
fn a_second_server_on_one_folder_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = shop(folder.path(), "http://127.0.0.1:9", &[]);
    let _first = Service::start(&settings);
    let second = harness::command(&settings).arg("serve").output().expect("runs");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another whatsapp-webhook serves from it"), "{said}");
}

#[test]
fn serve_without_settings_names_every_missing_one_and_exits_64() {
    for command in ["serve", "check"] {
        let out =
            std::process::Command::new(harness::BINARY).arg(command).env_clear().output().expect("runs");
        assert_eq!(out.status.code(), Some(64), "{command}");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        for name in ["WHATSAPP_VERIFY_TOKEN", "WHATSAPP_APP_SECRET", "ENCRYPTION_SECRET"] {
            assert!(said.contains(name), "{command}: {said}");
        }
    }
    let wrong = std::process::Command::new(harness::BINARY).arg("no-such-command").output().expect("runs");
    assert_eq!(wrong.status.code(), Some(64));
}

#[test]
fn dev_answers_what_is_piped_in_and_leaves_nothing_behind() {
    use std::io::Write;
    let temp = tempfile::tempdir().expect("a folder");
    let mut child = std::process::Command::new(harness::BINARY)
        .arg("dev")
        .env_clear()
        .env("TMPDIR", temp.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(b"hello\n\nhow are you?\n").expect("written");
    let out = child.wait_with_output().expect("ends");
    assert!(out.status.success());
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("business: hello") && said.contains("business: how are you?"), "{said}");
    assert_eq!(std::fs::read_dir(temp.path()).expect("a folder").count(), 0, "its data folder is removed");
}

#[test]
fn a_store_that_is_removed_while_it_is_in_use_ends_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    let mut service = Service::start(&shop(&data, "http://127.0.0.1:9", &[]));
    let message =
        |n: u64| harness::message(NUMBER, "16505551234", &format!("wamid.{n}"), "hi", harness::now());
    assert_eq!(service.post(message(1).as_bytes()), Some(200));
    std::thread::sleep(Duration::from_secs(2));
    std::fs::remove_file(data.join(whatsapp_webhook::store::FILE)).expect("removed");
    let status = service.ended(2 * SOON).expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", service.log());
    assert!(service.log().contains("was removed or replaced"), "{}", service.log());
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    use std::io::{BufRead, BufReader, Write};
    let folder = tempfile::tempdir().expect("a folder");
    let settings = shop(folder.path(), "http://127.0.0.1:9", &[("RUST_LOG", "debug")]);
    let mut command = harness::command(&settings);
    command.arg("serve").current_dir(folder.path()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let address = loop {
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        if let Some(address) = line.strip_prefix("listening on http://") {
            break address.trim().parse::<std::net::SocketAddr>().expect("an address");
        }
    };
    // from here on nobody reads; each of these was a line of the HTTP crate's, and a pipe holds 64 KiB
    for _ in 0..3000 {
        let mut stream = std::net::TcpStream::connect(address).expect("connected");
        stream.write_all(b"GARBAGE\0\r\n\r\n").expect("written");
    }
    let health = harness::ask(address, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(health.map(|(status, _)| status), Some(200));
    let message = harness::message(NUMBER, "16505551234", "wamid.1", "hi", harness::now());
    let posted = harness::ask(address, &harness::signed(message.as_bytes(), APP_SECRET));
    assert_eq!(posted.map(|(status, _)| status), Some(200));
    let killed = std::process::Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.is_ok_and(|status| status.success()));
    let until = Instant::now() + Duration::from_secs(45);
    while child.try_wait().expect("waited").is_none() {
        assert!(Instant::now() < until, "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(lines);
}
