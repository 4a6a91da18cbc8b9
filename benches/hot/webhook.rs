//! What the webhook module costs inside a request: the signature beside plain HMAC and beside a copy of the
//! body, the parser beside simd-json's bare tape of the same bytes (serde_json's skipping, where the tape is of
//! no use), single messages taken out again beside that skipping.

use std::hint::black_box;

use whatsapp_webhook::config::App;
use whatsapp_webhook::event::{Item, Path};
use whatsapp_webhook::secret::Secret;
use whatsapp_webhook::webhook::{parse::parse, signature::Verifier, unpack};

use crate::bodies::body;
use crate::judge::Band;
use crate::pair::{Case, Pairs};

const HMAC_750: Band = Band(1.0, 1.2);
const HMAC_3M: Band = Band(0.95, 1.05);
const COPY_750: Band = Band(40.0, 90.0);

/// Kinds with the ratio to a kept tape for 1, 100 and 1,000 items.
const ON_TAPE: [(&str, [Band; 3]); 3] = [
    ("message", [Band(1.2, 1.5), Band(1.2, 1.4), Band(1.2, 1.5)]),
    ("reaction", [Band(1.2, 1.6), Band(1.2, 1.4), Band(1.2, 1.5)]),
    ("status", [Band(1.2, 1.6), Band(1.2, 1.5), Band(1.3, 1.6)]),
];

/// Kinds with the ratio to serde_json's skipping: read by the scan, since the tape can't or bytes are wanted.
const SCANNED: [(&str, [Band; 3]); 4] = [
    ("error", [Band(6.0, 8.0), Band(5.0, 6.0), Band(5.0, 6.0)]),
    ("other_field", [Band(5.0, 6.5), Band(5.0, 6.0), Band(5.0, 6.2)]),
    ("odd_text", [Band(6.5, 8.0), Band(6.5, 8.0), Band(6.5, 8.0)]),
    ("unparsed", [Band(2.8, 3.6), Band(2.2, 2.8), Band(2.2, 2.9)]),
];

/// Messages of a body, with the ratio to skipping it of taking out the last and all.
const UNPACKED: [(usize, Band, Band); 2] =
    [(1, Band(6.5, 9.0), Band(6.5, 9.0)), (1000, Band(2.0, 2.7), Band(8.5, 11.0))];

/// Runs everything.
pub fn bench(pairs: &mut Pairs) {
    signature(pairs);
    for (nth, count) in [1, 100, 1000].into_iter().enumerate() {
        for (kind, bands) in ON_TAPE {
            parsing(pairs, kind, count, bands[nth], true);
        }
        for (kind, bands) in SCANNED {
            parsing(pairs, kind, count, bands[nth], false);
        }
    }
    for (count, last, all) in UNPACKED {
        unpacking(pairs, count, last, all);
    }
}

fn signature(pairs: &mut Pairs) {
    let app = App { name: Some("app".into()), secret: Secret::new("0123456789abcdef0123456789abcdef") };
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, app.secret.reveal().as_bytes());
    let verifier = Verifier::new(&[app], false);
    let case = |name, floor, band| Case { group: "webhook/signature", name, per: 1, floor, band };
    for (name, size, band) in [("750 B", 750, HMAC_750), ("3 MB", 3_000_000, HMAC_3M)] {
        let body = vec![b'x'; size];
        let header = format!("sha256={}", hex::encode(ring::hmac::sign(&key, &body)));
        let verify = || verifier.verify(Some(header.as_bytes()), black_box(&body)).expect("right");
        pairs.calls(case(name, "plain HMAC", band), verify, || ring::hmac::sign(&key, black_box(&body)));
        if size == 750 {
            let mut copy = Vec::with_capacity(size);
            pairs.calls(case("750 B, of a copy", "copy of the body", COPY_750), verify, || {
                copy.clear();
                copy.extend_from_slice(black_box(&body));
                copy.len()
            });
        }
    }
}

fn parsing(pairs: &mut Pairs, kind: &str, count: usize, band: Band, on_tape: bool) {
    let body = body(kind, count);
    let name = format!("{count} {kind}");
    let floor = if on_tape { "tape of it" } else { "skipping it" };
    let case = Case { group: "webhook/parse", name: &name, per: count as u64, floor, band };
    let mut items: Vec<Item> = Vec::new();
    let ours = || parse(black_box(&body), &mut items);
    if !on_tape {
        return pairs.calls(case, ours, || skipped(&body));
    }
    let (mut buffers, mut kept, mut copy) =
        (simd_json::Buffers::default(), simd_json::Tape(Vec::new()), Vec::new());
    pairs.calls(case, ours, || {
        copy.clear();
        copy.extend_from_slice(black_box(&body));
        copy.resize(body.len() + simd_json::INPUT_PADDING, b' ');
        let mut tape = std::mem::replace(&mut kept, simd_json::Tape(Vec::new())).reset();
        let result = simd_json::fill_tape_padded(&mut copy, body.len(), &mut buffers, &mut tape);
        kept = tape.reset();
        result.is_ok()
    });
}

fn unpacking(pairs: &mut Pairs, count: usize, last: Band, all: Band) {
    let body = body("message", count);
    let paths: Vec<_> = (0..count as u32).map(|index| Path { index, ..Path::default() }).collect();
    for (which, paths, band) in [("last", &paths[count - 1..], last), ("all", &paths[..], all)] {
        let name = format!("{which} of {count}");
        let per = paths.len() as u64;
        let case = Case { group: "webhook/unpack", name: &name, per, floor: "skipping it", band };
        pairs.calls(case, || unpack::messages(black_box(&body), paths).is_ok(), || skipped(&body));
    }
}

/// serde_json reads all of it and keeps nothing.
pub fn skipped(body: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(black_box(body)).is_ok()
}
