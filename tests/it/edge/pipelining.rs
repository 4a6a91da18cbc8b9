//! Answers stay in order and complete, whatever stands before, behind or around them.

use super::*;
#[test]
fn pipelined_requests_are_answered_in_order() {
    let edge = edge();
    let mut client = edge.client();
    let mut all = Vec::new();
    for i in 0..200 {
        let body = format!(r#"{{"entry":[],"n":{i}}}"#);
        all.extend_from_slice(&post(body.as_bytes()));
        all.extend_from_slice(b"GET /ready HTTP/1.1\r\n\r\n");
        all.extend_from_slice(b"GET /nothing HTTP/1.1\r\n\r\n");
    }
    client.send(&all);
    for _ in 0..200 {
        assert_eq!((client.code(), client.code(), client.code()), (200, 200, 404));
    }
    let bodies = edge.bodies();
    assert!(bodies.iter().enumerate().all(|(i, b)| b.ends_with(format!(r#""n":{i}}}"#).as_bytes())));
}

#[test]
fn what_is_pipelined_behind_a_large_body_does_not_wait() {
    let edge = edge();
    let large = format!(r#"{{"entry":[],"x":"{}"}}"#, "x".repeat(1 << 20));
    for _ in 0..20 {
        let mut client = edge.client();
        let small = post(BODY.as_bytes());
        let started = Instant_::now();
        client.send([post(large.as_bytes()), small.repeat(300)].concat());
        for _ in 0..301 {
            assert_eq!(client.code(), 200);
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

#[test]
fn what_comes_with_the_body_and_was_not_read_with_it_does_not_wait() {
    let edge = edge();
    for _ in 0..5 {
        let body = [b'x'; 10_000];
        let whole = post_with(&body, Some(&sign(&body)), "Expect: 100-continue\r\n");
        let (head, body) = whole.split_at(whole.len() - 10_000);
        let mut client = edge.client();
        assert_eq!(client.send(head).code(), 100);
        pause(20);
        let started = Instant_::now();
        client.send([body, &post(BODY.as_bytes()).repeat(200)].concat());
        for _ in 0..201 {
            assert_eq!(client.code(), 200);
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

#[test]
fn a_client_that_ends_its_half_behind_its_body_is_answered_and_closed() {
    let edge = edge();
    for body in [BODY.to_owned(), format!(r#"{{"entry":[],"x":"{}"}}"#, "x".repeat(100_000))] {
        let signature = sign(body.as_bytes());
        let whole = post_with(body.as_bytes(), Some(&signature), "Expect: 100-continue\r\n");
        let mut client = edge.client();
        // the interim answer shows that the body is being read
        assert_eq!(client.send(&whole[..whole.len() - body.len()]).code(), 100);
        client.send(&body);
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        let started = Instant_::now();
        assert_eq!(client.code(), 200);
        assert!(client.is_closed());
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}

#[test]
fn what_was_stored_is_acknowledged_even_if_something_bad_comes_right_behind_it() {
    let edge = edge();
    let good = post(BODY.as_bytes());
    let close = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Connection: close\r\n");
    for (behind, code) in [
        (&b"POST /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..], 501),
        (b"POST /webhook HTTP/1.1\r\n\r\nxyz", 411),
        (b"garbage\r\n\r\n", 400),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (&close, 200),
    ] {
        let mut client = edge.client();
        client.send([&good, &good, behind].concat());
        assert_eq!((client.code(), client.code(), client.code()), (200, 200, code));
        assert!(client.is_closed());
    }
    // an answer of another kind in front of it: still in order
    let mut client = edge.client();
    client.send(b"GET /nothing HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!((client.code(), client.code()), (404, 200));
    assert!(client.is_closed());
}

#[test]
fn a_client_that_has_ended_its_half_still_gets_its_answer() {
    let edge = edge();
    edge.books.stall.store(true, SeqCst);
    let mut client = edge.client();
    client.send(post(BODY.as_bytes()));
    edge.wait_until("the request is in the inbox", |edge| edge.books.waiting.load(SeqCst) == 1);
    client.stream.shutdown(Shutdown::Write).expect("shutdown");
    pause(20);
    edge.books.stall.store(false, SeqCst);
    assert_eq!(client.code(), 200);
    assert!(client.is_closed());
    assert_eq!(edge.bodies().len(), 1);
}

#[test]
fn a_client_that_ends_its_half_at_once_is_answered_and_200_only_if_it_was_stored() {
    let edge = edge();
    let mut stored = 0;
    for _ in 0..50 {
        let mut client = edge.client();
        client.send(post(BODY.as_bytes()));
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        let code = client.code();
        assert!([200, 503].contains(&code), "{code}");
        stored += usize::from(code == 200);
    }
    assert_eq!(edge.bodies().len(), stored);
}
