//! The agents against a real server over HTTP: what they ask, byte for byte, and what every kind of answer comes to.

#![allow(clippy::disallowed_methods, reason = "tests wait on threads and measure time")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use whatsapp_webhook::agent::{self, Agent, Answer, Ask};
use whatsapp_webhook::config::{self, AgentKind};
use whatsapp_webhook::event::{Business, Customer, Message, Recipient, Role, Said};
use whatsapp_webhook::failure::{Failure, Source, Verdict};
use whatsapp_webhook::secret::Secret;

const API_KEY: &str = "agent-api-key";
const WORDS: &str = "what the customer said";

/// One request as it came.
#[derive(Clone, Debug)]
struct Seen {
    connection: usize,
    line: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let first = all.next();
        assert_eq!(all.next(), None, "{name} twice");
        first
    }
}

/// What the server does with every request.
#[derive(Clone, Debug)]
enum Say {
    Answer(u16, &'static str, String),
    /// Nothing, and keeps the connection.
    Nothing,
    /// Half of an answer, then closes.
    Half,
}

struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn start(say: Say) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (say, log) = (say.clone(), Arc::clone(&log));
                std::thread::spawn(move || serve(stream.expect("a connection"), connection, &say, &log));
            }
        });
        Self { url, seen }
    }

    fn only_request(&self) -> Seen {
        let seen = self.seen.lock();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

fn serve(mut stream: TcpStream, connection: usize, say: &Say, log: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a clone"));
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).expect("a header");
            let header = header.strip_suffix("\r\n").expect("CRLF");
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(": ").expect("a header line");
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut seen = Seen { connection, line: line.trim_end().to_owned(), headers, body: String::new() };
        assert_eq!(seen.header("transfer-encoding"), None);
        let length = seen.header("content-length").expect("a length").parse().expect("a number");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the body");
        seen.body = String::from_utf8(body).expect("UTF-8");
        log.lock().push(seen);
        match say {
            Say::Answer(status, headers, body) => {
                // 204 has no length
                let length = if *status == 204 {
                    String::new()
                } else {
                    format!("Content-Length: {}\r\n", body.len())
                };
                let answer = format!("HTTP/1.1 {status} Status\r\n{length}{headers}\r\n{body}");
                // a caller may stop reading what is too large
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Say::Nothing => {}
            Say::Half => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"text\":").expect("sent");
                return;
            }
        }
    }
}

fn config(kind: AgentKind, url: &str) -> config::Agent {
    config::Agent {
        kind,
        url: Some(url.to_owned()),
        api_key: Some(Secret::new(API_KEY)),
        model: Some("a-model".to_owned()),
        prompt: Some("Be kind.".to_owned()),
        timeout: Duration::from_secs(5),
        attempts: 4,
        fallback_text: None,
        history: 20,
        history_max_age: Duration::from_secs(30 * 24 * 3600),
    }
}

fn message(kind: &str, text: Option<&str>, raw: &str) -> Message {
    Message {
        wamid: "wamid.1".to_owned(),
        timestamp: 1,
        kind: kind.to_owned(),
        conversation: "16505551234".to_owned(),
        reply_to: Recipient::Phone("16505551234".to_owned()),
        customer: Customer::default(),
        phone_number_id: "106".to_owned(),
        text: text.map(str::to_owned),
        raw: RawValue::from_string(raw.to_owned()).expect("JSON"),
    }
}

/// Spaces, escapes and an order of keys that nothing would write again.
const RAW: &str =
    r#"{ "type":"text",  "text":{"body":"caf\u00e9 \/ \ud83d\ude00"}, "id" : "wamid.1","new":[ 1.0 ] }"#;

