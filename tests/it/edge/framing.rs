//! Where a request ends, and what happens where that is not clear.

use super::*;

#[test]
fn bad_lengths_and_transfer_codings_are_refused_and_their_bytes_are_never_a_request() {
    let edge = edge();
    let smuggled = String::from_utf8(post(BODY.as_bytes())).expect("text");
    for (lines, code) in [
        ("", 411),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: \u{ff}\r\n", 400),
        ("Content-Length: 99999999999999999999999999\r\n", 413),
        ("Content-Length: 4194305\r\n", 413),
        ("Transfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 501),
        ("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", 501),
        ("Content-Length: 5\r\nExpect: the-unexpected\r\n", 417),
    ] {
        let mut client = edge.client();
        client.send(format!("POST /webhook HTTP/1.1\r\nHost: x\r\n{lines}\r\n0\r\n\r\n{smuggled}"));
        let reply = client.reply().unwrap_or_else(|| panic!("no reply to {lines:?}"));
        assert_eq!(reply.code, code, "{lines:?}");
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(client.is_closed(), "{lines:?}");
    }
    assert!(edge.bodies().is_empty());
}

#[test]
fn a_body_where_none_belongs_is_read_and_is_not_the_next_request() {
    let edge = edge();
    let mut client = edge.client();
    let inner = String::from_utf8(post(BODY.as_bytes())).expect("text");
    for (method, path, code) in [
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("PUT", "/webhook", 405),
        ("POST", "/health", 405),
        ("DELETE", "/nothing", 404),
    ] {
        let head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", inner.len());
        assert_eq!(client.send(head).send(&inner).code(), code, "{method} {path}");
    }
    assert_eq!(client.send("GET /ready HTTP/1.1\r\n\r\n").code(), 200);
    assert!(edge.bodies().is_empty());
    let large = format!("GET /health HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let mut client = edge.client();
    assert_eq!(client.send(large).code(), 200);
    assert!(client.is_closed());
}

#[test]
fn no_http_is_told_400_and_too_many_lines_431() {
    let edge = edge();
    for garbage in [
        "garbage\r\n\r\n",
        "GET /health\r\n\r\n",
        "GET /health HTTP/1.1\r\nbad line\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
    ] {
        let mut client = edge.client();
        assert_eq!(client.send(garbage).code(), 400, "{garbage:?}");
        assert!(client.is_closed());
    }
    let lines = |n: usize| (0..n).map(|i| format!("X-Line-{i}: value\r\n")).collect::<String>();
    assert_eq!(edge.ask(format!("GET /health HTTP/1.1\r\n{}\r\n", lines(16))).code, 200);
    for n in [17, 40, 200] {
        let mut client = edge.client();
        assert_eq!(client.send(format!("GET /health HTTP/1.1\r\n{}\r\n", lines(n))).code(), 431, "{n}");
        assert!(client.is_closed());
    }
    // and after a good request on the same connection
    let mut client = edge.client();
    assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    assert_eq!(client.send("garbage\r\n\r\n").code(), 400);
}

#[test]
fn an_endless_header_line_is_cut() {
    let edge = edge();
    let mut client = edge.client();
    client.stream.set_write_timeout(Some(Duration::from_secs(5))).expect("timeout");
    client.send("GET /health HTTP/1.1\r\nX-Endless: ");
    let started = Instant_::now();
    let mut sent = 0_usize;
    while let Ok(n) = client.stream.write(&[b'x'; 4096]) {
        sent += n;
        assert!(started.elapsed() < Duration::from_secs(8), "not cut after {sent} bytes");
        if sent > 80 << 10 {
            pause(2);
        }
    }
    assert_eq!(edge.get("/health").code, 200);
    edge.wait_until("gone", |edge| edge.server.connections() <= 1);
}

#[test]
fn expect_continue_gets_its_interim_answer_only_where_the_body_is_wanted() {
    let edge = edge();
    let mut client = edge.client();
    for _ in 0..2 {
        let request = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Expect: 100-continue\r\n");
        let (head, body) = request.split_at(request.len() - BODY.len());
        assert_eq!(client.send(head).code(), 100);
        assert_eq!(client.send(body).code(), 200);
    }
    let too_large = "POST /webhook HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n";
    assert_eq!(edge.client().send(too_large).code(), 413);
    let old = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Expect: 100-continue\r\n");
    let old = String::from_utf8(old).expect("text").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(edge.client().send(old).code(), 200);
}

#[test]
fn http_1_0_and_connection_close_end_the_connection_after_the_answer() {
    let edge = edge();
    for request in [
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: foo, CLOSE\r\n\r\n",
    ] {
        let mut client = edge.client();
        let reply = client.send(request).reply().expect("reply");
        assert_eq!((reply.code, reply.header("connection")), (200, Some("close")), "{request:?}");
        assert!(client.is_closed());
    }
    let close = post_with(BODY.as_bytes(), Some(&sign(BODY.as_bytes())), "Connection: close\r\n");
    let mut client = edge.client();
    assert_eq!(client.send(close).code(), 200);
    assert!(client.is_closed());
    assert_eq!(edge.bodies().len(), 1);
}

#[test]
fn a_large_answer_to_a_connection_that_ends_is_whole() {
    let edge = edge();
    edge.console.large.store(true, SeqCst);
    let mut client = edge.client();
    client.send("GET /metrics/prometheus HTTP/1.1\r\nConnection: close\r\n\r\n");
    pause(100);
    assert_eq!(client.reply().expect("reply").body.len(), 8 << 20);
    assert!(client.is_closed());
}
