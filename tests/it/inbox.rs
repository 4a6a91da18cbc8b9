//! The embedded inbox by itself, with a toy format: `m <conversation> <id> <seconds>` is a message, `s <reply id>
//! <status>` a status, lines of a body its items.

mod late;
mod states;
mod stored;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use whatsapp_webhook::clock;
use whatsapp_webhook::event::{Item, ItemId, Kind, Path, Recipient, Role, Said, hash64};
use whatsapp_webhook::failure::Reason;
use whatsapp_webhook::inbox::embedded::{Embedded, Tuning};
use whatsapp_webhook::inbox::{
    Evidence, Feed, Inbox, Keep, NewTurn, OpenTurn, Parser, Position, Refusal, ReplyState, State, StatusSaid,
    Work,
};
use whatsapp_webhook::store;

use crate::harness::bodies_in;

const NUMBER: u64 = 77;
const TOY: Parser = Parser {
    items,
    keys: |body, wanted| wanted.iter().map(|(kind, path)| key(body, *kind, *path)).collect(),
    statuses,
};

fn items(body: &[u8], out: &mut Vec<Item>) {
    let text = String::from_utf8_lossy(body);
    for (n, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let path = Path { entry: 0, change: 0, index: n as u32 };
        out.push(match words[..] {
            // every id that begins with `same` has one hash
            ["m", conversation, id, at] => Item {
                kind: Kind::Message,
                path,
                timestamp: at.parse().expect("seconds"),
                key: hash64(&[if id.starts_with("same") { b"same" } else { id.as_bytes() }]),
                number: NUMBER,
                conversation: hash64(&[conversation.as_bytes()]),
            },
            ["s", reply, id] => Item {
                kind: Kind::Status,
                path,
                timestamp: 1,
                key: hash64(&[if id.starts_with("same") { b"same" } else { line.as_bytes() }]),
                number: NUMBER,
                conversation: hash64(&[reply.as_bytes()]),
            },
            _ => panic!("not the toy format: {line}"),
        });
    }
}

fn key(body: &[u8], _: Kind, path: Path) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(body).ok()?;
    text.lines().nth(path.index as usize)?.split(' ').nth(2).map(|id| id.as_bytes().to_vec())
}

fn statuses(body: &[u8], paths: &[Path]) -> Vec<Option<StatusSaid>> {
    paths.iter().map(|path| status(body, *path)).collect()
}

fn status(body: &[u8], path: Path) -> Option<StatusSaid> {
    let text = std::str::from_utf8(body).ok()?;
    let words: Vec<&str> = text.lines().nth(path.index as usize)?.split(' ').collect();
    let failed = words[2].trim_matches('"').strip_prefix("failed").map(|_| 131_026);
    Some(StatusSaid {
        wamid: "wamid.S".to_owned(),
        callback_data: Some(words[1].to_owned()),
        phone_number_id: String::new(),
        failed,
    })
}

struct Collect(Sender<Work>);

impl Feed for Collect {
    fn offer(&self, works: Vec<Work>) {
        works.into_iter().for_each(|work| drop(self.0.send(work)));
    }

    fn rewind(&self) {}
}

fn open(folder: &std::path::Path) -> (Arc<Embedded>, Receiver<Work>) {
    let inbox = Embedded::open(folder, Duration::from_secs(3600), TOY, |detail| panic!("poisoned: {detail}"))
        .expect("opens");
    let (send, received) = channel();
    inbox.feed(Arc::new(Collect(send)));
    (inbox, received)
}

fn put(inbox: &Embedded, body: &str) {
    put_from(inbox, 0, body);
}

fn put_from(inbox: &Embedded, home: usize, body: &str) {
    let mut ticket = inbox.ticket(home);
    ticket.body().extend_from_slice(body.as_bytes());
    let (body, list) = ticket.body_and_items();
    items(body, list);
    ticket.append(0).expect("accepted");
}

