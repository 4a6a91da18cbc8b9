//! PURE. WhatsApp's limits on messages, and splitting a long text to them.
//!
//! Source of the numbers: Meta's pages on sending each type (text, interactive reply buttons, interactive lists, ..)
//! under <https://developers.facebook.com/documentation/business-messaging/whatsapp/messages/>, and where these are
//! silent (ids of buttons, a flow's button) the public clients built on them. Meta says "characters" and never which:
//! code points or UTF-16 units, of which an emoji takes two. Each side here takes the reading that can't do harm:
//! [`check`] counts code points, so it refuses only what breaks the limit in any reading; [`split_text`] counts UTF-16
//! units, so its pieces fit in any reading.

mod split;

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use split::split_text;

/// Characters of a text body.
pub const TEXT_MAX: usize = 4096;
/// Characters of a caption, and of an interactive message's body (but a list's).
pub const CAPTION_MAX: usize = 1024;
/// Characters of an interactive list's body.
pub const LIST_BODY_MAX: usize = 4096;
/// Characters of an interactive header or footer.
pub const HEADER_MAX: usize = 60;
/// Reply buttons of a message.
pub const BUTTONS_MAX: usize = 3;
/// Characters of a button's title, of a list's button, of a call-to-action's text.
pub const BUTTON_TITLE_MAX: usize = 20;
/// Characters of a flow's button: sources say 20 or 30.
pub const FLOW_BUTTON_MAX: usize = 30;
/// Characters of a reply button's id.
pub const BUTTON_ID_MAX: usize = 256;
/// Sections of a list, and rows over all of them.
pub const ROWS_MAX: usize = 10;
/// Characters of a section's or row's title.
pub const ROW_TITLE_MAX: usize = 24;
/// Characters of a row's description.
pub const ROW_DESCRIPTION_MAX: usize = 72;
/// Characters of a row's id.
pub const ROW_ID_MAX: usize = 200;

/// What Meta would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitError {
    /// Not an object with a string `type` and an object of that name (or the part that is missing in it).
    Shape(&'static str),
    /// Longer than allowed: which part, the limit in characters or pieces.
    TooLong(&'static str, usize),
    /// Must have at least one character or piece.
    Empty(&'static str),
    /// Must be another one each time.
    Twice(&'static str),
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(what) => write!(f, "not a message body: {what}"),
            Self::TooLong(what, limit) => write!(f, "{what} is above the limit of {limit}"),
            Self::Empty(what) => write!(f, "{what} is empty"),
            Self::Twice(what) => write!(f, "{what} is there twice"),
        }
    }
}

impl std::error::Error for LimitError {}

#[derive(Deserialize)]
struct Body<'a> {
    r#type: Option<String>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    image: Option<&'a RawValue>,
    #[serde(borrow)]
    video: Option<&'a RawValue>,
    #[serde(borrow)]
    audio: Option<&'a RawValue>,
    #[serde(borrow)]
    document: Option<&'a RawValue>,
    #[serde(borrow)]
    sticker: Option<&'a RawValue>,
    #[serde(borrow)]
    interactive: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Text {
    body: Option<String>,
}

#[derive(Deserialize)]
struct Media {
    id: Option<String>,
    link: Option<String>,
    caption: Option<String>,
}

#[derive(Deserialize)]
struct Interactive {
    r#type: Option<String>,
    body: Option<Part>,
    header: Option<Part>,
    footer: Option<Part>,
    action: Option<Action>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Deserialize)]
struct Action {
    button: Option<String>,
    buttons: Option<Vec<Button>>,
    sections: Option<Vec<Section>>,
    parameters: Option<Parameters>,
}

#[derive(Deserialize)]
struct Parameters {
    display_text: Option<String>,
    flow_cta: Option<String>,
}

#[derive(Deserialize)]
struct Button {
    reply: Option<ButtonReply>,
}

#[derive(Deserialize)]
struct ButtonReply {
    id: Option<String>,
    title: Option<String>,
}

#[derive(Deserialize)]
struct Section {
    title: Option<String>,
    rows: Option<Vec<Row>>,
}