fn two_messages() -> Vec<Message> {
    vec![
        message("text", Some(WORDS), RAW),
        message("image", Some("a caption"), r#"{"type":"image","image":{"id":"7"}}"#),
        message("location", None, r#"{"type":"location"}"#),
    ]
}

fn said(role: Role, content: &str) -> Said {
    Said { role, content: content.to_owned() }
}

fn history() -> Vec<Said> {
    vec![said(Role::User, "before"), said(Role::Assistant, "yes?")]
}

/// One attempt, on a coroutine, as a turn makes it.
fn ask(config: &config::Agent, messages: Vec<Message>, history: Vec<Said>) -> Result<Answer, Failure> {
    super::coroutines();
    let agent = agent::build(config).expect("an agent");
    attempt(&agent, messages, history)
}

fn attempt(agent: &Arc<dyn Agent>, messages: Vec<Message>, history: Vec<Said>) -> Result<Answer, Failure> {
    let agent = Arc::clone(agent);
    let turn = may::go!(move || {
        let business = Business {
            id: "1".to_owned(),
            name: "The Shop".to_owned(),
            sub_domain: "shop".to_owned(),
            waba_id: "2".to_owned(),
            phone_number_ids: vec!["106".to_owned()],
            meta_app: None,
            token: Secret::new("graph-token"),
        };
        let customer = Customer {
            wa_id: Some("16505551234".to_owned()),
            user_id: None,
            name: Some("Ada \"the first\"".to_owned()),
        };
        agent.answer(&Ask {
            turn_id: "turn-0001",
            session: "shop:16505551234",
            business: &business,
            phone_number_id: "106",
            customer: &customer,
            messages: &messages,
            history: &history,
        })
    });
    turn.join().expect("no panic")
}

/// The texts of an answer's messages.
fn texts(answer: &Answer) -> Vec<String> {
    let text = |raw: &RawValue| {
        let body: Value = serde_json::from_str(raw.get()).expect("JSON");
        assert_eq!(body["type"], "text");
        body["text"]["body"].as_str().expect("a text").to_owned()
    };
    answer.replies.iter().map(|raw| text(raw)).collect()
}

fn completion(content: &Value) -> String {
    json!({"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":content},"finish_reason":"length"}]})
        .to_string()
}

