//! Experimental: a model through a PJRT plugin. It has run on CPU plugins only, never on Trainium.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sconce_models::plain::check_spec;
use sconce_models::{KvDtype, LoadOptions, Source, Spec};
use sconce_pjrt::api::Plugin;
use sconce_pjrt::{Buckets, ElementType, Limits, PjrtDevice, PjrtExecutor, PjrtOptions, PluginInfo};

use super::model::{Job, LoadReport, LoadingBar, Running, describe, engine_config, loaded, replicas, unusable};
use super::{adapters, fit, text};
use crate::config::speculation::Speculation;
use crate::config::{KvCacheDtype, MatmulPrecision, ModelConfig, ModelLimits};
use crate::device::cpu;
use crate::device::fit::{ModelSize, Plan, Wishes, human_bytes, plan as plan_memory};
use crate::engine::{EngineHandle, Executor};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::Progress;
use crate::pool::local::{Loaded, Memory};
use crate::pool::{ModelCard, Task};

/// A context when none is given: every longer size is compiled before the first request.
const CONTEXT_CHOSEN_MAX: u32 = 2048;
/// The cache is written once at the start, so that room nobody asked for is not free.
const KV_BYTES_CHOSEN_MAX: u64 = 1 << 30;

/// Refuses what is no plugin that this program can talk to. Takes no device.
pub(super) fn check(path: &Path) -> Result<()> {
    Plugin::open(path).map(|_| ()).map_err(|why| {
        let message = format!("--device pjrt:PATH is not possible: {why}");
        Error::new(ErrorKind::Unavailable, message)
    })
}

/// Products are in F32 with high precision, and else in the BF16 that accelerators are made for.
fn element(precision: MatmulPrecision) -> ElementType {
    match precision {
        MatmulPrecision::High => ElementType::F32,
        MatmulPrecision::Fast => ElementType::Bf16,
    }
}

/// What a model takes on a device, and what is wished for. Programs have copies of the contexts that they look at.
pub(super) fn size_and_wishes(spec: &Spec, limits: &ModelLimits) -> (ModelSize, Wishes) {
    let element = element(limits.matmul_precision);
    let kv = if element == ElementType::F32 { KvDtype::F32 } else { KvDtype::Bf16 };
    let context = limits.max_model_len.unwrap_or(spec.context_max.min(CONTEXT_CHOSEN_MAX));
    let plain = fit::size(&[spec], kv);
    let keys = u64::from(context) * u64::from(limits.max_num_seqs);
    let gathered = 2 * keys * (spec.kv_width() * element.bytes()) as u64;
    let scores = 2 * 4 * spec.heads as u64 * u64::from(context);
    let size = ModelSize {
        weight_bytes: sconce_pjrt::weight_bytes(spec, element) + gathered,
        step_bytes_per_token: plain.step_bytes_per_token + scores,
        ..plain
    };
    let wishes =
        Wishes { max_model_len: Some(context), kv_bytes_chosen_max: Some(KV_BYTES_CHOSEN_MAX), ..fit::wishes(limits) };
    (size, wishes)
}

/// Plans for `available` bytes; `None` where a device does not say.
pub(super) fn plan(spec: &Spec, limits: &ModelLimits, available: Option<u64>) -> Result<(ModelSize, Plan)> {
    let (size, wishes) = size_and_wishes(spec, limits);
    let mut plan = plan_memory(&size, &wishes, available).map_err(fit::does_not_fit)?;
    if limits.max_model_len.is_none() && plan.max_model_len < spec.context_max {
        let (chosen, full) = (plan.max_model_len, spec.context_max);
        plan.reasons[0] = format!(
            "context {chosen} tokens of the model's {full}: every longer size is a program more to compile; change it with \
             --max-model-len"
        );
    }
    let Buckets { rows, chunks, contexts } = Buckets::new(bounds(&plan));
    plan.reasons.push(format!(
        "compiled for {rows:?} sequences or {chunks:?} tokens of a prompt, each over contexts of {contexts:?} blocks"
    ));
    plan.reasons.push("no drafts: a program takes one token of a sequence".to_owned());
    Ok((size, plan))
}

fn bounds(plan: &Plan) -> Limits {
    Limits {
        max_num_seqs: plan.max_num_seqs,
        max_num_batched_tokens: plan.max_num_batched_tokens,
        max_model_len: plan.max_model_len,
        blocks: plan.blocks,
        block_size: plan.block_size,
    }
}

