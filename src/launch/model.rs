//! One model: spec, plan, weights, engine, tokenizer, in that order, so that what cannot work fails early.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_models::{LoadOptions, Precision, Purpose, Source, Spec};

use super::cards::Cards;
use super::draft::{Draft, source_of};
use super::{adapters, embed, fit, packed, synthetic, text};
use crate::config::speculation::Speculation;
use crate::config::{self, MatmulPrecision, ModelConfig, ModelLimits};
use crate::device::cpu;
use crate::device::fit::{ModelSize, Plan, human_bytes, plan as plan_memory};
use crate::engine::{
    self, EngineConfig, EngineHandle, Executor, ItlTarget, ModelExecutor, NgramConfig, SimExecutor, SimOptions,
};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{LocalModel, Progress};
use crate::pool::local::{Compiler, Embedding, Loaded, Memory, Replicas};
use crate::pool::{ModelCard, Task};
use crate::request::CHOICES_MAX;
use crate::text::AnswerFormat;

/// What was loaded and chosen, for the person who started it.
#[derive(Debug, Clone)]
pub struct LoadReport {
    pub id: String,
    /// `llama, 30 layers, 135 M parameters, Q4_1`.
    pub what: String,
    /// `CPU (name), 2 threads`.
    pub device: String,
    /// One line a choice, with its reason.
    pub choices: Vec<String>,
    /// Rates and memory to expect, where that can be said.
    pub predicted: Option<String>,
    pub load_time: Duration,
    pub task: Task,
}

/// `--model sim`: context, vocabulary and time a step of a model that does not exist.
pub(super) const SIM_CONTEXT_TOKENS: u32 = 32_768;
const SIM_STEP_TIME: Duration = Duration::from_millis(10);
const SIM_TOKEN_TIME: Duration = Duration::from_micros(20);
/// A sim token's "KV" is its id and position.
const SIM_KV_BYTES_PER_TOKEN: u64 = 8;

/// A model that can answer.
pub enum Ready {
    Generating(Box<Loaded>),
    Embedding(Box<Embedding>),
}

/// Where a model lies, and the one that `Speculation::DraftModel` names.
pub struct Files {
    pub model: LocalModel,
    pub draft: Option<LocalModel>,
}

/// Said where speculation is on and the model keeps a state a sequence.
pub(super) const UNGUESSED: &str =
    "no tokens are guessed ahead: a state that has seen a wrong guess cannot take it back";

/// What to load, and how much it may take beside what the machine has.
pub struct Job<'a> {
    pub config: &'a ModelConfig,
    pub files: &'a Files,
    pub room_bytes: Option<u64>,
}

impl Job<'_> {
    pub(super) fn available_bytes(&self, machine: &cpu::Cpu) -> Option<u64> {
        self.room_bytes.into_iter().chain(machine.memory_available_bytes).min()
    }
}

/// Loads on the calling thread; takes seconds.
pub fn load(job: &Job<'_>, card: ModelCard, progress: Arc<dyn Progress>) -> Result<(Ready, Memory, LoadReport)> {
    let started = Instant::now();
    let source = source_of(&job.files.model.files);
    let purpose = embed::purpose(job.config, source.as_ref())?;
    check_purpose(job.config, source.as_ref(), purpose)?;
    let (ready, memory, mut report) = match (source, purpose) {
        (Some(source), Purpose::Embed | Purpose::Score) => {
            let (embedding, memory, report) = embed::load(job, source, card, progress)?;
            (Ready::Embedding(Box::new(embedding)), memory, report)
        }
        (source, _) => {
            let (mut loaded, memory, report) = match (source, &job.config.device) {
                #[cfg(feature = "pjrt")]
                (Some(source), config::DeviceChoice::Pjrt(path)) => {
                    super::pjrt::load(job, (source, path), card, progress)?
                }
                (Some(source), _) => load_weights(job, source, card, progress)?,
                (None, _) => load_sim(job.config, card)?,
            };
            loaded.card.chat = loaded.template.is_some();
            (Ready::Generating(Box::new(loaded)), memory, report)
        }
    };
    report.load_time = started.elapsed();
    Ok((ready, memory, report))
}