#[derive(Deserialize)]
struct Row {
    id: Option<String>,
    title: Option<String>,
    description: Option<String>,
}

/// Whether Meta would take the body (without addressing) by its stated limits. A type that is not known here passes if
/// it has the shape of a body.
///
/// # Errors
/// The first limit that is broken.
pub fn check(body: &RawValue) -> Result<(), LimitError> {
    let text = body.get();
    let parsed: Body<'_> = serde_json::from_str(text).map_err(|_| LimitError::Shape("not an object"))?;
    // Meta's default for a message without a type
    let default = parsed.text.map(|_| "text");
    let Some(kind) = parsed.r#type.as_deref().or(default).filter(|kind| !kind.is_empty()) else {
        return Err(LimitError::Shape("no type"));
    };
    match kind {
        "text" => check_text(parsed.text),
        "image" => check_media(parsed.image),
        "video" => check_media(parsed.video),
        "audio" => check_media(parsed.audio).and_then(|()| check_no_caption(parsed.audio)),
        "document" => check_media(parsed.document),
        "sticker" => check_media(parsed.sticker).and_then(|()| check_no_caption(parsed.sticker)),
        "interactive" => check_interactive(parsed.interactive),
        other => has_content(text, other),
    }
}

fn has_content(text: &str, kind: &str) -> Result<(), LimitError> {
    let all: HashMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|_| LimitError::Shape("not an object"))?;
    let is_there = all.get(kind).is_some_and(|value| value.get().starts_with(['{', '[']));
    if is_there { Ok(()) } else { Err(LimitError::Shape("nothing under the name of its type")) }
}

fn part<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>, what: &'static str) -> Result<T, LimitError> {
    let value = value.ok_or(LimitError::Shape(what))?;
    serde_json::from_str(value.get()).map_err(|_| LimitError::Shape(what))
}

fn check_text(value: Option<&RawValue>) -> Result<(), LimitError> {
    let text: Text = part(value, "text")?;
    let body = text.body.ok_or(LimitError::Shape("text.body"))?;
    required(&body, "text.body", TEXT_MAX)
}

fn check_media(value: Option<&RawValue>) -> Result<(), LimitError> {
    let media: Media = part(value, "the media object")?;
    match (media.id, media.link) {
        (Some(source), None) | (None, Some(source)) if !source.is_empty() => {}
        _ => return Err(LimitError::Shape("the media's id or link")),
    }
    bounded(media.caption.as_deref(), "caption", CAPTION_MAX)
}

fn check_no_caption(value: Option<&RawValue>) -> Result<(), LimitError> {
    let media: Media = part(value, "the media object")?;
    if media.caption.is_none() { Ok(()) } else { Err(LimitError::Shape("no caption on this type")) }
}

fn check_interactive(value: Option<&RawValue>) -> Result<(), LimitError> {
    let message: Interactive = part(value, "interactive")?;
    let text = |part: Option<Part>| part.and_then(|p| p.text);
    let kind = message.r#type.ok_or(LimitError::Shape("interactive.type"))?;
    let body = text(message.body);
    let body_max = if kind == "list" { LIST_BODY_MAX } else { CAPTION_MAX };
    match kind.as_str() {
        "button" | "list" | "cta_url" | "flow" | "location_request_message" => {
            required(body.as_deref().unwrap_or(""), "interactive.body", body_max)?;
        }
        _ => bounded(body.as_deref(), "interactive.body", body_max)?,
    }
    bounded(text(message.header).as_deref(), "interactive.header", HEADER_MAX)?;
    bounded(text(message.footer).as_deref(), "interactive.footer", HEADER_MAX)?;
    let action = message.action.ok_or(LimitError::Shape("interactive.action"))?;
    match kind.as_str() {
        "button" => check_buttons(action.buttons.unwrap_or_default()),
        "list" => {
            required(action.button.as_deref().unwrap_or(""), "action.button", BUTTON_TITLE_MAX)?;
            check_sections(action.sections.unwrap_or_default())
        }
        _ => check_parameters(action.parameters),
    }
}

