//! The HTTP side of the simulated Graph API: who may call, what is answered, and what goes wrong on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::faults::{Calls, Fault, What};
use super::rules::{self, By, Call, Refused};
use super::webhooks::quoted;
use super::wire::{self, After, Request};
use super::world::World;
use super::{Number, Read, Sent, control};
use crate::clock;

/// Waits are cut into pieces of this length.
const SLICE: Duration = Duration::from_millis(100);
/// What every answer of Graph is.
const JSON: &str = "application/json; charset=UTF-8";
/// The page of a fault.
const HTML: &[u8] =
    b"<!DOCTYPE html>\n<html><body><p>Sorry, something went wrong. Please try again later.</p></body></html>\n";

pub(super) struct Service {
    world: Arc<World>,
    calls: AtomicU64,
}

impl Service {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, calls: AtomicU64::new(0) }
    }
}

impl wire::Service for Service {
    fn call(&self, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        let path = request.path().trim_start_matches('/');
        if let Some(rest) = path.strip_prefix("_sandbox/") {
            return control::call(&self.world, rest, request, out);
        }
        if let Some(id) = path.strip_prefix("_media/") {
            return self.download(id, request, out);
        }
        let unversioned = match path.split_once('/') {
            Some((version, rest)) if is_version(version) => rest,
            _ => path,
        };
        match (request.method, unversioned.split_once('/')) {
            ("POST", Some((id, "messages"))) => self.messages(id, request, out),
            ("GET", None) => self.object(unversioned, request, out),
            _ => {
                let refused = Refused::new(2500, "Unknown path components");
                self.world.violated(unversioned, &refused);
                self.refuse(&refused, None, out)
            }
        }
    }
}

fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
}

