//! The HTTP client against a real server that counts its connections and misbehaves on demand; over TLS too.

#![allow(
    clippy::disallowed_methods,
    reason = "the servers here are threads, which sleep, and tests measure time"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use whatsapp_webhook::net::client::Client;
use whatsapp_webhook::net::{ANSWER_MAX, Answer, Call, CallError, Options};

const LONG: Duration = Duration::from_secs(20);

/// What a server of these tests saw of one request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Request line and headers, as sent.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

/// A server of threads: one a connection.
pub struct Server {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// `answer` gets the connection's number, the request's number in it and the request; it writes what it
    /// likes and returns whether the connection stays open.
    pub fn start(
        answer: impl Fn(usize, usize, Seen, &mut dyn Write) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::over(move |stream, nth| {
            let (mut reader, mut writer) = (stream.try_clone().expect("a descriptor"), stream);
            let mut request = 0;
            while let Some(seen) = request_from(&mut reader) {
                if !answer(nth, request, seen, &mut writer) {
                    return;
                }
                request += 1;
            }
        })
    }

    /// `serve` gets each connection whole.
    pub fn over(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        // room for all that the tests open at once: above it the kernel drops and a connect takes a second
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("one");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        listener.listen(1024).expect("listens");
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (Arc::clone(&connections), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let nth = count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream, nth));
            }
        });
        Self { address, connections }
    }

    pub fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("http://{}/path?secret=1", self.address)
    }
}

/// One request with a Content-Length body or none; `None` at the end of the connection.
pub fn request_from(stream: &mut impl Read) -> Option<Seen> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(Seen { head, body })
}

/// Answers with a length.
pub fn reply(out: &mut dyn Write, status: u16, headers: &str, body: &[u8]) -> bool {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    out.write_all(head.as_bytes()).and_then(|()| out.write_all(body)).is_ok()
}

fn client() -> Client {
    crate::coroutines();
    Client::new(Options { pool_size: 64, connect_timeout: Duration::from_secs(3), is_patient: false })
}

fn post(client: &Client, url: &str, body: &[u8], timeout: Duration) -> Result<Answer, CallError> {
    client.call(&Call { method: "POST", url, headers: &[("authorization", "Bearer t0ken")], body, timeout })
}

fn coroutine<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    may::go!(f).join().expect("no panic")
}

#[test]
fn a_request_is_sent_as_asked_and_its_answer_is_read_whole() {
    let server = Server::start(|_, _, seen, out| {
        assert!(seen.head.starts_with("POST /path?secret=1 HTTP/1.1\r\n"), "{}", seen.head);
        assert!(seen.head.to_lowercase().contains("\r\nauthorization: bearer t0ken\r\n"), "{}", seen.head);
        reply(out, 418, "X-Name: Value\r\n", &seen.body)
    });
    let answer = post(&client(), &server.url(), b"hello", LONG).expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (418, b"hello".as_slice()));
    assert_eq!(answer.header("x-name"), Some("Value"));
}

#[test]
fn calls_in_a_row_use_one_connection_from_a_coroutine_and_from_a_thread() {
    let server = Server::start(|_, _, seen, out| reply(out, 200, "", &seen.body));
    let (client, url) = (client(), server.url());
    for n in 0..50 {
        let body = format!("{n}");
        assert_eq!(post(&client, &url, body.as_bytes(), LONG).expect("an answer").body, body.as_bytes());
    }
    coroutine(move || {
        for n in 0..50 {
            let body = vec![b'x'; n * 1000];
            assert_eq!(post(&client, &url, &body, LONG).expect("an answer").body, body);
        }
        let get = Call { method: "GET", url: &url, headers: &[], body: b"", timeout: LONG };
        assert_eq!(client.call(&get).expect("an answer").status, 200);
        assert_eq!(client.call(&Call { method: "DELETE", ..get }).expect("an answer").status, 200);
    });
    assert_eq!(server.count(), 1);
}