/// Programs for plugins generate text: what else a model does stays where it can be done.
pub(super) fn check_purpose(config: &ModelConfig, source: Option<&Source>, purpose: Purpose) -> Result<()> {
    if matches!(config.device, config::DeviceChoice::Pjrt(_)) && (source.is_none() || purpose != Purpose::Generate) {
        let why = "--device pjrt:PATH runs models that have weights and generate text; use --device cpu for others";
        return Err(Error::invalid("--device", why));
    }
    if purpose != Purpose::Generate {
        Cards::of(&config.limits).check_one("a model that makes vectors or scores")?;
    }
    Ok(())
}

/// What [`load`] would take if the machine had nothing else to do.
pub fn need(job: &Job<'_>) -> Result<Memory> {
    let config = job.config;
    let Some(source) = source_of(&job.files.model.files) else {
        return sim_plan(config).map(|(_, size, plan)| memory(&size, &plan));
    };
    if embed::purpose(config, Some(&source))? != Purpose::Generate {
        return embed::need(job, &source);
    }
    let spec = fit::read_spec(config, &source)?;
    #[cfg(feature = "pjrt")]
    if matches!(config.device, config::DeviceChoice::Pjrt(_)) {
        return super::pjrt::plan(&spec, &config.limits, job.room_bytes).map(|(size, plan)| memory(&size, &plan));
    }
    #[cfg(feature = "gpu")]
    if super::gpu::takes(config, &spec, &source)? {
        return Ok(super::gpu::MEMORY);
    }
    let draft = job.files.draft.as_ref().and_then(|draft| source_of(&draft.files));
    let draft = draft.map(|draft| sconce_models::read_spec(&draft).map_err(|why| unusable(&why))).transpose()?;
    let specs: Vec<&Spec> = std::iter::once(&spec).chain(&draft).collect();
    let (size, plan) = fit::plan(&specs, &source, &config.limits, job.room_bytes)?;
    Ok(memory(&size, &plan))
}

fn memory(size: &ModelSize, plan: &Plan) -> Memory {
    Memory { weights_bytes: size.weight_bytes, kv_bytes: plan.kv_bytes, step_bytes: plan.step_bytes }
}

fn load_weights(
    job: &Job<'_>,
    source: Source,
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Loaded, Memory, LoadReport)> {
    let config = job.config;
    let spec = fit::read_spec(config, &source)?;
    #[cfg(feature = "gpu")]
    {
        let devices = super::gpu::devices_for(config, &spec, &source)?;
        if !devices.is_empty() {
            return super::gpu::load(job, (source, spec, &devices), card, progress);
        }
    }
    Cards::of(&config.limits).check_one("a model on the CPU")?;
    load_on_cpu(job, (source, spec), card, progress)
}

