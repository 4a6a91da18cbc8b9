//! What takes too long, and who does not read.

use super::*;

#[test]
fn a_late_header_is_told_408_and_cut() {
    let edge = edge_but(|http| http.header_timeout = Duration::from_millis(300));
    let started = Instant_::now();
    let mut client = edge.client();
    for byte in b"POST /webhook HTTP/1.1\r\nX-Slow: 1234567890" {
        client.send([*byte]);
        if started.elapsed() > Duration::from_millis(700) {
            break;
        }
        pause(25);
    }
    assert_eq!(client.code(), 408);
    assert!(client.is_closed());
    // again on a connection that was fine before
    let mut client = edge.client();
    assert_eq!(client.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    pause(200);
    client.send("GET /hea");
    assert_eq!(client.code(), 408);
}

#[test]
fn a_late_body_is_told_408_and_not_stored() {
    let edge = edge_but(|http| http.body_timeout = Duration::from_millis(300));
    let whole = post(BODY.as_bytes());
    let (start, end) = whole.split_at(whole.len() - 10);
    let mut client = edge.client();
    client.send(start);
    assert_eq!(client.code(), 408);
    client.send(end);
    assert!(client.is_closed());
    let mut client = edge.client();
    client.send("GET /health HTTP/1.1\r\nContent-Length: 10\r\n\r\nx");
    assert_eq!(client.code(), 408);
    assert!(client.is_closed());
    assert!(edge.bodies().is_empty());
}

#[test]
fn an_idle_connection_is_closed_and_a_waiting_one_is_not() {
    let edge = edge_but(|http| {
        http.idle_timeout = Duration::from_millis(300);
        http.body_timeout = Duration::from_millis(300);
        http.header_timeout = Duration::from_millis(300);
    });
    edge.books.stall.store(true, SeqCst);
    let mut waiting = edge.client();
    waiting.send(post(BODY.as_bytes()));
    let mut silent = edge.client();
    let mut used = edge.client();
    assert_eq!(used.send("GET /health HTTP/1.1\r\n\r\n").code(), 200);
    assert!(silent.is_closed() && used.is_closed());
    pause(600);
    edge.books.stall.store(false, SeqCst);
    assert_eq!(waiting.code(), 200);
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let edge = edge_but(|http| http.body_timeout = Duration::from_millis(500));
    edge.console.large.store(true, SeqCst);
    let mut client = edge.client();
    client.send("GET /metrics/prometheus HTTP/1.1\r\n\r\n");
    edge.wait_until("cut", |edge| edge.server.connections() == 0);
    let mut close = edge.client();
    close.send("GET /metrics/prometheus HTTP/1.0\r\n\r\n");
    edge.wait_until("cut", |edge| edge.server.connections() == 0);
    drop((client, close));
}

#[test]
fn a_client_that_pipelines_and_never_reads_does_not_fill_the_memory() {
    let edge = edge();
    let mut client = edge.client();
    client.stream.set_write_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let many = "GET /nothing HTTP/1.1\r\n\r\n".repeat(1000);
    let mut sent = 0_usize;
    while client.stream.write_all(many.as_bytes()).is_ok() {
        sent += many.len();
        assert!(sent < 512 << 20, "still taken after {sent} bytes");
    }
    edge.wait_until("cut", |edge| edge.server.connections() == 0);
}
