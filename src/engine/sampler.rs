//! From one row of logits to one token: pure, and the same whatever else is in the batch.

/// What one sequence wants. Fully resolved: no options left, vocabulary-checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Over prompt and output; 1 is off.
    pub repetition_penalty: f32,
    /// Over the output; 0 is off.
    pub presence_penalty: f32,
    /// Over the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    /// 0 computes the prompt and generates nothing.
    pub max_tokens: u32,
    /// No stop id is sampled before this many tokens.
    pub min_tokens: u32,
    /// Includes EOS unless the client ignores it.
    pub stop_token_ids: Vec<u32>,
    /// Log probabilities of each token, and of this many likeliest ones.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens but the first.
    pub prompt_logprobs: Option<u32>,
}

impl SamplingParams {
    /// Greedy, nothing else set. The start of a struct update.
    pub fn greedy(max_tokens: u32) -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            max_tokens,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}
