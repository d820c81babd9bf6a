//! The prompt in which a decoder judges a pair of texts: Qwen3-Reranker's, as its model card has it.

use crate::error::{Error, Result};
use crate::text::{Excess, Tokenizer};

const PREFIX: &str = concat!(
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
);
const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
const INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";
/// Without them as tokens of their own, the prompt is not what the model was trained on.
const MARKS: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"];

/// What stands around every pair, tokenised once.
pub struct JudgePrompt {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl JudgePrompt {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        if let Some(missing) = MARKS.into_iter().find(|mark| tokenizer.id_of(mark).is_none()) {
            let message = format!(
                "a decoder scores pairs in Qwen3-Reranker's prompt, and this model has no token {missing}; use a \
                 Qwen3-Reranker or a cross-encoder, or leave --task score out"
            );
            return Err(Error::invalid("--task", message));
        }
        Ok(Self { prefix: tokenizer.encode(PREFIX, false)?, suffix: tokenizer.encode(SUFFIX, false)? })
    }

    /// The prompt of one pair in at most `tokens_max` tokens: cut at the document's end where that is wanted, else how
    /// long it is.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        (query, document): (&str, &str),
        tokens_max: usize,
        is_cut: bool,
    ) -> Result<Result<Vec<u32>, Excess>> {
        let pair = format!("<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}");
        let own = self.prefix.len() + self.suffix.len();
        let room = tokens_max.saturating_sub(own);
        let encoded = match is_cut {
            true => tokenizer.encode_cut((&pair, None), false, room)?,
            false => match tokenizer.encode_whole((&pair, None), false, room)? {
                Ok(encoded) => encoded,
                Err(Excess::Tokens(tokens)) => return Ok(Err(Excess::Tokens(tokens + own))),
                Err(more) => return Ok(Err(more)),
            },
        };
        Ok(Ok([&self.prefix[..], &encoded.ids, &self.suffix].concat()))
    }
}
