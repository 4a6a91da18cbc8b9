//! The whole way: signed webhook in, reply out, with the real binary between the simulated Meta's two sides.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use whatsapp_webhook::sandbox::openai::{Fault as AgentFault, OpenAi};
use whatsapp_webhook::sandbox::{Fault, Number, Options, Sandbox, What};
use whatsapp_webhook::secret::Secret;

use crate::harness::{self, APP_SECRET, SOON, Service, add_business, settings, until};

const SHOP: &str = "106540352242922";
const BANK: &str = "277321005464405";
const ANNA: &str = "16505551234";
const BERT: &str = "4915112345678";

struct World {
    meta: Sandbox,
    service: Service,
    settings: HashMap<String, String>,
    _folder: TempDir,
}

fn number(id: &str, token: &str) -> Number {
    Number {
        phone_number_id: id.to_owned(),
        waba_id: format!("waba-{id}"),
        display_phone_number: "15550783881".to_owned(),
        token: Secret::new(token),
    }
}

fn meta() -> Sandbox {
    meta_with(|_| {})
}

fn meta_with(change: impl FnOnce(&mut Options)) -> Sandbox {
    super::coroutines();
    let mut options =
        Options::new(Secret::new(APP_SECRET), vec![number(SHOP, "shop-token"), number(BANK, "bank-token")]);
    options.redeliver_after = Duration::from_millis(50);
    change(&mut options);
    Sandbox::start(options).expect("starts")
}

fn businesses(folder: &Path, graph: &str, extra: &[(&str, &str)]) -> HashMap<String, String> {
    let with_graph = [&[("GRAPH_API_URL", graph), ("SEND_SETTLE", "2s")], extra].concat();
    let settings = settings(folder, &with_graph);
    add_business(&settings, "shop", SHOP, "shop-token", &[]);
    add_business(&settings, "bank", BANK, "bank-token", &[]);
    settings
}

fn world(extra: &[(&str, &str)]) -> World {
    world_of(meta(), extra)
}

fn world_of(meta: Sandbox, extra: &[(&str, &str)]) -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = businesses(folder.path(), &meta.url(), extra);
    let service = Service::start(&settings);
    meta.set_webhook_url(&service.url("/webhook"));
    World { meta, service, settings, _folder: folder }
}

impl World {
    fn texts(&self) -> Vec<String> {
        self.meta.sent().iter().map(|s| s.text().expect("a text")).collect()
    }

    /// Every webhook has its 200, nothing is pending, and exactly these texts went out.
    fn settles_with(&self, texts: &[&str]) {
        assert!(self.meta.wait_sent(texts.len() as u64, SOON), "sent: {:?}", self.texts());
        assert!(self.meta.wait_quiet(SOON));
        until("nothing is pending", SOON, || self.service.is_idle());
        assert_eq!(self.texts(), texts);
        assert_eq!(self.meta.doubled(), 0);
        assert!(self.meta.violations().is_empty(), "{:?}", self.meta.violations());
    }

    fn inbox(&self, arguments: &[&str]) -> String {
        let out = harness::command(&self.settings).arg("inbox").args(arguments).output().expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }

    fn clear_cache(&self) {
        let request = b"POST /admin/cache/clear HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(harness::ask(self.service.address, request).map(|(status, _)| status), Some(200));
    }

    /// Waits until an item of that state and reason is counted.
    fn has(&self, state: &str, reason: &str) {
        until(&format!("{state} {reason}"), SOON, || {
            self.inbox(&["status"]).lines().any(|line| line.starts_with(state) && line.contains(reason))
        });
    }
}

#[test]
fn a_message_is_read_and_answered_with_the_businesss_own_token() {
    let world = world(&[]);
    let wamid = world.meta.say(SHOP, ANNA, "Anna", "hello ä 👍");
    world.settles_with(&["hello ä 👍"]);
    let sent = &world.meta.sent()[0];
    assert_eq!((sent.phone_number_id.as_str(), sent.to.as_str()), (SHOP, ANNA));
    let reply_id = sent.biz_opaque_callback_data.clone().expect("our reply id");
    let read = &world.meta.reads()[0];
    assert_eq!(read.message_id, wamid);
    assert!(read.at <= sent.at, "the typing indicator comes before the reply");
    let path = world.inbox(&["inspect", &wamid]);
    assert!(path.contains("sent") && path.contains(&sent.wamid), "{path}");
    assert!(world.inbox(&["inspect", &reply_id]).contains(&sent.wamid));
    assert!(world.inbox(&["inspect", ANNA]).contains(&sent.wamid));
    assert!(world.service.stop().success());
}