fn next(received: &Receiver<Work>) -> Work {
    received.recv_timeout(Duration::from_secs(5)).expect("a work is offered")
}

fn nothing_more(received: &Receiver<Work>) {
    assert!(received.recv_timeout(Duration::from_millis(300)).is_err(), "nothing more is offered");
}

fn text(work: &Work) -> String {
    let body = String::from_utf8_lossy(&work.body);
    body.lines().nth(work.position.path.index as usize).expect("a line").to_owned()
}

fn answer(inbox: &Embedded, work: &Work, texts: &[&str]) -> OpenTurn {
    store_answer(inbox, work, texts, false)
}

fn store_answer(inbox: &Embedded, work: &Work, texts: &[&str], is_sending: bool) -> OpenTurn {
    let body = |t: &&str| serde_json::value::to_raw_value(t).expect("json");
    let turn = NewTurn {
        items: vec![work.id],
        number: work.number,
        conversation: work.conversation,
        phone_number_id: "1".to_owned(),
        to: Recipient::Phone("16505551234".to_owned()),
        session: "shop:16505551234".to_owned(),
        replies: texts.iter().map(body).collect(),
        remember: vec![
            Said { role: Role::User, content: text(work) },
            Said { role: Role::Assistant, content: texts.join(" ") },
        ],
        history_max: 4,
        is_sending,
    };
    inbox.answered(turn).expect("stored")
}

fn state_of(folder: &std::path::Path, id: ItemId) -> u8 {
    let connection = store::open_read_only(folder).expect("opens");
    connection
        .query_row(
            "SELECT state FROM items WHERE timestamp = ?1 AND key = ?2",
            [id.timestamp as i64, id.key as i64],
            |r| r.get(0),
        )
        .expect("the item is there")
}

#[test]
fn a_duplicate_is_accepted_and_not_offered_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100");
    put(&inbox, "m anna a1 100");
    put(&inbox, "m anna a2 100\nm anna a1 100");
    assert_eq!(text(&next(&received)), "m anna a1 100");
    assert_eq!(text(&next(&received)), "m anna a2 100");
    nothing_more(&received);
    assert_eq!(inbox.counts().pending, 2);
}

#[test]
fn two_keys_of_one_hash_are_two_items() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna same1 100");
    put(&inbox, "m anna same2 100");
    put(&inbox, "m anna same1 100\nm anna same2 100");
    let (one, two) = (next(&received), next(&received));
    assert_eq!(text(&one), "m anna same1 100");
    assert_eq!(text(&two), "m anna same2 100");
    assert_ne!(one.id, two.id);
    nothing_more(&received);
}

/// Bodies of statuses are not held until their items are in the table: they are read back to be compared.
#[test]
fn two_statuses_of_one_hash_are_two_items_and_a_duplicate_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, _received) = open(folder.path());
    let count = || {
        inbox.open_numbers().expect("flushed");
        let connection = store::open_read_only(folder.path()).expect("opens");
        connection.query_row("SELECT count(*) FROM items", [], |r| r.get::<_, i64>(0)).expect("counted")
    };
    for (body, items) in [
        ("s r1 same1", 1),
        ("s r2 same2", 2),
        ("s r1 same1", 2),
        ("s r3 other\ns r2 same2\ns r1 same1", 3),
        ("s r4 same4\ns r4 same4", 4),
    ] {
        put(&inbox, body);
        assert_eq!(count(), items, "{body}");
    }
}

#[test]
fn many_who_wait_share_few_commits() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    let all: Vec<_> = (0..200)
        .map(|n| {
            let inbox = Arc::clone(&inbox);
            may::go!(move || put_from(&inbox, n, &format!("m c{n} id{n} 100")))
        })
        .collect();
    all.into_iter().for_each(|one| one.join().expect("no panic"));
    let mut ids: Vec<_> = (0..200).map(|_| text(&next(&received))).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    let connection = store::open_read_only(folder.path()).expect("opens");
    let commits: i64 =
        connection.query_row("SELECT count(*) FROM commits", [], |r| r.get(0)).expect("counted");
    assert!(commits < 100, "{commits} commits for 200 bodies");
}

