//! How often one address may ask.

use super::*;

#[test]
fn each_class_has_its_limit_for_each_address() {
    let edge = edge_but(|http| http.rates.health = 3);
    let ask = |hops: &str| edge.ask(format!("GET /health HTTP/1.1\r\nX-Forwarded-For: {hops}\r\n\r\n"));
    for _ in 0..3 {
        assert_eq!(ask("203.0.113.1").code, 200);
    }
    let refused = ask("6.6.6.6, 203.0.113.1");
    let after: u64 = refused.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!(refused.code == 429 && (1..=60).contains(&after));
    assert_eq!(ask("203.0.113.2").code, 200);
    assert_eq!(edge.get("/ready").code, 200);
}

#[test]
fn a_right_signature_passes_from_an_address_that_is_over_its_limit() {
    let edge = edge_but(|http| http.rates.unverified = 5);
    let mut client = edge.client();
    let wrong = format!("sha256={}", "0".repeat(64));
    let codes: Vec<_> =
        (0..8).map(|_| client.send(post_with(BODY.as_bytes(), Some(&wrong), "")).code()).collect();
    assert_eq!(codes, [401, 401, 401, 401, 401, 429, 429, 429]);
    assert_eq!(edge.get("/webhook").code, 429, "handshakes are of the same class");
    for _ in 0..100 {
        assert_eq!(client.send(post(BODY.as_bytes())).code(), 200);
    }
    assert_eq!(client.send(post(&vec![b' '; 3 << 20])).code(), 200, "a large one too");
    // but what large wrong ones cost is bounded
    let large = vec![b'x'; 4 << 20];
    let mut refused_unread = false;
    for _ in 0..40 {
        let mut client = edge.client();
        let head = format!(
            "POST /webhook HTTP/1.1\r\nX-Hub-Signature-256: {wrong}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            large.len()
        );
        match client.send(head).code() {
            100 => assert_eq!(client.send(&large).code(), 429),
            429 => refused_unread = true,
            other => panic!("{other}"),
        }
    }
    assert!(refused_unread);
}

#[test]
fn the_webhooks_own_limit_counts_only_if_it_is_set() {
    let edge = edge_but(|http| http.rates.webhook = 2);
    let mut client = edge.client();
    let codes: Vec<_> = (0..4).map(|_| client.send(post(BODY.as_bytes())).code()).collect();
    assert_eq!(codes, [200, 200, 429, 429]);
    assert_eq!(edge.bodies().len(), 2);
}
