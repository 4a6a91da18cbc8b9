//! `doctor` against the real binary: what it finds right, what wrong, in which words, how fast; and that it changes
//! nothing and shows no secret.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use whatsapp_webhook::sandbox::{Calls, Fault, Number, Options, Sandbox, What};
use whatsapp_webhook::secret::Secret;

use crate::harness::{self, APP_SECRET, ENCRYPTION_SECRET, SOON, Service, add_business, message, now, until};

const TOKEN: &str = "EAAG-doctor-token";
/// What the whole command may take, whatever hangs.
const ALL: Duration = Duration::from_secs(30);

/// A simulated Graph API and an empty store.
struct Ward {
    meta: Sandbox,
    settings: HashMap<String, String>,
    folder: TempDir,
}

/// Exit code, the lines, and all that was said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// There is a line of that level and kind with this in it.
    pub fn has(&self, level: &str, what: &str, words: &str) -> &Self {
        let head = format!("{level:<4} {what:<8} ");
        let is_there = self.out.lines().any(|line| line.starts_with(&head) && line.contains(words));
        assert!(is_there, "no `{head}{words}` in\n{}{}", self.out, self.err);
        self
    }

    fn lacks(&self, words: &str) -> &Self {
        assert!(!self.out.contains(words), "{words} in\n{}", self.out);
        self
    }

    pub fn ends(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }
}

/// Runs it, and looks at what all runs have in common.
pub fn doctor(settings: &HashMap<String, String>, options: &[&str]) -> Said {
    let begun = Instant::now();
    let out = harness::command(settings).arg("doctor").args(options).output().expect("runs");
    assert!(begun.elapsed() < ALL, "{:?}", begun.elapsed());
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let said =
        Said { code: out.status.code().expect("a code"), out: text(out.stdout), err: text(out.stderr) };
    for secret in [TOKEN, APP_SECRET, ENCRYPTION_SECRET, "another-secret", "EAAG-wrong", "hunter2"] {
        assert!(!said.out.contains(secret) && !said.err.contains(secret), "a secret in\n{}", said.out);
    }
    if said.code != 64 {
        let lines: Vec<&str> = said.out.lines().collect();
        let (last, findings) = lines.split_last().expect("lines");
        let counted = |level: &str| findings.iter().filter(|line| line.starts_with(level)).count();
        let [ok, warn, fail, skip] = ["ok   ", "warn ", "FAIL ", "skip "].map(counted);
        assert_eq!(ok + warn + fail + skip, findings.len(), "{}", said.out);
        let count = format!("{ok} ok, {warn} to look at, {fail} wrong, {skip} not told from here");
        assert_eq!(*last, count);
        assert_eq!(said.code, i32::from(fail > 0), "{}", said.out);
        assert_eq!(said.err, "");
    }
    said
}

fn number(id: &str, token: &str) -> Number {
    Number {
        phone_number_id: id.to_owned(),
        waba_id: "1001".to_owned(),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(token),
    }
}

fn ward(numbers: &[&str]) -> Ward {
    super::coroutines();
    let folder = tempfile::tempdir().expect("a folder");
    let numbers = numbers.iter().map(|id| number(id, TOKEN)).collect();
    let meta = Sandbox::start(Options::new(Secret::new(APP_SECRET), numbers)).expect("starts");
    let settings = harness::settings(folder.path(), &[("GRAPH_API_URL", &meta.url())]);
    Ward { meta, settings, folder }
}

