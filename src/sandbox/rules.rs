//! What the Graph API takes and what it refuses: `POST /{phone_number_id}/messages`, judged from its bytes alone.
//!
//! Shapes and limits are those of Meta's reference of the messages endpoint
//! (<https://developers.facebook.com/documentation/business-messaging/whatsapp>); lengths are counted in characters.
//! Unknown keys of the message itself are refused as Graph does it, so that a typo shows.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::content;

/// `biz_opaque_callback_data`.
const CALLBACK_MAX: usize = 512;

/// A call that is as it should be.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// A message goes out.
    Send(Send),
    /// A read receipt, perhaps with the typing indicator.
    Read {
        /// The wamid that was read.
        message_id: String,
        /// Whether typing is shown.
        typing: bool,
    },
}

/// The addressing of a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Send {
    /// `to` or `recipient`.
    pub to: String,
    /// How the recipient is named.
    pub by: By,
    /// `biz_opaque_callback_data`.
    pub callback_data: Option<String>,
    /// `text`, `image`, ..
    pub kind: String,
}

/// How a recipient is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A phone number.
    Phone,
    /// A business-scoped user id.
    User,
    /// A group id.
    Group,
}

/// An answer of Graph that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `error.code`.
    pub code: i64,
    /// `error.error_subcode`.
    pub subcode: Option<i64>,
    /// `error.message`, or `details` of a 13xxxx code.
    pub what: String,
}

impl Refused {
    pub(super) fn new(code: i64, what: impl Into<String>) -> Self {
        Self { code, subcode: None, what: what.into() }
    }

    /// The HTTP status that Meta answers this code with.
    pub fn status(&self) -> u16 {
        match self.code {
            0 | 190 => 401,
            10 | 200..=299 | 368 | 131_005 | 131_031 => 403,
            132_001 => 404,
            4 | 80_007 | 130_429 => 429,
            3 | 131_000 | 131_016 | 131_057 => 500,
            2 | 133_004 => 503,
            _ => 400,
        }
    }