#[test]
fn connections_of_any_worker_are_told_each_time_and_as_soon_as_it_ends() {
    const ROUNDS: usize = 100;
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, _received) = open(folder.path());
    let all: Vec<_> = (0..64)
        .map(|n| {
            let inbox = Arc::clone(&inbox);
            may::go!(move || {
                let mut ticket = inbox.ticket(n * n);
                (0..ROUNDS)
                    .filter(|round| {
                        ticket.body().extend_from_slice(format!("m c{n} id{n}-{round} 100").as_bytes());
                        let (body, list) = ticket.body_and_items();
                        items(body, list);
                        ticket.append(0).is_ok()
                    })
                    .count()
            })
        })
        .collect();
    assert!(all.into_iter().all(|one| one.join().expect("no panic") == ROUNDS));
    // the last ones are told although the committer ends right behind them
    let late: Vec<_> = (0..64)
        .map(|n| {
            let inbox = Arc::clone(&inbox);
            may::go!(move || {
                let mut ticket = inbox.ticket(n);
                ticket.body().extend_from_slice(format!("m c{n} late{n} 100").as_bytes());
                ticket.append(0)
            })
        })
        .collect();
    inbox.close().expect("closes");
    let told: Vec<_> = late.into_iter().map(|one| one.join().expect("no panic")).collect();
    let stored = told.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(
        told.iter().all(|outcome| matches!(outcome, Ok(()) | Err(Refusal::Draining | Refusal::Poisoned)))
    );
    let bodies: usize = bodies_in(folder.path()).iter().map(|stored| stored.bodies.len()).sum();
    assert!(bodies >= stored + 64 * ROUNDS, "{bodies} bodies are stored, {stored} of the last were told so");
}

/// A commit's items go into their table a part at a time; a process may die between two parts.
#[test]
fn a_commit_of_which_a_part_was_derived_is_derived_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    {
        let (inbox, received) = open(folder.path());
        put(&inbox, "m anna a1 100");
        let turn = answer(&inbox, &next(&received), &["one"]);
        let reply = turn.replies[0].id.clone();
        inbox.sending(&reply, NUMBER).expect("marked");
        put(&inbox, &format!("m anna a2 100\ns {reply} delivered\nm anna a3 100"));
        assert_eq!(
            (text(&next(&received)), text(&next(&received))),
            ("m anna a2 100".into(), "m anna a3 100".into())
        );
        inbox.close().expect("closed");
    }
    // as it was before the last item of the second commit
    let connection = store::open(folder.path()).expect("opens");
    let derived: i64 =
        connection.query_row("SELECT max(id) FROM commits", [], |r| r.get(0)).expect("counted");
    let undo = format!(
        "DELETE FROM items WHERE commit_id = {derived} AND nth = 2;
         UPDATE meta SET value = {} WHERE name = 'derived_commit';
         UPDATE replies SET state = 1, wamid = NULL; UPDATE turns SET state = 0;",
        derived - 1
    );
    connection.execute_batch(&undo).expect("undone");
    drop(connection);
    let (inbox, _received) = open(folder.path());
    let page = inbox.pending(NUMBER, Position::default(), 10).expect("read");
    assert_eq!(page.works.iter().map(text).collect::<Vec<_>>(), ["m anna a2 100", "m anna a3 100"]);
    assert_eq!(inbox.counts().pending, 2);
    // what the status proves is not lost with the process that had inserted it
    assert!(inbox.open_turns(0, 10).expect("read").is_empty());
}