#[test]
fn two_businesses_in_one_post_are_answered_each_with_its_own_token() {
    let world = world(&[]);
    let incoming = [
        world.meta.incoming(SHOP, ANNA, "Anna", "to the shop"),
        world.meta.incoming(BANK, BERT, "Bert", "to the bank"),
        world.meta.incoming(SHOP, BERT, "Bert", "to the shop too"),
    ];
    world.meta.post_raw(world.meta.compose(&incoming));
    assert!(world.meta.wait_sent(3, SOON));
    until("nothing is pending", SOON, || world.service.is_idle());
    let mut sent: Vec<_> = world
        .meta
        .sent()
        .iter()
        .map(|s| (s.phone_number_id.clone(), s.to.clone(), s.text().expect("a text")))
        .collect();
    sent.sort();
    let expected =
        [(SHOP, ANNA, "to the shop"), (SHOP, BERT, "to the shop too"), (BANK, BERT, "to the bank")];
    assert_eq!(sent, expected.map(|(n, to, text)| (n.to_owned(), to.to_owned(), text.to_owned())));
    assert!(
        world.meta.violations().is_empty(),
        "a token of the wrong number is one: {:?}",
        world.meta.violations()
    );
}

#[test]
fn a_duplicate_gets_one_reply() {
    let world = world(&[]);
    let body = world.meta.compose(&[world.meta.incoming(SHOP, ANNA, "Anna", "once")]);
    for _ in 0..3 {
        assert_eq!(world.service.post(&body), Some(200));
    }
    world.settles_with(&["once"]);
    assert_eq!(world.service.post(&body), Some(200));
    std::thread::sleep(Duration::from_millis(300));
    world.settles_with(&["once"]);
}