    /// The body, in Graph's shape.
    pub fn body(&self, trace: u64) -> Vec<u8> {
        let quote = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        let transient =
            matches!(self.code, 1 | 2 | 4 | 80_007 | 130_429 | 131_000 | 131_016 | 131_056 | 131_057);
        let message = if self.code < 1000 && !self.what.starts_with('(') {
            self.what.clone()
        } else {
            format!("(#{}) {}", self.code, title(self.code))
        };
        let mut body = format!(
            r#"{{"error":{{"message":{},"type":"OAuthException","code":{}"#,
            quote(if self.what.starts_with('(') { &self.what } else { &message }),
            self.code
        );
        if self.code >= 1000 {
            let details = quote(&self.what);
            body.push_str(r#","error_data":{"messaging_product":"whatsapp","details":"#);
            body.push_str(&details);
            body.push('}');
        }
        if let Some(subcode) = self.subcode {
            body.push_str(&format!(r#","error_subcode":{subcode}"#));
        }
        if transient {
            body.push_str(r#","is_transient":true"#);
        }
        body.push_str(&format!(r#","fbtrace_id":"A{trace:016x}"}}}}"#));
        body.into_bytes()
    }
}

/// The short name of a code.
pub fn title(code: i64) -> &'static str {
    match code {
        2 => "Service temporarily unavailable",
        4 => "Application request limit reached",
        190 => "Error validating access token: Session has expired",
        80_007 => "Rate limit issues",
        130_429 => "Rate limit hit",
        131_000 => "Something went wrong",
        131_008 => "Required parameter is missing",
        131_009 => "Parameter value is not valid",
        131_016 => "Service unavailable",
        131_026 => "Message undeliverable",
        131_047 => "Re-engagement message",
        131_049 => "This message was not delivered to maintain healthy ecosystem engagement.",
        131_051 => "Unsupported message type",
        131_056 => "(Business Account, Consumer Account) pair rate limit hit",
        131_057 => "Account in maintenance mode",
        _ => "Simulated error",
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    messaging_product: Option<String>,
    recipient_type: Option<String>,
    to: Option<String>,
    recipient: Option<String>,
    r#type: Option<String>,
    biz_opaque_callback_data: Option<String>,
    context: Option<Context>,
    status: Option<String>,
    message_id: Option<String>,
    typing_indicator: Option<Typing>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    image: Option<&'a RawValue>,
    #[serde(borrow)]
    audio: Option<&'a RawValue>,
    #[serde(borrow)]
    video: Option<&'a RawValue>,
    #[serde(borrow)]
    document: Option<&'a RawValue>,
    #[serde(borrow)]
    sticker: Option<&'a RawValue>,
    #[serde(borrow)]
    location: Option<&'a RawValue>,
    #[serde(borrow)]
    contacts: Option<&'a RawValue>,
    #[serde(borrow)]
    interactive: Option<&'a RawValue>,
    #[serde(borrow)]
    template: Option<&'a RawValue>,
    #[serde(borrow)]
    reaction: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Context {
    message_id: String,
}

#[derive(Deserialize)]
struct Typing {
    r#type: String,
}

/// Judges the body of a call.
///
/// # Errors
/// What Graph would answer.
pub fn judge(body: &[u8]) -> Result<Call, Refused> {
    let body: Body<'_> = serde_json::from_slice(body).map_err(|e| {
        let what = if e.is_data() { "Invalid parameter" } else { "Invalid JSON" };
        Refused::new(100, format!("(#100) {what}: {}", content::fault(&e)))
    })?;
    match body.messaging_product.as_deref() {
        Some("whatsapp") => {}
        Some(_) => {
            return Err(Refused::new(100, "(#100) Param messaging_product must be one of {WHATSAPP}."));
        }
        None => return Err(required("messaging_product")),
    }
    if body.status.is_some() { read(body) } else { send(&body) }
}

pub(super) fn required(name: &str) -> Refused {
    Refused::new(100, format!("(#100) The parameter {name} is required."))
}

pub(super) fn too_long(name: &str, most: usize) -> Refused {
    Refused::new(100, format!("(#100) Param {name} must be at most {most} characters long."))
}

pub(super) fn invalid(details: impl Into<String>) -> Refused {
    Refused::new(131_009, details)
}

fn read(body: Body<'_>) -> Result<Call, Refused> {
    if body.status.as_deref() != Some("read") {
        return Err(Refused::new(100, "(#100) Param status must be one of {read}."));
    }
    let message_id = body.message_id.ok_or_else(|| required("message_id"))?;
    if !message_id.starts_with("wamid.") {
        return Err(invalid("Invalid message_id"));
    }
    if body.typing_indicator.as_ref().is_some_and(|t| t.r#type != "text") {
        return Err(Refused::new(100, "(#100) Param typing_indicator['type'] must be one of {text}."));
    }
    Ok(Call::Read { message_id, typing: body.typing_indicator.is_some() })
}

fn send(body: &Body<'_>) -> Result<Call, Refused> {
    let (to, by) = recipient(body)?;
    if body.context.as_ref().is_some_and(|c| !c.message_id.starts_with("wamid.")) {
        return Err(Refused::new(100, "(#100) Invalid context message_id"));
    }
    if body.biz_opaque_callback_data.as_deref().is_some_and(|d| d.chars().count() > CALLBACK_MAX) {
        return Err(too_long("biz_opaque_callback_data", CALLBACK_MAX));
    }
    let kind = body.r#type.as_deref().unwrap_or("text");
    let content = match kind {
        "text" => body.text,
        "image" => body.image,
        "audio" => body.audio,
        "video" => body.video,
        "document" => body.document,
        "sticker" => body.sticker,
        "location" => body.location,
        "contacts" => body.contacts,
        "interactive" => body.interactive,
        "template" => body.template,
        "reaction" => body.reaction,
        _ => {
            return Err(Refused::new(
                100,
                "(#100) Param type must be one of {AUDIO, CONTACTS, DOCUMENT, ..}.",
            ));
        }
    };
    let content = content.ok_or_else(|| required(kind))?.get();
    content::judge(kind, content)?;
    let callback_data = body.biz_opaque_callback_data.clone();
    Ok(Call::Send(Send { to, by, callback_data, kind: kind.to_owned() }))
}

fn recipient(body: &Body<'_>) -> Result<(String, By), Refused> {
    let kind = body.recipient_type.as_deref().unwrap_or("individual");
    match (kind, &body.to, &body.recipient) {
        ("individual", Some(to), None) => {
            let digits = to.strip_prefix('+').unwrap_or(to);
            let fits = (5..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            if fits {
                Ok((digits.to_owned(), By::Phone))
            } else {
                Err(invalid("Recipient is not a valid phone number"))
            }
        }
        ("individual", None, Some(user)) => {
            let fits = user.split_once('.').is_some_and(|(country, id)| {
                country.len() == 2
                    && country.bytes().all(|b| b.is_ascii_uppercase())
                    && (1..=140).contains(&id.len())
                    && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
            });
            if fits { Ok((user.clone(), By::User)) } else { Err(invalid("Recipient is not a valid user id")) }
        }
        ("group", Some(group), None) if !group.is_empty() => Ok((group.clone(), By::Group)),
        (_, Some(_), Some(_)) => Err(Refused::new(100, "(#100) Only one of to and recipient can be given.")),
        ("individual" | "group", None, None) => Err(required("to")),
        _ => Err(Refused::new(100, "(#100) Param recipient_type must be one of {individual, group}.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> i64 {
        judge(body.as_bytes()).expect_err(body).code
    }

    fn text(rest: &str) -> String {
        format!(
            r#"{{"messaging_product":"whatsapp","to":"16505551234","type":"text","text":{{"body":"x"}}{rest}}}"#
        )
    }

    #[test]
    fn a_plain_text_is_taken() {
        let Ok(Call::Send(send)) = judge(text(r#","biz_opaque_callback_data":"r1""#).as_bytes()) else {
            panic!()
        };
        assert_eq!(
            (send.to.as_str(), send.by, send.callback_data.as_deref()),
            ("16505551234", By::Phone, Some("r1"))
        );
    }

    #[test]
    fn recipients_are_a_number_a_user_id_or_a_group() {
        let to = |addressing: &str| {
            let body = format!(r#"{{"messaging_product":"whatsapp",{addressing},"text":{{"body":"x"}}}}"#);
            judge(body.as_bytes()).map(|call| match call {
                Call::Send(send) => send.by,
                Call::Read { .. } => panic!("no read"),
            })
        };
        assert_eq!(to(r#""to":"+16505551234""#), Ok(By::Phone));
        assert_eq!(to(r#""recipient":"US.13491208655302741918""#), Ok(By::User));
        assert_eq!(to(r#""recipient_type":"group","to":"Y2FwaV9ncm91cA""#), Ok(By::Group));
        for bad in [
            r#""to":"""#,
            r#""to":"hello""#,
            r#""recipient":"16505551234""#,
            r#""to":"16505551234","recipient":"US.1""#,
            r#""recipient_type":"everyone","to":"16505551234""#,
            r#""recipient_type":"individual""#,
        ] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_graph_refuses_is_refused_with_its_code() {
        assert_eq!(code("{"), 100);
        assert_eq!(code(r#"{"to":"16505551234","text":{"body":"x"}}"#), 100);
        assert_eq!(code(&text(r#","unknown_key":1"#)), 100);
        assert_eq!(code(&text(r#","context":{"message_id":"123"}"#)), 100);
        let long = "d".repeat(513);
        assert_eq!(code(&text(&format!(r#","biz_opaque_callback_data":"{long}""#))), 100);
        assert_eq!(code(&text("").replace("16505551234", "hello")), 131_009);
        assert_eq!(code(&text("").replace(r#""type":"text""#, r#""type":"telegram""#)), 100);
    }

    #[test]
    fn a_read_receipt_names_a_wamid_and_may_show_typing() {
        let read = |rest: &str| judge(format!(r#"{{"messaging_product":"whatsapp",{rest}}}"#).as_bytes());
        let call = read(r#""status":"read","message_id":"wamid.X","typing_indicator":{"type":"text"}"#);
        assert_eq!(call, Ok(Call::Read { message_id: "wamid.X".to_owned(), typing: true }));
        assert!(read(r#""status":"read""#).is_err());
        assert!(read(r#""status":"unread","message_id":"wamid.X""#).is_err());
        assert!(
            read(r#""status":"read","message_id":"wamid.X","typing_indicator":{"type":"voice"}"#).is_err()
        );
    }

    #[test]
    fn an_error_has_the_shape_of_graph_and_repeats_no_value() {
        let refused =
            judge(br#"{"messaging_product":"whatsapp","to":{"secret":"hunter2"}}"#).expect_err("bad");
        let body = String::from_utf8(refused.body(1)).expect("text");
        assert!(!body.contains("hunter2"), "{body}");
        let body = String::from_utf8(Refused::new(131_056, "slow down").body(1)).expect("text");
        assert!(body.starts_with(r#"{"error":{"message":"(#131056) (Business Account"#), "{body}");
        assert!(body.contains(r#""code":131056"#) && body.contains(r#""details":"slow down""#), "{body}");
    }
}
