//! What `streamGenerateContent` sends: whole parts, with calls in one piece.

use sconce_vocabulary::request::Finish;
use serde::Deserialize;
use serde_json::Value;

use super::OWNER;
use crate::answer::Answer;
use crate::counts::count;
use crate::failure::Told;
use crate::seal;
use crate::stream::{Fault, Message, Reader};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk {
    candidates: Option<Vec<Candidate>>,
    prompt_feedback: Option<Value>,
    usage_metadata: Option<Value>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    index: Option<u32>,
    content: Option<Content>,
    finish_reason: Option<String>,
    finish_message: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Content {
    parts: Option<Vec<Part>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    text: Option<String>,
    thought: Option<bool>,
    thought_signature: Option<String>,
    function_call: Option<Call>,
}

#[derive(Debug, Deserialize)]
struct Call {
    id: Option<String>,
    name: String,
    args: Option<Value>,
}

#[derive(Debug, Default)]
pub(super) struct GenerateReader {
    /// Calls so far, for their keys.
    calls: u64,
}

impl Reader for GenerateReader {
    fn read(&mut self, message: Message<'_>, answer: &mut Answer) -> Result<(), Fault> {
        let chunk: Chunk = serde_json::from_str(message.data)?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let told = Told::of(&error);
            return Err(Fault::Told(told.status(), told));
        }
        if let Some(usage) = chunk.usage_metadata {
            read_usage(&usage, answer);
        }
        answer.begin();
        for candidate in chunk.candidates.unwrap_or_default() {
            self.candidate(candidate, answer)?;
        }
        let is_blocked = chunk.prompt_feedback.is_some_and(|feedback| feedback["blockReason"].is_string());
        if is_blocked && !answer.has_content() {
            answer.finish(0, Finish::ContentFilter);
        }
        Ok(())
    }

    fn whole(&mut self, document: &str, answer: &mut Answer) -> Result<(), Fault> {
        self.read(Message { name: "", data: document, is_exception: false }, answer)?;
        match answer.is_finished() {
            true => Ok(()),
            false => Err(Fault::Garbled("a document that is no answer".to_owned())),
        }
    }
}

impl GenerateReader {
    fn candidate(&mut self, candidate: Candidate, answer: &mut Answer) -> Result<(), Fault> {
        let index = candidate.index.unwrap_or(0);
        for part in candidate.content.and_then(|content| content.parts).unwrap_or_default() {
            self.part(index, part, answer)?;
        }
        match candidate.finish_reason.as_deref() {
            None | Some("" | "FINISH_REASON_UNSPECIFIED") => {}
            Some(reason) => answer.finish(index, finish(reason, candidate.finish_message)?),
        }
        Ok(())
    }

    fn part(&mut self, choice: u32, part: Part, answer: &mut Answer) -> Result<(), Fault> {
        let text = part.text.as_deref().unwrap_or_default();
        match part.thought {
            Some(true) => answer.reasoning(choice, text),
            _ => answer.text(choice, text),
        }
        // Before the call, so that it is part of what was thought before it.
        if let Some(signature) = part.thought_signature.filter(|signature| !signature.is_empty()) {
            answer.seal(choice, seal::signed(OWNER, &signature));
        }
        if let Some(call) = part.function_call {
            let key = self.calls;
            self.calls += 1;
            answer.call(choice, key, call.id.as_deref().unwrap_or_default(), &call.name);
            if let Some(args) = call.args.filter(Value::is_object) {
                answer.arguments(choice, key, &args.to_string())?;
            }
        }
        Ok(())
    }
}

fn finish(reason: &str, message: Option<String>) -> Result<Finish, Fault> {
    match reason {
        // The second is not Google's, but of servers that speak as Google does.
        "STOP" | "FUNCTION_CALL" => Ok(Finish::Stop(None)),
        "MAX_TOKENS" | "CONTINUATION" => Ok(Finish::Length),
        "SAFETY"
        | "RECITATION"
        | "LANGUAGE"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "MODEL_ARMOR"
        | "ESCALATION" => Ok(Finish::ContentFilter),
        // Malformed calls, and whatever is neither an answer nor a filter.
        other => {
            let message = message.unwrap_or_default();
            let told = Told { message: format!("the answer ended with {other} {message}"), ..Told::default() };
            Err(Fault::Told(500, told))
        }
    }
}

fn read_usage(wire: &Value, answer: &mut Answer) {
    let usage = answer.usage();
    usage.prompt_tokens = count(&wire["promptTokenCount"]).saturating_add(count(&wire["toolUsePromptTokenCount"]));
    usage.cached_tokens = count(&wire["cachedContentTokenCount"]);
    usage.reasoning_tokens = count(&wire["thoughtsTokenCount"]);
    usage.completion_tokens = count(&wire["candidatesTokenCount"]).saturating_add(usage.reasoning_tokens);
}
