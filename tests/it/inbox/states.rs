//! What becomes of a stored item: answered, sent, settled by a status, counted, removed.

use super::*;

#[test]
fn an_answer_goes_through_its_states() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100");
    let work = next(&received);
    let turn = answer(&inbox, &work, &["one", "two"]);
    assert_eq!(state_of(folder.path(), work.id), State::Answered as u8);
    assert_eq!(inbox.open_turns(0, 10).expect("read").len(), 1);
    inbox.sending(&turn.replies[0].id, NUMBER).expect("marked");
    let open = inbox.open_turns(0, 10).expect("read");
    assert_eq!(open[0].replies[0].state, ReplyState::Sending);
    assert_eq!(open[0].replies[1].id, turn.replies[1].id);
    inbox.sent(&turn.replies[0].id, "wamid.1");
    inbox.sending(&turn.replies[1].id, NUMBER).expect("marked");
    inbox.sent(&turn.replies[1].id, "wamid.2");
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), work.id), State::Sent as u8);
    assert!(inbox.open_turns(0, 10).expect("read").is_empty());
    assert_eq!(inbox.counts().pending, 0);
}

#[test]
fn memory_is_bounded_and_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    for n in 0..4 {
        put(&inbox, &format!("m anna a{n} 100"));
        answer(&inbox, &next(&received), &[&format!("r{n}")]);
    }
    let lines = inbox.history("shop:16505551234", 10).expect("read");
    let lines: Vec<_> = lines.iter().map(|s| s.content.as_str()).collect();
    assert_eq!(lines, ["m anna a2 100", "r2", "m anna a3 100", "r3"]);
    assert_eq!(inbox.history("other:16505551234", 10).expect("read"), []);
}

#[test]
fn a_status_settles_a_send_of_unknown_outcome_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let (id, reply) = {
        let (inbox, received) = open(folder.path());
        put(&inbox, "m anna a1 100");
        let work = next(&received);
        let turn = answer(&inbox, &work, &["one"]);
        let reply = turn.replies[0].id.clone();
        inbox.sending(&reply, NUMBER).expect("marked");
        assert_eq!(inbox.evidence(&reply, Duration::from_millis(20)), None);
        inbox.close().expect("closed");
        (work.id, reply)
    };
    let (inbox, _received) = open(folder.path());
    put(&inbox, &format!("s {reply} delivered"));
    assert_eq!(inbox.evidence(&reply, Duration::from_secs(5)), Some(Evidence::Sent("wamid.S".to_owned())));
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), id), State::Sent as u8);
    assert!(inbox.open_turns(0, 10).expect("read").is_empty());
}

/// Whoever has the turn learns of the status later than the store.
#[test]
fn what_a_late_status_has_ended_is_not_put_back_to_wait() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100");
    let work = next(&received);
    let reply = answer(&inbox, &work, &["one"]).replies[0].id.clone();
    inbox.sending(&reply, NUMBER).expect("marked");
    inbox.unsent(&reply);
    inbox.settle(&[work.id], State::Answered, &Reason::fixed("token_invalid"), "");
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), work.id), State::Answered as u8);
    put(&inbox, &format!("s {reply} delivered"));
    inbox.open_numbers().expect("flushed");
    inbox.settle(&[work.id], State::Answered, &Reason::fixed("token_invalid"), "");
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), work.id), State::Sent as u8);
    assert_eq!(inbox.counts().pending, 0);
}

#[test]
fn a_turn_of_which_a_reply_is_dead_ends_dead_with_its_reason_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100");
    let work = next(&received);
    let turn = answer(&inbox, &work, &["one", "two"]);
    inbox.reply_dead(&turn.replies[0].id, &Reason::fixed("graph_131026"), "undeliverable");
    inbox.close().expect("closed");
    let (inbox, _received) = open(folder.path());
    assert_eq!(inbox.sending(&turn.replies[1].id, NUMBER), Ok(None));
    inbox.sent(&turn.replies[1].id, "wamid.2");
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), work.id), State::Dead as u8);
    let connection = store::open_read_only(folder.path()).expect("opens");
    let why: (String, String) = connection
        .query_row("SELECT reason, detail FROM items", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .expect("the item is there");
    assert_eq!(why, ("graph_131026".to_owned(), "undeliverable".to_owned()));
    assert_eq!((inbox.counts().pending, inbox.counts().dead), (0, 1));
}