#[test]
fn what_is_no_message_to_us_is_kept_and_never_answered() {
    let world = world(&[("REPLY_MAX_AGE", "1h")]);
    let old = harness::message(SHOP, ANNA, "wamid.old", "too old", harness::now() - 4000);
    let reaction = world
        .meta
        .incoming(SHOP, ANNA, "Anna", "x")
        .with_content(r#""type":"reaction","reaction":{"message_id":"wamid.a","emoji":"👍"}"#);
    let echo = old
        .replace("\"field\":\"messages\"", "\"field\":\"smb_message_echoes\"")
        .replace("wamid.old", "wamid.e");
    let odd = br#"{"object":"page","entry":[{"id":"1","changes":[{"field":"feed","value":{}}]}]}"#;
    for body in [
        old.into_bytes(),
        world.meta.compose(&[reaction]),
        echo.into_bytes(),
        odd.to_vec(),
        b"no json".to_vec(),
    ] {
        assert_eq!(world.service.post(&body), Some(200), "{}", String::from_utf8_lossy(&body));
    }
    world.meta.say(SHOP, ANNA, "Anna", "now");
    world.settles_with(&["now"]);
    world.has("kept", "too_old");
    let status = world.inbox(&["status"]);
    for kind in ["reaction", "other_field", "unparsed"] {
        assert!(status.lines().any(|l| l.starts_with("kept") && l.contains(kind)), "{status}");
    }
}

#[test]
fn an_unknown_number_waits_for_its_business_and_a_replay() {
    let world = world(&[]);
    world.meta.add_number(number("999", "late-token"));
    world.meta.say("999", ANNA, "Anna", "is anybody there?");
    world.has("dead", "no_business");
    add_business(&world.settings, "late", "999", "late-token", &[]);
    world.clear_cache();
    assert!(world.inbox(&["replay", "--reason", "no_business"]).contains("1 item"));
    world.settles_with(&["is anybody there?"]);
}

#[test]
fn a_business_is_reached_only_through_its_own_app() {
    let two = format!("main={APP_SECRET},other=other-secret");
    let world = world(&[("WHATSAPP_APP_SECRET", &two)]);
    add_business(&world.settings, "strict", "999", "strict-token", &["--app", "other"]);
    world.meta.add_number(number("999", "strict-token"));
    world.clear_cache();
    let body = |wamid: &str, text: &str| harness::message("999", ANNA, wamid, text, harness::now());
    let post =
        |body: String, secret| harness::ask(world.service.address, &harness::signed(body.as_bytes(), secret));
    assert_eq!(post(body("wamid.1", "through main"), APP_SECRET).map(|a| a.0), Some(200));
    world.has("kept", "wrong_app");
    assert_eq!(post(body("wamid.2", "through other"), "other-secret").map(|a| a.0), Some(200));
    world.settles_with(&["through other"]);
}

#[test]
fn the_openai_agent_remembers_retries_and_falls_back() {
    let agent = {
        super::coroutines();
        OpenAi::start(Some(Secret::new("agent-key"))).expect("starts")
    };
    let world = world(&[
        ("AGENT", "openai"),
        ("AGENT_URL", &agent.url()),
        ("AGENT_API_KEY", "agent-key"),
        ("AGENT_MODEL", "m"),
        ("AGENT_PROMPT", "Be kind."),
        ("AGENT_ATTEMPTS", "2"),
        ("AGENT_FALLBACK_TEXT", "Somebody will call you."),
    ]);
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "first", SOON);
    world.settles_with(&["You said: first"]);
    agent.fault(AgentFault::Status(500, None));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "second", SOON);
    world.settles_with(&["You said: first", "You said: second"]);
    let asked = agent.requests().last().expect("asked").messages.clone();
    let words: Vec<_> = asked.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
    assert_eq!(
        words,
        [("system", "Be kind."), ("user", "first"), ("assistant", "You said: first"), ("user", "second")]
    );
    agent.fault(AgentFault::Status(500, None));
    agent.fault(AgentFault::Status(500, None));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "third", SOON);
    world.settles_with(&["You said: first", "You said: second", "Somebody will call you."]);
    let asked = agent.requests().len();
    agent.fault(AgentFault::Body(r#"{"choices":[]}"#.to_owned()));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "fourth", SOON);
    world.settles_with(&[
        "You said: first",
        "You said: second",
        "Somebody will call you.",
        "Somebody will call you.",
    ]);
    assert_eq!(agent.requests().len(), asked + 1, "asking again would bring the same");
    assert_eq!(agent.bad(), 0);
}

#[test]
fn graph_limits_hold_and_go_on() {
    let world = world(&[]);
    world.meta.faults().add(Fault::next(1, What::Graph(131_056)));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "pair", SOON);
    world.settles_with(&["pair"]);
    world.meta.faults().add(Fault::next(1, What::Graph(130_429)));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "number", SOON);
    world.settles_with(&["pair", "number"]);
    world.meta.faults().add(Fault::next(1, What::Graph(131_026)));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "undeliverable", SOON);
    world.has("dead", "graph_131026");
    world.settles_with(&["pair", "number"]);
}

#[test]
fn an_expired_token_holds_its_business_until_it_gets_a_new_one() {
    let world = world(&[]);
    world.meta.add_number(number(SHOP, "new-token"));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "kept waiting", SOON);
    until("the shop is held", SOON, || world.inbox(&["status"]).contains("graph_190"));
    world.meta.say_and_wait(BANK, BERT, "Bert", "not held", SOON);
    assert!(world.meta.wait_sent(1, SOON));
    assert_eq!(world.texts(), ["not held"]);
    add_business(&world.settings, "shop", SHOP, "new-token", &[]);
    world.clear_cache();
    assert!(world.meta.wait_sent(2, SOON));
    assert_eq!(world.texts(), ["not held", "kept waiting"]);
    until("nothing is pending", SOON, || world.service.is_idle());
}

