//! Who waits for a commit that does not come.

use std::thread;

use whatsapp_webhook::clock;

use super::*;

#[test]
fn who_waits_behind_another_processs_lock_is_told_in_time_and_what_was_posted_is_stored_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let (inbox, received) = open(folder.path());
    let other = rusqlite::Connection::open(folder.path().join(store::FILE)).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("is locked");
    let begun = clock::monotonic();
    let posts = (0..3).map(|n| {
        let inbox = inbox.clone();
        thread::spawn(move || {
            let mut ticket = inbox.ticket(n);
            ticket.body().extend_from_slice(format!("m anna late{n} 100").as_bytes());
            let (body, list) = ticket.body_and_items();
            items(body, list);
            ticket.append(0)
        })
    });
    let posts: Vec<_> = posts.collect();
    for post in posts {
        assert_eq!(post.join().expect("no panic"), Err(Refusal::Late));
    }
    let took = clock::monotonic() - begun;
    assert!((10..13).contains(&took.as_secs()), "{took:?}");
    other.execute_batch("COMMIT").expect("is free again");
    put(&inbox, "m anna after 100");
    let texts: Vec<_> = (0..4).map(|_| text(&next(&received))).collect();
    assert!(texts.iter().any(|text| text.contains("after")), "{texts:?}");
    nothing_more(&received);
}
