//! The content of each message type, and its limits.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::rules::{Refused, invalid, required, too_long};

/// `text.body`.
const TEXT_MAX: usize = 4096;
/// Captions and the body of an interactive message.
const BODY_MAX: usize = 1024;
/// Header and footer of an interactive message.
const HEADER_MAX: usize = 60;
/// Reply buttons: how many, and their titles and ids.
const BUTTONS_MAX: usize = 3;
const BUTTON_TITLE_MAX: usize = 20;
const BUTTON_ID_MAX: usize = 256;
/// A list: its button, sections, rows over all sections.
const LIST_BUTTON_MAX: usize = 20;
const SECTIONS_MAX: usize = 10;
const ROWS_MAX: usize = 10;
const ROW_TITLE_MAX: usize = 24;
const ROW_DESCRIPTION_MAX: usize = 72;
const ROW_ID_MAX: usize = 200;
/// The button of a flow.
const FLOW_CTA_MAX: usize = 30;

/// Judges the object of that name.
pub(super) fn judge(kind: &str, content: &str) -> Result<(), Refused> {
    match kind {
        "text" => text(content),
        "image" | "audio" | "video" | "document" | "sticker" => media(kind, content),
        "location" => parsed::<Location<'_>>(kind, content).map(drop),
        "contacts" => contacts(content),
        "interactive" => interactive(content),
        "template" => template(content),
        _ => parsed::<Reaction>(kind, content).map(drop),
    }
}

pub(super) fn parsed<'a, T: Deserialize<'a>>(name: &str, content: &'a str) -> Result<T, Refused> {
    serde_json::from_str(content)
        .map_err(|e| Refused::new(100, format!("(#100) Param {name}: {}", fault(&e))))
}

/// What is wrong, by names and places: never a value, which could be somebody's words.
pub(super) fn fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let names_only =
        ["unknown field", "missing field", "duplicate field"].iter().any(|s| text.starts_with(s));
    if names_only {
        text.chars().take(120).collect()
    } else {
        format!("not as expected at line {} column {}", error.line(), error.column())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    body: String,
    #[serde(default)]
    #[allow(dead_code, reason = "its type is what is checked")]
    preview_url: Option<bool>,
}

fn text(content: &str) -> Result<(), Refused> {
    let text: Text = parsed("text", content)?;
    if text.body.trim().is_empty() {
        return Err(required("text['body']"));
    }
    within("text['body']", &text.body, TEXT_MAX)
}

fn within(name: &str, text: &str, most: usize) -> Result<(), Refused> {
    // bytes are never fewer than characters: the count is needed for long ones only
    if text.len() > most && text.chars().count() > most { Err(too_long(name, most)) } else { Ok(()) }
}

/// As `within`, for what must not be empty.
fn word(name: &str, text: &str, most: usize) -> Result<(), Refused> {
    if text.trim().is_empty() {
        return Err(invalid(format!("{name} must not be empty")));
    }
    within(name, text, most)
}

#[derive(Deserialize)]
struct Media {
    id: Option<String>,
    link: Option<String>,
    caption: Option<String>,
    filename: Option<String>,
}

fn media(kind: &str, content: &str) -> Result<(), Refused> {
    let media: Media = parsed(kind, content)?;
    match (&media.id, &media.link) {
        (Some(id), None) if !id.is_empty() => {}
        (None, Some(link)) if link.starts_with("https://") || link.starts_with("http://") => {}
        _ => return Err(Refused::new(100, format!("(#100) Param {kind} needs one of id and link."))),
    }
    if media.caption.is_some() && matches!(kind, "audio" | "sticker") {
        return Err(Refused::new(100, format!("(#100) Unexpected key \"caption\" on param \"{kind}\".")));
    }
    if media.filename.is_some() && kind != "document" {
        return Err(Refused::new(100, format!("(#100) Unexpected key \"filename\" on param \"{kind}\".")));
    }
    within("caption", media.caption.as_deref().unwrap_or_default(), BODY_MAX)
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "that they are there is what is checked")]
struct Location<'a> {
    #[serde(borrow)]
    latitude: &'a RawValue,
    #[serde(borrow)]
    longitude: &'a RawValue,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "that they are there is what is checked")]
