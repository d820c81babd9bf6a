//! A conversation as the template sees it, in the form of content that the template takes.

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::request::{Chat, Content, Message};

/// What a template can do, found by looking at its source and by rendering probes when it is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Takes `content` as a string.
    pub strings: bool,
    /// Takes `content` as a list of parts.
    pub parts: bool,
    /// Knows the `developer` role.
    pub developer: bool,
}

/// Stands behind the text that the model shall continue; the same mark as transformers', because a template that trims
/// its messages takes the mark's space off.
pub(super) const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The `messages` variable.
pub(super) fn messages(chat: &Chat, abilities: Abilities) -> Result<Value> {
    let last = chat.messages.len().wrapping_sub(1);
    let mut list = Vec::with_capacity(chat.messages.len());
    for (index, message) in chat.messages.iter().enumerate() {
        let is_continued = chat.continue_final_message && index == last;
        list.push(message_object(message, abilities, is_continued)?);
    }
    Ok(Value::from(Serde(list)))
}

/// The final message's last text: what the model continues.
pub(super) fn continued_text(chat: &Chat) -> Result<&str> {
    let content = chat.messages.last().map(|message| &message.content);
    let text = match content {
        Some(Content::Text(text)) => Some(text.as_str()),
        Some(Content::Parts(parts)) => parts.last().map(String::as_str),
        Some(Content::None) | None => None,
    };
    text.ok_or_else(|| {
        let message = "continue_final_message needs a final message with text content; there is none to continue";
        Error::invalid("continue_final_message", message)
    })
}

fn message_object(message: &Message, abilities: Abilities, is_continued: bool) -> Result<Map<String, Json>> {
    // A template that never mentions the role has nothing to print for it; what it says belongs to the system.
    let role = match message.role.as_str() {
        "developer" if !abilities.developer => "system",
        role => role,
    };
    let mut object = Map::new();
    if let Some(reasoning) = &message.reasoning {
        // gpt-oss templates read the reasoning under this name, all others as `reasoning_content`.
        object.insert("thinking".to_owned(), json!(reasoning));
    }
    object.insert("role".to_owned(), json!(role));
    object.insert("content".to_owned(), content(&message.content, abilities, is_continued));
    let optional =
        [("reasoning_content", &message.reasoning), ("tool_call_id", &message.tool_call_id), ("name", &message.name)];
    for (field, value) in optional {
        if let Some(value) = value {
            object.insert(field.to_owned(), json!(value));
        }
    }
    if !message.tool_calls.is_empty() {
        object.insert("tool_calls".to_owned(), json!(message.tool_calls));
    }
    Ok(object)
}

/// Content goes to the template in the form in which the client sent it, where the template takes that form. Text for
/// a template of parts becomes one part; parts for a template of strings are joined by line breaks, as in vLLM.
fn content(content: &Content, abilities: Abilities, is_continued: bool) -> Json {
    let mark = if is_continued { CONTINUE_MARK } else { "" };
    let part = |text: &str| json!({"type": "text", "text": text});
    match content {
        Content::None if abilities.strings => json!(""),
        Content::None => json!([]),
        Content::Text(text) if abilities.strings => json!(format!("{text}{mark}")),
        Content::Text(text) => json!([part(&format!("{text}{mark}"))]),
        Content::Parts(texts) if abilities.parts => {
            let last = texts.len().wrapping_sub(1);
            let marked = texts.iter().enumerate().map(|(index, text)| match index == last {
                true => part(&format!("{text}{mark}")),
                false => part(text),
            });
            Json::Array(marked.collect())
        }
        Content::Parts(texts) => json!(format!("{}{mark}", texts.join("\n"))),
    }
}

/// Cuts the rendered text after the final message's content, as transformers does.
pub(super) fn cut_at_mark(mut rendered: String, final_text: &str) -> Result<String> {
    let mark = CONTINUE_MARK.trim_end();
    let at = rendered.rfind(mark).filter(|_| rendered.contains(final_text.trim_matches(super::methods::is_space)));
    let at = at.ok_or_else(|| {
        let message =
            "continue_final_message: the chat template changes or drops the final message, so it cannot be continued";
        Error::invalid("continue_final_message", message)
    })?;
    let is_kept_whole = rendered[at..].starts_with(CONTINUE_MARK);
    rendered.truncate(at);
    if !is_kept_whole {
        rendered.truncate(rendered.trim_end_matches(super::methods::is_space).len());
    }
    Ok(rendered)
}