impl Ward {
    fn with(&self, extra: &[(&str, &str)]) -> HashMap<String, String> {
        let mut settings = self.settings.clone();
        settings.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        settings
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn all_is_right_beside_the_running_service_and_nothing_is_changed() {
    let ward = ward(&["106"]);
    add_business(&ward.settings, "cafe", "106", TOKEN, &[]);
    let listen = format!("127.0.0.1:{}", free_port());
    let settings = ward.with(&[("LISTEN", &listen)]);
    let service = Service::start(&settings);
    ward.meta.set_webhook_url(&service.url("/webhook"));
    let before = names(ward.folder.path());

    let said = doctor(&settings, &[]);
    said.ends(0)
        .has("ok", "config", "nothing is wrong")
        .has("ok", "store", "MiB are free")
        .has("ok", "store", "opens, version 2")
        .has("ok", "inbox", "0 pending")
        .has("ok", "business", "1 in all, 1 enabled and active, tokens of 1 open")
        .has("ok", "graph", "cafe 106: \"Simulated\", CONNECTED, quality GREEN")
        .has("ok", "agent", "echo")
        .has("ok", "files", "the running service may open")
        .has("ok", "service", &format!("answers at {listen} (process {} serves", service.pid()));
    assert!(said.out.lines().any(|line| line.contains(" clock    as Graph's")), "{}", said.out);
    // a busy machine may be slow to sync, and look as if it were something
    assert!(said.out.contains(" is on disk after ") || said.out.contains(" to be on disk"), "{}", said.out);

    assert_eq!(names(ward.folder.path()), before, "nothing is left behind");
    assert_eq!((ward.meta.sent_count(), ward.meta.reads().len()), (0, 0));
    assert!(ward.meta.violations().is_empty(), "{:?}", ward.meta.violations());
    // and the service goes on
    ward.meta.say("106", "16505551234", "A", "hello");
    assert!(ward.meta.wait_sent(1, SOON));
}

#[test]
fn an_empty_folder_is_looked_at_and_stays_empty() {
    let ward = ward(&[]);
    doctor(&ward.settings, &[])
        .ends(0)
        .has("ok", "store", "nothing is stored yet")
        .has("warn", "business", "`business add` adds one")
        .has("ok", "graph", "there is no number to look at")
        .has("skip", "service", "LISTEN has port 0");
    assert_eq!(names(ward.folder.path()), [""; 0]);
    let absent = ward.folder.path().join("a/b");
    let settings = ward.with(&[("DATA_DIR", absent.to_str().expect("a path"))]);
    doctor(&settings, &[]).ends(0).has("ok", "store", "is not there yet; `serve` makes it");
    assert!(!absent.exists());
}

#[test]
fn a_wrong_configuration_is_told_as_check_tells_it() {
    let ward = ward(&[]);
    let mut settings = ward.with(&[("LISTEN", "hunter2"), ("AGENT", "hunter2")]);
    settings.remove("WHATSAPP_APP_SECRET");
    let said = doctor(&settings, &[]);
    said.ends(64);
    let check = harness::command(&settings).arg("check").output().expect("runs");
    assert_eq!((said.out.as_str(), said.err.as_bytes()), ("", &*check.stderr));
    assert_eq!(said.err.lines().count(), 3, "{}", said.err);
    let said = doctor(&ward.settings, &["--url", "http://webhook.example.com"]);
    said.ends(64);
    assert!(said.err.starts_with("--url: must begin with https://"), "{}", said.err);
}

#[test]
fn a_token_that_does_not_open_is_wrong_and_one_of_the_old_secret_is_to_be_moved() {
    let ward = ward(&["106", "107"]);
    add_business(&ward.settings, "cafe", "106", TOKEN, &[]);
    let lost = ward.with(&[("ENCRYPTION_SECRET", "another-secret")]);
    doctor(&lost, &[])
        .ends(1)
        .has("FAIL", "business", "cafe: the access token can't be decrypted with this ENCRYPTION_SECRET")
        .has("FAIL", "business", "`business add --subdomain cafe` reads a new one")
        .has("ok", "business", "tokens of 0 open")
        .lacks("cafe 106");
    let rotating =
        ward.with(&[("ENCRYPTION_SECRET", "another-secret"), ("ENCRYPTION_SECRET_OLD", ENCRYPTION_SECRET)]);
    doctor(&rotating, &[])
        .ends(0)
        .has("warn", "business", "`key rotate` moves it")
        .has("ok", "graph", "cafe 106");

    // a disabled one keeps nobody waiting
    add_business(&ward.settings, "shut", "107", TOKEN, &["--disable"]);
    let said = doctor(&lost, &[]);
    said.has("FAIL", "business", "cafe: ").has("warn", "business", "shut: the access token can't");
}

#[test]
fn what_graph_says_of_a_number_comes_with_its_mend() {
    let ward = ward(&["106", "107", "108"]);
    add_business(&ward.settings, "cafe", "106", TOKEN, &[]);
    add_business(&ward.settings, "gone", "999", TOKEN, &[]);
    add_business(&ward.settings, "wrong", "107", "EAAG-wrong", &[]);
    add_business(&ward.settings, "bound", "108", TOKEN, &["--app", "other"]);
    let said = doctor(&ward.settings, &[]);
    said.ends(1)
        .has("ok", "graph", "cafe 106: ")
        .has("FAIL", "graph", "gone 999: graph_100 ")
        .has("FAIL", "graph", "is the phone_number_id right (Meta's id, not the number itself)")
        .has("FAIL", "graph", "wrong 107: graph_190 ")
        .has("FAIL", "graph", "store it: `business add --subdomain wrong`")
        .has("FAIL", "business", "bound: is bound to the app other");

    for (what, level, words) in [
        (What::Graph(190), "FAIL", "its token expired or was revoked"),
        (What::Graph(10), "warn", "whatsapp_business_management"),
        (What::Graph(4), "warn", "Meta was asked too often"),
        (What::Graph(368), "FAIL", "locked the account"),
        (What::Html500, "warn", "trouble of its own"),
        (What::Close, "warn", "had no answer"),
    ] {
        ward.meta.faults().add(Fault::always(what).calls(Calls::Looks).number("106"));
        let said = doctor(&ward.settings, &[]);
        said.has(level, "graph", words);
        assert!(said.out.lines().any(|line| line.contains("cafe 106: ") && line.contains(words)));
        ward.meta.faults().clear();
    }
}

#[test]
fn the_fallback_credentials_are_looked_at_unless_a_business_has_the_number() {
    let ward = ward(&["106"]);
    let settings = ward.with(&[("WHATSAPP_PHONE_NUMBER_ID", "106"), ("WHATSAPP_TOKEN", "EAAG-wrong")]);
    doctor(&settings, &[]).ends(1).has("FAIL", "graph", "WHATSAPP_PHONE_NUMBER_ID 106: graph_190").has(
        "FAIL",
        "graph",
        "set WHATSAPP_TOKEN",
    );
    add_business(&ward.settings, "cafe", "106", TOKEN, &[]);
    doctor(&settings, &[])
        .ends(0)
        .has("ok", "business", "WHATSAPP_TOKEN is not used")
        .has("ok", "graph", "cafe 106");
}

#[test]
fn a_graph_that_is_away_or_hangs_is_one_line_and_ends_in_time() {
    let ids: Vec<String> = (100..120).map(|n| n.to_string()).collect();
    let ward = ward(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    add_business(&ward.settings, "cafe", &ids.join(","), TOKEN, &[]);
    let away = ward.with(&[("GRAPH_API_URL", &format!("http://127.0.0.1:{}", free_port()))]);
    let said = doctor(&away, &[]);
    said.ends(1).has("FAIL", "graph", "no answer from GRAPH_API_URL").has("FAIL", "graph", "20 number(s)");
    said.has(if said.out.contains("skip clock") { "skip" } else { "warn" }, "clock", "no Date");
    assert_eq!(said.out.matches(" graph ").count(), 1, "{}", said.out);

    ward.meta.faults().add(Fault::always(What::StallMs(60_000)).calls(Calls::Looks));
    let begun = Instant::now();
    doctor(&ward.settings, &[]).ends(1).has("FAIL", "graph", "timed out");
    assert!(begun.elapsed() < Duration::from_secs(15), "eight calls are enough: {:?}", begun.elapsed());
}

#[test]
fn above_fifty_numbers_the_others_are_looked_at_when_asked_to() {
    let ids: Vec<String> = (100..160).map(|n| n.to_string()).collect();
    let ward = ward(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    add_business(&ward.settings, "cafe", &ids.join(","), TOKEN, &[]);
    let said = doctor(&ward.settings, &[]);
    said.ends(0).has("skip", "graph", "10 more number(s) were not looked at; `doctor --all`");
    assert_eq!(said.out.matches("ok   graph ").count(), 50);
    let said = doctor(&ward.settings, &["--all"]);
    said.ends(0).lacks("--all");
    assert_eq!(said.out.matches("ok   graph ").count(), 60);
}

#[test]
fn a_folder_that_can_not_be_and_a_store_that_can_not_be_read_are_wrong() {
    let ward = ward(&[]);
    let file = ward.folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let below = file.join("data");
    let settings = ward.with(&[("DATA_DIR", below.to_str().expect("a path"))]);
    doctor(&settings, &[]).ends(1).has("FAIL", "store", "file is not a folder; set another DATA_DIR");

    let store = ward.folder.path().join(whatsapp_webhook::store::FILE);
    std::fs::write(&store, "this is no store at all, but it is longer than a header would be".repeat(99))
        .expect("written");
    doctor(&ward.settings, &[]).ends(1).has("FAIL", "store", "PRAGMA integrity_check");
    std::fs::remove_file(&store).expect("removed");
    let newer = whatsapp_webhook::store::open(ward.folder.path()).expect("opens");
    newer.pragma_update(None, "user_version", 99).expect("set");
    doctor(&ward.settings, &[]).ends(1).has("FAIL", "store", "version 99 is newer than this program");
}

#[test]
fn items_that_wait_for_a_hand_are_counted_by_reason() {
    let ward = ward(&["106"]);
    let service = Service::start(&ward.settings);
    for n in 0..3 {
        let body = message("106", "16505551234", &format!("wamid.{n}"), "hello", now());
        assert_eq!(service.post(body.as_bytes()), Some(200));
    }
    // they are in memory before they are in their table
    let mut said = doctor(&ward.settings, &[]);
    until("all are dead", SOON, || {
        said = doctor(&ward.settings, &[]);
        said.out.contains("3 dead: ")
    });
    said.ends(0)
        .has("warn", "inbox", "3 dead: 3 no_business; `inbox list --state dead`")
        .lacks("16505551234");
}

#[test]
fn files_that_root_left_behind_are_told_of() {
    let ward = ward(&[]);
    add_business(&ward.settings, "cafe", "106", TOKEN, &["--disable"]);
    // only root can give a folder away; who is not root leaves no such files either
    if std::os::unix::fs::chown(ward.folder.path(), Some(65_534), None).is_ok() {
        let said = doctor(&ward.settings, &[]);
        said.ends(1).has("FAIL", "store", "whatsapp-webhook.db: it belongs to user 0; chown 65534 it");
    }
}

/// Answers every request with this `Date`, or with nothing but a greeting of another program.
fn stub(head: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}");
        }
    });
    port
}

