//! PURE. WhatsApp's limits on messages, and splitting a long text to them.
//!
//! The numbers are those that Meta's API reference and the clients built on it state (text 4,096; caption and interactive
//! body 1,024; buttons, lists and their parts): <https://developers.facebook.com/documentation/business-messaging/whatsapp/reference>.
//! A character is counted as Meta's JavaScript-era limits are usually enforced in the strictest reading: in UTF-16
//! units, so an emoji counts two. A text that fits by this count fits by any.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Characters of a text body.
pub const TEXT_MAX: usize = 4096;
/// Characters of a caption, and of an interactive message's body.
pub const CAPTION_MAX: usize = 1024;
/// Characters of an interactive header or footer.
pub const HEADER_MAX: usize = 60;
/// Reply buttons of a message.
pub const BUTTONS_MAX: usize = 3;
/// Characters of a button's title, of a list's button, of a call-to-action's text.
pub const BUTTON_TITLE_MAX: usize = 20;
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
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(what) => write!(f, "not a message body: {what}"),
            Self::TooLong(what, limit) => write!(f, "{what} is above the limit of {limit}"),
            Self::Empty(what) => write!(f, "{what} is empty"),
        }
    }
}

impl std::error::Error for LimitError {}

/// UTF-16 units.
fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

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
    document: Option<&'a RawValue>,
    #[serde(borrow)]
    interactive: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Text {
    body: Option<String>,
}

#[derive(Deserialize)]
struct Media {
    caption: Option<String>,
}

#[derive(Deserialize)]
struct Interactive {
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
    let Some(kind) = parsed.r#type.as_deref().filter(|kind| !kind.is_empty()) else {
        return Err(LimitError::Shape("no type"));
    };
    match kind {
        "text" => check_text(parsed.text),
        "image" => check_media(parsed.image),
        "video" => check_media(parsed.video),
        "document" => check_media(parsed.document),
        "interactive" => check_interactive(parsed.interactive),
        other => has_content(text, other),
    }
}

fn has_content(text: &str, kind: &str) -> Result<(), LimitError> {
    let all: std::collections::HashMap<String, &RawValue> =
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
    bounded(media.caption.as_deref(), "caption", CAPTION_MAX)
}

fn check_interactive(value: Option<&RawValue>) -> Result<(), LimitError> {
    let message: Interactive = part(value, "interactive")?;
    let text = |part: Option<Part>| part.and_then(|p| p.text);
    bounded(text(message.body).as_deref(), "interactive.body", CAPTION_MAX)?;
    bounded(text(message.header).as_deref(), "interactive.header", HEADER_MAX)?;
    bounded(text(message.footer).as_deref(), "interactive.footer", HEADER_MAX)?;
    let Some(action) = message.action else { return Err(LimitError::Shape("interactive.action")) };
    bounded(action.button.as_deref(), "action.button", BUTTON_TITLE_MAX)?;
    if let Some(buttons) = action.buttons {
        at_most(buttons.len(), "action.buttons", BUTTONS_MAX)?;
        for reply in buttons.into_iter().filter_map(|b| b.reply) {
            required(reply.title.as_deref().unwrap_or(""), "a button's title", BUTTON_TITLE_MAX)?;
            required(reply.id.as_deref().unwrap_or(""), "a button's id", BUTTON_ID_MAX)?;
        }
    }
    if let Some(sections) = action.sections {
        at_most(sections.len(), "action.sections", ROWS_MAX)?;
        let rows = sections.iter().map(|s| s.rows.as_ref().map_or(0, Vec::len)).sum();
        at_most(rows, "the rows of all sections", ROWS_MAX)?;
        for section in sections {
            bounded(section.title.as_deref(), "a section's title", ROW_TITLE_MAX)?;
            section.rows.into_iter().flatten().try_for_each(check_row)?;
        }
    }
    Ok(())
}

fn check_row(row: Row) -> Result<(), LimitError> {
    required(row.title.as_deref().unwrap_or(""), "a row's title", ROW_TITLE_MAX)?;
    required(row.id.as_deref().unwrap_or(""), "a row's id", ROW_ID_MAX)?;
    bounded(row.description.as_deref(), "a row's description", ROW_DESCRIPTION_MAX)
}

