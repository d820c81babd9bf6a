//! A model on a GPU: which device, what fits there, and the engine on it.

use std::sync::Arc;
use std::time::Duration;

use sconce_cuda::Device;
use sconce_models::cuda::{CudaModel, CudaRunner, CudaSizes};
use sconce_models::{KvDtype, LoadOptions, Source, Spec};

use super::model::{Job, LoadReport, LoadingBar, Running, describe, engine_config, loaded, precision, unusable};
use super::{adapters, fit, text};
use crate::config::speculation::Speculation;
use crate::config::{DeviceChoice, KvCacheDtype, ModelConfig, ModelLimits};
use crate::device::fit::{ModelSize, Plan, human_bytes, plan as plan_memory};
use crate::engine::{CudaExecutor, EngineHandle, Executor};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::Progress;
use crate::pool::local::{Loaded, Memory};
use crate::pool::{ModelCard, Task};

/// A step's token budget when none is given, as vLLM has it: on cards with much memory, and on others.
const BATCHED_TOKENS_LARGE: u32 = 8192;
const BATCHED_TOKENS: u32 = 2048;
const LARGE_MEMORY_BYTES: u64 = 70 << 30;
/// For the library's workspace, for graphs, and for what the driver keeps for itself.
const RESERVE_BYTES: u64 = 640 << 20;

/// The GPU that `choice` means; `None` is none. Who names a GPU gets it or an error.
pub(super) fn device(choice: &DeviceChoice) -> Result<Option<Device>> {
    match *choice {
        DeviceChoice::Cpu | DeviceChoice::Pjrt(_) => Ok(None),
        DeviceChoice::Auto => Ok(open_best()),
        DeviceChoice::Cuda(ordinal) => open(ordinal).map(Some).map_err(|why| {
            let message = format!("--device cuda:{ordinal} is not possible: {why}; use --device cpu");
            Error::new(ErrorKind::Unavailable, message)
        }),
    }
}

/// The GPU that `choice` names.
pub fn named(choice: &DeviceChoice) -> Result<Device> {
    device(choice)?.ok_or_else(|| Error::new(ErrorKind::Unavailable, "there is no GPU that this program can use"))
}

#[cfg(feature = "cuda")]
fn open(ordinal: u32) -> sconce_cuda::Result<Device> {
    Device::open(ordinal)
}

/// Builds with the stand-in alone are for tests.
#[cfg(not(feature = "cuda"))]
fn open(_ordinal: u32) -> sconce_cuda::Result<Device> {
    Ok(Device::host())
}

