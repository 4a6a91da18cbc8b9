//! Bodies as large as Meta sends them, and what the others notice of it.
//!
//! Beside the users' load, evenly over the run, so many a second, each of thousands of delivery statuses of nobody. The
//! others' times to the 200 are kept apart by whether one was under way: from its first byte until [`FOLLOWS`] after its
//! 200, since its items go into their table then.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use whatsapp_webhook::clock;

use crate::apart::{Apart, Times};
use crate::client::post_once;
use crate::compose::{Composer, Said};
use crate::drive::{ANSWER_TIMEOUT, Load};
use crate::sys::now_us;
use crate::timing::{Quantiles, Recorder};

/// The largest body that Meta sends, in bytes.
const BODY_MAX: usize = 3_000_000;
/// So long after its 200 one still counts as under way.
const FOLLOWS: Duration = Duration::from_millis(100);
/// How often it is looked whether the load has begun.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Counts while it runs.
pub struct Large {
    /// From one to the next; `None`: there are none.
    every: Option<Duration>,
    /// Whatever the users post, to the 200.
    apart: Apart,
    took: Recorder,
    sent: Mutex<Sent>,
}

#[derive(Clone, Copy, Default)]
struct Sent {
    posted: u64,
    bytes: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LargeBodies {
    /// How many.
    pub posted: u64,
    /// Of them.
    pub without_200: u64,
    /// Of each body.
    pub bytes: u64,
    /// Those with a 200, to it.
    pub took: Quantiles,
    /// To the 200 of all others.
    #[serde(flatten)]
    pub times: Times,
}

impl Large {
    /// So many a second; none at 0.
    pub fn new(a_second: u32) -> Self {
        Self {
            every: (a_second > 0).then(|| Duration::from_secs(1) / a_second),
            apart: Apart::new(),
            took: Recorder::new(),
            sent: Mutex::default(),
        }
    }

    /// A user's request got its 200 at `at_us`, after `us`; `is_quiet`: it met no stall of the machine.
    pub fn acknowledged(&self, at_us: u64, us: u64, is_quiet: bool) {
        if self.every.is_some() {
            self.apart.record(at_us, us, is_quiet);
        }
    }

    /// What came of it; `None` without any.
    pub fn bodies(&self) -> Option<LargeBodies> {
        let took = Quantiles::of(&self.took.all());
        let Sent { posted, bytes } = *self.sent.lock();
        let without_200 = posted - took.count;
        self.every.map(|_| LargeBodies { posted, without_200, bytes, took, times: self.apart.times() })
    }

    /// Whether one is.
    pub fn is_under_way(&self) -> bool {
        self.apart.is_open()
    }
}

/// Posts a load's large bodies, if it has any, until it is stopped (the last one may be under way then), on a thread of its
/// own: signing one would hold up the users.
///
/// # Errors
/// There is no thread for it.
pub fn start(load: &Arc<Load>, composer: Composer) -> std::io::Result<()> {
    let Some(every) = load.large.every else { return Ok(()) };
    let load = Arc::clone(load);
    let post = move || {
        let mut composer = composer;
        while !load.is_begun() && !load.is_stopped() {
            clock::sleep(LOOK_EVERY);
        }
        let mut at = clock::monotonic() + every;
        for nth in 0.. {
            let request = compose(&mut composer, &load, nth);
            while clock::monotonic() < at && !load.is_stopped() {
                clock::sleep(LOOK_EVERY.min(at.saturating_sub(clock::monotonic())));
            }
            if load.is_stopped() {
                return;
            }
            at = clock::monotonic() + every;
            load.large.post(&load, request);
        }
    };
    std::thread::Builder::new().name("large-bodies".to_owned()).spawn(post).map(drop)
}

impl Large {
    fn post(&self, load: &Load, request: &[u8]) {
        self.apart.begin(1);
        let begun = now_us();
        self.sent.lock().posted += 1;
        if post_once(load.plan.server, ANSWER_TIMEOUT, request).is_ok_and(|status| status == 200) {
            self.took.record(0, now_us() - begun);
        }
        clock::sleep(FOLLOWS);
        self.apart.done();
    }
}

/// The body number `nth`, as large as it may be.
fn compose<'c>(composer: &'c mut Composer, load: &Load, nth: u32) -> &'c [u8] {
    let businesses = load.plan.businesses;
    // conversations that nobody has
    let say = |of: u32| Said { conversation: u32::MAX - nth, nth: of, business: of % businesses };
    let seconds = load.seconds(now_us());
    // there are fewer than so many, so none is longer
    composer.statuses(&[say(9998), say(9999)], seconds);
    let two = composer.body_len();
    composer.statuses(&[say(9999)], seconds);
    let one = composer.body_len();
    let said: Vec<Said> = (0..).map(say).take((BODY_MAX - one) / (two - one)).collect();
    composer.statuses(&said, seconds);
    load.large.sent.lock().bytes = composer.body_len() as u64;
    composer.last()
}