struct Reaction {
    message_id: String,
    emoji: String,
}

#[derive(Deserialize)]
struct Contact {
    name: ContactName,
}

#[derive(Deserialize)]
struct ContactName {
    formatted_name: String,
}

fn contacts(content: &str) -> Result<(), Refused> {
    let contacts: Vec<Contact> = parsed("contacts", content)?;
    if contacts.is_empty() || contacts.iter().any(|c| c.name.formatted_name.is_empty()) {
        return Err(invalid("contacts need a formatted_name each"));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Template {
    name: String,
    language: Language,
}

#[derive(Deserialize)]
struct Language {
    code: String,
}

fn template(content: &str) -> Result<(), Refused> {
    let template: Template = parsed("template", content)?;
    word("template['name']", &template.name, 512)?;
    word("template['language']['code']", &template.language.code, 16)
}

#[derive(Deserialize)]
struct Interactive<'a> {
    r#type: String,
    body: Option<Words>,
    header: Option<Header>,
    footer: Option<Words>,
    #[serde(borrow)]
    action: &'a RawValue,
}

#[derive(Deserialize)]
struct Words {
    text: String,
}

#[derive(Deserialize)]
struct Header {
    text: Option<String>,
}

fn interactive(content: &str) -> Result<(), Refused> {
    let message: Interactive<'_> = parsed("interactive", content)?;
    let body = message.body.as_ref().map(|b| b.text.as_str());
    if message.r#type != "product" {
        word("interactive['body']['text']", body.unwrap_or_default(), BODY_MAX)?;
    }
    if let Some(text) = message.header.as_ref().and_then(|h| h.text.as_deref()) {
        word("interactive['header']['text']", text, HEADER_MAX)?;
    }
    if let Some(footer) = &message.footer {
        word("interactive['footer']['text']", &footer.text, HEADER_MAX)?;
    }
    let action = message.action.get();
    match message.r#type.as_str() {
        "button" => buttons(&parsed("action", action)?),
        "list" => list(&parsed("action", action)?),
        "cta_url" => {
            let named: Named<Cta> = parsed("action", action)?;
            word("display_text", &named.parameters.display_text, BUTTON_TITLE_MAX)?;
            word("url", &named.parameters.url, 2000)
        }
        "flow" => {
            let named: Named<Flow> = parsed("action", action)?;
            word("flow_cta", &named.parameters.flow_cta, FLOW_CTA_MAX)
        }
        "location_request_message"
        | "product"
        | "product_list"
        | "catalog_message"
        | "address_message"
        | "voice_call"
        | "call_permission_request"
        | "carousel" => Ok(()),
        _ => Err(invalid("Invalid interactive type")),
    }
}

#[derive(Deserialize)]
struct Named<T> {
    parameters: T,
}

#[derive(Deserialize)]
struct Cta {
    display_text: String,
    url: String,
}

#[derive(Deserialize)]
struct Flow {
    flow_cta: String,
}

#[derive(Deserialize)]
struct Buttons {
    buttons: Vec<Button>,
}

#[derive(Deserialize)]
struct Button {
    r#type: String,
    reply: Titled,
}

#[derive(Deserialize)]
struct Titled {
    id: String,
    title: String,
    description: Option<String>,
}