/// The first GPU, where there is one that this build can use.
#[cfg(feature = "cuda")]
fn open_best() -> Option<Device> {
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(why) => {
            tracing::info!("running on the CPU: {why}");
            None
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn open_best() -> Option<Device> {
    None
}

/// As [`device`]; without a wish for a certain one, models that it has no kernels for go to the CPU.
pub(super) fn device_for(choice: &DeviceChoice, spec: &Spec, source: &Source) -> Result<Option<Device>> {
    let device = device(choice)?;
    match sconce_models::cuda::check(spec, source) {
        Err(why) if *choice == DeviceChoice::Auto && device.is_some() => {
            tracing::info!("running on the CPU: {why}");
            Ok(None)
        }
        Err(why) if device.is_some() => Err(unusable(&why)),
        _ => Ok(device),
    }
}

/// Loads weights on the calling thread, measures what is left, and starts an engine on it.
pub(super) fn load(
    job: &Job<'_>,
    (source, spec, device): (Source, Spec, Device),
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Loaded, Memory, LoadReport)> {
    let config = job.config;
    refuse(config)?;
    let parts = text::read(&source, spec.vocab, config.chat_template.as_deref())?;
    let free_before = device.memory_free().map_err(|why| failed(&why))?;
    let shown = LoadingBar::new(progress, card.id.clone());
    let options = LoadOptions {
        precision: precision(&config.limits),
        max_model_len: config.limits.max_model_len,
        quantize: config.limits.quantize.clone(),
        progress: Some(Box::new(move |done, total| shown.update(done, total))),
        ..Default::default()
    };
    let model = CudaModel::load(&source, &device, options).map_err(|why| unusable(&why))?;
    let free = device.memory_free().map_err(|why| failed(&why))?;
    let (size, plan) = plan(&model, &config.limits, free)?;
    let sizes = sizes(&plan, &config.limits);
    let engine = EngineHandle::start(&card.id, engine_config(&plan, &config.limits), move || {
        Ok(Box::new(CudaExecutor::new(model, sizes)?) as Box<dyn Executor>)
    })
    .map_err(|why| Error::new(ErrorKind::Unavailable, why))?;
    let weights_bytes = free_before.saturating_sub(free);
    let report = LoadReport {
        id: card.id.clone(),
        what: describe(&spec),
        device: line(&device),
        choices: plan.reasons.iter().cloned().chain(spec.notes.clone()).collect(),
        predicted: Some(format!("{} of GPU memory", human_bytes(weights_bytes + plan.kv_bytes + plan.step_bytes))),
        load_time: Duration::ZERO,
        task: Task::Generate,
    };
    let card = ModelCard { max_model_len: plan.max_model_len, ..card };
    let (block_size, vocab_size) = (plan.block_size, spec.vocab);
    let loaded = loaded(config, parts, Running { card, engine, block_size, vocab_size });
    // What --models-memory counts is the machine's own memory: on the GPU a model takes none of it that lasts.
    let memory = Memory { weights_bytes: 0, kv_bytes: 0, step_bytes: size.logits_row_bytes };
    Ok((loaded, memory, report))
}

/// What the engine cannot do on a GPU yet.
fn refuse(config: &ModelConfig) -> Result<()> {
    adapters::refuse(&config.lora, "a model on a GPU")?;
    if matches!(config.limits.speculation, Speculation::DraftModel(_)) {
        let why = "--speculative-config: there is no draft model on a GPU yet; use method ngram or off";
        return Err(Error::invalid("--speculative-config", why));
    }
    Ok(())
}

/// Plans for a device whose memory already holds the weights.
fn plan(model: &CudaModel, limits: &ModelLimits, free: u64) -> Result<(ModelSize, Plan)> {
    let (spec, info) = (model.spec(), model.device().info());
    let batched = if info.memory_bytes >= LARGE_MEMORY_BYTES { BATCHED_TOKENS_LARGE } else { BATCHED_TOKENS };
    let batched = limits.max_num_batched_tokens.unwrap_or(batched).max(1);
    let of_tokens = |max_num_batched_tokens| {
        let max_model_len = limits.max_model_len.unwrap_or(spec.context_max);
        let sizes = CudaSizes {
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            blocks: 0,
            block_size: limits.block_size,
            kv_dtype: kv_dtype(limits.kv_cache_dtype),
        };
        CudaRunner::scratch_bytes(model, sizes)
    };
    // A step's bytes grow with its tokens from a fixed part on, which is counted like weights that are still to come.
    let least = limits.max_num_seqs;
    let step_bytes_per_token = (of_tokens(least + 1024) - of_tokens(least)) / 1024;
    let fixed = of_tokens(least).saturating_sub(step_bytes_per_token * u64::from(least));
    let size = ModelSize {
        weight_bytes: fixed + RESERVE_BYTES,
        kv_bytes_per_token: CudaRunner::kv_bytes_per_token(model, kv_dtype(limits.kv_cache_dtype)),
        state_bytes: 0,
        context_max: spec.context_max,
        step_bytes_per_token,
        logits_row_bytes: 0,
    };
    let wishes = crate::device::fit::Wishes {
        max_num_batched_tokens: Some(batched),
        kv_bytes_chosen_max: None,
        ..fit::wishes(limits)
    };
    let plan = plan_memory(&size, &wishes, Some(available(info.memory_bytes, free, limits.memory_share_permille)));
    plan.map(|plan| (size, plan)).map_err(fit::does_not_fit)
}

/// What `sconce doctor` plans with: `None` where the model would start on the CPU.
pub(super) fn available_on(config: &ModelConfig, spec: &Spec, source: &Source) -> Result<Option<u64>> {
    let Some(device) = device_for(&config.device, spec, source)? else { return Ok(None) };
    let free = device.memory_free().map_err(|why| failed(&why))?.saturating_sub(RESERVE_BYTES);
    Ok(Some(available(device.info().memory_bytes, free, config.limits.memory_share_permille)))
}

/// So much that its share is what is free within the share of the whole card: others may use the rest of it.
fn available(total: u64, free: u64, share_permille: u32) -> u64 {
    let share = u64::from(share_permille);
    let allowed = total / 1000 * share;
    allowed.saturating_sub(total.saturating_sub(free)) / share.max(1) * 1000
}

fn sizes(plan: &Plan, limits: &ModelLimits) -> CudaSizes {
    CudaSizes {
        max_num_seqs: plan.max_num_seqs,
        max_num_batched_tokens: plan.max_num_batched_tokens,
        max_model_len: plan.max_model_len,
        blocks: plan.blocks,
        block_size: plan.block_size,
        kv_dtype: kv_dtype(limits.kv_cache_dtype),
    }
}

/// As activations where nothing was said.
fn kv_dtype(wanted: KvCacheDtype) -> Option<KvDtype> {
    (wanted != KvCacheDtype::Auto).then(|| fit::kv_dtype(wanted))
}

fn line(device: &Device) -> String {
    let info = device.info();
    let (major, minor) = info.compute_capability;
    format!("{}, {} of memory, compute capability {major}.{minor}", info.name, human_bytes(info.memory_bytes))
}

fn failed(why: &sconce_cuda::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the GPU: {why}"))
}

#[cfg(test)]
mod tests {
    use super::available;

    #[test]
    fn a_share_of_the_card_is_left_to_others() {
        let total = 80_000_000_000;
        // Nobody else is there: 90 % of what is available is 90 % of the card.
        assert_eq!(available(total, total, 900) / 1000 * 900, 72_000_000_000);
        // Someone holds a quarter: what is left of 90 %.
        assert_eq!(available(total, 60_000_000_000, 900) / 1000 * 900, 51_999_999_300);
        assert_eq!(available(total, 1_000_000_000, 900), 0);
    }
}
