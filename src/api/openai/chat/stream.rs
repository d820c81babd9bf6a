//! Events as chat completion chunks.

use crate::api::openai::logprobs::ChatLogprobs;
use crate::api::openai::sampling::Delivery;
use crate::api::openai::wire::{Head, UsageWire, finish_reason, stop_reason};
use crate::api::sse::{ChunkWriter, write_data};
use crate::request::{Event, Usage};

use super::wire::{Chunk, ChunkChoice, Delta, Form};

/// Writes the chunks of one answer.
pub(super) struct ChatWriter {
    head: Head,
    form: Form,
    delivery: Delivery,
    /// Counts so far, for `continuous_usage_stats`.
    usage: Usage,
}

impl ChatWriter {
    pub fn new(head: Head, form: Form, delivery: Delivery) -> Self {
        Self { head, form, delivery, usage: Usage::default() }
    }

    fn chunk(&self, choice: ChunkChoice<'_>, out: &mut Vec<u8>) {
        let usage =
            self.delivery.include_usage.then(|| self.delivery.continuous_usage.then(|| UsageWire::from(self.usage)));
        write_data(&Chunk::new(&self.head, &[choice], usage), out);
    }
}

impl ChunkWriter for ChatWriter {
    fn event(&mut self, _prompt: usize, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Prompt(report) => {
                self.usage.prompt_tokens = report.prompt_tokens;
                self.usage.cached_tokens = report.cached_tokens;
                for index in 0..self.form.n {
                    let delta = Delta { role: Some("assistant"), content: Some("") };
                    self.chunk(ChunkChoice { index, delta, ..ChunkChoice::default() }, out);
                }
            }
            Event::Text { choice: index, text, tokens, token_ids } => {
                let counted = tokens.len().max(token_ids.len());
                self.usage.completion_tokens += u32::try_from(counted).unwrap_or(u32::MAX);
                if text.is_empty() && !self.form.logprobs {
                    return;
                }
                let logprobs = self.form.logprobs.then(|| {
                    let mut logprobs = ChatLogprobs::default();
                    logprobs.extend(tokens, self.form.style);
                    logprobs
                });
                let delta = Delta { role: None, content: Some(&text) };
                self.chunk(ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() }, out);
            }
            Event::Finished { choice: index, reason } => {
                let finish_reason = Some(finish_reason(&reason));
                let stop_reason = stop_reason(&reason);
                self.chunk(ChunkChoice { index, finish_reason, stop_reason, ..ChunkChoice::default() }, out);
            }
            // Not asked for here: tools and the parting of reasoning are refused by name.
            Event::Reasoning { .. } | Event::ToolCall { .. } | Event::Done(_) | Event::Failed(_) => {}
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Vec<u8>) {
        if self.delivery.include_usage {
            write_data(&Chunk::new(&self.head, &[], Some(Some(usage.into()))), out);
        }
    }
}
