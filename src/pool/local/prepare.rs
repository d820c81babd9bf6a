//! From a checked request to token ids and resolved sampling parameters.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Loaded;
use super::plan::AnswerPlan;
use crate::engine::SamplingParams;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::member::TokenizeInput;
use crate::request::{Chat, Content, Image, Params, Part, Prompt, Request};
use crate::text::{ChatTemplate, Now};
use serde_json::Value;

/// Token ids of the prompt and how its answers are read, checked against the vocabulary and the context length.
pub fn prompt_tokens(loaded: &Loaded, request: &Request) -> Result<(Vec<u32>, AnswerPlan)> {
    check_verbosity(loaded, &request.params)?;
    let mut plan = AnswerPlan::default();
    let tokens = match &request.prompt {
        Prompt::Chat(chat) => {
            let text = rendered(loaded, chat)?;
            plan = AnswerPlan::new(loaded, chat, &request.params, &text)?;
            within_context(loaded, &text, false, "messages")?
        }
        Prompt::Text(text) => within_context(loaded, text, true, "prompt")?,
        Prompt::Tokens(ids) => {
            check_ids(loaded, ids, "prompt")?;
            ids.clone()
        }
    };
    check_length(loaded, request, tokens.len())?;
    check_vocabulary(loaded, &request.params)?;
    Ok((tokens, plan))
}

/// Tokenises a prompt, but not one that is far too long: refusing it must be cheap.
fn within_context(loaded: &Loaded, text: &str, add_special: bool, param: &str) -> Result<Vec<u32>> {
    let context = loaded.card.max_model_len as usize;
    loaded.tokenizer.encode_bounded(text, add_special, context)?.ok_or_else(|| {
        let message = format!(
            "this model's maximum context length is {context} tokens, but the {param} has more than {}; shorten the {param}",
            context.saturating_mul(2)
        );
        Error::invalid(param, message).with_code("context_length_exceeded")
    })
}

/// Tokens of `/tokenize`. Longer texts than the context may be counted, within what four calls at once may take.
pub fn counted_tokens(loaded: &Loaded, input: &TokenizeInput) -> Result<Vec<u32>> {
    const TOKENS_MAX: usize = 64 * 1024;
    let tokens_max = TOKENS_MAX.max(loaded.card.max_model_len as usize);
    let (tokens, param) = match input {
        TokenizeInput::Text { text, add_special_tokens } => {
            (loaded.tokenizer.encode_bounded(text, *add_special_tokens, tokens_max)?, "prompt")
        }
        TokenizeInput::Chat(chat) => {
            (loaded.tokenizer.encode_bounded(&rendered(loaded, chat)?, false, tokens_max)?, "messages")
        }
    };
    tokens.ok_or_else(|| {
        let message = format!("the {param} has more than {} tokens; count it in pieces", tokens_max.saturating_mul(2));
        Error::new(ErrorKind::TooLarge, message).with_param(param)
    })
}

/// Renders the conversation once; the template itself writes the special tokens.
fn rendered(loaded: &Loaded, chat: &Chat) -> Result<String> {
    let template = loaded.template.as_ref().ok_or_else(|| {
        Error::invalid(
            "messages",
            format!(
                "model '{}' has no chat template, so it cannot take messages; send /v1/completions a prompt instead",
                loaded.card.id
            ),
        )
        .with_code("no_chat_template")
    })?;
    check_images(loaded, chat)?;
    match &chat.reasoning_effort {
        None => template.prompt(chat, now()),
        Some(effort) => template.prompt(&with_effort(loaded, template, chat, effort)?, now()),
    }
}

/// No local model sees yet.
fn check_images(loaded: &Loaded, chat: &Chat) -> Result<()> {
    let parts = chat.messages.iter().flat_map(|message| match &message.content {
        Content::Parts(parts) => parts.as_slice(),
        Content::None | Content::Text(_) => &[],
    });
    let image = parts.into_iter().find_map(|part| match part {
        Part::Image(image) => Some(image),
        Part::Text(_) => None,
    });
    match image {
        None => Ok(()),
        Some(Image { param, .. }) => {
            let message = format!("{param} is an image, and model '{}' takes no images; send text", loaded.card.id);
            Err(Error::invalid(param, message).with_code("unsupported_content_part"))
        }
    }
}