fn load_on_cpu(
    job: &Job<'_>,
    (source, spec): (Source, Spec),
    card: ModelCard,
    progress: Arc<dyn Progress>,
) -> Result<(Loaded, Memory, LoadReport)> {
    let config = job.config;
    let machine = cpu::detect();
    let kv_dtype = fit::kv_dtype(config.limits.kv_cache_dtype);
    let parts = text::read(&source, spec.vocab, config.chat_template.as_deref())?;
    let draft = job.files.draft.as_ref().map(|model| Draft::read(model, &spec, &parts.tokenizer)).transpose()?;
    let specs: Vec<&Spec> = std::iter::once(&spec).chain(draft.as_ref().map(|draft| &draft.spec)).collect();
    let adapter_bytes = adapters::check(&config.lora, &spec)?;
    let room = job.available_bytes(&machine).map(|bytes| bytes.saturating_sub(adapter_bytes));
    let (size, plan) = fit::plan(&specs, &source, &config.limits, room)?;
    if let Some(draft) = &draft {
        draft.check_context(plan.max_model_len)?;
    }
    let mut settings = engine_config(&plan, &config.limits);
    let unguessed = spec.state_bytes() > 0 && settings.speculation.take().is_some();
    let engine = {
        let (source, draft) = (source.clone(), draft.clone().map(|draft| draft.source));
        let (precision, quantize) = (precision(&config.limits), config.limits.quantize.clone());
        let packed = packed::cache(config.limits.packed.as_ref(), &card.id);
        let (blocks, block_size, model_name) = (plan.blocks, plan.block_size, card.id.clone());
        let state_slots = plan.state_slots;
        let max_model_len = Some(plan.max_model_len);
        EngineHandle::start(&card.id, settings, move || {
            let shown = LoadingBar::new(progress, model_name);
            let options = LoadOptions {
                precision,
                max_model_len,
                quantize,
                packed,
                progress: Some(Box::new(move |done, total| shown.update(done, total))),
                ..Default::default()
            };
            let model = sconce_models::load(&source, options).map_err(|why| why.to_string())?;
            let mut executor =
                ModelExecutor::new(model, blocks, block_size, kv_dtype)?.with_state_slots(state_slots)?;
            if let Some(draft) = draft {
                // Guesses need not be exact.
                let options = LoadOptions { max_model_len, ..LoadOptions::default() };
                let model = sconce_models::load(&draft, options).map_err(|why| why.to_string())?;
                executor = executor.with_draft(Box::new(ModelExecutor::new(model, blocks, block_size, kv_dtype)?));
            }
            Ok(Box::new(executor) as Box<dyn Executor>)
        })
        .map_err(|why| Error::new(ErrorKind::Unavailable, why))?
    };
    let report = LoadReport {
        id: card.id.clone(),
        what: describe(&spec),
        device: device_line(&machine),
        choices: choices(&spec, draft.as_ref(), &plan, unguessed),
        predicted: Some(fit::predicted(&spec, kv_dtype, &plan)),
        load_time: Duration::ZERO,
        task: Task::Generate,
    };
    let card = ModelCard { max_model_len: plan.max_model_len, ..card };
    let (block_size, vocab_size) = (plan.block_size, spec.vocab);
    let loader = config.lora.is_wanted().then(|| adapters::loader(spec, &config.lora, engine.clone()));
    let engines = replicas(vec![engine], &plan, &config.limits);
    let loaded = loaded(config, parts, Running { card, engines, block_size, vocab_size });
    Ok((Loaded { adapters: loader, ..loaded }, memory(&size, &plan), report))
}

/// One line for each thing that was chosen.
fn choices(spec: &Spec, draft: Option<&Draft>, plan: &Plan, unguessed: bool) -> Vec<String> {
    draft
        .map(|draft| format!("tokens guessed by {}", describe(&draft.spec)))
        .into_iter()
        .chain(plan.reasons.clone())
        .chain(spec.notes.clone())
        .chain(unguessed.then(|| UNGUESSED.to_owned()))
        .collect()
}

/// What the simulated model reads and takes.
fn sim_plan(config: &ModelConfig) -> Result<(text::Parts, ModelSize, Plan)> {
    let vocab = synthetic::vocabulary(synthetic::SMALLEST_VOCABULARY)?;
    let size = ModelSize {
        weight_bytes: 0,
        kv_bytes_per_token: SIM_KV_BYTES_PER_TOKEN,
        state_bytes: 0,
        context_max: SIM_CONTEXT_TOKENS,
        step_bytes_per_token: 0,
        logits_row_bytes: 0,
    };
    let plan = plan_memory(&size, &fit::wishes(&config.limits), None).map_err(fit::does_not_fit)?;
    Ok((vocab, size, plan))
}

fn load_sim(config: &ModelConfig, card: ModelCard) -> Result<(Loaded, Memory, LoadReport)> {
    load_sim_on(config, card, |options| Box::new(SimExecutor::new(options)))
}

