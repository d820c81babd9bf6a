//! The text half of one choice: ids in, final text out, until a stop ends it.

use std::sync::Arc;

use super::Loaded;
use crate::engine::{FinishReason, Progress, Token, TokenLogprobs};
use crate::error::{Error, ErrorKind};
use crate::request::{Finish, Params, StopMatch, TokenLogprob, TokenReport};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// One choice of a request while it is being generated.
pub struct Choice {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokenizer: Arc<Tokenizer>,
    named_stop_ids: Vec<u32>,
    keep_stop_text: bool,
    with_reports: bool,
    /// Stop strings that end in so many first tokens are text like any other.
    min_tokens: u32,
    pub generated: u32,
}

/// What one step's progress means to the client.
#[derive(Default)]
pub struct Advance {
    pub text: String,
    pub tokens: Vec<TokenReport>,
    pub token_ids: Vec<u32>,
    pub end: Option<Result<Finish, Error>>,
}

impl Choice {
    pub fn new(loaded: &Loaded, params: &Params, prompt: &[u32]) -> Self {
        // Enough context for the detokenizer to know whether the answer's first space is part of the text.
        const PROMPT_TAIL_TOKENS: usize = 6;
        let tail = &prompt[prompt.len().saturating_sub(PROMPT_TAIL_TOKENS)..];
        Self {
            detokenizer: Detokenizer::new(Arc::clone(&loaded.tokenizer), tail, params.skip_special_tokens),
            stops: StopMatcher::new(&params.stop, params.include_stop_str_in_output),
            tokenizer: Arc::clone(&loaded.tokenizer),
            named_stop_ids: params.stop_token_ids.clone(),
            keep_stop_text: params.include_stop_str_in_output,
            with_reports: params.logprobs.is_some(),
            min_tokens: params.min_tokens,
            generated: 0,
        }
    }

    /// Takes one step's progress. After an `end` nothing more may be given.
    pub fn advance(&mut self, progress: Progress) -> Advance {
        let mut advance = Advance::default();
        let ended_by_token = matches!(progress.finish, Some(FinishReason::StopToken(_)));
        let last = progress.tokens.len().saturating_sub(1);
        for (at, token) in progress.tokens.iter().enumerate() {
            self.generated += 1;
            let is_stop_token = ended_by_token && at == last;
            if is_stop_token && !self.keep_stop_text {
                break;
            }
            if let Some(matched) = self.take(token, &mut advance) {
                advance.end = Some(Ok(Finish::Stop(Some(StopMatch::Text(matched)))));
                return advance;
            }
        }
        if let Some(reason) = progress.finish {
            self.end(reason, &mut advance);
        }
        advance
    }

    /// Adds one token's text; the stop string that it completed, if it did.
    fn take(&mut self, token: &Token, advance: &mut Advance) -> Option<String> {
        advance.token_ids.push(token.id);
        if self.with_reports
            && let Some(logprobs) = &token.logprobs
        {
            advance.tokens.push(report(&self.tokenizer, token.id, logprobs));
        }
        let text = self.detokenizer.push(token.id);
        self.add_text(&text, advance)
    }

    /// Adds what is final of a piece of text; the stop string that it completed, if it did and may.
    fn add_text(&mut self, text: &str, advance: &mut Advance) -> Option<String> {
        if self.generated <= self.min_tokens {
            advance.text.push_str(&self.stops.pass(text));
            return None;
        }
        let stopped = self.stops.push(text);
        advance.text.push_str(&stopped.emit);
        stopped.matched
    }

    fn end(&mut self, reason: FinishReason, advance: &mut Advance) {
        let end = match reason {
            FinishReason::StopToken(id) => {
                let named = self.named_stop_ids.contains(&id);
                Ok(Finish::Stop(named.then_some(StopMatch::Token(id))))
            }
            FinishReason::Length => Ok(Finish::Length),
            FinishReason::Cancelled => {
                Err(Error::new(ErrorKind::Cancelled, "the request was cancelled because the server is stopping"))
            }
            FinishReason::Failed(why) => Err(Error::internal(why)),
        };
        if end.is_err() {
            advance.end = Some(end);
            return;
        }
        // The bytes of an unfinished character and the text held back for a stop string are now final.
        let tail = self.detokenizer.finish();
        match self.add_text(&tail, advance) {
            Some(matched) => advance.end = Some(Ok(Finish::Stop(Some(StopMatch::Text(matched))))),
            None => {
                advance.text.push_str(&self.stops.finish());
                advance.end = Some(end);
            }
        }
    }
}

/// A token's logprob and its alternatives, with texts and exact bytes.
pub fn report(tokenizer: &Tokenizer, id: u32, logprobs: &TokenLogprobs) -> TokenReport {
    let named = |id: u32, logprob: f32| TokenLogprob {
        id,
        text: tokenizer.token_text(id),
        bytes: tokenizer.token_bytes(id),
        logprob,
    };
    TokenReport {
        token: named(id, logprobs.logprob),
        rank: logprobs.rank,
        top: logprobs.top.iter().map(|&(id, logprob)| named(id, logprob)).collect(),
    }
}