fn check_buttons(buttons: Vec<Button>) -> Result<(), LimitError> {
    at_most(buttons.len(), "action.buttons", BUTTONS_MAX)?;
    let mut ids = HashSet::new();
    buttons.iter().filter_map(|button| button.reply.as_ref()).try_for_each(|reply| {
        required(reply.title.as_deref().unwrap_or(""), "a button's title", BUTTON_TITLE_MAX)?;
        let id = reply.id.as_deref().unwrap_or("");
        required(id, "a button's id", BUTTON_ID_MAX)?;
        if ids.insert(id) { Ok(()) } else { Err(LimitError::Twice("a button's id")) }
    })
}

fn check_sections(sections: Vec<Section>) -> Result<(), LimitError> {
    at_most(sections.len(), "action.sections", ROWS_MAX)?;
    let rows = sections.iter().map(|s| s.rows.as_ref().map_or(0, Vec::len)).sum();
    at_most(rows, "the rows of all sections", ROWS_MAX)?;
    let several = sections.len() > 1;
    let mut ids = HashSet::new();
    for section in &sections {
        let title = section.title.as_deref();
        if several {
            required(title.unwrap_or(""), "a section's title", ROW_TITLE_MAX)?;
        } else {
            bounded(title, "a section's title", ROW_TITLE_MAX)?;
        }
        for row in section.rows.iter().flatten() {
            check_row(row)?;
            if !ids.insert(&row.id) {
                return Err(LimitError::Twice("a row's id"));
            }
        }
    }
    Ok(())
}

fn check_parameters(parameters: Option<Parameters>) -> Result<(), LimitError> {
    let Some(parameters) = parameters else { return Ok(()) };
    bounded(parameters.display_text.as_deref(), "parameters.display_text", BUTTON_TITLE_MAX)?;
    bounded(parameters.flow_cta.as_deref(), "parameters.flow_cta", FLOW_BUTTON_MAX)
}

fn check_row(row: &Row) -> Result<(), LimitError> {
    required(row.title.as_deref().unwrap_or(""), "a row's title", ROW_TITLE_MAX)?;
    required(row.id.as_deref().unwrap_or(""), "a row's id", ROW_ID_MAX)?;
    bounded(row.description.as_deref(), "a row's description", ROW_DESCRIPTION_MAX)
}

fn bounded(text: Option<&str>, what: &'static str, limit: usize) -> Result<(), LimitError> {
    match text {
        Some(text) if text.chars().nth(limit).is_some() => Err(LimitError::TooLong(what, limit)),
        _ => Ok(()),
    }
}

fn required(text: &str, what: &'static str, limit: usize) -> Result<(), LimitError> {
    if text.trim().is_empty() { Err(LimitError::Empty(what)) } else { bounded(Some(text), what, limit) }
}

