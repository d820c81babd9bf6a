//! A model on a GPU: which device, what fits there, and the engine on it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_cuda::{Communicator, Device};
use sconce_models::cuda::{CudaModel, CudaRunner, CudaSizes, Share};
use sconce_models::{KvDtype, LoadOptions, OnProgress, Purpose, Source, Spec};

use super::cards::Cards;
use super::draft::source_of;
use super::model::{
    Files, Job, LoadReport, LoadingBar, Running, UNGUESSED, describe, engine_config, loaded, precision, replica_name,
    replicas, unusable,
};
use super::{adapters, embed, fit, text};
use crate::config::speculation::Speculation;
use crate::config::{DeviceChoice, KvCacheDtype, ModelConfig, ModelLimits};
use crate::device::fit::{ModelSize, Plan, human_bytes, plan as plan_memory};
use crate::engine::{CudaExecutor, EngineHandle, Executor, cuda_ranks};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::Progress;
use crate::pool::lifecycle::NO_DEVICE_MEMORY;
use crate::pool::local::{Loaded, Memory};
use crate::pool::{ModelCard, Task};

/// A step's token budget when none is given, as vLLM has it: on cards with much memory, and on others.
const BATCHED_TOKENS_LARGE: u32 = 8192;
const BATCHED_TOKENS: u32 = 2048;
const LARGE_MEMORY_BYTES: u64 = 70 << 30;
/// For the library's workspace, for graphs, and for what the driver keeps for itself, where it was not measured.
const RESERVE_BYTES: u64 = 640 << 20;
/// Beside what was measured.
const MARGIN_BYTES: u64 = 128 << 20;

/// What --models-memory counts is the machine's own memory: on a GPU a model takes none of it that lasts.
pub(super) const MEMORY: Memory = Memory { weights_bytes: 0, kv_bytes: 0, step_bytes: 0 };

/// The GPUs that `choice` means for so many cards, by their numbers; none is another device. Opens none.
pub(super) fn ordinals(choice: &DeviceChoice, cards: Cards) -> Result<Range<u32>> {
    let first = match *choice {
        DeviceChoice::Cpu | DeviceChoice::Pjrt(_) => return Ok(0..0),
        // The stand-in is for who names it.
        DeviceChoice::Auto if !cfg!(feature = "cuda") => return Ok(0..0),
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(ordinal) => ordinal,
    };
    let count = match count() {
        Ok(count) => count,
        Err(why) if *choice == DeviceChoice::Auto => {
            tracing::info!("running on the CPU: {why}");
            return Ok(0..0);
        }
        Err(why) => return Err(impossible(first, &why)),
    };
    if *choice == DeviceChoice::Auto && count == 0 {
        return Ok(0..0);
    }
    let end = first.saturating_add(cards.count());
    if cards != Cards::ONE && end > count {
        let message = format!(
            "{cards} from cuda:{first} on takes GPUs up to cuda:{}, and there are {count}, from cuda:0 on; ask for fewer, \
             or begin at another --device",
            end - 1
        );
        return Err(Error::new(ErrorKind::Unavailable, message).with_param(cards.flag()));
    }
    Ok(first..end)
}

/// The same, opened. Who names a GPU gets it or an error, and who wants several gets all of them.
pub(super) fn devices(choice: &DeviceChoice, cards: Cards) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for ordinal in ordinals(choice, cards)? {
        match open(ordinal) {
            Ok(device) => devices.push(device),
            Err(why) if *choice == DeviceChoice::Auto && cards == Cards::ONE => {
                tracing::info!("running on the CPU: {why}")
            }
            Err(why) => return Err(impossible(ordinal, &why)),
        }
    }
    Ok(devices)
}

fn impossible(ordinal: u32, why: &sconce_cuda::Error) -> Error {
    let message = format!("--device cuda:{ordinal} is not possible: {why}; use --device cpu");
    Error::new(ErrorKind::Unavailable, message)
}

/// The GPU that `choice` names.
pub fn named(choice: &DeviceChoice) -> Result<Device> {
    let none = || Error::new(ErrorKind::Unavailable, "there is no GPU that this program can use");
    devices(choice, Cards::ONE)?.pop().ok_or_else(none)
}

/// So many GPUs from the one that `choice` names, for one model.
pub fn several(choice: &DeviceChoice, ranks: u32) -> Result<Vec<Device>> {
    devices(choice, Cards { ranks, ..Cards::ONE })
}

#[cfg(feature = "cuda")]
fn open(ordinal: u32) -> sconce_cuda::Result<Device> {
    Device::open(ordinal)
}

/// Builds with the stand-in alone are for tests.
#[cfg(not(feature = "cuda"))]
fn open(ordinal: u32) -> sconce_cuda::Result<Device> {
    Device::host_numbered(ordinal)
}

