//! Vectors and scores from an embedding engine in this process: texts -> tokens -> engine -> what was asked for.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, oneshot};

use super::judge::JudgePrompt;
use super::refused;
use crate::engine::{EmbedFailure, EmbedHandle, EmbedStats, EmbedSubmit, EmbedText};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::member::{EngineSnapshot, ModelCard, Task, TokenizeInput, Tokenized, wrong_task};
use crate::request::{EmbedFinish, EmbedInput, EmbedRequest, Embedded, Overlong};
use crate::telemetry::{FinishLabel, ModelMetrics, RequestTimes};
use crate::text::{Excess, Tokenizer};

/// Texts that are tokenised in one go: less than this is done on the async thread, more by turns beside it.
const SLICE_BYTES: usize = 64 * 1024;
const INLINE_BYTES_MAX: usize = 16 * 1024;

/// Most tokens of a text that `/tokenize` counts, where the model takes fewer.
const COUNTED_TOKENS_MAX: usize = 64 * 1024;

/// A loaded model that makes vectors or scores.
pub struct Embedding {
    pub card: ModelCard,
    pub engine: EmbedHandle,
    pub tokenizer: Arc<Tokenizer>,
    /// Values that the engine gives for a text.
    pub width: usize,
    /// The model's own pipeline ends with the activation: vectors of length 1, scores between 0 and 1.
    pub activates: bool,
    /// Texts are made lower case before they are tokenised.
    pub lower_case: bool,
    /// The model tells first and second texts apart.
    pub has_types: bool,
    /// Ids that the model knows; its tokenizer may know fewer.
    pub vocab_size: usize,
    /// Pairs are put into a prompt.
    pub judge: Option<JudgePrompt>,
}

/// Counts a request that is dropped before its end.
struct Recorded<'a> {
    metrics: &'a ModelMetrics,
    arrived: Instant,
    is_done: bool,
}

impl Recorded<'_> {
    fn end(&mut self, label: FinishLabel, queue_s: f64, prompt_tokens: u32) {
        self.is_done = true;
        let e2e_s = self.arrived.elapsed().as_secs_f64();
        let prefill_s = (e2e_s - queue_s).max(0.0);
        let times = RequestTimes { queue_s, prefill_s, e2e_s, prompt_tokens, n: 1, ..RequestTimes::default() };
        self.metrics.finished(label, times);
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.end(FinishLabel::Abort, 0.0, 0);
        }
    }
}

/// Answers a request that was admitted.
pub(super) async fn embed(
    model: &Arc<Embedding>,
    request: EmbedRequest,
    preparing: &Arc<Semaphore>,
    metrics: &ModelMetrics,
) -> Result<Embedded> {
    let mut recorded = Recorded { metrics, arrived: Instant::now(), is_done: false };
    let finish = request.finish;
    let outcome = compute(model, request, preparing).await;
    match outcome {
        Ok(Computed { mut embedded, queue_s }) => {
            finished(model, finish, &mut embedded);
            recorded.end(FinishLabel::Stop, queue_s, embedded.prompt_tokens);
            Ok(embedded)
        }
        Err(error) => {
            recorded.end(FinishLabel::Error, 0.0, 0);
            Err(error)
        }
    }
}

struct Computed {
    embedded: Embedded,
    queue_s: f64,
}

async fn compute(model: &Arc<Embedding>, request: EmbedRequest, preparing: &Arc<Semaphore>) -> Result<Computed> {
    check(model, &request)?;
    let priority = request.priority;
    let texts = prepared(model, request, preparing).await?;
    let tokens = texts.iter().map(|text| text.tokens.len() as u64).sum::<u64>();
    let (done, answer) = oneshot::channel();
    model.engine.submit(EmbedSubmit { texts, priority, done }).map_err(refused)?;
    let done = answer.await.map_err(|_| engine_gone("the engine stopped before the answer was complete"))?;
    let done = done.map_err(|failure| match failure {
        EmbedFailure::Cancelled => {
            Error::new(ErrorKind::Cancelled, "the server is stopping; send the request again elsewhere or later")
        }
        EmbedFailure::Failed(reason) => engine_gone(&reason),
    })?;
    if done.values.iter().any(|value| !value.is_finite()) {
        // JSON has no word for them, and no client could use them.
        return Err(engine_gone("the model gave values that are not finite numbers"));
    }
    let prompt_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    let embedded = Embedded { values: done.values, width: model.width, prompt_tokens };
    Ok(Computed { embedded, queue_s: done.queue_time.as_secs_f64() })
}

fn engine_gone(reason: &str) -> Error {
    Error::internal(format!("computing the vectors failed: {reason}; send the request again"))
}