/// More than one part, in one commit and over several; all are offered once, in order of arrival.
#[test]
fn thousands_of_items_are_offered_once_and_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    let body = |b: usize| {
        let lines = (0..1500).map(|n| format!("m anna b{b}.{n} {}", 100 + n % 7));
        lines.collect::<Vec<_>>().join("\n")
    };
    (0..4).for_each(|b| put(&inbox, &body(b)));
    put(&inbox, &body(2));
    for b in 0..4 {
        for n in 0..1500 {
            assert_eq!(text(&next(&received)), format!("m anna b{b}.{n} {}", 100 + n % 7));
        }
    }
    nothing_more(&received);
    assert_eq!(inbox.counts().pending, 6000);
    let (_, head) = inbox.open_numbers().expect("read");
    let page = inbox.pending(NUMBER, Position::default(), 10_000).expect("read");
    assert_eq!((page.works.len(), page.covered.commit), (6000, head.commit));
}

/// Rows go into their table many at a time: duplicates and equal hashes among them, in one body and over several.
#[test]
fn of_many_at_once_each_new_one_is_offered_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    let mut seed = 7_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut said = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let lines: Vec<String> = (0..150)
            .map(|_| match random(40) {
                0 => format!("m anna same{} 100", random(6)),
                _ => format!("m anna n{} {}", random(900), 101),
            })
            .collect();
        said.extend(lines.iter().cloned());
        put(&inbox, &lines.join("\n"));
    }
    let mut offered: Vec<String> = (0..said.len()).map(|_| text(&next(&received))).collect();
    offered.sort_unstable();
    assert_eq!(offered, said.into_iter().collect::<Vec<_>>());
    nothing_more(&received);
    assert_eq!(inbox.counts().pending, offered.len() as u64);
}

/// A parser with a bug, met on the committer's thread.
const BUGGY: Parser = Parser { items, keys: |_, _| panic!("a bug in the parser"), statuses };

#[test]
fn a_panic_of_the_committer_refuses_everything_and_ends_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tell, told) = channel();
    let inbox = Embedded::open(folder.path(), Duration::from_secs(3600), BUGGY, move |detail| {
        let _ = tell.send(detail);
    })
    .expect("opens");
    put(&inbox, "m anna same1 100");
    // two bodies of one hash make the committer compare their keys
    let mut ticket = inbox.ticket(0);
    ticket.body().extend_from_slice(b"m anna same2 100");
    let (body, list) = ticket.body_and_items();
    items(body, list);
    let _ = ticket.append(0);
    let detail = told.recv_timeout(Duration::from_secs(5)).expect("the process is told to end");
    assert!(detail.contains("panicked") && !detail.contains("anna"), "{detail}");
    assert_eq!(inbox.unhealthy(), Some(Refusal::Poisoned));
    ticket.body().extend_from_slice(b"m anna a3 100");
    assert_eq!(ticket.append(0), Err(Refusal::Poisoned));
    assert!(inbox.close().is_err() || inbox.unhealthy() == Some(Refusal::Poisoned));
}

#[test]
fn debug_output_of_a_work_has_nothing_of_its_body() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna secret_words 100");
    let shown = format!("{:?}", next(&received));
    let as_bytes = format!("{:?}", b"secret_words");
    assert!(!shown.contains("secret_words") && !shown.contains(as_bytes.trim_matches(['[', ']'])), "{shown}");
}

#[test]
fn statuses_reach_their_table_without_anybody_waiting_and_survive_a_stop_before_that() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, _received) = open(folder.path());
    let connection = store::open_read_only(folder.path()).expect("opens");
    let count =
        || connection.query_row("SELECT count(*) FROM items", [], |r| r.get::<_, i64>(0)).expect("counted");
    (0..20).for_each(|n| put(&inbox, &format!("s r{n} sent")));
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while count() < 20 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count(), 20);
    put(&inbox, "s r20 sent");
    inbox.close().expect("closed");
    assert_eq!(count(), 21, "a stop does not leave them for the start");
}