/// Whoever waits behind it would wait for ever too.
#[test]
fn replies_of_a_business_whose_token_is_unusable_are_given_up_when_they_are_too_old() {
    let folder = tempfile::tempdir().expect("a folder");
    // nobody is there to take the replies
    let settings = businesses(folder.path(), "http://127.0.0.1:9", &[]);
    let service = Service::start(&settings);
    for (from, wamid) in [(ANNA, "wamid.anna"), (BERT, "wamid.bert")] {
        let body = harness::message(SHOP, from, wamid, "hello", harness::now());
        assert_eq!(service.post(body.as_bytes()), Some(200));
    }
    let status = |settings: &HashMap<String, String>| {
        let out = harness::command(settings).args(["inbox", "status"]).output().expect("runs");
        String::from_utf8(out.stdout).expect("text")
    };
    until("both are answered", SOON, || status(&settings).contains("2 turn(s) with replies to send"));
    assert!(service.stop().success());
    std::thread::sleep(Duration::from_secs(2));
    let mut unusable = settings.clone();
    unusable.insert("ENCRYPTION_SECRET".to_owned(), "not the one of the tokens".to_owned());
    unusable.insert("REPLY_MAX_AGE".to_owned(), "1s".to_owned());
    let service = Service::start(&unusable);
    until("both are given up", SOON, || status(&unusable).contains("0 turn(s) with replies to send"));
    until("nothing is pending", SOON, || service.is_idle());
    assert_eq!(service.count("dead"), 2);
    assert!(status(&unusable).lines().any(|line| line.starts_with("dead") && line.contains("too_old")));
}

#[test]
fn a_send_of_unknown_outcome_waits_for_its_status_and_is_not_doubled() {
    let world = world(&[("SEND_SETTLE", "5s"), ("GRAPH_TIMEOUT", "1s")]);
    let mut texts: Vec<&str> = Vec::new();
    for (what, text) in [
        (What::AcceptThenReset, "accepted, then reset"),
        (What::AcceptThen500, "accepted, then 500"),
        (What::AcceptThenHalf, "accepted, half an answer"),
    ] {
        world.meta.faults().add(Fault::next(1, what));
        world.meta.say_and_wait(SHOP, ANNA, "Anna", text, SOON);
        texts.push(text);
        world.settles_with(&texts);
    }
}

#[test]
fn a_status_that_comes_after_the_wait_and_before_the_next_try_keeps_it_from_being_made() {
    // after SEND_SETTLE the next try is half a second away at least
    let meta = meta_with(|options| options.status_delay = Duration::from_millis(250));
    let world = world_of(meta, &[("SEND_SETTLE", "100ms")]);
    world.meta.faults().add(Fault::next(1, What::AcceptThen500));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "once", SOON);
    world.settles_with(&["once"]);
    std::thread::sleep(Duration::from_secs(2));
    world.settles_with(&["once"]);
    assert!(world.service.log().contains("no status names reply"), "{}", world.service.log());
}

#[test]
fn a_send_that_never_was_goes_out_after_the_wait() {
    let world = world(&[("SEND_SETTLE", "1s"), ("GRAPH_TIMEOUT", "1s")]);
    let mut texts: Vec<&str> = Vec::new();
    for (what, text) in [
        (What::Reset, "reset before"),
        (What::Close, "closed before"),
        (What::Html500, "a 500"),
        (What::Graph(131_000), "131000"),
        (What::StallMs(3000), "silence"),
    ] {
        world.meta.faults().add(Fault::next(1, what));
        world.meta.say_and_wait(SHOP, ANNA, "Anna", text, SOON);
        texts.push(text);
        world.settles_with(&texts);
    }
}

#[test]
fn a_reply_that_graph_refuses_with_code_1_is_sent_once_more_and_no_more() {
    let world = world(&[("SEND_SETTLE", "1s")]);
    world.meta.faults().add(Fault::next(1, What::Graph(1)));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "refused once", SOON);
    world.settles_with(&["refused once"]);
    world.meta.faults().add(Fault::next(2, What::Graph(1)));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "refused twice", SOON);
    world.has("dead", "graph_1 ");
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "the next one", SOON);
    world.settles_with(&["refused once", "the next one"]);
}