/// What can be refused before anything is tokenised.
fn check(model: &Embedding, request: &EmbedRequest) -> Result<()> {
    let wants_scores = request.inputs.iter().any(|input| matches!(input, EmbedInput::Pair(..)));
    if wants_scores != (model.card.task == Task::Score) {
        return Err(wrong_task(&model.card, wants_scores));
    }
    let width = model.width as u64;
    if let Some(dimensions) = request.finish.dimensions.filter(|&wanted| wanted == 0 || u64::from(wanted) > width) {
        let id = &model.card.id;
        let message =
            format!("dimensions is {dimensions}; the vectors of model '{id}' have {width}, ask for 1 to {width}");
        return Err(Error::invalid("dimensions", message));
    }
    match request.overlong {
        Overlong::Cut(Some(tokens)) if tokens == 0 || tokens > model.card.max_model_len => {
            let most = model.card.max_model_len;
            let message = format!("truncate_prompt_tokens is {tokens}; it must be from 1 to {most}, or -1 for {most}");
            Err(Error::invalid("truncate_prompt_tokens", message))
        }
        _ => Ok(()),
    }
}

/// Tokens of all inputs. Many or long texts are tokenised in slices beside the event loop, by turns with others, and
/// not further than their client waits.
async fn prepared(
    model: &Arc<Embedding>,
    mut request: EmbedRequest,
    preparing: &Arc<Semaphore>,
) -> Result<Vec<EmbedText>> {
    let mut inputs = std::mem::take(&mut request.inputs).into_iter().enumerate().peekable();
    let mut texts = Vec::with_capacity(inputs.len());
    while inputs.peek().is_some() {
        let (mut slice, mut bytes) = (Vec::new(), 0);
        while let Some((place, input)) = inputs.next_if(|_| bytes < SLICE_BYTES) {
            bytes += size(&input);
            slice.push((place, input));
        }
        if bytes <= INLINE_BYTES_MAX {
            texts.extend(tokens_of(model, &request, slice)?);
            continue;
        }
        let turn = Arc::clone(preparing).acquire_owned().await;
        let turn = turn.map_err(|_| Error::internal("the turns to prepare prompts were closed"))?;
        let (loaded, asked) = (Arc::clone(model), request.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            tokens_of(&loaded, &asked, slice)
        });
        texts.extend(work.await.map_err(|panic| Error::internal(format!("preparing the texts failed: {panic}")))??);
    }
    Ok(texts)
}

fn size(input: &EmbedInput) -> usize {
    match input {
        EmbedInput::Text(text) => text.len(),
        EmbedInput::Tokens(ids) => ids.len(),
        EmbedInput::Pair(first, second) => first.len() + second.len(),
    }
}

fn tokens_of(model: &Embedding, request: &EmbedRequest, slice: Vec<(usize, EmbedInput)>) -> Result<Vec<EmbedText>> {
    slice.into_iter().map(|(place, input)| text_of(model, request, place, input)).collect()
}

fn text_of(model: &Embedding, request: &EmbedRequest, place: usize, input: EmbedInput) -> Result<EmbedText> {
    let label = || (request.label)(place);
    let most = model.card.max_model_len;
    let encoded = match input {
        EmbedInput::Tokens(mut tokens) => {
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= model.vocab_size) {
                let message = format!("token id {id} is outside the vocabulary of {} tokens", model.vocab_size);
                return Err(Error::invalid(label(), message));
            }
            match request.overlong {
                Overlong::Cut(to) => tokens.truncate(to.unwrap_or(most) as usize),
                Overlong::Refuse if tokens.len() > most as usize => {
                    return Err(too_long(model, label(), Excess::Tokens(tokens.len())));
                }
                Overlong::Refuse => {}
            }
            EmbedText { tokens, types: Vec::new() }
        }
        EmbedInput::Text(text) => encoded(model, request, (&text, None), &label)?,
        EmbedInput::Pair(first, second) => encoded(model, request, (&first, Some(&second)), &label)?,
    };
    if encoded.tokens.is_empty() {
        return Err(Error::invalid(label(), "the input has no tokens; send at least one"));
    }
    let limit = match request.overlong {
        Overlong::Cut(Some(limit)) => limit,
        Overlong::Cut(None) | Overlong::Refuse => most,
    };
    if encoded.tokens.len() > limit as usize {
        let own = encoded.tokens.len();
        let message = format!("truncate_prompt_tokens is {limit}, and the model adds {own} tokens itself; give more");
        return Err(Error::invalid("truncate_prompt_tokens", message));
    }
    Ok(encoded)
}

