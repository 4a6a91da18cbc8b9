//! What is in the file: bodies as they came or compressed, of this version and an earlier one, damaged, not taken apart yet.

use super::*;

#[test]
fn what_was_accepted_is_in_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100\nm bert b1 101");
    let connection = store::open_read_only(folder.path()).expect("opens");
    let bodies: Vec<u8> =
        connection.query_row("SELECT bodies FROM commits", [], |r| r.get(0)).expect("a commit");
    assert_eq!(bodies, b"m anna a1 100\nm bert b1 101");
    assert_eq!(text(&next(&received)), "m anna a1 100");
    assert_eq!(text(&next(&received)), "m bert b1 101");
    inbox.close().expect("closed");
}

#[test]
fn bodies_whose_items_were_not_derived_are_derived_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    {
        let (inbox, received) = open(folder.path());
        put(&inbox, "m anna a1 100");
        next(&received);
        inbox.close().expect("closed");
    }
    // a process that died right after its commit leaves a body without items
    let mut bounds = 13_u32.to_le_bytes().to_vec();
    bounds.extend_from_slice(&0_u64.to_le_bytes());
    let connection = store::open(folder.path()).expect("opens");
    connection
        .execute("INSERT INTO commits VALUES (2, 0, ?1, 'm anna a2 100')", [&bounds])
        .expect_err("bodies are blobs");
    connection
        .execute("INSERT INTO commits VALUES (2, 0, ?1, CAST('m anna a2 100' AS BLOB))", [&bounds])
        .expect("inserted");
    drop(connection);
    let (inbox, _received) = open(folder.path());
    let (numbers, head) = inbox.open_numbers().expect("read");
    assert_eq!(numbers, [NUMBER]);
    let page = inbox.pending(NUMBER, Position::default(), 10).expect("read");
    assert_eq!(page.works.iter().map(text).collect::<Vec<_>>(), ["m anna a1 100", "m anna a2 100"]);
    assert!(page.covered >= page.works[1].position && head >= page.works[1].position);
    let rest = inbox.pending(NUMBER, page.works[0].position, 10).expect("read");
    assert_eq!(rest.works.len(), 1);
}

/// A small body does not wait for all the large ones that came with it.
#[test]
fn a_commit_holds_no_more_bytes_than_one_row_should() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    std::thread::scope(|scope| {
        for n in 0..24 {
            let inbox = &inbox;
            scope.spawn(move || put(inbox, &format!("m anna {}{n} 100", "x".repeat(1 << 20))));
        }
    });
    (0..24).for_each(|_| drop(next(&received)));
    nothing_more(&received);
    inbox.close().expect("closed");
    let bytes: Vec<usize> = bodies_in(folder.path()).iter().map(|stored| stored.bytes.len()).collect();
    assert_eq!(bytes.iter().sum::<usize>() >> 20, 24);
    assert!(bytes.iter().all(|bytes| *bytes <= 4 << 20), "{bytes:?}");
}

/// Bodies take less room than they have bytes, and are what they were: from the disk, and taken apart again at a start.
#[test]
fn bodies_are_stored_compressed_and_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    // one that has a frame of its own among those that share one
    let said = |n: usize| format!("m c{n} {}{n} 100", "x".repeat(if n == 20 { 300_000 } else { 20_000 }));
    std::thread::scope(|scope| {
        for n in 0..40 {
            let inbox = &inbox;
            scope.spawn(move || put(inbox, &said(n)));
        }
    });
    (0..40).for_each(|_| drop(next(&received)));
    let mut all: Vec<_> = (0..40).map(said).collect();
    all.sort();
    let pending = |inbox: &Embedded| {
        let page = inbox.pending(NUMBER, Position::default(), 100).expect("read");
        let mut texts: Vec<_> = page.works.iter().map(text).collect();
        texts.sort();
        texts
    };
    assert!(pending(&inbox) == all);
    inbox.close().expect("closed");
    let connection = store::open(folder.path()).expect("opens");
    let bytes: i64 =
        connection.query_row("SELECT sum(length(bodies)) FROM commits", [], |r| r.get(0)).expect("read");
    assert!(bytes < 50_000, "{bytes} bytes");
    connection
        .execute_batch("DELETE FROM items; UPDATE meta SET value = 0 WHERE name = 'derived_commit'")
        .expect("done");
    drop(connection);
    let (inbox, _received) = open(folder.path());
    assert!(pending(&inbox) == all);
}

/// What the disk did to a frame must not keep the other bodies from being answered, and is seen.
#[test]
fn a_damaged_frame_is_one_item_a_body_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, &format!("m anna {} 100", "x".repeat(100_000)));
    put(&inbox, "m bert b1 101");
    (0..2).for_each(|_| drop(next(&received)));
    inbox.close().expect("closed");
    let connection = store::open(folder.path()).expect("opens");
    let bytes: Vec<u8> =
        connection.query_row("SELECT bodies FROM commits WHERE id = 1", [], |r| r.get(0)).expect("read");
    let spoiled = [&bytes[..100], &[!bytes[100]], &bytes[101..]].concat();
    connection.execute("UPDATE commits SET bodies = ?1 WHERE id = 1", [spoiled]).expect("spoiled");
    let sql = "DELETE FROM items; UPDATE meta SET value = 0 WHERE name = 'derived_commit'";
    connection.execute_batch(sql).expect("done");
    let (inbox, _received) = open(folder.path());
    let page = inbox.pending(NUMBER, Position::default(), 10).expect("read");
    assert_eq!(page.works.iter().map(text).collect::<Vec<_>>(), ["m bert b1 101"]);
    let sql = "SELECT count(*) FROM items WHERE commit_id = 1 AND kind = ?1";
    let lost: i64 = connection.query_row(sql, [Kind::Unparsed as u8], |r| r.get(0)).expect("read");
    assert_eq!(lost, 1);
}

/// All that its bodies need is there already.
#[test]
fn a_store_of_the_first_version_is_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    put(&inbox, "m anna a1 100");
    next(&received);
    inbox.close().expect("closed");
    let connection = store::open(folder.path()).expect("opens");
    connection.pragma_update(None, "user_version", 1).expect("set");
    drop(connection);
    let (inbox, _received) = open(folder.path());
    assert_eq!(inbox.pending(NUMBER, Position::default(), 10).expect("read").works.len(), 1);
    let connection = store::open_read_only(folder.path()).expect("opens");
    let version: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).expect("read");
    assert_eq!(version, store::SCHEMA_VERSION);
}