/// Opens the plugin's first device on the calling thread, and starts an engine that loads and compiles there.
pub(super) fn load(
    job: &Job<'_>,
    (source, path): (Source, &Path),
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Loaded, Memory, LoadReport)> {
    let config = job.config;
    refuse(config)?;
    let spec = fit::read_spec(config, &source)?;
    check_spec(&spec, &source).map_err(|why| unusable(&why))?;
    let parts = text::read(&source, spec.vocab, config.chat_template.as_deref())?;
    let on = PjrtDevice::open(path).map_err(|why| Error::new(ErrorKind::Unavailable, why.to_string()))?;
    let info = on.info().clone();
    // Of other devices the memory is not known: what does not fit there fails when it is loaded.
    let is_this_machine = info.platform == "cpu";
    let available = if is_this_machine { job.available_bytes(&cpu::detect()) } else { None };
    let (size, plan) = plan(&spec, &config.limits, available)?;
    let limits = ModelLimits { speculation: Speculation::Off, ..config.limits.clone() };
    let pjrt = PjrtOptions { element: element(limits.matmul_precision), limits: bounds(&plan) };
    let (quantize, name) = (limits.quantize.clone(), card.id.clone());
    let engine = EngineHandle::start(&card.id, engine_config(&plan, &limits), move || {
        let shown = LoadingBar::new(progress, name);
        let report: sconce_models::OnProgress = Box::new(move |done, total| shown.update(done, total));
        let options = LoadOptions { quantize, progress: Some(report), ..LoadOptions::default() };
        Ok(Box::new(PjrtExecutor::load(on, &source, options, pjrt)?) as Box<dyn Executor>)
    })
    .map_err(|why| Error::new(ErrorKind::Unavailable, why))?;
    let report = LoadReport {
        id: card.id.clone(),
        what: describe(&spec),
        device: line(&info),
        choices: plan.reasons.iter().cloned().chain(spec.notes.clone()).collect(),
        predicted: Some(format!("{} of the device's memory", human_bytes(plan.memory_bytes))),
        load_time: Duration::ZERO,
        task: Task::Generate,
    };
    let card = ModelCard { max_model_len: plan.max_model_len, ..card };
    let (block_size, vocab_size) = (plan.block_size, spec.vocab);
    let engines = replicas(vec![engine], &plan, &limits);
    let loaded = loaded(&with_limits(config, limits), parts, Running { card, engines, block_size, vocab_size });
    let memory = if is_this_machine {
        Memory { weights_bytes: size.weight_bytes, kv_bytes: plan.kv_bytes, step_bytes: plan.step_bytes }
    } else {
        Memory { weights_bytes: 0, kv_bytes: 0, step_bytes: size.logits_row_bytes }
    };
    Ok((loaded, memory, report))
}

fn with_limits(config: &ModelConfig, limits: ModelLimits) -> ModelConfig {
    ModelConfig { limits, ..config.clone() }
}

/// What was asked for and cannot be had here.
fn refuse(config: &ModelConfig) -> Result<()> {
    adapters::refuse(&config.lora, "a model through a pjrt plugin")?;
    if matches!(config.limits.speculation, Speculation::DraftModel(_)) {
        let why = "--speculative-config: there is no draft model through a pjrt plugin; use method off";
        return Err(Error::invalid("--speculative-config", why));
    }
    let element = element(config.limits.matmul_precision);
    let fits = match config.limits.kv_cache_dtype {
        KvCacheDtype::Auto => true,
        KvCacheDtype::F32 => element == ElementType::F32,
        KvCacheDtype::Bf16 => element == ElementType::Bf16,
        KvCacheDtype::F16 | KvCacheDtype::Fp8 => false,
    };
    if !fits {
        let why =
            format!("--kv-cache-dtype: through a pjrt plugin the cache is of {element}, as products are; leave it out");
        return Err(Error::invalid("--kv-cache-dtype", why));
    }
    Ok(())
}

fn line(info: &PluginInfo) -> String {
    let PluginInfo { version: (major, minor), platform, device, .. } = info;
    format!(
        "{device} of the pjrt plugin for {platform} (PJRT {major}.{minor}; experimental, tried on CPU plugins only)"
    )
}
