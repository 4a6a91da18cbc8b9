//! No input, however strange, ends the service.

use super::*;

fn noise(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn no_input_ends_the_service_or_is_stored_unsigned() {
    let edge = edge_but(|http| {
        http.header_timeout = Duration::from_millis(400);
        http.body_timeout = Duration::from_millis(400);
        http.idle_timeout = Duration::from_millis(400);
    });
    let before = open_files();
    let seed = &mut 0x9E37_79B9_7F4A_7C15;
    let wrong = format!("sha256={}", "1".repeat(64));
    let base = [
        post_with(BODY.as_bytes(), Some(&wrong), ""),
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /webhook?hub.mode=subscribe&hub.verify_token=x HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
    ];
    let mut open = Vec::new();
    for round in 0..3000 {
        let mut bytes = match round % 4 {
            0 => (0..noise(seed) % 600).map(|_| noise(seed) as u8).collect(),
            _ => base[noise(seed) as usize % base.len()].repeat(1 + noise(seed) as usize % 3),
        };
        for _ in 0..noise(seed) % 6 {
            if bytes.is_empty() {
                break;
            }
            let at = noise(seed) as usize % bytes.len();
            match noise(seed) % 4 {
                0 => bytes[at] = noise(seed) as u8,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, b"\r\n\0:, 9+"[noise(seed) as usize % 8]),
                _ => ignore(bytes.remove(at)),
            }
        }
        let mut client = edge.client();
        client.send(&bytes);
        if noise(seed).is_multiple_of(3) {
            let _ = client.stream.shutdown(Shutdown::Write);
        }
        open.push(client);
        if open.len() >= 100 {
            open.clear();
        }
        if round % 500 == 0 {
            assert_eq!(edge.get("/health").code, 200);
        }
    }
    drop(open);
    edge.wait_until("all gone", |edge| edge.server.connections() == 0);
    edge.wait_until("descriptors closed", |_| open_files() < before + 600);
    assert!(edge.bodies().is_empty());
    assert_eq!(edge.ask(post(BODY.as_bytes())).code, 200);
}