/// The simulated model on an executor made by `make`.
pub(super) fn load_sim_on(
    config: &ModelConfig,
    card: ModelCard,
    make: impl FnOnce(SimOptions) -> Box<dyn Executor> + Clone + Send + 'static,
) -> Result<(Loaded, Memory, LoadReport)> {
    adapters::refuse(&config.lora, "sim")?;
    if config.limits.quantize.is_some() {
        return Err(Error::invalid("--quantization", "--quantization: sim has no weights; leave it out"));
    }
    if matches!(config.limits.speculation, Speculation::DraftModel(_)) {
        let why = "--speculative-config: sim has no draft model; use method ngram or off";
        return Err(Error::invalid("--speculative-config", why));
    }
    let (vocab, size, plan) = sim_plan(config)?;
    let memory = memory(&size, &plan);
    let (blocks, block_size, vocab_size) = (plan.blocks, plan.block_size, vocab.tokenizer.vocab_size());
    let mut engines = Vec::new();
    for replica in 0..config.limits.data_parallel_size {
        let make = make.clone();
        let name = replica_name(&card.id, replica);
        let engine = EngineHandle::start(&name, engine_config(&plan, &config.limits), move || {
            let options = SimOptions {
                step_delay: SIM_STEP_TIME,
                token_delay: SIM_TOKEN_TIME,
                favoured: (u32::from(b'a')..=u32::from(b'z')).chain([u32::from(b' ')]).collect(),
                ..SimOptions::new(vocab_size as u32, blocks, block_size)
            };
            Ok(make(options))
        });
        engines.push(engine.map_err(|why| Error::new(ErrorKind::Unavailable, why))?);
    }
    let engines = replicas(engines, &plan, &config.limits);
    let report = LoadReport {
        id: card.id.clone(),
        what: "simulated: no model, deterministic nonsense".to_owned(),
        device: format!("timer ({} ms a step)", SIM_STEP_TIME.as_millis()),
        choices: plan.reasons.clone(),
        predicted: None,
        load_time: Duration::ZERO,
        task: Task::Generate,
    };
    let card = ModelCard { max_model_len: plan.max_model_len, ..card };
    Ok((loaded(config, vocab, Running { card, engines, block_size, vocab_size }), memory, report))
}

/// The half of a loaded model that is not text.
pub(super) struct Running {
    pub card: ModelCard,
    pub engines: Replicas,
    pub block_size: u32,
    pub vocab_size: usize,
}

pub(super) fn loaded(config: &ModelConfig, parts: text::Parts, running: Running) -> Loaded {
    let Running { card, engines, block_size, vocab_size } = running;
    let answer = text::answer_format(parts.template.as_ref(), &config.parsers);
    let reasoning = AnswerFormat { tools: None, ..answer };
    Loaded {
        card,
        engines,
        eos_ids: parts.tokenizer.eos().to_vec(),
        marker_ids: answer.marker_ids(&parts.tokenizer),
        reasoning_marker_ids: reasoning.marker_ids(&parts.tokenizer),
        answer,
        tokenizer: Arc::new(parts.tokenizer),
        template: parts.template,
        defaults: parts.defaults,
        block_size,
        drafts_max: drafts_max(&config.limits),
        vocab_size,
        compiler: Compiler::default(),
        asleep_bytes: None,
        adapters: None,
    }
}

/// The engines of one model, as the planned sizes let them share prompts.
pub(super) fn replicas(engines: Vec<EngineHandle>, plan: &Plan, limits: &ModelLimits) -> Replicas {
    Replicas::new(engines, plan.block_size, if limits.enable_prefix_caching { plan.blocks } else { 0 })
}

/// What the thread of a model's engine is called.
pub(super) fn replica_name(model: &str, replica: u32) -> String {
    if replica == 0 { model.to_owned() } else { format!("{model}/{replica}") }
}

pub(super) fn device_line(machine: &cpu::Cpu) -> String {
    let name = machine.name.as_deref().unwrap_or("unknown");
    format!("CPU ({name}), {} threads", sconce_kernels::cpu::threads())
}

pub(super) fn precision(limits: &ModelLimits) -> Precision {
    match limits.matmul_precision {
        MatmulPrecision::Fast => Precision::Fast,
        MatmulPrecision::High => Precision::High,
    }
}