/// How long the answer is to be cannot be told to a local model.
fn check_verbosity(loaded: &Loaded, params: &Params) -> Result<()> {
    match params.verbosity.as_deref() {
        None | Some("medium") => Ok(()),
        Some(_) => {
            let message = format!(
                "model '{}' knows no verbosity; leave it out and ask for a length in the prompt",
                loaded.card.id
            );
            Err(Error::invalid("verbosity", message).with_code("unsupported_parameter"))
        }
    }
}

/// The effort as the variable that the template reads: a level, or for models that only know on and off, a switch.
fn with_effort(loaded: &Loaded, template: &ChatTemplate, chat: &Chat, effort: &str) -> Result<Chat> {
    let (variable, value) = if template.mentions("reasoning_effort") {
        ("reasoning_effort", Value::from(effort))
    } else if template.mentions("enable_thinking") {
        ("enable_thinking", Value::from(effort != "none"))
    } else {
        let message =
            format!("the chat template of model '{}' reads no reasoning_effort; leave it out", loaded.card.id);
        return Err(Error::invalid("reasoning_effort", message).with_code("unsupported_parameter"));
    };
    let mut chat = chat.clone();
    // What the client sets by the variable's own name wins.
    chat.template_kwargs.entry(variable).or_insert(value);
    Ok(chat)
}

/// The clock that templates see, in UTC: a server's own time zone means nothing to its clients.
fn now() -> Now {
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    Now { unix_s, utc_offset_s: 0 }
}

pub fn check_ids(loaded: &Loaded, ids: &[u32], param: &str) -> Result<()> {
    let vocab = loaded.vocab_size as u64;
    match ids.iter().find(|&&id| u64::from(id) >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::invalid(param, format!("token id {id} is outside the vocabulary of {vocab} tokens"))),
    }
}

fn check_length(loaded: &Loaded, request: &Request, prompt_tokens: usize) -> Result<()> {
    let param = if matches!(request.prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
    if prompt_tokens == 0 {
        return Err(Error::invalid(param, "the prompt has no tokens; send at least one"));
    }
    let context = u64::from(loaded.card.max_model_len);
    let wanted = u64::from(request.params.max_tokens.filter(|_| !request.params.context_may_cut).unwrap_or(1));
    let total = prompt_tokens as u64 + wanted;
    if total <= context {
        return Ok(());
    }
    let message = match request.params.max_tokens {
        Some(max_tokens) if (prompt_tokens as u64) < context => format!(
            "this model's maximum context length is {context} tokens, but {total} were asked for ({prompt_tokens} in the {param}, \
             {max_tokens} to generate); shorten the {param} or lower max_tokens"
        ),
        _ => format!(
            "this model's maximum context length is {context} tokens, but the {param} has {prompt_tokens}; shorten the {param}"
        ),
    };
    Err(Error::invalid(param, message).with_code("context_length_exceeded"))
}

fn check_vocabulary(loaded: &Loaded, params: &Params) -> Result<()> {
    check_ids(loaded, &params.stop_token_ids, "stop_token_ids")?;
    let biased: Vec<u32> = params.logit_bias.iter().map(|&(id, _)| id).collect();
    check_ids(loaded, &biased, "logit_bias")
}

/// Parameters of one of the request's choices, with the model's defaults filled in.
pub fn sampling(loaded: &Loaded, params: &Params, prompt_tokens: usize, choice: u32) -> SamplingParams {
    let room = (loaded.card.max_model_len as usize).saturating_sub(prompt_tokens) as u32;
    let mut stop_token_ids = params.stop_token_ids.clone();
    if !params.ignore_eos {
        stop_token_ids.extend(&loaded.eos_ids);
    }
    let defaults = &loaded.defaults;
    SamplingParams {
        temperature: params.temperature.unwrap_or(defaults.temperature),
        top_k: params.top_k.unwrap_or(defaults.top_k),
        top_p: params.top_p.unwrap_or(defaults.top_p),
        min_p: params.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: params.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        logit_bias: params.logit_bias.clone(),
        seed: params.seed.unwrap_or_else(fresh_seed).wrapping_add(u64::from(choice)),
        max_tokens: params.max_tokens.map_or(room, |wanted| wanted.min(room)),
        min_tokens: params.min_tokens,
        stop_token_ids,
        // Reports come with their logprobs.
        logprobs: params.logprobs.or(params.count_tokens.then_some(0)),
        // The prompt's own report is the same for every choice.
        prompt_logprobs: params.prompt_logprobs.filter(|_| choice == 0),
    }
}

/// A seed nobody asked to repeat. `RandomState` is keyed from the operating system's randomness.
fn fresh_seed() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}
