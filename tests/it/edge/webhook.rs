//! What is stored, what is refused, and how it is said.

use super::*;

#[test]
fn a_signed_body_is_stored_and_answered_200() {
    let edge = edge();
    let mut client = edge.client();
    for path in ["/webhook", "/whatsapp_response", "/webhook?x=y"] {
        let request = String::from_utf8(post(BODY.as_bytes())).expect("text").replace("/webhook", path);
        let reply = client.send(request).reply().expect("reply");
        assert_eq!((reply.code, reply.text()), (200, r#"{"status":"ok"}"#));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    assert_eq!(edge.bodies(), [BODY.as_bytes(); 3]);
    assert_eq!(edge.books.tickets.load(SeqCst), 1, "one ticket a connection");
}

#[test]
fn a_wrong_or_missing_signature_is_401_and_the_connection_goes_on() {
    let edge = edge();
    let mut client = edge.client();
    let wrong = format!("sha256={}", "0".repeat(64));
    let twice = format!("{}\r\nX-Hub-Signature-256: {}", sign(BODY.as_bytes()), sign(BODY.as_bytes()));
    for signature in [None, Some(wrong.as_str()), Some("sha256=00"), Some(""), Some(twice.as_str())] {
        assert_eq!(client.send(post_with(BODY.as_bytes(), signature, "")).code(), 401, "{signature:?}");
    }
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 200);
    assert_eq!(edge.bodies().len(), 1);
}

#[test]
fn a_refusal_of_the_inbox_is_503_with_retry_after() {
    let edge = edge();
    let mut client = edge.client();
    for refusal in 1..=4 {
        edge.books.refuse.store(refusal, SeqCst);
        let reply = client.send(post(BODY.as_bytes())).reply().expect("reply");
        assert_eq!((reply.code, reply.header("retry-after")), (503, Some("5")));
    }
    edge.books.refuse.store(0, SeqCst);
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 200);
}

#[test]
fn a_signed_body_that_is_not_json_is_kept_and_an_unsigned_one_is_400() {
    let edge = edge();
    assert_eq!(edge.ask(post(b"not json")).code, 200);
    assert_eq!(edge.bodies(), [b"not json"]);
    let open = edge_with(http_config(), Webhook { allow_unsigned: true, ..webhook_config() });
    let mut client = open.client();
    assert_eq!(client.send(post_with(b"not json", None, "")).code(), 400);
    assert_eq!(client.send(post_with(BODY.as_bytes(), None, "")).code(), 200);
    assert_eq!(client.send(post_with(BODY.as_bytes(), Some("sha256=00"), "")).code(), 401);
    assert_eq!(open.bodies(), [BODY.as_bytes()]);
}

/// The body that takes the most: deep, and read by the scan since the tape has no half of a character.
fn deepest_body(length: usize) -> String {
    let mut body = format!(r#"{{"y":"\ud83d","x":{}1{},"entry":["#, "[".repeat(10_000), "]".repeat(10_000));
    body.push_str(r#"{"id":"1","changes":[{"field":"messages","value":{"messages":[{"id":"w","from":"1","#);
    body.push_str(r#""type":"text","text":{"body":""#);
    let end = r#""}}]}}]}]}"#;
    body.extend(std::iter::repeat_n('x', length - body.len() - end.len()));
    body.push_str(end);
    body
}

#[test]
fn a_body_of_4_mib_passes_and_one_byte_more_is_413() {
    let edge = edge();
    let body = deepest_body(4 << 20);
    assert_eq!(body.len(), BODY_MAX);
    let mut client = edge.client();
    assert_eq!(client.send(post(body.as_bytes())).code(), 200);
    assert_eq!(client.send(post(BODY.as_bytes())).code(), 200, "the connection goes on");
    assert_eq!(edge.bodies()[0], body.as_bytes());
    let larger = post(&vec![b'x'; BODY_MAX + 1]);
    assert_eq!(client.send(larger).code(), 413, "read while it is still being sent");
    assert!(client.is_closed());
    assert_eq!(edge.bodies().len(), 2);
}

/// Half of what `ops::process` gives a coroutine; the guard page ends the process of a test that needs more.
#[test]
fn half_of_a_coroutines_stack_is_enough_for_the_largest_body() {
    in_own_process("edge::webhook::on_half_a_stack", r#"exec "$0" "$@""#);
}

#[test]
#[ignore = "a part of the test above: it needs a process of its own"]
fn on_half_a_stack() {
    crate::coroutines();
    let words = may::config().get_stack_size();
    may::config().set_stack_size(words / 2);
    let edge = edge();
    let mut client = edge.client();
    // a large body is read by a thread, others by the connection's coroutine
    let deep = [deepest_body(BODY_MAX), deepest_body(500 << 10), "[".repeat(BODY_MAX), "[".repeat(500 << 10)];
    for body in deep.into_iter().chain([r#"{"entry":[{"changes":["#.repeat(20_000)]) {
        assert_eq!(client.send(post(body.as_bytes())).code(), 200);
    }
    // the ways out: an error, a last word, the largest answer
    edge.console.large.store(true, SeqCst);
    assert_eq!(client.send("GET /metrics/prometheus HTTP/1.1\r\n\r\n").code(), 200);
    assert_eq!(client.send("POST /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").code(), 501);
}

#[test]
fn large_bodies_have_a_budget_and_small_ones_pass_beside() {
    let edge = edge();
    let head = format!(
        "POST /webhook HTTP/1.1\r\nX-Hub-Signature-256: sha256={}\r\nExpect: 100-continue\r\nContent-Length: {BODY_MAX}\r\n\r\n",
        "0".repeat(64)
    );
    let hold = |_| {
        let mut client = edge.client();
        assert_eq!(client.send(&head).code(), 100);
        client
    };
    // its claim finds room, its body none
    let mut late = hold(0);
    let mut holding: Vec<_> = (0..http::LARGE_BODIES_MAX / BODY_MAX).map(hold).collect();
    assert_eq!(edge.ask(post(&vec![b' '; BODY_MAX])).code, 200, "a length is only a claim");
    // more than half of each: room is made for all of it
    for client in &mut holding {
        client.send(vec![b'x'; BODY_MAX / 2 + 1]);
    }
    edge.wait_until("no room is left", |edge| edge.ask(&head).code == 503);
    let refused = edge.ask(&head);
    assert_eq!((refused.code, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(edge.ask(post(BODY.as_bytes())).code, 200);
    assert_eq!(late.send(vec![b'x'; BODY_MAX]).code(), 503);
    assert_eq!(late.send(post(BODY.as_bytes())).code(), 200, "the connection goes on");
    drop((holding, late));
    edge.wait_until("the budget is free again", |edge| edge.server.connections() == 0);
    assert_eq!(edge.ask(post(&vec![b' '; 1 << 20])).code, 200);
}

#[test]
fn large_bodies_at_once_are_each_read_as_their_own_and_a_wrong_one_among_them_is_401() {
    let secret = |n: u8| format!("secret of {n}");
    let app = |n: u8| App { name: Some(n.to_string()), secret: Secret::new(secret(n)) };
    let edge = edge_with(http_config(), Webhook { apps: (0..12).map(app).collect(), ..webhook_config() });
    let large = |n: u8| vec![b'a' + n; 2 << 20];
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (edge, by) = (&edge, if n % 3 == 0 { "nobody".to_owned() } else { secret(n) });
            scope.spawn(move || {
                let mut client = edge.client();
                let code = client.send(signed(&large(n), &by)).code();
                assert_eq!(code, if n % 3 == 0 { 401 } else { 200 }, "{n}");
                assert_eq!(client.send(signed(BODY.as_bytes(), &secret(n))).code(), 200, "it goes on");
            });
        }
    });
    let mut stored = edge.books.bodies.lock().expect("no test panics with it").clone();
    stored.retain(|(_, body)| body != BODY.as_bytes());
    stored.sort_unstable_by_key(|(_, body)| body[0]);
    let named = |n: u8| hash64(&[n.to_string().as_bytes()]);
    let right: Vec<_> = (0..12).filter(|n| n % 3 > 0).map(|n| (named(n), large(n))).collect();
    assert!(stored == right, "{} bodies", stored.len());
}

#[test]
fn a_body_cut_in_the_middle_is_never_stored() {
    let edge = edge();
    let whole = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Expect: 100-continue\r\n");
    for at in [1, 20, BODY.len() - 1] {
        let mut client = edge.client();
        assert_eq!(client.send(&whole[..whole.len() - at]).code(), 100, "the body is being read");
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(client.code(), 400);
        assert!(client.is_closed());
    }
    let mut client = edge.client();
    client.send(&whole[..whole.len() - 1]);
    drop(client);
    edge.wait_until("all gone", |edge| edge.server.connections() == 0);
    assert!(edge.bodies().is_empty());
}