#[test]
fn five_hundred_coroutines_on_two_workers_all_get_their_own_answer() {
    let server = Server::start(|_, _, seen, out| {
        std::thread::sleep(Duration::from_millis(20));
        reply(out, 200, "", &seen.body)
    });
    let client = Arc::new(client());
    let calls: Vec<_> = (0..500)
        .map(|n| {
            let (client, url) = (Arc::clone(&client), server.url());
            may::go!(move || {
                let body = format!("call {n}");
                assert_eq!(
                    post(&client, &url, body.as_bytes(), LONG).expect("an answer").body,
                    body.as_bytes()
                );
            })
        })
        .collect();
    calls.into_iter().for_each(|call| call.join().expect("no panic"));
    assert!(server.count() <= 500);
}

#[test]
fn fifty_at_once_open_at_most_fifty_connections_however_often() {
    let server = Server::start(|_, _, seen, out| reply(out, 200, "", &seen.body));
    let client = Arc::new(client());
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (client, url) = (Arc::clone(&client), server.url());
            may::go!(move || {
                for _ in 0..10 {
                    post(&client, &url, b"x", LONG).expect("an answer");
                }
            })
        })
        .collect();
    calls.into_iter().for_each(|call| call.join().expect("no panic"));
    assert!(server.count() <= 50, "{}", server.count());
}

#[test]
fn a_connection_that_the_server_closed_while_idle_is_not_used() {
    let server = Server::start(|_, _, seen, out| {
        reply(out, 200, "", &seen.body);
        false
    });
    let (client, url) = (client(), server.url());
    for _ in 0..5 {
        post(&client, &url, b"x", LONG).expect("an answer");
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(server.count(), 5);
}

#[test]
fn a_request_that_was_taken_and_not_answered_may_have_arrived_and_is_not_repeated() {
    let server = Server::start(|_, nth, seen, out| nth == 0 && reply(out, 200, "", &seen.body));
    let (client, url) = (client(), server.url());
    post(&client, &url, b"first", LONG).expect("an answer");
    let error = post(&client, &url, b"second", LONG).expect_err("closed without an answer");
    assert!(error.may_have_arrived && !error.timed_out, "{error:?}");
    assert_eq!(server.count(), 1);
}

#[test]
fn half_an_answer_is_an_error() {
    let server = Server::start(|_, _, _, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").is_err()
    });
    let error = post(&client(), &server.url(), b"x", LONG).expect_err("half an answer");
    assert!(error.may_have_arrived && !error.timed_out, "{error:?}");
}

#[test]
fn slow_answers_end_by_the_deadline_and_the_coroutine_goes_on() {
    // silent, and one byte at a time: neither outlives the deadline
    let server = Server::start(|nth, _, _, out| {
        if nth == 0 {
            std::thread::sleep(Duration::from_secs(5));
            return false;
        }
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n");
        (0..100).all(|_| {
            std::thread::sleep(Duration::from_millis(50));
            out.write_all(b"x").is_ok()
        })
    });
    let (client, url) = (client(), server.url());
    coroutine(move || {
        for _ in 0..2 {
            let begun = Instant::now();
            let error = post(&client, &url, b"x", Duration::from_millis(300)).expect_err("no answer in time");
            assert!(error.may_have_arrived && error.timed_out, "{error:?}");
            let took = begun.elapsed();
            assert!(took >= Duration::from_millis(290) && took < Duration::from_millis(800), "{took:?}");
        }
        let name = std::thread::current().name().map(str::to_owned);
        assert_ne!(name.as_deref(), Some("timer"), "back on a worker");
    });
}