fn at_most(count: usize, what: &'static str, limit: usize) -> Result<(), LimitError> {
    match count {
        0 => Err(LimitError::Empty(what)),
        n if n > limit => Err(LimitError::TooLong(what, limit)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(json: &str) -> Result<(), LimitError> {
        check(&RawValue::from_string(json.to_owned()).expect("json"))
    }

    #[test]
    fn bodies_within_the_limits_pass() {
        for body in [
            r#"{"type":"text","text":{"body":"hello","preview_url":false}}"#,
            r#"{"type":"image","image":{"id":"1","caption":"c"}}"#,
            r#"{"text":{"body":"Meta takes it as a text"}}"#,
            r#"{"type":"location","location":{"latitude":1,"longitude":2}}"#,
            r#"{"type":"contacts","contacts":[{}]}"#,
            r#"{"type":"interactive","interactive":{"type":"button","body":{"text":"b"},"action":{"buttons":[{"type":"reply","reply":{"id":"1","title":"t"}}]}}}"#,
            r#"{"type":"interactive","interactive":{"type":"cta_url","body":{"text":"b"},"action":{"name":"cta_url","parameters":{}}}}"#,
            r#"{"type":"future","future":{"deep":[[[[]]]]}}"#,
        ] {
            assert_eq!(of(body), Ok(()), "{body}");
        }
        let edge = format!(r#"{{"type":"text","text":{{"body":"{}"}}}}"#, "x".repeat(TEXT_MAX));
        assert_eq!(of(&edge), Ok(()));
    }

    #[test]
    fn what_meta_would_refuse_is_named() {
        let long = |n: usize| "x".repeat(n);
        let text = format!(r#"{{"type":"text","text":{{"body":"{}"}}}}"#, long(4097));
        assert_eq!(of(&text), Err(LimitError::TooLong("text.body", 4096)));
        assert_eq!(of(r#"{"type":"text","text":{"body":" "}}"#), Err(LimitError::Empty("text.body")));
        assert_eq!(of(r#"{"type":"text"}"#), Err(LimitError::Shape("text")));
        assert_eq!(of(r#"{"image":{"id":"x"}}"#), Err(LimitError::Shape("no type")));
        assert_eq!(of(r#"[1]"#), Err(LimitError::Shape("not an object")));
        assert_eq!(of(r#"{"type":"future"}"#), Err(LimitError::Shape("nothing under the name of its type")));
        let caption = format!(r#"{{"type":"image","image":{{"id":"1","caption":"{}"}}}}"#, long(1025));
        assert_eq!(of(&caption), Err(LimitError::TooLong("caption", 1024)));
        for media in
            [r#"{"type":"audio","audio":{}}"#, r#"{"type":"image","image":{"id":"1","link":"https://x"}}"#]
        {
            assert_eq!(of(media), Err(LimitError::Shape("the media's id or link")));
        }
        let caption = r#"{"type":"sticker","sticker":{"id":"1","caption":"c"}}"#;
        assert_eq!(of(caption), Err(LimitError::Shape("no caption on this type")));
    }

    fn interactive(kind: &str, body: &str, rest: &str) -> Result<(), LimitError> {
        of(&format!(
            r#"{{"type":"interactive","interactive":{{"type":"{kind}","body":{{"text":"{body}"}},{rest}}}}}"#
        ))
    }

    #[test]
    fn reply_buttons_have_limits() {
        let button = |id: &str, title: &str| {
            format!(r#"{{"type":"reply","reply":{{"id":"{id}","title":"{title}"}}}}"#)
        };
        let buttons = |all: &[String]| {
            interactive("button", "b", &format!(r#""action":{{"buttons":[{}]}}"#, all.join(",")))
        };
        let most = |last: &str| button(&("i".repeat(255) + last), &"é".repeat(20));
        assert_eq!(buttons(&[most("a"), most("b"), most("c")]), Ok(()));
        assert_eq!(buttons(&[most("a"), most("a")]), Err(LimitError::Twice("a button's id")));
        assert_eq!(buttons(&[]), Err(LimitError::Empty("action.buttons")));
        let four = [(); 4].map(|()| button("1", "t"));
        assert_eq!(buttons(&four), Err(LimitError::TooLong("action.buttons", 3)));
        let long = |n: usize| "x".repeat(n);
        assert_eq!(buttons(&[button("1", &long(21))]), Err(LimitError::TooLong("a button's title", 20)));
        assert_eq!(buttons(&[button(&long(257), "t")]), Err(LimitError::TooLong("a button's id", 256)));
        assert_eq!(buttons(&[button("1", " ")]), Err(LimitError::Empty("a button's title")));
        let action = format!(r#""action":{{"buttons":[{}]}}"#, button("1", "t"));
        let with = |part: &str| interactive("button", "b", &format!("{part},{action}"));
        let header = format!(r#""header":{{"type":"text","text":"{}"}}"#, long(61));
        assert_eq!(with(&header), Err(LimitError::TooLong("interactive.header", 60)));
        let footer = format!(r#""footer":{{"text":"{}"}}"#, long(61));
        assert_eq!(with(&footer), Err(LimitError::TooLong("interactive.footer", 60)));
        assert_eq!(with(r#""header":{"type":"image","image":{"id":"1"}}"#), Ok(()));
        assert_eq!(interactive("button", "", &action), Err(LimitError::Empty("interactive.body")));
        assert_eq!(
            interactive("button", &long(1025), &action),
            Err(LimitError::TooLong("interactive.body", 1024))
        );
        assert_eq!(interactive("button", "b", r#""x":1"#), Err(LimitError::Shape("interactive.action")));
    }

    #[test]
    fn lists_and_links_have_limits() {
        let list = |body: &str, button: &str, sections: &str| {
            interactive("list", body, &format!(r#""action":{{"button":"{button}","sections":[{sections}]}}"#))
        };
        let section = |title: &str, rows: usize, row: &str| {
            let rows: Vec<String> = (0..rows).map(|n| row.replace("ID", &format!("{title}{n}"))).collect();
            format!(r#"{{"title":"{title}","rows":[{}]}}"#, rows.join(","))
        };
        let row = r#"{"id":"ID","title":"t"}"#;
        let same =
            [section("a", 1, r#"{"id":"1","title":"t"}"#), section("b", 1, r#"{"id":"1","title":"t"}"#)];
        assert_eq!(list("b", "Menu", &same.join(",")), Err(LimitError::Twice("a row's id")));
        let long = |n: usize| "x".repeat(n);
        assert_eq!(list(&long(4096), "Menu", &section("", 10, row)), Ok(()));
        assert_eq!(
            list(&long(4097), "Menu", &section("", 10, row)),
            Err(LimitError::TooLong("interactive.body", 4096))
        );
        let rows = Err(LimitError::TooLong("the rows of all sections", 10));
        assert_eq!(list("b", "Menu", &section("", 11, row)), rows);
        assert_eq!(list("b", "Menu", &[section("a", 5, row), section("b", 6, row)].join(",")), rows);
        assert_eq!(list("b", "Menu", ""), Err(LimitError::Empty("action.sections")));
        assert_eq!(
            list("b", "Menu", &section("a", 0, row)),
            Err(LimitError::Empty("the rows of all sections"))
        );
        assert_eq!(list("b", "", &section("", 1, row)), Err(LimitError::Empty("action.button")));
        assert_eq!(list("b", &long(21), &section("", 1, row)), Err(LimitError::TooLong("action.button", 20)));
        let two = [section("a", 1, row), section("", 1, row)].join(",");
        assert_eq!(list("b", "Menu", &two), Err(LimitError::Empty("a section's title")));
        let title = LimitError::TooLong("a section's title", 24);
        assert_eq!(list("b", "Menu", &section(&long(25), 1, row)), Err(title));
        for (row, error) in [
            (format!(r#"{{"id":"{}","title":"t"}}"#, long(201)), LimitError::TooLong("a row's id", 200)),
            (format!(r#"{{"id":"1","title":"{}"}}"#, long(25)), LimitError::TooLong("a row's title", 24)),
            (
                format!(r#"{{"id":"1","title":"t","description":"{}"}}"#, long(73)),
                LimitError::TooLong("a row's description", 72),
            ),
            (r#"{"title":"t"}"#.to_owned(), LimitError::Empty("a row's id")),
        ] {
            assert_eq!(list("b", "Menu", &section("", 1, &row)), Err(error));
        }
        let link = |text: &str| {
            interactive(
                "cta_url",
                "b",
                &format!(r#""action":{{"parameters":{{"display_text":"{text}","url":"u"}}}}"#),
            )
        };
        assert_eq!(link(&long(20)), Ok(()));
        assert_eq!(link(&long(21)), Err(LimitError::TooLong("parameters.display_text", 20)));
    }

    #[test]
    fn what_is_refused_is_too_long_in_any_reading() {
        let of_emoji = |n| of(&format!(r#"{{"type":"text","text":{{"body":"{}"}}}}"#, "😀".repeat(n)));
        assert_eq!(of_emoji(4096), Ok(()));
        assert_eq!(of_emoji(4097), Err(LimitError::TooLong("text.body", 4096)));
    }

    #[test]
    fn a_body_nested_without_end_is_only_scanned() {
        let deep = format!(r#"{{"type":"future","future":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(of(&deep), Ok(()));
        let text =
            format!(r#"{{"type":"text","text":{{"body":{}{}}}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(of(&text), Err(LimitError::Shape("text")));
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_check(body in "(\\{|\\}|\\[|\\]|\"|:|,|type|text|interactive|body|null|1){0,40}") {
            if let Ok(raw) = RawValue::from_string(body) {
                let _ = check(&raw);
            }
        }
    }
}
