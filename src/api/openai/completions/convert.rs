//! From a completions body to a checked request a prompt. Pure.

use crate::api::ApiConfig;
use crate::api::openai::sampling::Call;
use crate::api::openai::values::PromptValue;
use crate::error::{Error, Result};
use crate::request::Prompt;

use super::wire::CompletionBody;

/// OpenAI's default; chat has none.
const MAX_TOKENS_DEFAULT: u32 = 16;
/// OpenAI's limit for this endpoint.
const LOGPROBS_MAX: u32 = 5;

pub(super) fn checked(body: CompletionBody, config: &ApiConfig) -> Result<(Call, Vec<Prompt>)> {
    let (completion, (structured, mut sampling)) = body.checked("")?;
    // Only an explicit small limit contradicts min_tokens, not our default.
    let default = MAX_TOKENS_DEFAULT.max(sampling.min_tokens.unwrap_or(0));
    sampling.max_tokens.get_or_insert(default);
    let mut call = sampling.checked(config, structured.checked()?)?;
    if let Some(best_of) = completion.best_of.filter(|&best_of| best_of != 1 && best_of != call.params.n) {
        let message = format!("best_of is {best_of}; only 1 or the value of n is supported, use n");
        return Err(Error::invalid("best_of", message));
    }
    let logprobs = completion.logprobs.map(logprobs).transpose()?;
    let echo = completion.echo.unwrap_or(false);
    call.logprobs_wanted = logprobs.is_some();
    call.params.logprobs = logprobs.or(call.params.logprobs);
    call.params.echo = echo;
    // With echo, logprobs covers the prompt too.
    call.params.prompt_logprobs = call.params.prompt_logprobs.max(logprobs.filter(|_| echo));
    let prompt =
        completion.prompt.ok_or_else(|| Error::invalid("prompt", "prompt is missing; send text or token ids"))?;
    Ok((call, prompts(prompt, config.prompts_max)?))
}

fn logprobs(value: i64) -> Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|&count| count <= LOGPROBS_MAX)
        .ok_or_else(|| Error::invalid("logprobs", format!("logprobs is {value}; it must be from 0 to {LOGPROBS_MAX}")))
}

fn prompts(value: PromptValue, prompts_max: usize) -> Result<Vec<Prompt>> {
    let prompts: Vec<Prompt> = match value {
        PromptValue::Text(text) => vec![Prompt::Text(text)],
        PromptValue::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        PromptValue::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        PromptValue::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    if prompts.len() > prompts_max {
        let message = format!("prompt has {} prompts, the limit is {prompts_max}; send fewer", prompts.len());
        return Err(Error::invalid("prompt", message));
    }
    let empty = prompts.iter().position(|prompt| matches!(prompt, Prompt::Tokens(tokens) if tokens.is_empty()));
    match empty {
        Some(index) => Err(Error::invalid(
            format!("prompt[{index}]"),
            "a prompt without token ids has no start; send at least one",
        )),
        None => Ok(prompts),
    }
}