#[test]
fn deadlines_of_many_calls_at_once_are_all_kept() {
    let server = Server::over(|stream, _| {
        std::thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let client = Arc::new(client());
    let calls: Vec<_> = (0..100u64)
        .map(|n| {
            let (client, url) = (Arc::clone(&client), server.url());
            may::go!(move || {
                let timeout = Duration::from_millis(300 + 7 * n);
                let begun = Instant::now();
                let error = post(&client, &url, b"x", timeout).expect_err("no answer");
                assert!(error.timed_out && error.may_have_arrived, "{error:?}");
                (timeout, begun.elapsed())
            })
        })
        .collect();
    for call in calls {
        let (timeout, took) = call.join().expect("no panic");
        assert!(took >= timeout && took < timeout + Duration::from_millis(500), "{timeout:?}: {took:?}");
    }
}

#[test]
fn an_address_that_never_answers_ends_by_the_connect_timeout() {
    // a full backlog: the kernel drops the SYN and the connect stays under way
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    listener.listen(0).expect("listens");
    let address = listener.local_addr().ok().and_then(|a| a.as_socket()).expect("an address");
    let _fill: Vec<_> =
        (0..8).map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(50))).collect();
    let options = Options { pool_size: 1, connect_timeout: Duration::from_millis(400), is_patient: false };
    crate::coroutines();
    let (client, url) = (Arc::new(Client::new(options)), format!("http://{address}/"));
    for on_coroutine in [false, true] {
        let (client, url) = (Arc::clone(&client), url.clone());
        let begun = Instant::now();
        let connect = move || post(&client, &url, b"x", LONG).expect_err("nobody answers");
        let error = if on_coroutine { coroutine(connect) } else { connect() };
        assert!(error.timed_out && !error.may_have_arrived, "{error:?}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(390) && took < Duration::from_millis(900), "{took:?}");
    }
}

#[test]
fn a_body_that_the_server_does_not_take_ends_by_the_deadline_and_has_not_arrived() {
    let server = Server::over(|stream, _| {
        std::thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let url = server.url();
    let client = client();
    let error = coroutine(move || {
        post(&client, &url, &vec![b'x'; 64 << 20], Duration::from_millis(500)).expect_err("never taken")
    });
    assert!(error.timed_out && !error.may_have_arrived, "{error:?}");
}

#[test]
fn nobody_listening_and_no_such_name_have_not_arrived() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    for url in [format!("http://127.0.0.1:{port}/"), "http://no-such-name.invalid/".to_owned()] {
        let error = post(&client(), &url, b"x", LONG).expect_err("nobody there");
        assert!(!error.may_have_arrived, "{error:?}");
    }
    for url in ["not a url", "/path", "ftp://127.0.0.1/"] {
        assert!(!post(&client(), url, b"x", LONG).expect_err("not usable").may_have_arrived, "{url}");
    }
}

#[test]
fn a_name_with_two_families_reaches_a_server_that_has_one() {
    let server = Server::start(|_, _, seen, out| reply(out, 200, "", &seen.body));
    let url = format!("http://localhost:{}/", server.address.port());
    let client = client();
    assert_eq!(coroutine(move || post(&client, &url, b"x", LONG)).expect("an answer").body, b"x");
}

#[test]
fn an_answer_has_a_largest_size_with_a_length_and_without() {
    let server = Server::start(|_, _, seen, out| {
        let size = if seen.body == b"fits" { ANSWER_MAX } else { ANSWER_MAX + 1 };
        reply(out, 200, "", &vec![b'x'; size])
    });
    let client = client();
    assert_eq!(post(&client, &server.url(), b"fits", LONG).expect("an answer").body.len(), ANSWER_MAX);
    let error = post(&client, &server.url(), b"too much", LONG).expect_err("too large");
    assert!(error.detail.contains("larger than") && error.may_have_arrived, "{error:?}");
    let endless = Server::start(|_, _, _, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        while out.write_all(&[b'x'; 65536]).is_ok() {}
        false
    });
    assert!(post(&client, &endless.url(), b"x", LONG).expect_err("too large").detail.contains("larger than"));
}

#[test]
fn a_chunked_answer_is_read_and_its_connection_kept() {
    let server = Server::start(|_, _, _, out| {
        out.write_all(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n",
        )
        .is_ok()
    });
    let client = client();
    for _ in 0..3 {
        assert_eq!(post(&client, &server.url(), b"x", LONG).expect("an answer").body, b"Wikipedia");
    }
    assert_eq!(server.count(), 1);
}

#[test]
fn a_redirect_is_an_answer_and_is_not_followed() {
    let server = Server::start(|_, _, _, out| reply(out, 302, "location: http://127.0.0.1:1/\r\n", b""));
    let answer = post(&client(), &server.url(), b"x", LONG).expect("an answer");
    assert_eq!((answer.status, answer.header("location")), (302, Some("http://127.0.0.1:1/")));
}

#[test]
fn nonsense_and_a_reset_are_errors_that_say_nothing_of_the_request() {
    let server = Server::start(|nth, _, _, out| {
        let _ = out.write_all(if nth == 0 { b"SSH-2.0-x secret\r\n\r\n" } else { b"" });
        false
    });
    let client = client();
    for _ in 0..2 {
        let error = post(&client, &server.url(), b"body", LONG).expect_err("no answer");
        assert!(error.may_have_arrived, "{error:?}");
        for word in ["secret", "t0ken", "body"] {
            assert!(!error.detail.contains(word), "{error:?}");
        }
    }
}

/// A TLS server with a certificate for 127.0.0.1, and its authority's certificate.
fn tls_server() -> (Server, Vec<u8>) {
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).expect("a certificate");
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .expect("a server");
    let config = Arc::new(config);
    let server = Server::over(move |stream, _| {
        let session = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
        let mut tls = rustls::StreamOwned::new(session, stream);
        while let Some(seen) = request_from(&mut tls) {
            if seen.body.starts_with(b"slow") {
                std::thread::sleep(Duration::from_secs(2));
            }
            if seen.body == b"hang up" || !reply(&mut tls, 200, "", &seen.body) {
                return;
            }
        }
    });
    (server, root.der().to_vec())
}