/// GPUs that this build can use.
#[cfg(feature = "cuda")]
fn count() -> sconce_cuda::Result<u32> {
    Device::count()
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "with a driver it can fail")]
fn count() -> sconce_cuda::Result<u32> {
    Ok(Device::host_count())
}

/// As [`devices`]; without a wish for a certain one, models that it has no kernels for go to the CPU.
pub(super) fn devices_for(config: &ModelConfig, spec: &Spec, source: &Source) -> Result<Vec<Device>> {
    let devices = devices(&config.device, Cards::of(&config.limits))?;
    match sconce_models::cuda::check(spec, source) {
        Err(why) if config.device == DeviceChoice::Auto && !devices.is_empty() => {
            tracing::info!("running on the CPU: {why}");
            Ok(Vec::new())
        }
        Err(why) if !devices.is_empty() => Err(unusable(&why)),
        _ => Ok(devices),
    }
}

/// Whether a model will be on GPUs, as far as can be said without opening any.
pub(super) fn takes(config: &ModelConfig, spec: &Spec, source: &Source) -> Result<bool> {
    let is_wanted = !ordinals(&config.device, Cards::of(&config.limits))?.is_empty();
    Ok(is_wanted && sconce_models::cuda::check(spec, source).is_ok())
}

/// Loads weights onto each of `devices`, measures what is left, and starts an engine on each, or on as many as share it.
pub(super) fn load(
    job: &Job<'_>,
    (source, spec, devices): (Source, Spec, &[Device]),
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Loaded, Memory, LoadReport)> {
    let config = job.config;
    refuse(config)?;
    check_ranks(config, &source)?;
    let cards = Cards::of(&config.limits);
    let parts = text::read(&source, spec.vocab, config.chat_template.as_deref())?;
    let groups = connected(devices, cards)?;
    let free_before = memory_free(&devices[0])?;
    let shown = LoadingBar::new(Arc::clone(&progress), card.id.clone());
    let models = load_all(config, &source, devices, shown)?;
    let weights_bytes = free_before.saturating_sub(memory_free(&devices[0])?);
    let (models, reserve_bytes) = measure(models, cards, &config.limits)?;
    // One plan for all, from the card that has least left: replicas are alike.
    let free = devices.iter().map(memory_free).collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(0);
    let plan = plan(&models[0], &config.limits, free, reserve_bytes)?;
    let sizes = sizes(&plan, &config.limits);
    let placed = models[0].spec().clone();
    let (mut engines, mut unguessed) = (Vec::with_capacity(groups.len()), false);
    let mut models = models.into_iter();
    for (replica, group) in (0..).zip(groups) {
        let name = replica_name(&card.id, replica);
        let own: Vec<CudaModel> = models.by_ref().take(cards.ranks as usize).collect();
        let (threads, mut shown) = (name.clone(), WarmUp::new(Arc::clone(&progress), name.clone()));
        let mut settings = engine_config(&plan, &config.limits);
        unguessed |= spec.state_bytes() > 0 && settings.speculation.take().is_some();
        let (state_slots, runs_ahead) = (plan.state_slots, config.limits.async_scheduling);
        let engine = EngineHandle::start(&name, settings, move || {
            let mut executor = executor(&threads, own, group, (sizes, state_slots, runs_ahead))?;
            executor.warm_up(&mut |done, total| shown.update(done, total))?;
            Ok(executor)
        });
        engines.push(engine.map_err(|why| Error::new(ErrorKind::Unavailable, why))?);
    }
    let each = if devices.len() > 1 { " on each GPU" } else { "" };
    let states_bytes = spec.state_bytes().saturating_mul(plan.state_slots.into());
    let expected = human_bytes(weights_bytes + plan.kv_bytes + states_bytes + plan.step_bytes);
    let notes = placed.notes.clone().into_iter().chain(unguessed.then(|| UNGUESSED.to_owned()));
    let report = LoadReport {
        id: card.id.clone(),
        what: describe(&placed),
        device: line(devices, cards),
        choices: plan.reasons.iter().cloned().chain(notes).collect(),
        predicted: Some(format!("{expected} of GPU memory{each}")),
        load_time: Duration::ZERO,
        task: Task::Generate,
    };
    let card = ModelCard { max_model_len: plan.max_model_len, ..card };
    let (block_size, vocab_size) = (plan.block_size, spec.vocab);
    let engines = replicas(engines, &plan, &config.limits);
    let loaded = loaded(config, parts, Running { card, engines, block_size, vocab_size });
    let asleep_bytes = Some(weights_bytes * devices.len() as u64);
    Ok((Loaded { asleep_bytes, ..loaded }, MEMORY, report))
}