fn bounded(text: Option<&str>, what: &'static str, limit: usize) -> Result<(), LimitError> {
    match text {
        Some(text) if length(text) > limit => Err(LimitError::TooLong(what, limit)),
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

/// Cuts a text into pieces of at most [`TEXT_MAX`] characters, in order: at a blank line if there is one in the second
/// half of a piece, else at a line end, a sentence end, a blank; else anywhere but inside a character. Only white space
/// at the cuts is lost. Blank text makes no piece.
pub fn split_text(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = fitting(rest, TEXT_MAX);
        if end == rest.len() {
            pieces.push(rest.to_owned());
            break;
        }
        let cut = boundary(&rest[..end], rest[end..].starts_with(char::is_whitespace));
        pieces.push(rest[..cut].trim_end().to_owned());
        rest = rest[cut..].trim_start();
    }
    pieces
}

/// The length in bytes of the longest start of `text` that has at most `limit` UTF-16 units, not ending before a
/// character that continues the one before it (joiners, variation selectors, combining marks, skin tones).
fn fitting(text: &str, limit: usize) -> usize {
    let mut units = 0;
    let mut whole = 0;
    let mut joined = false;
    for (at, c) in text.char_indices() {
        if !joined && !continues(c) {
            whole = at;
        }
        units += c.len_utf16();
        if units > limit {
            return if whole > 0 { whole } else { at };
        }
        joined = c == '\u{200d}';
    }
    text.len()
}

fn continues(c: char) -> bool {
    matches!(c, '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{300}'..='\u{36f}' | '\u{1f3fb}'..='\u{1f3ff}' | '\u{20e3}')
}

/// Where to cut `piece`, in bytes; at its end if a blank follows it.
fn boundary(piece: &str, blank_follows: bool) -> usize {
    let half = piece.len() / 2;
    let second_half = |at: Option<usize>| at.filter(|at| *at > half);
    let sentence = [". ", "! ", "? ", "。", "！", "？"]
        .iter()
        .filter_map(|end| piece.rfind(end).map(|at| at + end.len()))
        .max();
    second_half(piece.rfind("\n\n"))
        .or_else(|| second_half(piece.rfind('\n')))
        .or_else(|| second_half(sentence))
        .or_else(|| blank_follows.then_some(piece.len()))
        .or_else(|| piece.rfind(char::is_whitespace).filter(|at| *at > 0))
        .unwrap_or(piece.len())
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
        assert_eq!(of(r#"{"text":{"body":"x"}}"#), Err(LimitError::Shape("no type")));
        assert_eq!(of(r#"[1]"#), Err(LimitError::Shape("not an object")));
        assert_eq!(of(r#"{"type":"future"}"#), Err(LimitError::Shape("nothing under the name of its type")));
        let caption = format!(r#"{{"type":"image","image":{{"id":"1","caption":"{}"}}}}"#, long(1025));
        assert_eq!(of(&caption), Err(LimitError::TooLong("caption", 1024)));
        let button = r#"{"type":"reply","reply":{"id":"1","title":"t"}}"#;
        let buttons = |all: &str| {
            format!(r#"{{"type":"interactive","interactive":{{"action":{{"buttons":[{all}]}}}}}}"#)
        };
        assert_eq!(of(&buttons(&[button; 4].join(","))), Err(LimitError::TooLong("action.buttons", 3)));
        assert_eq!(of(&buttons("")), Err(LimitError::Empty("action.buttons")));
        let row = r#"{"id":"1","title":"t"}"#;
        let rows = |all: &str| {
            format!(
                r#"{{"type":"interactive","interactive":{{"action":{{"button":"Menu","sections":[{{"rows":[{all}]}}]}}}}}}"#
            )
        };
        assert_eq!(of(&rows(&[row; 10].join(","))), Ok(()));
        assert_eq!(of(&rows(&[row; 11].join(","))), Err(LimitError::TooLong("the rows of all sections", 10)));
    }

    #[test]
    fn a_body_nested_without_end_is_only_scanned() {
        let deep = format!(r#"{{"type":"future","future":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(of(&deep), Ok(()));
        let text =
            format!(r#"{{"type":"text","text":{{"body":{}{}}}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(of(&text), Err(LimitError::Shape("text")));
    }

    #[test]
    fn texts_are_cut_where_a_reader_would() {
        let paragraph = "word ".repeat(500);
        let pieces = split_text(&format!("{paragraph}\n\n{paragraph}\n\n{paragraph}"));
        assert_eq!(pieces, [paragraph.trim(); 3]);
        let pieces = split_text(&"One sentence here. ".repeat(400));
        assert!(pieces.len() > 1 && pieces.iter().all(|p| p.ends_with("here.")));
        assert_eq!(split_text(&"x".repeat(5000)), ["x".repeat(4096), "x".repeat(904)]);
        assert_eq!(split_text(" \n "), [""; 0]);
        let family = "👨‍👩‍👧";
        for piece in split_text(&family.repeat(2000)) {
            assert_eq!(piece.matches(family).count() * family.len(), piece.len(), "no emoji is torn");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_white_space_is_lost(parts in prop::collection::vec("(\\PC{0,30}|[a-z]{0,3000}|\n\n|\n| |👍🏽|é)", 0..40)) {
            let text = parts.concat();
            let pieces = split_text(&text);
            let bare = |t: &str| t.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(bare(&pieces.concat()), bare(&text));
            for piece in &pieces {
                prop_assert!(length(piece) <= TEXT_MAX && !piece.trim().is_empty());
            }
        }
    }
}