#[test]
fn calls_reuse_their_connections() {
    let world = world(&[]);
    for n in 0..30 {
        world.meta.say_and_wait(SHOP, &format!("1650555{n:04}"), "Anna", "hello", SOON);
        assert!(world.meta.wait_sent(n + 1, SOON));
    }
    until("nothing is pending", SOON, || world.service.is_idle());
    assert!(
        world.meta.connections() <= 6,
        "{} connections for 60 calls one after the other",
        world.meta.connections()
    );
}

#[test]
fn a_drain_finishes_the_turn_that_runs_and_leaves_the_rest_for_the_next_start() {
    let agent = {
        super::coroutines();
        OpenAi::start(None).expect("starts")
    };
    agent.fault(AgentFault::DelayMs(800));
    let world = world(&[("AGENT", "openai"), ("AGENT_URL", &agent.url()), ("AGENT_MODEL", "m")]);
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "slow", SOON);
    until("the agent is asked", SOON, || agent.calls() > 0);
    assert!(world.service.stop().success());
    assert_eq!(
        world.meta.sent().iter().filter_map(whatsapp_webhook::sandbox::Sent::text).collect::<Vec<_>>(),
        ["You said: slow"]
    );
}

#[test]
fn logs_show_no_token_no_text_and_no_number() {
    let world = world(&[("WHATSAPP_ALLOW_UNSIGNED", "true")]);
    world.meta.faults().add(Fault::next(1, What::Graph(131_026)));
    world.meta.say_and_wait(SHOP, ANNA, "Anna", "my secret text", SOON);
    world.has("dead", "graph_131026");
    world.meta.say_and_wait(SHOP, BERT, "Bert", "another text", SOON);
    world.settles_with(&["another text"]);
    let log = world.service.log();
    for secret in [
        "shop-token",
        "secret text",
        "another text",
        ANNA,
        BERT,
        SHOP,
        APP_SECRET,
        harness::ENCRYPTION_SECRET,
    ] {
        assert!(!log.contains(secret), "{secret} in:\n{log}");
    }
    assert!(log.contains("ANYONE CAN POST"), "{log}");
    assert!(log.contains("graph_131026"), "{log}");
}

#[test]
fn no_metric_is_declared_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, text) = Service::start(&settings(folder.path(), &[])).get("/metrics/prometheus");
    let mut names: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 50, "{text}");
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn a_person_is_found_by_either_of_two_ids() {
    let world = world(&[]);
    let with_user_id = |body: String| {
        body.replace("\"type\":\"text\"", "\"from_user_id\":\"US.77\",\"type\":\"text\"")
            .replace("\"recipient_id\"", "\"recipient_user_id\":\"US.88\",\"recipient_id\"")
    };
    let status = format!(
        r#"{{"value":{{"metadata":{{"phone_number_id":"{SHOP}"}},"statuses":[{{"id":"wamid.s","status":"read","timestamp":"{}","recipient_id":"{BERT}"}}]}},"field":"messages"}}"#,
        harness::now()
    );
    let message = harness::message(SHOP, ANNA, "wamid.both", "hello", harness::now());
    for body in [message, harness::envelope(&[status])] {
        assert_eq!(world.service.post(with_user_id(body).as_bytes()), Some(200));
    }
    world.settles_with(&["hello"]);
    world.has("kept", "status");
    for (id, kind) in [(ANNA, "message"), ("US.77", "message"), (BERT, "status"), ("US.88", "status")] {
        until(id, SOON, || world.inbox(&["inspect", id]).contains(&format!("  {kind}  ")));
    }
}

#[test]
fn a_wamid_names_the_message_to_put_back() {
    let world = world(&[]);
    world.meta.add_number(number("999", "late-token"));
    let wamid = world.meta.say("999", ANNA, "Anna", "is anybody there?");
    world.has("dead", "no_business");
    add_business(&world.settings, "late", "999", "late-token", &[]);
    world.clear_cache();
    assert!(world.inbox(&["replay", "wamid.unknown"]).starts_with("0 item"));
    assert!(world.inbox(&["replay", &wamid, &wamid]).starts_with("1 item"));
    world.settles_with(&["is anybody there?"]);
    assert!(world.inbox(&["replay", &wamid]).starts_with("0 item"), "it is sent");
}