/// What steps take beyond what is allocated for them, seen on the first GPU before the cache takes the rest of it.
fn measure(mut models: Vec<CudaModel>, cards: Cards, limits: &ModelLimits) -> Result<(Vec<CudaModel>, u64)> {
    if cards.ranks > 1 {
        return Ok((models, RESERVE_BYTES));
    }
    let first = models.remove(0);
    let sizes = wanted_sizes(&first, limits, batched_tokens(&first, limits));
    let (first, beyond_bytes) = CudaRunner::measure(first, sizes)
        .map_err(|why| Error::new(ErrorKind::Unavailable, format!("the GPU fails at its first steps: {why}")))?;
    models.insert(0, first);
    Ok((models, beyond_bytes.map_or(RESERVE_BYTES, |bytes| bytes + MARGIN_BYTES)))
}

/// The ends of each replica's ranks; none where a replica is whole.
fn connected(devices: &[Device], cards: Cards) -> Result<Vec<Vec<Communicator>>> {
    let connect = |group: &[Device]| match group {
        [_] => Ok(Vec::new()),
        several => Communicator::connect(several),
    };
    let groups: sconce_cuda::Result<_> = devices.chunks(cards.ranks as usize).map(connect).collect();
    groups.map_err(|why| {
        let message = format!("{cards} is not possible: {why}");
        Error::new(ErrorKind::Unavailable, message).with_param("--tensor-parallel-size")
    })
}

/// Of a whole model, or of all its ranks.
fn executor(
    name: &str,
    mut models: Vec<CudaModel>,
    ends: Vec<Communicator>,
    (sizes, state_slots, runs_ahead): (CudaSizes, u32, bool),
) -> std::result::Result<Box<dyn Executor>, String> {
    match models.pop() {
        Some(whole) if ends.is_empty() => {
            let executor = CudaExecutor::new(whole, sizes)?.with_state_slots(state_slots)?;
            Ok(Box::new(executor.with_async_scheduling(runs_ahead)))
        }
        last => {
            models.extend(last);
            Ok(Box::new(cuda_ranks(name, models.into_iter().zip(ends).collect(), sizes)?))
        }
    }
}

/// Whether the model can be shared out as is wanted. Reads headers.
fn check_ranks(config: &ModelConfig, source: &Source) -> Result<()> {
    let ranks = config.limits.tensor_parallel_size as usize;
    if ranks == 1 {
        return Ok(());
    }
    let format = config.limits.quantize.as_ref().map(|quantize| quantize.format);
    let checked = sconce_models::cuda::check_share(source, format, ranks);
    checked.map_err(|why| unusable(&why).with_param("--tensor-parallel-size"))
}

/// Whether a model seems to fit beside what is on its GPUs: where weights and the smallest cache do not, nothing of it need
/// be read.
pub(super) fn seems_to_fit(config: &ModelConfig, files: &Files) -> Result<bool> {
    let Some(source) = source_of(&files.model.files) else { return Ok(true) };
    if embed::purpose(config, Some(&source))? != Purpose::Generate {
        return Ok(true);
    }
    let spec = fit::read_spec(config, &source)?;
    let Some(available) = available_on(config, &spec, &source)? else { return Ok(true) };
    let spec = if config.limits.tensor_parallel_size == 1 { sconce_models::cuda::on_gpu(spec) } else { spec };
    let size = fit::size(&[&spec], fit::kv_dtype(config.limits.kv_cache_dtype));
    let size = fit::of_rank(size, &spec, Cards::of(&config.limits));
    let wishes = crate::device::fit::Wishes { kv_bytes_chosen_max: None, ..fit::wishes(&config.limits) };
    Ok(plan_memory(&size, &wishes, Some(available)).is_ok())
}

/// The weights on each device, or its share of them, in their order: all at once, so that many take about as long as one.
fn load_all(config: &ModelConfig, source: &Source, devices: &[Device], shown: LoadingBar) -> Result<Vec<CudaModel>> {
    let quantises = config.limits.quantize.is_some();
    let ranks = config.limits.tensor_parallel_size as usize;
    let load = |(number, device): (usize, &Device), progress: Option<OnProgress>| {
        let options = LoadOptions {
            precision: precision(&config.limits),
            max_model_len: config.limits.max_model_len,
            quantize: config.limits.quantize.clone(),
            progress,
            ..Default::default()
        };
        let share = Share { rank: number % ranks, ranks };
        CudaModel::load_share(source, device, options, share).map_err(|why| match why.lacks_device_memory() {
            true => lacks_memory(format!("the weights do not fit on the GPU: {why}")),
            false => unusable(&why),
        })
    };
    let load_first = || load((0, &devices[0]), Some(Box::new(move |done, total| shown.update(done, total))));
    std::thread::scope(|scope| {
        let spawn_others = || {
            let others = devices.iter().enumerate().skip(1);
            others.map(|device| scope.spawn(move || load(device, None))).collect::<Vec<_>>()
        };
        // What is quantised is written to a cache once, by the first; the others find it there.
        let (first, others) = if quantises {
            let first = load_first()?;
            (Ok(first), spawn_others())
        } else {
            let others = spawn_others();
            (load_first(), others)
        };
        let others = others.into_iter().map(|thread| {
            thread.join().map_err(|_| Error::internal("loading a replica failed: its thread panicked"))?
        });
        std::iter::once(first).chain(others).collect()
    })
}