fn encoded(
    model: &Embedding,
    request: &EmbedRequest,
    texts: (&str, Option<&str>),
    label: &impl Fn() -> String,
) -> Result<EmbedText> {
    let lower;
    let texts = match (model.lower_case, texts) {
        (false, texts) => texts,
        (true, (first, second)) => {
            lower = (first.to_lowercase(), second.map(str::to_lowercase));
            (lower.0.as_str(), lower.1.as_deref())
        }
    };
    let (tokenizer, most, special) = (&model.tokenizer, model.card.max_model_len, request.add_special_tokens);
    let (limit, is_cut) = match request.overlong {
        Overlong::Cut(to) => (to.unwrap_or(most) as usize, true),
        Overlong::Refuse => (most as usize, false),
    };
    let (tokens, types) = match (&model.judge, texts) {
        (Some(judge), (query, Some(document))) => {
            let whole = judge.encode(tokenizer, (query, document), limit, is_cut)?;
            (whole.map_err(|excess| too_long(model, label(), excess))?, Vec::new())
        }
        _ if is_cut => {
            let cut = tokenizer.encode_cut(texts, special, limit)?;
            (cut.ids, cut.types)
        }
        _ => {
            let whole = tokenizer.encode_whole(texts, special, limit)?;
            let whole = whole.map_err(|excess| too_long(model, label(), excess))?;
            (whole.ids, whole.types)
        }
    };
    // A tokenizer may know more than its model: what lies beyond is refused, not read from elsewhere.
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= model.vocab_size) {
        let message = format!("the tokenizer gives token id {id}, and the model knows {} tokens", model.vocab_size);
        return Err(Error::invalid(label(), message));
    }
    Ok(EmbedText { tokens, types: if model.has_types { types } else { Vec::new() } })
}

fn too_long(model: &Embedding, label: String, excess: Excess) -> Error {
    let (most, id) = (model.card.max_model_len, &model.card.id);
    let found = match excess {
        Excess::Tokens(tokens) => format!("{tokens} tokens"),
        Excess::MoreThan(tokens) => format!("more than {tokens} tokens"),
    };
    let message = format!(
        "{label} has {found}, and model '{id}' takes {most}; shorten it, or send truncate_prompt_tokens -1 to have it cut"
    );
    Error::invalid(label, message).with_code("context_length_exceeded")
}

/// Cuts vectors to the dimensions that were asked for and applies the activation.
fn finished(model: &Embedding, finish: EmbedFinish, embedded: &mut Embedded) {
    if let Some(dimensions) = finish.dimensions {
        let (old, new) = (embedded.width, dimensions as usize);
        for row in 0..embedded.values.len() / old {
            embedded.values.copy_within(row * old..row * old + new, row * new);
        }
        embedded.values.truncate(embedded.values.len() / old * new);
        embedded.width = new;
    }
    if !finish.activate.unwrap_or(model.activates) {
        return;
    }
    if model.card.task == Task::Score {
        embedded.values.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp()));
        return;
    }
    for vector in embedded.values.chunks_exact_mut(embedded.width) {
        let square: f64 = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        // As torch's normalize: a vector of zeros stays one.
        let factor = 1.0 / square.sqrt().max(1e-12);
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
    }
}

impl Embedding {
    pub(super) fn tokenize(&self, input: &TokenizeInput) -> Result<Tokenized> {
        let TokenizeInput::Text { text, add_special_tokens } = input else {
            let message = format!("model '{}' has no chat template; send a prompt instead of messages", self.card.id);
            return Err(Error::invalid("messages", message).with_code("no_chat_template"));
        };
        let tokens_max = COUNTED_TOKENS_MAX.max(self.card.max_model_len as usize);
        let tokens = self.tokenizer.encode_bounded(text, *add_special_tokens, tokens_max)?.ok_or_else(|| {
            let message = format!("the prompt has more than {} tokens; count it in pieces", 2 * tokens_max);
            Error::new(ErrorKind::TooLarge, message).with_param("prompt")
        })?;
        let texts = tokens.iter().map(|&id| self.tokenizer.token_text(id)).collect();
        Ok(Tokenized { tokens, texts })
    }

    pub(super) fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.vocab_size) {
            let message = format!("token id {id} is outside the vocabulary of {} tokens", self.vocab_size);
            return Err(Error::invalid("tokens", message));
        }
        self.tokenizer.decode(tokens, false)
    }

    pub(super) fn snapshot(&self) -> EngineSnapshot {
        let EmbedStats { running, waiting, steps, texts, tokens, step_tokens, .. } = self.engine.stats();
        EngineSnapshot {
            running,
            waiting,
            prompt_tokens: tokens,
            steps,
            embedded_texts: texts,
            step_tokens_buckets: super::cumulative(&step_tokens),
            step_tokens_sum: step_tokens.sum as f64,
            ..EngineSnapshot::default()
        }
    }
}