impl Service {
    fn messages(&self, id: &str, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        let number = match self.authorize("post", id, request.bearer()) {
            Ok(number) => number,
            Err(refused) => return self.violation(id, &refused, out),
        };
        let call = match rules::judge(request.body) {
            Ok(call) => call,
            Err(refused) => return self.violation(id, &refused, out),
        };
        let (kind, to) = match &call {
            Call::Send(send) => (Calls::Sends, send.to.as_str()),
            Call::Read { .. } => (Calls::Reads, ""),
        };
        let fault = self.world.faults.hit(kind, id, to);
        if let Some(after) = fault.as_ref().and_then(|fault| self.before(fault, out)) {
            return after;
        }
        match call {
            Call::Read { message_id, typing } => {
                let at = clock::now();
                self.world.read(Read { phone_number_id: id.to_owned(), message_id, typing, at });
                self.ok(br#"{"success":true}"#, out);
            }
            Call::Send(send) => {
                if let Err(refused) =
                    self.world.limits.admit(id, &send.to, send.kind == "template", clock::now())
                {
                    return self.refuse(&refused, None, out);
                }
                let failed = match fault.as_ref().map(|fault| &fault.what) {
                    Some(What::StatusFailed(code)) => Some(*code),
                    _ => None,
                };
                self.accept(&number, send, request.body, failed, out);
            }
        }
        self.after(fault.as_ref(), out)
    }

    /// The number, if the token is its own.
    fn authorize(&self, method: &str, id: &str, bearer: Option<&str>) -> Result<Arc<Number>, Refused> {
        let Some(token) = bearer else {
            return Err(Refused::new(190, "Invalid OAuth access token - Cannot parse access token"));
        };
        let number = self.world.number(id);
        match number {
            Some(number) if number.token.reveal() == token => Ok(number),
            _ if !self.world.knows_token(token) => {
                Err(Refused::new(190, "Invalid OAuth access token - Cannot parse access token"))
            }
            _ => {
                let what = format!(
                    "Unsupported {method} request. Object does not exist, cannot be loaded due to missing \
                     permissions, or does not support this operation"
                );
                Err(Refused { subcode: Some(33), ..Refused::new(100, what) })
            }
        }
    }

    fn accept(
        &self,
        number: &Number,
        send: rules::Send,
        body: &[u8],
        failed: Option<i64>,
        out: &mut Vec<u8>,
    ) {
        let wamid = self.world.wamid_out(&send.to);
        let text = std::str::from_utf8(body).expect("it was judged, so it is JSON");
        let sent = Sent {
            nth: 0,
            phone_number_id: number.phone_number_id.clone(),
            to: send.to,
            body: RawValue::from_string(text.to_owned()).expect("it was judged, so it is JSON"),
            biz_opaque_callback_data: send.callback_data,
            wamid,
            at: clock::now(),
        };
        let key = if send.by == By::User { "user_id" } else { "wa_id" };
        let to = quoted(&sent.to);
        let answer = format!(
            r#"{{"messaging_product":"whatsapp","contacts":[{{"input":{to},"{key}":{to}}}],"messages":[{{"id":"{}"}}]}}"#,
            sent.wamid
        );
        if self.world.options.statuses || failed.is_some() {
            let statuses = self.world.statuses(number, &sent, send.by, failed);
            self.world.sent(sent);
            self.world.post.in_turn(statuses, self.world.options.status_delay);
        } else {
            self.world.sent(sent);
        }
        self.ok(answer.as_bytes(), out);
    }

    /// What a fault does before anything is processed; `None`: the call is processed.
    fn before(&self, fault: &Fault, out: &mut Vec<u8>) -> Option<After> {
        match &fault.what {
            What::Graph(code) => {
                Some(self.refuse(&Refused::new(*code, "Simulated on demand"), fault.retry_after, out))
            }
            What::Html500 => Some(html(out)),
            What::Reset => Some(After::Reset),
            What::Close => Some(After::Silent),
            What::StallMs(ms) => {
                self.wait(*ms);
                Some(After::Silent)
            }
            What::DelayMs(ms) => {
                self.wait(*ms);
                None
            }
            What::AcceptThenReset | What::AcceptThen500 | What::AcceptThenHalf | What::StatusFailed(_) => {
                None
            }
        }
    }

    /// What a fault does to the answer of a call that was processed.
    fn after(&self, fault: Option<&Fault>, out: &mut Vec<u8>) -> After {
        match fault.map(|fault| &fault.what) {
            Some(What::AcceptThenReset) => After::Reset,
            Some(What::AcceptThenHalf) => After::Half,
            Some(What::AcceptThen500) => {
                out.clear();
                html(out)
            }
            _ => After::Keep,
        }
    }

    /// Ends early when the sandbox does.
    fn wait(&self, ms: u64) {
        let until = clock::monotonic() + Duration::from_millis(ms);
        loop {
            let left = until.saturating_sub(clock::monotonic());
            if left.is_zero() || self.world.post.is_stopping() {
                return;
            }
            clock::sleep(left.min(SLICE));
        }
    }

    /// `GET /{id}`, of a number: the fields that are asked for, else Graph's usual ones.
    fn look(&self, id: &str, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        let number = match self.authorize("get", id, request.bearer()) {
            Ok(number) => number,
            Err(refused) => return self.violation(id, &refused, out),
        };
        let answer = match fields(&number, request.target) {
            Ok(answer) => answer,
            Err(refused) => return self.violation(id, &refused, out),
        };
        let fault = self.world.faults.hit(Calls::Looks, id, "");
        if let Some(after) = fault.as_ref().and_then(|fault| self.before(fault, out)) {
            return after;
        }
        self.ok(answer.as_bytes(), out);
        self.after(fault.as_ref(), out)
    }

    /// `GET /{id}`: a number, for who looks whether it is there, or a medium.
    fn object(&self, id: &str, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        let Some(medium) = self.world.media(id) else {
            return self.look(id, request, out);
        };
        if !request.bearer().is_some_and(|token| self.world.knows_token(token)) {
            return self.violation(id, &Refused::new(190, "Invalid OAuth access token"), out);
        }
        let host = self.world.address().map_or_else(String::new, |address| address.to_string());
        let answer = format!(
            r#"{{"messaging_product":"whatsapp","url":"http:\/\/{host}\/_media\/{id}","mime_type":{},"sha256":"{}","file_size":"{}","id":{}}}"#,
            quoted(&medium.mime_type),
            STANDARD.encode(Sha256::digest(&medium.bytes)),
            medium.bytes.len(),
            quoted(id)
        );
        self.ok(answer.as_bytes(), out);
        After::Keep
    }

    /// The bytes of a medium, for any known token; 404 otherwise, as Meta does.
    fn download(&self, id: &str, request: &Request<'_>, out: &mut Vec<u8>) -> After {
        let is_known = request.bearer().is_some_and(|token| self.world.knows_token(token));
        match self.world.media(id).filter(|_| is_known) {
            Some(medium) => wire::answer(out, 200, &medium.mime_type, &[], &medium.bytes),
            None => wire::answer(out, 404, "text/html", &[], b""),
        }
        After::Keep
    }

    fn violation(&self, id: &str, refused: &Refused, out: &mut Vec<u8>) -> After {
        self.world.violated(id, refused);
        self.refuse(refused, None, out)
    }

    fn refuse(&self, refused: &Refused, retry_after: Option<u32>, out: &mut Vec<u8>) -> After {
        let trace = self.calls.fetch_add(1, Relaxed);
        let body = refused.body(trace);
        let seconds = retry_after.map(|seconds| seconds.to_string());
        let date = date();
        let mut headers =
            vec![("facebook-api-version", "v25.0"), ("x-app-usage", USAGE), ("Date", date.as_str())];
        headers.extend(seconds.as_deref().map(|seconds| ("Retry-After", seconds)));
        wire::answer(out, refused.status(), JSON, &headers, &body);
        After::Keep
    }

    fn ok(&self, body: &[u8], out: &mut Vec<u8>) {
        let call = self.calls.fetch_add(1, Relaxed);
        let mut trace = itoa::Buffer::new();
        let date = date();
        let headers = [
            ("Date", date.as_str()),
            ("facebook-api-version", "v25.0"),
            ("x-fb-trace-id", trace.format(call)),
            ("x-app-usage", USAGE),
        ];
        wire::answer(out, 200, JSON, &headers, body);
    }
}

/// The fields of a number that `?fields=` names, and its id.
fn fields(number: &Number, target: &str) -> Result<String, Refused> {
    const USUAL: &str = "verified_name,display_phone_number,quality_rating";
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let asked = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "fields");
    let asked = asked.map_or_else(|| USUAL.to_owned(), |(_, value)| value.into_owned());
    let mut answer = String::from("{");
    for field in asked.split(',').filter(|field| *field != "id") {
        let value = match field {
            "verified_name" => "Simulated",
            "display_phone_number" => &number.display_phone_number,
            "quality_rating" => "GREEN",
            "status" => "CONNECTED",
            "code_verification_status" => "VERIFIED",
            "platform_type" => "CLOUD_API",
            other => {
                let what = format!("(#100) Tried accessing nonexisting field ({other})");
                return Err(Refused::new(100, what));
            }
        };
        answer.push_str(&format!(r#""{field}":{},"#, quoted(value)));
    }
    Ok(format!(r#"{answer}"id":{}}}"#, quoted(&number.phone_number_id)))
}

fn date() -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(clock::now()))
}

/// In percent.
const USAGE: &str = r#"{"call_count":1,"total_cputime":1,"total_time":1}"#;

fn html(out: &mut Vec<u8>) -> After {
    wire::answer(out, 500, "text/html; charset=utf-8", &[], HTML);
    After::Keep
}