fn buttons(action: &Buttons) -> Result<(), Refused> {
    if !(1..=BUTTONS_MAX).contains(&action.buttons.len()) {
        return Err(invalid(format!(
            "Invalid buttons count. Min allowed buttons: 1, Max allowed buttons: {BUTTONS_MAX}"
        )));
    }
    let mut ids = HashSet::new();
    for button in &action.buttons {
        if button.r#type != "reply" {
            return Err(invalid("Invalid button type"));
        }
        word("button title", &button.reply.title, BUTTON_TITLE_MAX)?;
        word("button id", &button.reply.id, BUTTON_ID_MAX)?;
        if !ids.insert(&button.reply.id) {
            return Err(invalid("Button ids must be unique"));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct List {
    button: String,
    sections: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    title: Option<String>,
    rows: Vec<Titled>,
}

fn list(action: &List) -> Result<(), Refused> {
    word("list button", &action.button, LIST_BUTTON_MAX)?;
    let rows: Vec<&Titled> = action.sections.iter().flat_map(|s| &s.rows).collect();
    if !(1..=SECTIONS_MAX).contains(&action.sections.len()) || !(1..=ROWS_MAX).contains(&rows.len()) {
        return Err(invalid(format!("Total row count exceed max allowed count: {ROWS_MAX}")));
    }
    for section in &action.sections {
        let title = section.title.as_deref().unwrap_or_default();
        if action.sections.len() > 1 {
            word("section title", title, ROW_TITLE_MAX)?;
        }
        within("section title", title, ROW_TITLE_MAX)?;
    }
    let mut ids = HashSet::new();
    for row in rows {
        word("row title", &row.title, ROW_TITLE_MAX)?;
        word("row id", &row.id, ROW_ID_MAX)?;
        within("row description", row.description.as_deref().unwrap_or_default(), ROW_DESCRIPTION_MAX)?;
        if !ids.insert(&row.id) {
            return Err(invalid("Row ids must be unique"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn button(count: usize, title: &str) -> String {
        let buttons: Vec<String> = (0..count)
            .map(|n| format!(r#"{{"type":"reply","reply":{{"id":"b{n}","title":"{title}"}}}}"#))
            .collect();
        format!(
            r#"{{"type":"button","body":{{"text":"Choose"}},"action":{{"buttons":[{}]}}}}"#,
            buttons.join(",")
        )
    }

    fn list_of(rows: usize, title: &str) -> String {
        let rows: Vec<String> = (0..rows).map(|n| format!(r#"{{"id":"r{n}","title":"{title}"}}"#)).collect();
        format!(
            r#"{{"type":"list","body":{{"text":"Choose"}},"action":{{"button":"Menu","sections":[{{"rows":[{}]}}]}}}}"#,
            rows.join(",")
        )
    }

    #[test]
    fn each_limit_holds_at_its_edge_and_not_beyond() {
        let body = |n| format!(r#"{{"body":"{}"}}"#, "ä".repeat(n));
        assert!(judge("text", &body(4096)).is_ok());
        assert!(judge("text", &body(4097)).is_err());
        assert!(judge("text", r#"{"body":" "}"#).is_err());
        assert!(judge("interactive", &button(3, &"t".repeat(20))).is_ok());
        assert!(judge("interactive", &button(4, "t")).is_err());
        assert!(judge("interactive", &button(0, "t")).is_err());
        assert!(judge("interactive", &button(1, &"t".repeat(21))).is_err());
        assert!(judge("interactive", &list_of(10, &"t".repeat(24))).is_ok());
        assert!(judge("interactive", &list_of(11, "t")).is_err());
        assert!(judge("interactive", &list_of(1, &"t".repeat(25))).is_err());
        let caption = |n| format!(r#"{{"link":"https://x/y.jpg","caption":"{}"}}"#, "c".repeat(n));
        assert!(judge("image", &caption(1024)).is_ok());
        assert!(judge("image", &caption(1025)).is_err());
    }

    #[test]
    fn every_type_has_its_shape() {
        for (kind, good, bad) in [
            ("image", r#"{"id":"1"}"#, r#"{"id":"1","link":"https://x"}"#),
            ("audio", r#"{"link":"https://x/a.ogg"}"#, r#"{"id":"1","caption":"c"}"#),
            ("document", r#"{"id":"1","filename":"a.pdf"}"#, r#"{"link":"ftp://x"}"#),
            ("location", r#"{"latitude":1.5,"longitude":"2"}"#, r#"{"latitude":1.5}"#),
            ("contacts", r#"[{"name":{"formatted_name":"A"}}]"#, "[]"),
            ("template", r#"{"name":"n","language":{"code":"en"}}"#, r#"{"name":"n"}"#),
            ("reaction", r#"{"message_id":"wamid.X","emoji":""}"#, r#"{"emoji":"x"}"#),
            ("text", r#"{"body":"x","preview_url":true}"#, r#"{"body":"x","colour":"red"}"#),
        ] {
            assert!(judge(kind, good).is_ok(), "{kind}");
            assert!(judge(kind, bad).is_err(), "{kind}");
        }
    }
}