/// Nobody waits for it any more, and the next try has not begun; or the process has ended in between.
#[test]
fn a_status_that_comes_between_two_tries_settles_the_reply_and_the_next_one_is_told() {
    let named = Some(Evidence::Sent("wamid.S".to_owned()));
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100\nm bert b1 100");
    let works = [next(&received), next(&received)];
    let ids = works.each_ref().map(|work| answer(&inbox, work, &["one"]).replies[0].id.clone());
    for id in &ids {
        assert_eq!(inbox.sending(id, NUMBER), Ok(None));
        inbox.unsent(id);
    }
    put(&inbox, &format!("s {} delivered", ids[0]));
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), works[0].id), State::Sent as u8);
    assert_eq!(inbox.sending(&ids[0], NUMBER), Ok(named.clone()));
    assert_eq!(state_of(folder.path(), works[0].id), State::Sent as u8);
    inbox.forget(&ids[0]);
    assert_eq!(inbox.evidence(&ids[0], Duration::ZERO), None, "nothing is kept of it");
    inbox.close().expect("closed");
    let (inbox, _received) = open(folder.path());
    put(&inbox, &format!("s {} delivered", ids[1]));
    inbox.open_numbers().expect("flushed");
    assert_eq!(state_of(folder.path(), works[1].id), State::Sent as u8);
    assert_eq!(inbox.sending(&ids[1], NUMBER), Ok(named));
}

/// The mark that a send was begun comes with the answer, in one commit.
#[test]
fn an_answer_that_is_sent_at_once_counts_as_being_sent_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let reply = {
        let (inbox, received) = open(folder.path());
        put(&inbox, "m anna a1 100");
        let turn = store_answer(&inbox, &next(&received), &["one", "two"], true);
        let states: Vec<_> = turn.replies.iter().map(|reply| reply.state).collect();
        assert_eq!(states, [ReplyState::Sending, ReplyState::Stored]);
        put(&inbox, &format!("s {} delivered", turn.replies[0].id));
        let named = inbox.evidence(&turn.replies[0].id, Duration::from_secs(5));
        assert_eq!(named, Some(Evidence::Sent("wamid.S".to_owned())));
        put(&inbox, "m bert b1 101");
        let turn = store_answer(&inbox, &next(&received), &["three"], true);
        inbox.close().expect("closed");
        turn.replies[0].id.clone()
    };
    let (inbox, _received) = open(folder.path());
    let open = inbox.open_turns(0, 10).expect("read");
    assert_eq!(open.len(), 2);
    let states: Vec<_> = open.iter().flat_map(|turn| &turn.replies).map(|reply| reply.state).collect();
    assert_eq!(states, [ReplyState::Sent, ReplyState::Stored, ReplyState::Sending]);
    put(&inbox, &format!("s {reply} delivered"));
    let named = inbox.evidence(&reply, Duration::from_secs(5));
    assert_eq!(named, Some(Evidence::Sent("wamid.S".to_owned())));
}

#[test]
fn states_and_reasons_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100\nm bert b1 100\nm carl c1 100");
    let works = [next(&received), next(&received), next(&received)];
    inbox.settle(&[works[0].id], State::Dead, &Reason::fixed("no_business"), "");
    inbox.settle(&[works[1].id], State::Parked, &Reason::fixed("token_invalid"), "");
    inbox.open_numbers().expect("flushed");
    let counts = inbox.counts();
    assert_eq!((counts.pending, counts.parked, counts.dead), (1, 1, 1));
    inbox.close().expect("closed");
    let (again, _) = open(folder.path());
    let counts = again.counts();
    assert_eq!((counts.pending, counts.parked, counts.dead), (1, 1, 1), "the same after a restart");
    let page = again.pending(NUMBER, Position::default(), 10).expect("read");
    assert_eq!(page.works.len(), 2, "dead items are not open");
}

