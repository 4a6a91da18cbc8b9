//! Answers as servers may write them: in pieces, with notes before them, without a length, with more than was asked for.

#![allow(clippy::disallowed_methods, reason = "the servers here are threads, which sleep")]

use std::time::Duration;

use whatsapp_webhook::net::client::Client;
use whatsapp_webhook::net::{Answer, Call, CallError, Options};

use crate::net::{Server, reply};

const LONG: Duration = Duration::from_secs(20);
const CHUNKED: &[u8] =
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\
    x-name: Value\r\n\r\n4;ext=1\r\nWiki\r\n5\r\npedia\r\n0\r\ntrailer: 1\r\n\r\n";

fn client(pool_size: usize) -> Client {
    crate::coroutines();
    Client::new(Options { pool_size, connect_timeout: Duration::from_secs(3), is_patient: true })
}

fn post(client: &Client, server: &Server, body: &[u8]) -> Result<Answer, CallError> {
    let url = format!("http://{}/path", server.address);
    client.call(&Call { method: "POST", url: &url, headers: &[], body, timeout: LONG })
}

fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

#[test]
fn an_answer_may_come_in_two_pieces_wherever_it_is_cut() {
    let server = Server::start(|_, nth, _, out| {
        let (first, second) = CHUNKED.split_at(nth + 1);
        let sent = out.write_all(first);
        pause();
        sent.and_then(|()| out.write_all(second)).is_ok()
    });
    let client = client(4);
    for cut in 1..CHUNKED.len() {
        let answer = post(&client, &server, b"x").unwrap_or_else(|e| panic!("cut at {cut}: {e:?}"));
        assert_eq!((answer.status, &*answer.body), (200, b"Wikipedia".as_slice()), "cut at {cut}");
        assert_eq!(answer.header("x-name"), Some("Value"), "cut at {cut}");
    }
    assert_eq!(server.count(), 1);
}

#[test]
fn an_answer_that_ends_early_is_an_error_wherever_it_ends() {
    // the connection's end is the answer's end from the last chunk on
    let whole = CHUNKED.len() - b"trailer: 1\r\n\r\n".len();
    let server = Server::start(|nth, _, _, out| {
        let _ = out.write_all(&CHUNKED[..nth]);
        false
    });
    let client = client(4);
    for length in 0..whole {
        let error = post(&client, &server, b"x").expect_err("half an answer");
        assert!(error.may_have_arrived && !error.timed_out, "ends after {length}: {error:?}");
    }
    assert_eq!(post(&client, &server, b"x").expect("all chunks").body, b"Wikipedia");
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    let server = Server::start(|_, _, _, out| {
        let sent = out.write_all(b"HTTP/1.1 200 OK\r\n\r\nall ");
        pause();
        sent.and_then(|()| out.write_all(b"of it")).is_err()
    });
    let client = client(4);
    for nth in 1..=3 {
        assert_eq!(post(&client, &server, b"x").expect("an answer").body, b"all of it");
        assert_eq!(server.count(), nth);
    }
}

#[test]
fn an_answer_without_a_body_leaves_the_connection_for_the_next() {
    let server = Server::start(|_, nth, _, out| {
        let status = ["204 No Content", "304 Not Modified", "200 OK\r\ncontent-length: 0"][nth % 3];
        out.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).is_ok()
    });
    let client = client(4);
    let statuses: Vec<_> = (0..6).map(|_| post(&client, &server, b"x").expect("an answer").status).collect();
    assert_eq!((statuses, server.count()), (vec![204, 304, 200, 204, 304, 200], 1));
}

#[test]
fn a_connection_with_more_than_the_answer_or_that_says_close_is_not_used_again() {
    for (more, headers) in [("HTTP/1.1 200 OK\r\n", ""), ("", "connection: close\r\n")] {
        let server = Server::start(move |_, _, _, out| {
            let sent = reply(out, 200, headers, b"hello");
            sent && out.write_all(more.as_bytes()).is_ok()
        });
        let client = client(4);
        for nth in 1..=3 {
            assert_eq!(post(&client, &server, b"x").expect("an answer").body, b"hello");
            // what comes after the answer has come when it is looked for
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(server.count(), nth);
        }
    }
}