fn memory_free(device: &Device) -> Result<u64> {
    device.memory_free().map_err(|why| Error::new(ErrorKind::Unavailable, format!("the GPU: {why}")))
}

/// Says how far the first steps are, where they take long enough to be asked about.
struct WarmUp {
    progress: Arc<dyn Progress>,
    name: String,
    said: Instant,
}

impl WarmUp {
    const SAID_AFTER: Duration = Duration::from_secs(2);

    fn new(progress: Arc<dyn Progress>, name: String) -> Self {
        Self { progress, name, said: Instant::now() }
    }

    fn update(&mut self, done: usize, total: usize) {
        if done < total && self.said.elapsed() > Self::SAID_AFTER {
            self.said = Instant::now();
            self.progress.note(&format!("{}: recording the GPU's steps, {done} of {total} done", self.name));
        }
    }
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

/// A step's token budget.
fn batched_tokens(model: &CudaModel, limits: &ModelLimits) -> u32 {
    let is_large = model.device().info().memory_bytes >= LARGE_MEMORY_BYTES;
    let usual = if is_large { BATCHED_TOKENS_LARGE } else { BATCHED_TOKENS };
    limits.max_num_batched_tokens.unwrap_or(usual).max(1)
}

/// What is asked for, without a cache.
fn wanted_sizes(model: &CudaModel, limits: &ModelLimits, max_num_batched_tokens: u32) -> CudaSizes {
    CudaSizes {
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens,
        max_model_len: limits.max_model_len.unwrap_or(model.spec().context_max),
        blocks: 0,
        block_size: limits.block_size,
        kv_dtype: kv_dtype(limits.kv_cache_dtype),
    }
}

/// Plans for a device whose memory already holds the weights.
fn plan(model: &CudaModel, limits: &ModelLimits, free: u64, reserve_bytes: u64) -> Result<Plan> {
    let (spec, info) = (model.spec(), model.device().info());
    let batched = batched_tokens(model, limits);
    let of_tokens = |tokens| CudaRunner::scratch_bytes(model, wanted_sizes(model, limits, tokens));
    // A step's bytes grow with its tokens from a fixed part on, which is counted like weights that are still to come.
    let least = limits.max_num_seqs;
    let step_bytes_per_token = (of_tokens(least + 1024) - of_tokens(least)) / 1024;
    let fixed = of_tokens(least).saturating_sub(step_bytes_per_token * u64::from(least));
    let size = ModelSize {
        weight_bytes: fixed + reserve_bytes,
        kv_bytes_per_token: CudaRunner::kv_bytes_per_token(model, kv_dtype(limits.kv_cache_dtype)),
        state_bytes: spec.state_bytes(),
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
    plan.map_err(lacks_memory)
}

/// Another model on the GPU may make room.
fn lacks_memory(why: String) -> Error {
    Error::new(ErrorKind::Unavailable, why).with_code(NO_DEVICE_MEMORY)
}

/// What `sconce doctor` plans with, on the card that has least: `None` where the model would start on the CPU.
pub(super) fn available_on(config: &ModelConfig, spec: &Spec, source: &Source) -> Result<Option<u64>> {
    let mut least: Option<u64> = None;
    let devices = devices_for(config, spec, source)?;
    if !devices.is_empty() {
        check_ranks(config, source)?;
    }
    for device in devices {
        let free = memory_free(&device)?.saturating_sub(RESERVE_BYTES);
        let available = available(device.info().memory_bytes, free, config.limits.memory_share_permille);
        least = Some(least.map_or(available, |least| least.min(available)));
    }
    Ok(least)
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

fn line(devices: &[Device], cards: Cards) -> String {
    let info = devices[0].info();
    let (major, minor) = info.compute_capability;
    let times = if devices.len() > 1 { format!("{} x ", devices.len()) } else { String::new() };
    let memory = human_bytes(info.memory_bytes);
    let shared = match cards {
        Cards { ranks: 1, .. } => String::new(),
        Cards { replicas: 1, .. } => ", with a share of the model each".to_owned(),
        Cards { replicas, ranks } => format!(", {replicas} replicas shared out among {ranks} each"),
    };
    format!("{times}{}, {memory} of memory, compute capability {major}.{minor}{shared}", info.name)
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