#[test]
fn a_clock_that_is_off_is_told_by_how_much_it_is() {
    let ward = ward(&[]);
    for (behind, level) in [(90, "warn"), (3600, "FAIL")] {
        let date = SystemTime::now() - Duration::from_secs(behind);
        let port = stub(format!("Date: {}\r\n", httpdate::fmt_http_date(date)));
        let settings = ward.with(&[("GRAPH_API_URL", &format!("http://127.0.0.1:{port}"))]);
        doctor(&settings, &[]).has(level, "clock", "s ahead of Graph's").has(level, "clock", "timedatectl");
    }
}

#[test]
fn the_agents_host_is_connected_to_and_asked_for_nothing() {
    let ward = ward(&[]);
    let agent = whatsapp_webhook::sandbox::openai::OpenAi::start(None).expect("starts");
    let settings = ward.with(&[("AGENT", "openai"), ("AGENT_MODEL", "m"), ("AGENT_URL", &agent.url())]);
    doctor(&settings, &[]).ends(0).has("ok", "agent", "takes connections");
    assert_eq!(agent.calls(), 0);
    let away = format!("http://127.0.0.1:{}/bot", free_port());
    let settings = ward.with(&[("AGENT", "http"), ("AGENT_URL", &away)]);
    doctor(&settings, &[]).ends(1).has("FAIL", "agent", "AGENT_URL can't be reached: 127.0.0.1: ");
    let plain = format!("https://127.0.0.1:{}/bot", stub(String::new()));
    let settings = ward.with(&[("AGENT", "http"), ("AGENT_URL", &plain)]);
    doctor(&settings, &[]).ends(1).has("FAIL", "agent", "127.0.0.1: received corrupt message");
}

#[test]
fn the_machine_is_measured_by_the_settings() {
    let ward = ward(&[]);
    let listen = format!("127.0.0.1:{}", stub(String::new()));
    let settings = ward.with(&[
        ("LISTEN", &listen),
        ("MAX_CONNECTIONS", "1000000"),
        ("INBOX_RETENTION", "1d"),
        ("WHATSAPP_ALLOW_UNSIGNED", "true"),
    ]);
    doctor(&settings, &[])
        .ends(1)
        .has("warn", "config", "INBOX_RETENTION is below 7 days")
        .has("warn", "config", "ANYONE CAN POST")
        .has("warn", "files", "set LimitNOFILE=1000776 in the unit")
        .has("FAIL", "service", &format!("another program answers at {listen} (HTTP 200)"));
    let settings = ward.with(&[("LISTEN", &format!("0.0.0.0:{}", free_port()))]);
    doctor(&settings, &["--url", &format!("https://127.0.0.1:{}", free_port())])
        .ends(1)
        .has("warn", "service", "LISTEN is 0.0.0.0")
        .has("warn", "service", "nothing answers at")
        .has("FAIL", "front", "the public address: GET 127.0.0.1: ");
}