/// What one answer of the server comes to.
fn outcome(kind: AgentKind, say: Say) -> Result<Vec<String>, Failure> {
    let server = Server::start(say);
    let answer = ask(&config(kind, &server.url), two_messages(), history());
    assert_eq!(server.seen.lock().len(), 1, "one attempt is one request");
    if let Err(failure) = &answer {
        assert_eq!(failure.source, Source::Agent);
        let shown = format!("{failure} {failure:?}");
        for secret in [API_KEY, "graph-token", WORDS, "16505551234", "secret answer"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    answer.map(|answer| texts(&answer))
}

fn verdict(kind: AgentKind, say: Say) -> (Verdict, String) {
    let failure = outcome(kind, say).expect_err("a failure");
    (failure.verdict, failure.reason.as_str().to_owned())
}

const AGAIN: Verdict = Verdict::Retry { after: None };
const REMOTE: [AgentKind; 2] = [AgentKind::OpenAi, AgentKind::Http];

#[test]
fn echo_joins_a_turn_into_one_reply_and_splits_what_is_too_long() {
    let config = config(AgentKind::Echo, "");
    let answer = ask(&config, two_messages(), Vec::new()).expect("an answer");
    assert_eq!(texts(&answer), [format!("{WORDS}\na caption\n[location]")]);
    assert!(answer.remember.is_empty());

    let long: Vec<Message> =
        ["a", "b", "c"].iter().map(|c| message("text", Some(&c.repeat(4000)), "{}")).collect();
    let answer = ask(&config, long, Vec::new()).expect("an answer");
    assert_eq!(texts(&answer), ["a", "b", "c"].map(|c| c.repeat(4000)));

    let endless = vec![message("text", Some(&"x".repeat(1_000_000)), "{}")];
    assert_eq!(ask(&config, endless, Vec::new()).expect("an answer").replies.len(), 20);
}

#[test]
fn a_model_is_asked_with_prompt_memory_and_the_turn_and_is_not_told_who_writes() {
    let server = Server::start(Say::Answer(200, "", completion(&json!("hello"))));
    let answer = ask(&config(AgentKind::OpenAi, &server.url), two_messages(), history()).expect("an answer");
    let seen = server.only_request();
    assert_eq!(seen.line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(seen.header("authorization"), Some("Bearer agent-api-key"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    let heard = format!("{WORDS}\n[image] a caption\n[location]");
    let expected = json!({"model": "a-model", "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": heard},
    ]});
    assert_eq!(serde_json::from_str::<Value>(&seen.body).expect("JSON"), expected);
    assert_eq!(texts(&answer), ["hello"]);
    assert_eq!(answer.remember, [said(Role::User, &heard), said(Role::Assistant, "hello")]);
}

#[test]
fn a_prompt_has_a_bounded_size_whatever_was_said() {
    let server = Server::start(Say::Answer(200, "", completion(&json!("x".repeat(20_000)))));
    let long = vec![message("text", Some(&format!("{}the end", "é".repeat(500_000))), "{}")];
    let memory: Vec<Said> =
        (0..200).map(|n| said(Role::User, &format!("{n} {}", "y".repeat(7_000)))).collect();
    let answer = ask(&config(AgentKind::OpenAi, &server.url), long, memory).expect("an answer");
    let seen = server.only_request();
    assert!(seen.body.len() < 70_000, "{}", seen.body.len());
    assert!(seen.body.contains("the end") && seen.body.contains("199 y") && !seen.body.contains("150 y"));
    assert!(answer.remember.iter().all(|line| line.content.chars().count() <= 8_000));
}

#[test]
fn the_operators_bot_gets_exactly_what_meta_sent() {
    let server = Server::start(Say::Answer(200, "", r#"{"text":"hello"}"#.to_owned()));
    let answer = ask(&config(AgentKind::Http, &server.url), two_messages(), history()).expect("an answer");
    let seen = server.only_request();
    assert_eq!(seen.line, "POST /v1 HTTP/1.1");
    assert_eq!(seen.header("authorization"), Some("Bearer agent-api-key"));
    assert_eq!(seen.header("idempotency-key"), Some("turn-0001"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert!(seen.body.contains(RAW), "{}", seen.body);
    let expected = json!({
        "session": "shop:16505551234",
        "business": {"name": "The Shop", "subDomain": "shop", "phone_number_id": "106"},
        "customer": {"wa_id": "16505551234", "name": "Ada \"the first\""},
        "messages": [
            serde_json::from_str::<Value>(RAW).expect("JSON"),
            {"type": "image", "image": {"id": "7"}},
            {"type": "location"},
        ],
        "history": [{"role": "user", "content": "before"}, {"role": "assistant", "content": "yes?"}],
    });
    assert_eq!(serde_json::from_str::<Value>(&seen.body).expect("JSON"), expected);
    assert_eq!(texts(&answer), ["hello"]);
    let heard = format!("{WORDS}\na caption\n[location]");
    assert_eq!(answer.remember[1], said(Role::Assistant, "hello"));
    assert!(answer.remember[0].content.starts_with(WORDS), "{heard}");
}

#[test]
fn without_a_key_there_is_no_authorization() {
    for kind in REMOTE {
        let server = Server::start(Say::Answer(
            200,
            "",
            r#"{"text":"a","choices":[{"message":{"content":"a"}}]}"#.into(),
        ));
        let config = config::Agent { api_key: None, prompt: None, ..config(kind, &server.url) };
        ask(&config, two_messages(), Vec::new()).expect("an answer");
        assert_eq!(server.only_request().header("authorization"), None);
    }
}

#[test]
fn a_bots_messages_are_passed_on_as_they_are() {
    let body = r#"{"messages":[{"type":"text","text":{"body":"one"}},{ "type":"image", "image":{"link":"https:\/\/x"}}]}"#;
    let server = Server::start(Say::Answer(200, "", body.to_owned()));
    let answer = ask(&config(AgentKind::Http, &server.url), two_messages(), Vec::new()).expect("an answer");
    let raw: Vec<&str> = answer.replies.iter().map(|reply| reply.get()).collect();
    assert_eq!(
        raw,
        [r#"{"type":"text","text":{"body":"one"}}"#, r#"{ "type":"image", "image":{"link":"https:\/\/x"}}"#]
    );
    assert_eq!(answer.remember[1].content, "one", "of other types there is nothing to remember");
}

#[test]
fn no_reply_is_an_answer_too() {
    let none: [String; 0] = [];
    assert_eq!(outcome(AgentKind::Http, Say::Answer(204, "", String::new())), Ok(none.to_vec()));
    for body in [r#"{"messages":[]}"#, r#"{"text":""}"#, r#"{"text":" \n "}"#] {
        assert_eq!(
            outcome(AgentKind::Http, Say::Answer(200, "", body.to_owned())),
            Ok(none.to_vec()),
            "{body}"
        );
    }
    assert_eq!(outcome(AgentKind::OpenAi, Say::Answer(200, "", completion(&json!("")))), Ok(none.to_vec()));
}

#[test]
fn long_texts_are_split_in_order() {
    let text = (0..3).map(|n| format!("{n} ").repeat(1500).trim().to_owned()).collect::<Vec<_>>();
    let joined = json!(text.join("\n\n"));
    assert_eq!(outcome(AgentKind::OpenAi, Say::Answer(200, "", completion(&joined))), Ok(text.clone()));
    assert_eq!(outcome(AgentKind::Http, Say::Answer(200, "", json!({"text": joined}).to_string())), Ok(text));
    for kind in REMOTE {
        let endless = "x".repeat(1_000_000);
        let body = json!({"text": endless, "choices": [{"message": {"content": endless}}]}).to_string();
        assert_eq!(verdict(kind, Say::Answer(200, "", body)), (Verdict::Dead, "agent_bad_answer".to_owned()));
    }
}

#[test]
fn a_server_in_trouble_is_asked_again_and_one_that_refuses_is_not() {
    for kind in REMOTE {
        let of = |status, headers| verdict(kind, Say::Answer(status, headers, "secret answer".to_owned()));
        for status in [500, 502, 503, 504, 529] {
            assert_eq!(of(status, ""), (AGAIN, format!("agent_http_{status}")));
        }
        let seconds = |n| Verdict::Retry { after: Some(Duration::from_secs(n)) };
        assert_eq!(of(503, "Retry-After: 7\r\n"), (seconds(7), "agent_http_503".to_owned()));
        assert_eq!(of(500, "Retry-After: 999999999\r\n").0, seconds(3600));
        for odd in
            ["Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n", "Retry-After: -1\r\n", "Retry-After: \r\n"]
        {
            assert_eq!(of(503, odd).0, AGAIN, "{odd}");
        }
        for status in [301, 307, 400, 401, 403, 404, 422] {
            assert_eq!(of(status, ""), (Verdict::Dead, format!("agent_http_{status}")));
        }
    }
    let limited = Say::Answer(429, "Retry-After: 2\r\n", String::new());
    let wish = Verdict::Retry { after: Some(Duration::from_secs(2)) };
    assert_eq!(verdict(AgentKind::OpenAi, limited), (wish, "agent_http_429".to_owned()));
}

#[test]
fn a_server_that_stalls_breaks_off_or_is_away_is_asked_again() {
    for kind in REMOTE {
        let server = Server::start(Say::Nothing);
        let config = config::Agent { timeout: Duration::from_millis(300), ..config(kind, &server.url) };
        let begun = Instant::now();
        let failure = ask(&config, two_messages(), Vec::new()).expect_err("a timeout");
        assert_eq!((failure.verdict, failure.reason.as_str()), (AGAIN, "agent_timeout"), "{failure}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

        assert_eq!(verdict(kind, Say::Half), (AGAIN, "agent_unreachable".to_owned()));

        let away = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let failure =
            ask(&super::agents::config(kind, &format!("http://{away}")), two_messages(), Vec::new())
                .expect_err("nobody there");
        assert_eq!((failure.verdict, failure.reason.as_str()), (AGAIN, "agent_unreachable"), "{failure}");
    }
}

#[test]
fn an_answer_that_cannot_be_used_is_dead_and_says_why() {
    let deep = "[".repeat(1_000_000);
    let dead = |kind, body: &str, why: &str| {
        let failure = outcome(kind, Say::Answer(200, "", body.to_owned())).expect_err("unusable");
        let shown = &body[..body.len().min(80)];
        assert_eq!(
            (failure.verdict, failure.reason.as_str()),
            (Verdict::Dead, "agent_bad_answer"),
            "{shown}"
        );
        assert!(failure.detail.contains(why), "{shown}: {failure}");
    };
    let long = "x".repeat(4097);
    let twenty_one = vec![r#"{"type":"text","text":{"body":"a"}}"#; 21].join(",");
    for (body, why) in [
        ("", "neither"),
        ("secret answer", "neither"),
        ("{}", "neither"),
        ("[]", "neither"),
        ("null", "neither"),
        (r#"{"text":1}"#, "neither"),
        (r#"{"messages":{}}"#, "neither"),
        (deep.as_str(), "neither"),
        (&format!(r#"{{"messages":[{deep}"#), "neither"),
        (r#"{"messages":["secret answer"]}"#, "messages[0]"),
        (r#"{"messages":[{"type":"text","text":{"body":"a"}},{"type":"nothing"}]}"#, "messages[1]"),
        (
            &format!(r#"{{"messages":[{{"type":"text","text":{{"body":"{long}"}}}}]}}"#),
            "text.body is above the limit of 4096",
        ),
        (&format!(r#"{{"messages":[{twenty_one}]}}"#), "more than 20"),
    ] {
        dead(AgentKind::Http, body, why);
    }
    for (body, why) in [
        ("", "no chat completion"),
        ("<html>secret answer", "no chat completion"),
        (r#"{"error":{"message":"secret answer"}}"#, "choices[0]"),
        (r#"{"choices":[]}"#, "choices[0]"),
        (r#"{"choices":[{"message":{"content":null,"refusal":"secret answer"}}]}"#, "refused"),
        (r#"{"choices":[{"message":{"content":null,"tool_calls":[{"id":"1"}]}}]}"#, "tool call"),
        (r#"{"choices":[{"message":{"content":{"a":1}}}]}"#, "no text"),
        (&format!(r#"{{"choices":[{{"message":{{"content":{deep}"#), "no chat completion"),
    ] {
        dead(AgentKind::OpenAi, body, why);
    }
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    for kind in REMOTE {
        let huge = format!(r#"{{"text":"{}"}}"#, "x".repeat(20 << 20));
        let failure = outcome(kind, Say::Answer(200, "", huge)).expect_err("too large");
        assert_eq!(failure.verdict, AGAIN, "{failure}");
    }
}

#[test]
fn attempts_share_a_connection() {
    super::coroutines();
    let server = Server::start(Say::Answer(200, "", r#"{"text":"a"}"#.to_owned()));
    let agent = agent::build(&config(AgentKind::Http, &server.url)).expect("an agent");
    for _ in 0..5 {
        attempt(&agent, two_messages(), Vec::new()).expect("an answer");
    }
    let connections: Vec<usize> = server.seen.lock().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0; 5]);
}

#[test]
fn the_fallback_text_is_an_answer_that_is_not_remembered() {
    let answer = agent::fallback("We will come back to you.");
    assert_eq!(texts(&answer), ["We will come back to you."]);
    assert!(answer.remember.is_empty());
}
