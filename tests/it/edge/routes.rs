//! What is where.

use super::*;

#[test]
fn the_handshake_echoes_the_challenge() {
    let edge = edge();
    for path in ["/webhook", "/whatsapp_response"] {
        let ask = |token: &str| {
            edge.get(&format!("{path}?hub.mode=subscribe&hub.challenge=11%2058&hub.verify_token={token}"))
        };
        for token in ["right", "too"] {
            let reply = ask(token);
            assert_eq!((reply.code, reply.text()), (200, "11 58"));
            assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
        }
        assert_eq!((ask("wrong").code, edge.get(path).code), (403, 403));
    }
}

#[test]
fn health_and_readiness_say_what_the_console_says() {
    let edge = edge();
    let value = |reply: &Reply| serde_json::from_slice::<serde_json::Value>(&reply.body).expect("JSON");
    let health = edge.get("/health?x=y");
    let json = value(&health);
    assert_eq!((health.code, health.header("content-type")), (200, Some("application/json")));
    assert!(
        json["status"] == "healthy"
            && json["database"] == "disconnected"
            && json["service"] == "whatsapp-webhook"
    );
    assert!(json["timestamp"].as_f64().is_some_and(|t| t > 1.7e9 && t < 1e11));
    edge.console.connected.store(true, SeqCst);
    assert_eq!(value(&edge.get("/health"))["database"], "healthy");
    edge.console.sick.store(true, SeqCst);
    let sick = edge.get("/health");
    assert!(
        sick.code == 503
            && value(&sick)["error"] == "the \"store\" failed"
            && value(&sick)["status"] == "unhealthy"
    );
    let ready = edge.get("/ready");
    assert!(ready.code == 200 && value(&ready)["ready"] == true && value(&ready)["timestamp"].is_f64());
    edge.console.cold.store(true, SeqCst);
    let cold = edge.get("/ready");
    assert!(cold.code == 503 && value(&cold)["ready"] == false && value(&cold)["reason"] == "starting");
}

#[test]
fn metrics_are_json_or_prometheus() {
    let edge = edge();
    let ask = |path: &str, accept: &str| edge.ask(format!("GET {path} HTTP/1.1\r\nAccept: {accept}\r\n\r\n"));
    let json = ask("/metrics", "*/*");
    assert_eq!((json.header("content-type"), json.text()), (Some("application/json"), r#"{"cache":{}}"#));
    for (path, accept) in [
        ("/metrics", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
        ("/metrics", "application/openmetrics-text"),
        ("/metrics/prometheus", "application/json"),
    ] {
        let text = ask(path, accept);
        assert!(
            text.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
        );
        assert!(text.text().starts_with("# HELP whatsapp_webhook_"));
    }
    let mut out = String::new();
    http::METRICS.iter().for_each(|metric| metric.render(&mut out));
    assert!(out.contains("whatsapp_webhook_http_requests_total{route=\"metrics\",class=\"2xx\"}"), "{out}");
}

#[test]
fn unknown_paths_are_404_and_other_methods_405_with_allow() {
    let edge = edge();
    let mut client = edge.client();
    for path in ["/", "/webhook/", "/health/", "/metrics/x", "/admin", "/admin/cache", "*"] {
        assert_eq!(client.send(format!("GET {path} HTTP/1.1\r\n\r\n")).code(), 404, "{path}");
    }
    for (method, path, allow) in [
        ("PUT", "/webhook", "GET, HEAD, POST"),
        ("DELETE", "/whatsapp_response", "GET, HEAD, POST"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("POST", "/ready", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("GET", "/admin/cache/clear", "POST"),
        ("get", "/health", "GET, HEAD"),
    ] {
        let reply = client.send(format!("{method} {path} HTTP/1.1\r\n\r\n")).reply().expect("reply");
        assert_eq!((reply.code, reply.header("allow")), (405, Some(allow)), "{method} {path}");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let edge = edge();
    for path in ["/health", "/ready", "/metrics"] {
        let mut client = edge.client();
        let reply = client.send(format!("HEAD {path} HTTP/1.1\r\n\r\n")).reply_to("HEAD").expect("reply");
        assert_eq!(reply.code, 200);
        assert_ne!(reply.header("content-length"), Some("0"));
        assert!(client.is_closed(), "nothing after the header");
    }
}

#[test]
fn the_cache_is_cleared_from_this_machine_or_with_the_token() {
    let edge = edge();
    let ask = |edge: &Edge, path: &str, lines: &str| edge.ask(format!("POST {path} HTTP/1.1\r\n{lines}\r\n"));
    let clear = "/admin/cache/clear";
    let cleared = ask(&edge, clear, "");
    assert_eq!((cleared.code, cleared.text()), (200, r#"{"status":"success","message":"Cache cleared"}"#));
    for line in [
        "X-Forwarded-For: 127.0.0.1\r\n",
        "Forwarded: for=x\r\n",
        "X-Real-IP: 127.0.0.1\r\n",
        "Via: 1.1 x\r\n",
    ] {
        assert_eq!(ask(&edge, clear, line).code, 403, "{line}");
    }
    let failed = ask(&edge, "/admin/cache/warmup", "Content-Length: 0\r\n");
    assert!(failed.code == 503 && !failed.text().contains("mongodb"));
    edge.console.connected.store(true, SeqCst);
    let warm = ask(&edge, "/admin/cache/warmup", "");
    assert_eq!((warm.code, warm.text()), (200, r#"{"status":"success","message":"Cache warmed up"}"#));
    let locked = edge_but(|http| http.admin_token = Some(Secret::new("sesame")));
    let refused = ask(&locked, clear, "");
    assert_eq!((refused.code, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(ask(&locked, clear, "Authorization: Bearer sesam\r\n").code, 401);
    let twice = "Authorization: Bearer sesame\r\nAuthorization: Bearer sesame\r\n";
    assert_eq!(ask(&locked, clear, twice).code, 401);
    assert_eq!(ask(&locked, clear, "X-Forwarded-For: 1.2.3.4\r\nauthorization: bearer sesame\r\n").code, 200);
    assert_eq!((edge.console.cleared.load(SeqCst), locked.console.cleared.load(SeqCst)), (1, 1));
}