/// Most tokens drafted at once.
fn drafts_max(limits: &ModelLimits) -> usize {
    match &limits.speculation {
        Speculation::Off => 0,
        Speculation::Ngram(lookup) => lookup.num_speculative_tokens as usize,
        Speculation::DraftModel(draft) => draft.num_speculative_tokens as usize,
    }
}

pub(super) fn engine_config(plan: &Plan, limits: &ModelLimits) -> EngineConfig {
    EngineConfig {
        block_size: plan.block_size,
        blocks: plan.blocks,
        max_num_seqs: plan.max_num_seqs,
        max_num_batched_tokens: plan.max_num_batched_tokens,
        max_model_len: plan.max_model_len,
        enable_prefix_caching: limits.enable_prefix_caching,
        // The pool's admission is the bound that clients meet; a request with many choices may pass it when alone.
        max_waiting: limits.max_queue.saturating_add(limits.max_num_seqs).saturating_mul(2).max(CHOICES_MAX),
        itl_target: match limits.itl_target {
            config::ItlTarget::Auto => ItlTarget::Auto,
            config::ItlTarget::Milliseconds(target) => ItlTarget::Milliseconds(target),
            config::ItlTarget::Off => ItlTarget::Off,
        },
        speculation: match &limits.speculation {
            Speculation::Off => None,
            Speculation::Ngram(lookup) => Some(engine::Speculation::Ngram(NgramConfig {
                num_speculative_tokens: lookup.num_speculative_tokens,
                prompt_lookup_max: lookup.prompt_lookup_max,
                prompt_lookup_min: lookup.prompt_lookup_min,
            })),
            Speculation::DraftModel(draft) => {
                let num_speculative_tokens = draft.num_speculative_tokens;
                Some(engine::Speculation::DraftModel { num_speculative_tokens })
            }
        },
    }
}

pub(super) fn describe(spec: &Spec) -> String {
    description((&spec.architecture, spec.layers), spec.parameters, (&spec.weight_format, spec.weight_bytes))
}

/// `llama, 30 layers, 135 M parameters, Q4_1 (94 MB)`
pub(super) fn description(
    (architecture, layers): (&str, usize),
    parameters: u64,
    (format, bytes): (&str, u64),
) -> String {
    let parameters = parameters as f64;
    let size =
        if parameters < 1e9 { format!("{:.0} M", parameters / 1e6) } else { format!("{:.1} B", parameters / 1e9) };
    format!("{architecture}, {layers} layers, {size} parameters, {format} ({})", human_bytes(bytes))
}

/// Shows the loading of weights once it has taken long enough to be asked about.
pub(super) struct LoadingBar {
    progress: Arc<dyn Progress>,
    label: String,
    started: Instant,
    shown: Cell<bool>,
    bytes_total: Cell<u64>,
}

impl LoadingBar {
    const SHOWN_AFTER: Duration = Duration::from_millis(700);

    pub(super) fn new(progress: Arc<dyn Progress>, model: String) -> Self {
        let label = format!("loading {model}");
        Self { progress, label, started: Instant::now(), shown: Cell::new(false), bytes_total: Cell::new(0) }
    }

    pub(super) fn update(&self, bytes_done: u64, bytes_total: u64) {
        // Quantising comes before loading.
        if self.bytes_total.replace(bytes_total) != bytes_total && self.shown.replace(false) {
            self.progress.finished(&self.label);
        }
        if bytes_done >= bytes_total {
            if self.shown.get() {
                self.progress.finished(&self.label);
            }
        } else if self.shown.get() {
            self.progress.advanced(&self.label, bytes_done);
        } else if self.started.elapsed() > Self::SHOWN_AFTER {
            self.shown.set(true);
            self.progress.started(&self.label, 0, Some(bytes_total));
            self.progress.advanced(&self.label, bytes_done);
        }
    }
}

pub(super) fn unusable(why: &sconce_models::Error) -> Error {
    Error::new(ErrorKind::InvalidRequest, why.to_string())
}
