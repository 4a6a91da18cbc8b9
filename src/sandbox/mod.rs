//! A simulated Meta: it takes Graph calls as strictly as the real one, posts signed webhooks until they get their 200,
//! and misbehaves on demand. `dev`, the `sandbox` command, the tests and the load test talk to it.
//!
//! [`Sandbox`] is the library; the same is offered over HTTP under `/_sandbox/` (see [`control`]) to other processes.
//! [`openai`] is its sibling for the agent's side. All of it runs on coroutines and listens without TLS: it is for
//! loopback. Everything that is kept is bounded: the oldest goes.

mod content;
pub mod control;
pub mod faults;
mod graph;
mod limits;
pub mod openai;
mod post;
pub mod rules;
pub mod webhooks;
pub mod wire;
mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::clock::{self, UnixMillis};
use crate::secret::Secret;

pub use faults::{Calls, Fault, Faults, What};
pub use post::Counts;
pub use webhooks::Incoming;
use world::World;

/// What is told of everything that was accepted, unless [`Options::keep`] says otherwise.
pub const KEEP_DEFAULT: usize = 100_000;

/// A number of a business at Meta.
#[derive(Clone, Debug)]
pub struct Number {
    /// Its id in the Graph API.
    pub phone_number_id: String,
    /// The WhatsApp Business Account that it belongs to.
    pub waba_id: String,
    /// As people see it.
    pub display_phone_number: String,
    /// The only token that may send from it.
    pub token: Secret,
}

/// What a sandbox does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where webhooks go; until it is set they wait.
    pub webhook_url: Option<String>,
    /// Signs them.
    pub app_secret: Secret,
    /// The numbers that exist.
    pub numbers: Vec<Number>,
    /// Whether accepted messages are followed by webhooks: sent, delivered, read.
    pub statuses: bool,
    /// Time between an accepted message and its first status, and from each to the next.
    pub status_delay: Duration,
    /// The first pause before a webhook is posted again; doubles up to 64 times as much. Meta's is seconds.
    pub redeliver_after: Duration,
    /// Refuse with 131056 what Meta's limit per pair refuses: above 45 at once, one in 6 s.
    pub pair_limit: bool,
    /// Refuse with 130429 what is above so many messages a second and number.
    pub throughput: Option<u32>,
    /// Refuse with 131047 free text to who did not write within 24 h, as far as this sandbox posted it.
    pub window: bool,
    /// How many sent messages, and how many read receipts, are kept for [`Sandbox::sent`] and [`Sandbox::reads`].
    pub keep: usize,
}

impl Options {
    /// On a free port of loopback, for these numbers; statuses on, limits off.
    pub fn new(app_secret: Secret, numbers: Vec<Number>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            webhook_url: None,
            app_secret,
            numbers,
            statuses: true,
            status_delay: Duration::from_millis(5),
            redeliver_after: Duration::from_millis(200),
            pair_limit: false,
            throughput: None,
            window: false,
            keep: KEEP_DEFAULT,
        }
    }
}

/// A message that was accepted.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Sent {
    /// The how manyeth, from 1.
    pub nth: u64,
    /// From which number.
    pub phone_number_id: String,
    /// To whom: wa_id, BSUID or group.
    pub to: String,
    /// The whole body of the call.
    pub body: Box<serde_json::value::RawValue>,
    /// The sender's own id of it.
    pub biz_opaque_callback_data: Option<String>,
    /// The id that it got.
    pub wamid: String,
    /// When.
    pub at: UnixMillis,
}

impl Sent {
    /// `text.body`, of a text.
    pub fn text(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Body {
            text: Option<Text>,
        }
        #[derive(serde::Deserialize)]
        struct Text {
            body: String,
        }
        serde_json::from_str::<Body>(self.body.get()).ok()?.text.map(|text| text.body)
    }
}

/// A read receipt that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Read {
    /// Of which number.
    pub phone_number_id: String,
    /// What was read.
    pub message_id: String,
    /// Whether typing is shown.
    pub typing: bool,
    /// When.
    pub at: UnixMillis,
}

/// A call that the real Graph would have refused, so it was.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// The number in the call's path.
    pub phone_number_id: String,
    /// `error.code` of the answer.
    pub code: i64,
    /// What is wrong with it; names and places, no content.
    pub what: String,
    /// When.
    pub at: UnixMillis,
}

/// A running simulated Meta. It ends when it is dropped: connections are cut, webhooks that wait are forgotten.
pub struct Sandbox {
    world: Arc<World>,
    server: wire::Server,
}

