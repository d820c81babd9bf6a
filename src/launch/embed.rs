//! An embedding or reranking model: spec, plan, weights, engine, tokenizer.

use std::sync::Arc;
use std::time::Duration;

use sconce_models::{EmbedderOptions, EmbedderSpec, LoadOptions, Output, Purpose, Source};

use super::model::{LoadReport, LoadingBar, description, device_line, precision, unusable};
use super::{adapters, text};
use crate::config::speculation::Speculation;
use crate::config::{ModelConfig, TaskChoice};
use crate::device::cpu;
use crate::device::fit::human_bytes;
use crate::engine::{EmbedConfig, EmbedHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::Progress;
use crate::pool::local::Embedding;
use crate::pool::{ModelCard, Task};

/// A step's token budget when none is given: large enough that arithmetic and not memory is the limit, small enough
/// that a text that comes now does not wait long.
const BATCHED_TOKENS_DEFAULT: u32 = 512;

/// What the model is to do: what the operator says, if the model can do that, else what its files say.
pub fn purpose(task: TaskChoice, source: Option<&Source>) -> Result<Purpose> {
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
        (TaskChoice::Score, Purpose::Score) => Ok(Purpose::Score),
        (TaskChoice::Score, _) => {
            Err(Error::invalid("--task", "--task score needs a model with a head that scores pairs; leave it out"))
        }
        (TaskChoice::Generate | TaskChoice::Embed, Purpose::Score) => {
            Err(Error::invalid("--task", "the model scores pairs of texts and nothing else; leave --task out"))
        }
    }
}

/// Loads on the calling thread and the engine's; takes seconds.
pub fn load(
    config: &ModelConfig,
    source: Source,
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Embedding, LoadReport)> {
    let options =
        EmbedderOptions { usual_pooling: config.task == TaskChoice::Embed, tokens_max: config.limits.max_model_len };
    let spec = sconce_models::read_embedder_spec(&source, options).map_err(|why| unusable(&why))?;
    check_wishes(config, &spec)?;
    let machine = cpu::detect();
    let budget = config.limits.max_num_batched_tokens.unwrap_or(BATCHED_TOKENS_DEFAULT).max(1);
    check_room(config, &spec, budget, machine.memory_available_bytes)?;
    let parts = text::read(&source, spec.vocab, None)?;
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
    };
    Ok((embedding, report))
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
fn check_room(config: &ModelConfig, spec: &EmbedderSpec, budget: u32, available_bytes: Option<u64>) -> Result<()> {
    let step = spec.step_bytes_per_token.saturating_mul(u64::from(budget.max(spec.tokens_max)));
    let wanted = spec.weight_bytes.saturating_add(step);
    let Some(available) = available_bytes else { return Ok(()) };
    let room = (available / 1000).saturating_mul(u64::from(config.limits.memory_share_permille));
    if wanted <= room {
        return Ok(());
    }
    let message = format!(
        "the weights need {} and a step of the longest text {}, and {} of memory may be used; lower --max-model-len or \
         --max-num-batched-tokens, or use a smaller model",
        human_bytes(spec.weight_bytes),
        human_bytes(step),
        human_bytes(room)
    );
    Err(Error::new(ErrorKind::Unavailable, message))
}

fn choices(spec: &EmbedderSpec, budget: u32) -> Vec<String> {
    let what = match spec.output {
        Output::Embedding { normalize: true } => {
            format!("vectors of {} values, pooled by {}, of length 1", spec.width, spec.pooling.name())
        }
        Output::Embedding { normalize: false } => {
            format!("vectors of {} values, pooled by {}", spec.width, spec.pooling.name())
        }
        Output::Score { sigmoid: true } => "scores of pairs, from 0 to 1".to_owned(),
        Output::Score { sigmoid: false } => "scores of pairs, as the model's logits".to_owned(),
    };
    vec![what, format!("texts of up to {} tokens, {budget} tokens a step", spec.tokens_max)]
}
