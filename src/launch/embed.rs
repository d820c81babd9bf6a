//! An embedding or reranking model: spec, plan, weights, engine, tokenizer.

use std::sync::Arc;
use std::time::Duration;

use sconce_models::{EmbedderOptions, EmbedderSpec, LoadOptions, Output, Purpose, Source};

use super::fit::{Forecast, Needs, Refusal};
use super::model::{Job, LoadReport, LoadingBar, description, device_line, precision, unusable};
use super::{adapters, text};
use crate::config::speculation::Speculation;
use crate::config::{ModelConfig, TaskChoice};
use crate::device::cpu;
use crate::device::fit::human_bytes;
use crate::device::fit::roofline::Share;
use crate::engine::{EmbedConfig, EmbedHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::catalogue::Kind;
use crate::hub::{ModelRef, Progress};
use crate::pool::lifecycle::NO_MEMORY;
use crate::pool::local::{Embedding, JudgePrompt, Memory};
use crate::pool::{ModelCard, Task};

/// A step's token budget when none is given: large enough that arithmetic and not memory is the limit, small enough
/// that a text that comes now does not wait long.
const BATCHED_TOKENS_DEFAULT: u32 = 512;

/// What the model is to do: what the operator says, if the model can do that, else what its files say.
pub fn purpose(config: &ModelConfig, source: Option<&Source>) -> Result<Purpose> {
    let task = task(config);
    let Some(source) = source else {
        return match task {
            TaskChoice::Auto | TaskChoice::Generate => Ok(Purpose::Generate),
            TaskChoice::Embed | TaskChoice::Score => {
                Err(Error::invalid("--task", "sim makes no vectors; leave --task out or give it a model"))
            }
        };
    };
    let own = sconce_models::read_purpose(source).map_err(|why| unusable(&why))?;
    match (task, own) {
        (TaskChoice::Auto, own) => Ok(own),
        (TaskChoice::Generate, Purpose::Generate | Purpose::Embed) => Ok(Purpose::Generate),
        (TaskChoice::Embed, Purpose::Generate | Purpose::Embed) => Ok(Purpose::Embed),
        // A decoder scores by the logits of "yes" and "no".
        (TaskChoice::Score, Purpose::Score | Purpose::Generate) => Ok(Purpose::Score),
        (TaskChoice::Score, Purpose::Embed) => {
            let message = "--task score needs a model with a head that scores pairs, or a Qwen3-Reranker; leave it out";
            Err(Error::invalid("--task", message))
        }
        (TaskChoice::Generate | TaskChoice::Embed, Purpose::Score) => {
            Err(Error::invalid("--task", "the model scores pairs of texts and nothing else; leave --task out"))
        }
    }
}

/// What the operator says, else what the catalogue knows of a reranker whose files look like a chat model's.
fn task(config: &ModelConfig) -> TaskChoice {
    match (config.task, ModelRef::parse(&config.reference)) {
        (TaskChoice::Auto, Ok(ModelRef::Catalogue(entry))) if entry.kind == Kind::Reranker => TaskChoice::Score,
        (task, _) => task,
    }
}

/// Loads on the calling thread and the engine's; takes seconds.
pub fn load(
    job: &Job<'_>,
    source: Source,
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Embedding, Memory, LoadReport)> {
    let config = job.config;
    let options = options(config);
    let spec = read_spec(config, &source)?;
    check_wishes(config, &spec)?;
    let machine = cpu::detect();
    let budget = step_budget(config);
    let memory = check_room(config, &spec, job.available_bytes(&machine))?;
    let parts = text::read(&source, spec.vocab, None)?;
    let judge = if spec.judges { Some(JudgePrompt::new(&parts.tokenizer)?) } else { None };
    let limits = &config.limits;
    let engine_config = EmbedConfig {
        max_num_batched_tokens: budget,
        // The pool's admission is the bound that clients meet.
        jobs_max: limits.max_queue.saturating_add(limits.max_num_seqs).max(1),
    };
    let (precision, quantize, name) = (precision(limits), limits.quantize.clone(), card.id.clone());
    let engine = EmbedHandle::start(&card.id, engine_config, move || {
        let shown = LoadingBar::new(progress, name);
        let load = LoadOptions {
            precision,
            quantize,
            progress: Some(Box::new(move |done, total| shown.update(done, total))),
            ..Default::default()
        };
        sconce_models::load_embedder(&source, options, load).map_err(|why| why.to_string())
    })
    .map_err(|why| Error::new(ErrorKind::Unavailable, why))?;
    let (task, activates) = match spec.output {
        Output::Embedding { normalize } => (Task::Embed { dimensions: spec.width as u32 }, normalize),
        Output::Score { sigmoid } => (Task::Score, sigmoid),
    };
    let report = LoadReport {
        id: card.id.clone(),
        what: description((&spec.architecture, spec.layers), spec.parameters, (&spec.weight_format, spec.weight_bytes)),
        device: device_line(&machine),
        choices: choices(&spec, budget),
        predicted: Some(format!("{} of memory in the largest step", human_bytes(memory.total_bytes()))),
        load_time: Duration::ZERO,
        task,
    };
    let embedding = Embedding {
        card: ModelCard { max_model_len: spec.tokens_max, chat: false, task, ..card },
        engine,
        tokenizer: Arc::new(parts.tokenizer),
        width: spec.width,
        activates,
        lower_case: spec.lower_case,
        has_types: spec.types > 1,
        vocab_size: spec.vocab,
        judge,
    };
    Ok((embedding, memory, report))
}

/// What [`load`] would take if the machine had nothing else to do.
pub fn need(job: &Job<'_>, source: &Source) -> Result<Memory> {
    check_room(job.config, &read_spec(job.config, source)?, job.room_bytes)
}

fn step_budget(config: &ModelConfig) -> u32 {
    config.limits.max_num_batched_tokens.unwrap_or(BATCHED_TOKENS_DEFAULT).max(1)
}

fn options(config: &ModelConfig) -> EmbedderOptions {
    EmbedderOptions {
        usual_pooling: config.task == TaskChoice::Embed,
        tokens_max: config.limits.max_model_len,
        judge: task(config) == TaskChoice::Score,
    }
}

fn read_spec(config: &ModelConfig, source: &Source) -> Result<EmbedderSpec> {
    sconce_models::read_embedder_spec(source, options(config)).map_err(|why| unusable(&why))
}

/// Flags that would be ignored, or that the model cannot fulfil.
fn check_wishes(config: &ModelConfig, spec: &EmbedderSpec) -> Result<()> {
    if let Some(wanted) = config.limits.max_model_len.filter(|&wanted| wanted > spec.tokens_max) {
        let message = format!(
            "--max-model-len {wanted} is beyond the {} tokens that this model takes; give at most that",
            spec.tokens_max
        );
        return Err(Error::invalid("--max-model-len", message));
    }
    if matches!(config.limits.speculation, Speculation::DraftModel(_)) {
        let message = "a model that makes vectors or scores has nothing to guess; leave the draft model out";
        return Err(Error::invalid("--speculative-config", message));
    }
    adapters::refuse(&config.lora, "a model that makes vectors or scores")?;
    if config.chat_template.is_some() {
        let message = format!("{} makes vectors or scores and has no chat template; leave it out", spec.architecture);
        return Err(Error::invalid("--chat-template", message));
    }
    Ok(())
}

/// Weights, and the activations of the largest step.
fn memory(spec: &EmbedderSpec, budget: u32) -> Memory {
    let step_bytes = spec.step_bytes_per_token.saturating_mul(u64::from(budget.max(spec.tokens_max)));
    Memory { weights_bytes: spec.weight_bytes, kv_bytes: 0, step_bytes }
}

fn check_room(config: &ModelConfig, spec: &EmbedderSpec, available_bytes: Option<u64>) -> Result<Memory> {
    let memory = memory(spec, step_budget(config));
    let Some(available) = available_bytes else { return Ok(memory) };
    let room = (available / 1000).saturating_mul(u64::from(config.limits.memory_share_permille));
    if memory.total_bytes() <= room {
        return Ok(memory);
    }
    let message = format!(
        "the weights need {} and a step of the longest text {}, and {} of memory may be used; lower --max-model-len or \
         --max-num-batched-tokens, or use a smaller model",
        human_bytes(spec.weight_bytes),
        human_bytes(memory.step_bytes),
        human_bytes(room)
    );
    Err(Error::new(ErrorKind::Unavailable, message).with_code(NO_MEMORY))
}

/// What it would take, before it is loaded.
pub(super) fn forecast(
    config: &ModelConfig,
    source: Option<&Source>,
    available_bytes: Option<u64>,
) -> Result<Forecast> {
    let source = source.ok_or_else(|| Error::internal("a model without files makes no vectors"))?;
    let spec = read_spec(config, source)?;
    check_wishes(config, &spec)?;
    let budget = step_budget(config);
    let memory_bytes = memory(&spec, budget).total_bytes();
    let needs = Needs {
        memory_bytes,
        least_bytes: memory_bytes,
        max_model_len: spec.tokens_max,
        choices: choices(&spec, budget),
    };
    let checked = check_room(config, &spec, available_bytes);
    Ok(Forecast {
        what: description((&spec.architecture, spec.layers), spec.parameters, (&spec.weight_format, spec.weight_bytes)),
        outcome: checked.map(|_| needs).map_err(|error| Refusal { why: error.message, advice: Vec::new() }),
        rates: None,
        share: Share::WHOLE,
        asks: None,
    })
}

fn choices(spec: &EmbedderSpec, budget: u32) -> Vec<String> {
    let what = match spec.output {
        Output::Embedding { normalize: true } => {
            format!("vectors of {} values, pooled by {}, of length 1", spec.width, spec.pooling.name())
        }
        Output::Embedding { normalize: false } => {
            format!("vectors of {} values, pooled by {}", spec.width, spec.pooling.name())
        }
        Output::Score { .. } if spec.judges => "scores of pairs, the share of \"yes\" against \"no\"".to_owned(),
        Output::Score { sigmoid: true } => "scores of pairs, from 0 to 1".to_owned(),
        Output::Score { sigmoid: false } => "scores of pairs, as the model's logits".to_owned(),
    };
    vec![what, format!("texts of up to {} tokens, {budget} tokens a step", spec.tokens_max)]
}
