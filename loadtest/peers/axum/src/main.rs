//! A peer of the load test: the durable 200 on axum and tokio, as good as its author could make it without the product's
//! own design. `axum-twin hash|items FOLDER`; the app secret is in WHATSAPP_APP_SECRET.
//!
//! It does what the product does before its 200, and nothing else: checks the signature over the raw bytes, parses the
//! envelope into items, stores the body and an index that knows duplicates, and answers once that is on disk
//! (SQLite, WAL, synchronous=FULL, one writer thread with group commit, as the product has). One row per body. `items`
//! indexes (phone_number_id, wamid, status) as most would; `hash` the product's (timestamp, hash of that).

mod parse;
mod store;

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use ring::hmac;
use tokio::net::TcpListener;

use store::{Index, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The largest body, in bytes, as the product has it.
const BODY_MAX: usize = 4 << 20;

struct App {
    key: hmac::Key,
    store: Store,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let index = match words.next().as_deref() {
        Some("hash") => Index::Hash,
        Some("items") => Index::Items,
        _ => return Err("usage: axum-twin hash|items FOLDER".into()),
    };
    let folder = words.next().ok_or("usage: axum-twin hash|items FOLDER")?;
    let secret = std::env::var("WHATSAPP_APP_SECRET")?;
    let store = Store::open(&Path::new(&folder).join("twin.db"), index)?;
    let app = Arc::new(App { key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), store });
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(app))?;
    Ok(())
}

async fn serve(app: Arc<App>) -> io::Result<()> {
    let routes =
        Router::new().route("/webhook", post(webhook)).layer(DefaultBodyLimit::max(BODY_MAX)).with_state(app);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes).await
}

async fn webhook(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if !is_signed(&app.key, &headers, &body) {
        return StatusCode::UNAUTHORIZED;
    }
    // a body that is not understood is kept all the same, as the product does
    let items = parse::items(&body, app.store.index()).unwrap_or_default();
    match app.store.append(body, items).await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn is_signed(key: &hmac::Key, headers: &HeaderMap, body: &[u8]) -> bool {
    let mut signature = [0; 32];
    let header =
        headers.get("x-hub-signature-256").and_then(|value| value.as_bytes().strip_prefix(b"sha256="));
    header.is_some_and(|digits| hex::decode_to_slice(digits, &mut signature).is_ok())
        && hmac::verify(key, body, &signature).is_ok()
}