#[test]
fn long_heads_and_bodies_go_out_whole_and_headers_stand_once() {
    let server = Server::start(|_, _, seen, out| {
        let said = format!("{}\n{}", seen.head, String::from_utf8_lossy(&seen.body));
        reply(out, 200, "", said.as_bytes())
    });
    let (client, url) = (client(4), format!("http://{}/path?a=b", server.address));
    for (of_head, of_body) in [(10, 0), (900, 3000), (1100, 4096), (5_000, 5_000), (20_000, 300_000)] {
        let (token, body) = ("t".repeat(of_head), "b".repeat(of_body));
        let headers = [("authorization", token.as_str()), ("Accept", "application/json")];
        let call =
            Call { method: "POST", url: &url, headers: &headers, body: body.as_bytes(), timeout: LONG };
        let said = String::from_utf8(client.call(&call).expect("an answer").body).expect("text");
        let (head, seen) = said.split_once("\r\n\r\n\n").expect("both");
        assert!(head.starts_with("POST /path?a=b HTTP/1.1\r\n") && seen == body, "{of_head} {of_body}");
        let mut names: Vec<_> =
            head.lines().skip(1).filter_map(|line| line.split_once(": ")).map(|(n, _)| n).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "authorization", "content-length", "host", "user-agent"]);
        assert!(head.contains(&token) && head.contains("accept: application/json"));
        assert!(head.contains(&format!("host: {}", server.address)));
    }
    assert_eq!(server.count(), 1);
}

#[test]
fn no_more_connections_are_kept_than_the_pool_has() {
    let server = Server::start(|_, _, seen, out| {
        std::thread::sleep(Duration::from_millis(100));
        reply(out, 200, "", &seen.body)
    });
    let client = client(1);
    let both = || {
        std::thread::scope(|scope| {
            for body in [b"a", b"b"] {
                let (client, server) = (&client, &server);
                scope.spawn(move || assert_eq!(post(client, server, body).expect("an answer").body, body));
            }
        });
    };
    both();
    assert_eq!(server.count(), 2);
    both();
    assert_eq!(server.count(), 3, "one was kept");
}

#[test]
fn a_url_that_is_none_and_a_header_that_is_none_are_refused_before_anything_is_sent() {
    let server = Server::start(|_, _, _, out| reply(out, 200, "", b""));
    let client = client(1);
    let url = format!("http://{}/", server.address);
    let call = Call { method: "POST", url: &url, headers: &[], body: b"x", timeout: LONG };
    for bad in ["", "/path", "ftp://127.0.0.1/", "http://", "http://a b/"] {
        let error = client.call(&Call { url: bad, ..call }).expect_err("no URL");
        assert!(!error.may_have_arrived && error.detail.contains("can't be used"), "{bad}: {error:?}");
    }
    for bad in [("na me", "1"), ("name", "a\r\nb: secret")] {
        let error = client.call(&Call { headers: &[bad], ..call }).expect_err("no header");
        assert!(!error.may_have_arrived && error.detail.contains("can't be used"), "{bad:?}: {error:?}");
        assert!(!error.detail.contains("secret"));
    }
    assert_eq!(server.count(), 0);
}

#[test]
fn a_large_answer_that_comes_slowly_costs_what_came() {
    let server = Server::start(|_, _, _, out| {
        let announced = whatsapp_webhook::net::ANSWER_MAX;
        let _ = out.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n").as_bytes());
        for _ in 0..1_000 {
            if out.write_all(b"x").is_err() {
                break;
            }
            pause();
        }
        false
    });
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
        stat.split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .map(Duration::from_nanos)
            .expect("a number")
    };
    let client = client(4);
    let before = cpu();
    let error = post(&client, &server, b"x").expect_err("1,000 bytes of it");
    let took = cpu() - before;
    assert!(error.detail.contains("closed before"), "{error:?}");
    // 4 MiB set to zero for each of the 1,000 pieces takes 200 ms at least
    assert!(took < Duration::from_millis(100), "{took:?} of CPU");
}
