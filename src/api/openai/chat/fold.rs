//! Events folded into one chat completion.

use crate::api::openai::logprobs::{ChatLogprobs, prompt_logprobs};
use crate::api::openai::wire::{Head, SYSTEM_FINGERPRINT, finish_reason, stop_reason};
use crate::request::{Event, Finish, PromptToken, Usage};

use super::wire::{AssistantMessage, Choice, Completion, Form};

/// The answer so far.
pub(super) struct ChatFold {
    form: Form,
    choices: Vec<Folded>,
    prompt: Vec<PromptToken>,
}

#[derive(Default)]
struct Folded {
    text: String,
    logprobs: ChatLogprobs,
    finish: Option<Finish>,
}

impl ChatFold {
    pub fn new(form: Form) -> Self {
        let choices = (0..form.n).map(|_| Folded::default()).collect();
        Self { form, choices, prompt: Vec::new() }
    }

    pub fn event(&mut self, event: Event) {
        match event {
            Event::Prompt(report) => self.prompt = report.tokens,
            Event::Text { choice, text, tokens, .. } => {
                if let Some(folded) = self.choices.get_mut(choice as usize) {
                    folded.text.push_str(&text);
                    if self.form.logprobs {
                        folded.logprobs.extend(tokens, self.form.style);
                    }
                }
            }
            Event::Finished { choice, reason } => {
                if let Some(folded) = self.choices.get_mut(choice as usize) {
                    folded.finish = Some(reason);
                }
            }
            // Not asked for here: tools and the parting of reasoning are refused by name.
            Event::Reasoning { .. } | Event::ToolCall { .. } | Event::Done(_) | Event::Failed(_) => {}
        }
    }

    pub fn completion(self, head: &Head, usage: Usage, prompt_top: Option<u32>) -> Completion<'_> {
        let choices = (0_u32..).zip(self.choices).map(|(index, folded)| {
            // A member that never said why a choice ended was cut at its limit.
            let finish = folded.finish.unwrap_or(Finish::Length);
            Choice {
                index,
                message: AssistantMessage { role: "assistant", content: folded.text, refusal: None },
                logprobs: self.form.logprobs.then_some(folded.logprobs),
                finish_reason: finish_reason(&finish),
                stop_reason: stop_reason(&finish),
            }
        });
        Completion {
            id: &head.id,
            object: "chat.completion",
            created: head.created,
            model: &head.model,
            choices: choices.collect(),
            usage: usage.into(),
            system_fingerprint: SYSTEM_FINGERPRINT,
            prompt_logprobs: prompt_top.map(|top| prompt_logprobs(&self.prompt, top as usize)),
        }
    }
}
