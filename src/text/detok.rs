//! Incremental detokenisation of one choice: text leaves as soon as it is final, and never half a character.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// Turns the ids of one choice into text, piece by piece.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
}

impl Detokenizer {
    /// `prompt_tail` is the prompt, or its end: it decides whether the answer's first token keeps its leading space,
    /// and it may end inside a character. Only its last few ids are looked at, so the whole prompt may be passed.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt_tail: &[u32], skip_special: bool) -> Self {
        let _ = prompt_tail;
        Self { tokenizer, skip_special }
    }

    /// Takes the next id and returns the text that is now final, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        let _ = (id, self.skip_special, &self.tokenizer);
        String::new()
    }

    /// The rest: bytes that never became a character turn into U+FFFD.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