#[test]
fn tls_is_verified_and_its_connections_are_kept() {
    crate::coroutines();
    let (server, root) = tls_server();
    let url = format!("https://127.0.0.1:{}/", server.address.port());
    let error = post(&client(), &url, b"x", LONG).expect_err("not trusted");
    assert!(!error.may_have_arrived && error.detail.contains("certificate"), "{error:?}");
    let before = server.count();
    let options = Options { pool_size: 8, connect_timeout: Duration::from_secs(3), is_patient: false };
    let client = Arc::new(Client::with_extra_roots(options, &[&root]));
    let (trusting, to) = (Arc::clone(&client), url.clone());
    coroutine(move || {
        for n in 0..20 {
            let body = vec![b'x'; n * 5000];
            assert_eq!(post(&trusting, &to, &body, LONG).expect("an answer").body, body);
        }
    });
    assert_eq!(server.count() - before, 1);
    let error = post(&client, &url, b"hang up", LONG).expect_err("no answer");
    assert!(error.may_have_arrived, "{error:?}");
    let other = format!("https://localhost:{}/", server.address.port());
    assert!(!post(&client, &other, b"x", LONG).expect_err("another name").may_have_arrived);
}

#[test]
fn four_hundred_wait_over_tls_with_their_stacks_given_back_and_all_go_on() {
    crate::coroutines();
    let (server, root) = tls_server();
    let url = Arc::new(format!("https://127.0.0.1:{}/", server.address.port()));
    let options = Options { pool_size: 8, connect_timeout: Duration::from_secs(20), is_patient: true };
    let client = Arc::new(Client::with_extra_roots(options, &[&root]));
    let ask = |n: usize| {
        let (client, url) = (Arc::clone(&client), Arc::clone(&url));
        let ask = move || {
            whatsapp_webhook::stack::begin();
            let mine = format!("slow {n}").repeat(50);
            // what the wait must not touch
            let above = std::hint::black_box([n; 512]);
            let answer = post(&client, &url, mine.as_bytes(), LONG * 3).expect("an answer");
            assert_eq!((answer.body, above), (mine.into_bytes(), [n; 512]));
        };
        let words = whatsapp_webhook::stack::BYTES / size_of::<usize>();
        may::go!(may::coroutine::Builder::new().stack_size(words), ask).expect("memory for a stack")
    };
    let asked: Vec<_> = (0..400).map(ask).collect();
    asked.into_iter().for_each(|asked| asked.join().expect("no panic"));
    assert_eq!(server.count(), 400);
}

#[test]
fn a_handshake_that_never_ends_is_a_failed_connect() {
    let server = Server::over(|stream, _| {
        std::thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let url = format!("https://{}/", server.address);
    let client = client();
    let error =
        coroutine(move || post(&client, &url, b"x", Duration::from_millis(300)).expect_err("no handshake"));
    assert!(error.timed_out && !error.may_have_arrived, "{error:?}");
}
