//! What the webhook module costs inside a request: the signature beside plain HMAC and beside copying the
//! body, and the parser beside simd-json's bare tape of the same bytes. The ratios are printed after
//! criterion's figures.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use serde_json::{Value, json};
use whatsapp_webhook::clock;
use whatsapp_webhook::config::App;
use whatsapp_webhook::event::{Item, Path};
use whatsapp_webhook::secret::Secret;
use whatsapp_webhook::webhook::{parse::parse, signature::Verifier, unpack};

/// Runs everything.
pub fn bench(c: &mut Criterion) {
    let mut ratios = Vec::new();
    signature(c, &mut ratios);
    for kind in ["message", "status", "other_field", "odd_text"] {
        for count in [1, 100, 1000] {
            parsing(c, kind, count, &mut ratios);
        }
    }
    unpacking(c, &mut ratios);
    println!("\nwebhook: time, beside what, ratio");
    ratios.iter().for_each(|line| println!("  {line}"));
}

fn signature(c: &mut Criterion, ratios: &mut Vec<String>) {
    let app = App { name: Some("app".into()), secret: Secret::new("0123456789abcdef0123456789abcdef") };
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, app.secret.reveal().as_bytes());
    let verifier = Verifier::new(&[app], false);
    for (name, size) in [("750 B", 750), ("3 MB", 3_000_000)] {
        let body = vec![b'x'; size];
        let header = format!("sha256={}", hex::encode(ring::hmac::sign(&key, &body)));
        let mut group = c.benchmark_group("webhook/signature");
        group.throughput(Throughput::Bytes(size as u64));
        let verify = || verifier.verify(Some(header.as_bytes()), black_box(&body)).expect("right");
        group.bench_function(name, |b| b.iter(verify));
        group.finish();
        let mut copy = Vec::with_capacity(size);
        let ours = ns(verify);
        let plain = ns(|| ring::hmac::sign(&key, black_box(&body)));
        let copied = ns(|| {
            copy.clear();
            copy.extend_from_slice(black_box(&body));
            copy.len()
        });
        ratios.push(format!("signature {name}: {ours:.0} ns, {:.2} of plain HMAC", ours / plain));
        ratios.push(format!("signature {name}: {ours:.0} ns, {:.0} of copying the body", ours / copied));
    }
}

fn parsing(c: &mut Criterion, kind: &str, count: usize, ratios: &mut Vec<String>) {
    let body = body(kind, count);
    let mut items: Vec<Item> = Vec::new();
    let mut group = c.benchmark_group(format!("webhook/parse/{kind}"));
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(count.to_string(), |b| b.iter(|| parse(black_box(&body), &mut items)));
    group.finish();
    let ours = ns(|| parse(black_box(&body), &mut items));
    let (mut buffers, mut tape, mut copy) =
        (simd_json::Buffers::default(), simd_json::Tape(Vec::new()), Vec::new());
    let floor = ns(|| {
        copy.clear();
        copy.extend_from_slice(black_box(&body));
        copy.resize(body.len() + simd_json::INPUT_PADDING, b' ');
        let mut filled = std::mem::replace(&mut tape, simd_json::Tape(Vec::new())).reset();
        let result = simd_json::fill_tape_padded(&mut copy, body.len(), &mut buffers, &mut filled);
        tape = filled.reset();
        result.is_ok()
    });
    let fresh = ns(|| {
        let mut copy = black_box(&body).clone();
        simd_json::to_tape_with_buffers(&mut copy, &mut buffers).is_ok()
    });
    let skipped = ns(|| serde_json::from_slice::<serde::de::IgnoredAny>(black_box(&body)).is_ok());
    ratios.push(format!(
        "parse {count} {kind} ({} B): {:.0} ns an item; \
         of a kept tape {:.2}, of a fresh tape {:.2}, of serde_json's skipping {:.2}",
        body.len(),
        ours / count as f64,
        ours / floor,
        ours / fresh,
        ours / skipped
    ));
}

