//! The sandbox over HTTP, for other processes: no authentication, so it listens on loopback.
//!
//! | request under `/_sandbox/` | does |
//! |---|---|
//! | `POST say` `{"phone_number_id","from","name"?,"text"}`, or `"content"`: members of the message object | posts a signed webhook; `{"wamid"}` |
//! | `POST post` any bytes | posts them signed, until they get a 200 |
//! | `POST faults` a fault, or an array of them (see [`Fault`]) | arms them |
//! | `DELETE faults` | disarms all |
//! | `GET sent?after=N`, `GET reads`, `GET violations` | JSON arrays; `N`: the `nth` of the last one seen |
//! | `GET stats` | counts |
//! | `POST webhook_url` the URL | where webhooks go |
//! | `POST numbers` `{"phone_number_id","token","waba_id"?,"display_phone_number"?}` | one more number |
//! | `POST reset` | forgets what was sent, read and refused, disarms all faults |

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::faults::Fault;
use super::webhooks::{self, Incoming};
use super::wire::{self, After, Request};
use super::world::World;
use super::{Counts, Number};
use crate::secret::Secret;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Say {
    phone_number_id: String,
    from: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Faults {
    One(Box<Fault>),
    Many(Vec<Fault>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNumber {
    phone_number_id: String,
    token: String,
    #[serde(default)]
    waba_id: Option<String>,
    #[serde(default)]
    display_phone_number: Option<String>,
}

#[derive(Serialize)]
struct Stats {
    sent: u64,
    reads: u64,
    doubled: u64,
    violations: u64,
    faults_hit: u64,
    webhooks: Counts,
}

/// Answers what comes after `/_sandbox/`.
pub(super) fn call(world: &Arc<World>, what: &str, request: &Request<'_>, out: &mut Vec<u8>) -> After {
    let done = match (request.method, what) {
        ("POST", "say") => read(request.body).map(|say| self::say(world, say)),
        ("POST", "post") => {
            drop(world.post.signed(request.body.to_vec()));
            Ok(b"{}".to_vec())
        }
        ("POST", "faults") => read(request.body).map(|faults| {
            let faults = match faults {
                Faults::One(fault) => vec![*fault],
                Faults::Many(faults) => faults,
            };
            faults.into_iter().for_each(|fault| world.faults.add(fault));
            b"{}".to_vec()
        }),
        ("DELETE", "faults") => {
            world.faults.clear();
            Ok(b"{}".to_vec())
        }
        ("GET", "sent") => Ok(json(&world.sent_after(after(request.target)))),
        ("GET", "reads") => Ok(json(&world.reads())),
        ("GET", "violations") => Ok(json(&world.violations())),
        ("GET", "stats") => Ok(json(&stats(world))),
        ("POST", "webhook_url") => match std::str::from_utf8(request.body).map(str::trim) {
            Ok(url) if url.starts_with("http://") || url.starts_with("https://") => {
                world.post.set_url(url);
                Ok(b"{}".to_vec())
            }
            _ => Err("the body must be an http:// or https:// URL".to_owned()),
        },
        ("POST", "numbers") => read(request.body).map(|number| {
            world.add_number(self::number(number));
            b"{}".to_vec()
        }),
        ("POST", "reset") => {
            world.reset();
            Ok(b"{}".to_vec())
        }
        _ => {
            wire::answer(out, 404, "text/plain", &[], b"not found\n");
            return After::Keep;
        }
    };
    match done {
        Ok(body) => wire::answer(out, 200, "application/json", &[], &body),
        Err(why) => wire::answer(out, 400, "text/plain", &[], format!("{why}\n").as_bytes()),
    }
    After::Keep
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

fn json(what: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(what).expect("strings and numbers can be written as JSON")
}

fn say(world: &World, say: Say) -> Vec<u8> {
    let wamid = world.wamid_in(&say.from);
    let name = say.name.as_deref().unwrap_or("Somebody");
    let mut incoming = Incoming::text(wamid, &say.phone_number_id, &say.from, name, &say.text);
    if let Some(content) = say.content {
        incoming = incoming.with_content(&content);
    }
    let answer = format!(r#"{{"wamid":{}}}"#, webhooks::quoted(&incoming.wamid));
    drop(world.say(incoming));
    answer.into_bytes()
}

fn number(new: NewNumber) -> Number {
    Number {
        waba_id: new.waba_id.unwrap_or_else(|| format!("9{}", new.phone_number_id)),
        display_phone_number: new.display_phone_number.unwrap_or_else(|| "15550000000".to_owned()),
        phone_number_id: new.phone_number_id,
        token: Secret::new(new.token),
    }
}

fn stats(world: &World) -> Stats {
    Stats {
        sent: world.counts.sent.load(Relaxed),
        reads: world.counts.reads.load(Relaxed),
        doubled: world.counts.doubled.load(Relaxed),
        violations: world.counts.violations.load(Relaxed),
        faults_hit: world.faults.hits(),
        webhooks: world.post.counts(),
    }
}

/// `after` of the query; 0 where there is none.
fn after(target: &str) -> u64 {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let pair = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "after");
    pair.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}