impl Sandbox {
    /// Listens.
    ///
    /// # Errors
    /// The address can't be bound.
    pub fn start(options: Options) -> io::Result<Self> {
        let listen = options.listen;
        let world = Arc::new(World::new(options));
        let server = wire::Server::start(listen, Arc::new(graph::Service::new(Arc::clone(&world))))?;
        world.is_at(server.addr());
        Ok(Self { world, server })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// What GRAPH_API_URL has to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Connections accepted so far: who reuses them makes few.
    pub fn connections(&self) -> u64 {
        self.server.accepted()
    }

    /// Where webhooks go from now on; those that wait go there too.
    pub fn set_webhook_url(&self, url: &str) {
        self.world.post.set_url(url);
    }

    /// One more number; one with the same id is replaced.
    pub fn add_number(&self, number: Number) {
        self.world.add_number(number);
    }

    /// Somebody writes to a number: queues a signed webhook and returns the message's wamid. What one customer says to
    /// a number is posted in order, each once the one before got its 200. `from` is a wa_id, or a
    /// BSUID (`US.1349..`) of a user with a username.
    pub fn say(&self, phone_number_id: &str, from: &str, name: &str, text: &str) -> String {
        let incoming = self.incoming(phone_number_id, from, name, text);
        let wamid = incoming.wamid.clone();
        drop(self.world.say(incoming));
        wamid
    }

    /// As [`Sandbox::say`], but returns only once the webhook got its 200 (true) or `within` is over (false; it is
    /// posted on).
    pub fn say_and_wait(
        &self,
        phone_number_id: &str,
        from: &str,
        name: &str,
        text: &str,
        within: Duration,
    ) -> (String, bool) {
        let incoming = self.incoming(phone_number_id, from, name, text);
        let wamid = incoming.wamid.clone();
        let taken = self.world.say(incoming);
        (wamid, taken.wait(within))
    }

    /// A text message of now, to be changed at will and put into [`Sandbox::compose`].
    pub fn incoming(&self, phone_number_id: &str, from: &str, name: &str, text: &str) -> Incoming {
        Incoming::text(self.world.wamid_in(from), phone_number_id, from, name, text)
    }

    /// One body for all of them: an entry for each run of messages of one WABA, a change for each run of one number.
    pub fn compose(&self, incoming: &[Incoming]) -> Vec<u8> {
        self.world.compose(incoming)
    }

    /// Queues these bytes as a signed webhook, whatever they are; posted until they get a 200.
    pub fn post_raw(&self, body: Vec<u8>) {
        drop(self.world.post.signed(body));
    }

    /// Queues bytes with a signature of the caller's, or none; posted once.
    pub fn post_unsigned(&self, body: Vec<u8>, signature: Option<String>) {
        self.world.post.once(body, signature);
    }

    /// The signature header's value for a body.
    pub fn signature(&self, body: &[u8]) -> String {
        self.world.post.signature(body)
    }

    /// Messages accepted so far, oldest first; at most [`Options::keep`].
    pub fn sent(&self) -> Vec<Sent> {
        self.world.sent_after(0)
    }

    /// Those after the `nth`.
    pub fn sent_after(&self, nth: u64) -> Vec<Sent> {
        self.world.sent_after(nth)
    }

    /// How many were accepted in all.
    pub fn sent_count(&self) -> u64 {
        self.world.counts.sent.load(Relaxed)
    }

    /// Waits until so many messages were accepted in all; false if `within` is over first.
    pub fn wait_sent(&self, count: u64, within: Duration) -> bool {
        wait_until(within, || self.sent_count() >= count)
    }

    /// Read receipts so far, oldest first; at most [`Options::keep`].
    pub fn reads(&self) -> Vec<Read> {
        self.world.reads()
    }

    /// Called for every accepted message, before its caller gets the answer. On a coroutine: it must not block.
    pub fn on_sent(&self, tell: Box<dyn Fn(&Sent) + Send + Sync>) {
        self.world.set_on_sent(tell.into());
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.world.faults
    }

    /// Calls that the real Graph would have refused; the first thousand.
    pub fn violations(&self) -> Vec<Violation> {
        self.world.violations()
    }

    /// How many such calls there were in all.
    pub fn violation_count(&self) -> u64 {
        self.world.counts.violations.load(Relaxed)
    }

    /// Accepted messages with a biz_opaque_callback_data that an accepted message had before.
    pub fn doubled(&self) -> u64 {
        self.world.counts.doubled.load(Relaxed)
    }

    /// Webhooks: how they fared.
    pub fn webhooks(&self) -> Counts {
        self.world.post.counts()
    }

    /// Waits until every webhook got its 200; false if `within` is over first.
    pub fn wait_quiet(&self, within: Duration) -> bool {
        wait_until(within, || self.webhooks().pending == 0)
    }

    /// A file that Graph hands out under this media id.
    pub fn add_media(&self, id: &str, mime_type: &str, bytes: Vec<u8>) {
        self.world.add_media(id, mime_type, bytes);
    }

    /// Forgets what was sent, read and refused, and disarms all faults; numbers and webhooks stay.
    pub fn reset(&self) {
        self.world.reset();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.world.post.stop();
    }
}

/// Looks every 5 ms.
fn wait_until(within: Duration, is_so: impl Fn() -> bool) -> bool {
    let begun = clock::monotonic();
    while !is_so() {
        if clock::monotonic() - begun > within {
            return false;
        }
        clock::sleep(Duration::from_millis(5));
    }
    true
}