fn unpacking(c: &mut Criterion, ratios: &mut Vec<String>) {
    for count in [1, 1000] {
        let body = body("message", count);
        let last = [Path { index: count as u32 - 1, ..Path::default() }];
        let all: Vec<_> = (0..count as u32).map(|index| Path { index, ..Path::default() }).collect();
        let mut group = c.benchmark_group("webhook/unpack");
        group.bench_function(format!("the last of {count}"), |b| {
            b.iter(|| unpack::messages(black_box(&body), &last))
        });
        group.bench_function(format!("all of {count}"), |b| {
            b.iter(|| unpack::messages(black_box(&body), &all))
        });
        group.finish();
        let skipped = ns(|| serde_json::from_slice::<serde::de::IgnoredAny>(black_box(&body)).is_ok());
        for (name, paths) in [("the last", &last[..]), ("all", &all[..])] {
            let ours = ns(|| unpack::messages(black_box(&body), paths).is_ok());
            ratios.push(format!(
                "unpack {name} of {count}: {ours:.0} ns, {:.2} of serde_json's skipping",
                ours / skipped
            ));
        }
    }
}

/// Nanoseconds of one call: the best of ten rounds of at least 5 ms.
fn ns<T>(mut call: impl FnMut() -> T) -> f64 {
    let round = |call: &mut dyn FnMut()| {
        let (start, mut calls) = (clock::monotonic(), 0_u32);
        loop {
            for _ in 0..16 {
                call();
            }
            calls += 16;
            let took = clock::monotonic() - start;
            if took > Duration::from_millis(5) {
                return took.as_nanos() as f64 / f64::from(calls);
            }
        }
    };
    (0..10).map(|_| round(&mut || drop(black_box(call())))).fold(f64::INFINITY, f64::min)
}

/// A body of `count` items as Meta writes them: about 750 bytes with one message.
fn body(kind: &str, count: usize) -> Vec<u8> {
    let wamid = |nth: usize| format!("wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ{nth:05}=");
    let from = |nth: usize| format!("1650555{nth:04}");
    let message = |nth: usize| {
        json!({"from": from(nth), "from_user_id": format!("US.13491208655302{nth:06}"), "id": wamid(nth),
            "timestamp": "1749416383", "type": "text",
            "text": {"body": "Does it come in another colour? ".repeat(5)}})
    };
    let contact = |nth: usize| {
        json!({"profile": {"name": "Sheena Nelson"}, "wa_id": from(nth),
            "user_id": format!("US.13491208655302{nth:06}")})
    };
    let status = |nth: usize| {
        json!({"id": wamid(nth), "status": "delivered", "timestamp": "1749416383", "recipient_id": from(nth),
            "biz_opaque_callback_data": format!("r{nth:020}"),
            "pricing": {"billable": true, "pricing_model": "PMP", "category": "service", "type": "regular"}})
    };
    let all = |of: &dyn Fn(usize) -> Value| (0..count).map(of).collect::<Vec<_>>();
    let value = |members: Value| {
        let mut members = members;
        members["messaging_product"] = json!("whatsapp");
        members["metadata"] =
            json!({"display_phone_number": "15550783881", "phone_number_id": "106540352242922"});
        members
    };
    let changes = match kind {
        "status" => vec![json!({"field": "messages", "value": value(json!({"statuses": all(&status)}))})],
        "other_field" => all(&|nth| {
            let echo = value(json!({"message_echoes": [message(nth)]}));
            json!({"field": "smb_message_echoes", "value": echo})
        }),
        _ => {
            let messages = json!({"contacts": all(&contact), "messages": all(&message)});
            vec![json!({"field": "messages", "value": value(messages)})]
        }
    };
    let entry = json!({"id": "419561257915477", "changes": changes});
    let body = json!({"object": "whatsapp_business_account", "entry": [entry]});
    let body = body.to_string();
    match kind {
        // half a surrogate pair: simd-json refuses it
        "odd_text" => body.replacen("colour? D", r"colour? \ud83d D", 1).into_bytes(),
        _ => body.into_bytes(),
    }
}