#[test]
fn finished_items_and_bodies_go_after_the_retention_and_open_ones_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let open_short = || {
        Embedded::open(folder.path(), Duration::from_millis(1), TOY, |detail| panic!("poisoned: {detail}"))
            .expect("opens")
    };
    let inbox = open_short();
    let (send, received) = channel();
    inbox.feed(Arc::new(Collect(send)));
    put(&inbox, "m anna a1 100");
    let work = next(&received);
    inbox.settle(&[work.id], State::Kept, &Reason::fixed("too_old"), "");
    put(&inbox, "m bert b1 100");
    next(&received);
    put(&inbox, "m carl c1 100");
    let carl = next(&received);
    inbox.settle(&[carl.id], State::Kept, &Reason::fixed("too_old"), "");
    inbox.close().expect("closed");
    let inbox = open_short();
    let connection = store::open_read_only(folder.path()).expect("opens");
    let count = |sql: &str| connection.query_row(sql, [], |r| r.get::<_, i64>(0)).expect("counted");
    for _ in 0..100 {
        if count("SELECT count(*) FROM items") == 1 && count("SELECT count(*) FROM commits") == 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(count("SELECT count(*) FROM items"), 1, "bert waits");
    assert_eq!(count("SELECT count(*) FROM commits"), 2, "bert's body and what came after it");
    let page = inbox.pending(NUMBER, Position::default(), 10).expect("read");
    assert_eq!(text(&page.works[0]), "m bert b1 100");
}

/// None of what stays for good reason, or by a clock that was wrong, is in the way of what is old behind it.
#[test]
fn retention_passes_by_what_has_to_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let connection = store::open(folder.path()).expect("opens");
    let now = clock::now();
    let (day, next_year) = (24 * 3_600_000, now + 365 * 24 * 3_600_000);
    let recent = now - day;
    connection
        .execute_batch(&format!(
            "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 100)
             -- the first commits of a clock that was ahead, then old ones, then new ones
             INSERT INTO commits SELECT i, iif(i <= 20, {next_year}, iif(i <= 90, 1000, {recent})), x'', x'' FROM s;
             INSERT INTO meta VALUES ('derived_commit', 100);
             -- changes without a time: three in four came lately
             WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 2000)
             INSERT INTO items (timestamp, key, kind, state, number, conversation, commit_id, body, entry, change, nth)
             SELECT 0, i, 10, 3, 7, 0, iif(i % 4 = 0, 50, 95), 0, 0, 0, 0 FROM s
             UNION ALL SELECT 1, i, 2, 3, 7, 0, 50, 0, 0, 0, 0 FROM s;
             -- turns that never ended, then closed ones
             WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 60)
             INSERT INTO turns SELECT i, i > 40, 7, 7, '1', 0, '1', 's', 1000, x'' FROM s;
             WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 200)
             INSERT INTO memory SELECT 'session ' || (i / 3), i, 0, 'hello', iif(i % 2, 1000, {recent}) FROM s;"
        ))
        .expect("inserted");
    let keep =
        Keep { finished: Duration::from_secs(2 * 24 * 3600), memory: Duration::from_secs(30 * 24 * 3600) };
    let inbox =
        Embedded::open_tuned(folder.path(), keep, Tuning::default(), TOY, |why| panic!("poisoned: {why}"))
            .expect("opens");
    let count = |sql: &str| connection.query_row(sql, [], |r| r.get::<_, i64>(0)).expect("counted");
    let counts = || {
        [
            "SELECT count(*) FROM commits",
            "SELECT count(*) FROM items WHERE timestamp = 0",
            "SELECT count(*) FROM items WHERE timestamp = 1",
            "SELECT count(*) FROM turns",
            "SELECT count(*) FROM memory",
        ]
        .map(count)
    };
    let expected = [10, 1500, 0, 40, 100];
    for _ in 0..200 {
        if counts() == expected {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(counts(), expected, "commits, timeless items, others, turns, memory");
    inbox.close().expect("closed");
}

/// Nothing to do but to remove: the committer sleeps between two sweeps.
#[test]
fn retention_that_has_work_does_not_keep_the_committer_awake() {
    let folder = tempfile::tempdir().expect("a folder");
    let connection = store::open(folder.path()).expect("opens");
    connection
        .execute_batch(
            "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 20000)
             INSERT INTO commits SELECT i, 0, x'', zeroblob(5000) FROM s;
             INSERT INTO meta VALUES ('derived_commit', 20000);",
        )
        .expect("inserted");
    let left = || -> i64 {
        connection.query_row("SELECT count(*) FROM commits", [], |r| r.get(0)).expect("counted")
    };
    let (inbox, _received) = open(folder.path());
    std::thread::sleep(Duration::from_millis(300));
    let before = (inbox.progress(), left());
    std::thread::sleep(Duration::from_secs(1));
    let (passes, gone) = (inbox.progress() - before.0, before.1 - left());
    assert!(left() > 0 && gone > 0, "{gone} removed, {} left", left());
    assert!((8..200).contains(&passes), "{passes} passes in a second");
}
