//! What a model will take and how fast it will be, before anything of it is loaded.

use sconce_models::{KvDtype, Purpose, Source, Spec};

use super::cards::Cards;
use super::draft::source_of;
use super::{check_devices, embed};
use crate::bench::hardware;
use crate::bench::limit::{self, Shape};
use crate::config::speculation::Speculation;
use crate::config::{KvCacheDtype, ModelConfig, ModelLimits, check_limits};
use crate::device::fit::advice::{Options, advice};
use crate::device::fit::roofline::{Demand, Rates, Share, rates};
use crate::device::fit::{self, ModelSize, Plan, Wishes, human_bytes};
use crate::device::rates::Hardware;
use crate::engine::scheduler::SCORED_PER_STEP_MAX;
use crate::engine::speculation::DRAFTS_PER_STEP_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::LocalModel;
use crate::hub::catalogue::Entry;
use crate::pool::lifecycle::NO_MEMORY;

/// What can be said of a model that is not loaded.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// `llama, 30 layers, 135 M parameters, Q4_1 (94 MiB)`.
    pub what: String,
    pub outcome: std::result::Result<Needs, Refusal>,
    /// On the CPU, if it was measured.
    pub rates: Option<Rates>,
    pub share: Share,
    /// For plans on other devices; `None` of a model that makes no text.
    pub asks: Option<Asks>,
}

/// What a model would take.
#[derive(Debug, Clone)]
pub struct Needs {
    /// With its KV cache full.
    pub memory_bytes: u64,
    /// With one full context.
    pub least_bytes: u64,
    pub max_model_len: u32,
    /// One line a choice.
    pub choices: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Refusal {
    pub why: String,
    /// What would fit, as flags.
    pub advice: Vec<String>,
}

/// What a model asks of any device.
#[derive(Debug, Clone, Copy)]
pub struct Asks {
    pub size: ModelSize,
    pub wishes: Wishes,
    pub demand: Demand,
}

/// The machine that a forecast is for.
#[derive(Debug, Clone, Copy)]
pub struct Room<'a> {
    pub available_bytes: Option<u64>,
    pub hardware: Option<&'a Hardware>,
    /// Its other devices, with what is available on them.
    pub devices: &'a [(String, u64)],
}

/// Reads what the files say and plans as a start would. Errors are those of a start, apart from what does not fit.
pub fn forecast(
    config: &ModelConfig,
    model: &LocalModel,
    draft: Option<&LocalModel>,
    room: Room<'_>,
) -> Result<Forecast> {
    check_limits(&config.limits)?;
    let source = source_of(&model.files);
    check_devices(config, source.is_none())?;
    let purpose = embed::purpose(config, source.as_ref())?;
    super::model::check_purpose(config, source.as_ref(), purpose)?;
    match purpose {
        Purpose::Generate => {}
        Purpose::Embed | Purpose::Score => {
            return embed::forecast(config, source.as_ref(), room.available_bytes);
        }
    }
    let Some(source) = source else { return Ok(sim()) };
    let spec = read_spec(config, &source)?;
    let card_bytes = card_bytes(config, &spec, &source)?;
    // What is shared out is plain.
    let is_whole = config.limits.tensor_parallel_size == 1;
    let spec = if card_bytes.is_some() && is_whole { on_card(spec) } else { spec };
    let unusable = |why: sconce_models::Error| Error::new(ErrorKind::InvalidRequest, format!("the draft model: {why}"));
    let draft = draft.and_then(|draft| source_of(&draft.files));
    let draft = draft.map(|draft| sconce_models::read_spec(&draft).map_err(unusable)).transpose()?;
    let specs: Vec<&Spec> = std::iter::once(&spec).chain(&draft).collect();
    let kv = kv_dtype(config.limits.kv_cache_dtype);
    let (size, mut wishes) = (self::size(&specs, kv), wishes(&config.limits));
    let mut room = room;
    if let Some(bytes) = card_bytes {
        (room.available_bytes, room.hardware, wishes.kv_bytes_chosen_max) = (Some(bytes), None, None);
    }
    let cards = Cards::of(&config.limits);
    // Of each card.
    let size = if card_bytes.is_some() { of_rank(size, &spec, cards) } else { size };
    #[cfg(feature = "pjrt")]
    let size = if matches!(config.device, crate::config::DeviceChoice::Pjrt(_)) {
        sconce_models::plain::check_spec(&spec, &source).map_err(|why| super::model::unusable(&why))?;
        let size;
        // As if the plugin's device had this machine's memory: a plugin for the CPU has.
        (room.hardware, (size, wishes)) = (None, super::pjrt::size_and_wishes(&spec, &config.limits));
        size
    } else {
        size
    };
    let demand = demand(&spec, kv);
    let share = Share::of_cpu(&spec.weight_format);
    let outcome = fit::plan(&size, &wishes, room.available_bytes).map(|plan| needs(plan, cards)).map_err(|why| {
        let options = Options { devices: room.devices.to_vec(), ..options(&spec, &source, kv, &config.limits) };
        let advice = advice(&size, &wishes, room.available_bytes, &options);
        Refusal { why, advice: advice.iter().map(fit::advice::Advice::sentence).collect() }
    });
    Ok(Forecast {
        what: super::model::describe(&spec),
        outcome,
        rates: room.hardware.map(|hardware| rates(&demand, hardware.ceiling(&spec.weight_format), share)),
        share,
        asks: Some(Asks { size, wishes, demand }),
    })
}

/// What is available on the GPU that a model would start on; `None` is the CPU.
#[cfg(feature = "gpu")]
fn card_bytes(config: &ModelConfig, spec: &Spec, source: &Source) -> Result<Option<u64>> {
    super::gpu::available_on(config, spec, source)
}

#[cfg(not(feature = "gpu"))]
#[expect(clippy::unnecessary_wraps, reason = "the build with GPUs can fail")]
fn card_bytes(_: &ModelConfig, _: &Spec, _: &Source) -> Result<Option<u64>> {
    Ok(None)
}

#[cfg(feature = "gpu")]
fn on_card(spec: Spec) -> Spec {
    sconce_models::cuda::on_gpu(spec)
}

#[cfg(not(feature = "gpu"))]
fn on_card(spec: Spec) -> Spec {
    spec
}

fn needs(plan: Plan, Cards { ranks, .. }: Cards) -> Needs {
    let Plan { memory_bytes, least_bytes, max_model_len, mut reasons, .. } = plan;
    if ranks > 1 {
        reasons.push(format!("shared out among {ranks} GPUs: memory is what each of them needs"));
    }
    Needs { memory_bytes, least_bytes, max_model_len, choices: reasons }
}

fn sim() -> Forecast {
    let needs =
        Needs { memory_bytes: 0, least_bytes: 0, max_model_len: super::model::SIM_CONTEXT_TOKENS, choices: vec![] };
    let what = "simulated: no model, deterministic nonsense".to_owned();
    Forecast { what, outcome: Ok(needs), rates: None, share: Share::WHOLE, asks: None }
}

/// What the files say, or would if they were quantised as asked.
pub(super) fn read_spec(config: &ModelConfig, source: &Source) -> Result<Spec> {
    let spec = match &config.limits.quantize {
        None => sconce_models::read_spec(source),
        Some(quantize) => sconce_models::read_spec_as(source, quantize.format),
    };
    spec.map_err(|why| super::model::unusable(&why))
}

/// A generating model of the catalogue whose files need not be here: the size from the list, the shape where a
/// built-in one is the same. The second value says whether it is: else K and V are not known, and left out.
pub fn of_catalogue(entry: &Entry, room: Room<'_>) -> (Forecast, bool) {
    let kv = KvDtype::F16;
    let shape = shape_named(&entry.name);
    let format = entry.file.as_deref().map_or("BF16", |_| "Q4_K");
    let weight_bytes = entry.bytes;
    let mut size = ModelSize {
        weight_bytes,
        kv_bytes_per_token: 0,
        state_bytes: 0,
        context_max: entry.context,
        step_bytes_per_token: 0,
        logits_row_bytes: 0,
    };
    let per_token = 2.0 * entry.parameters as f64;
    let mut demand = Demand {
        weight_bytes_per_token: weight_bytes as f64,
        weight_bytes: weight_bytes as f64,
        kv_bytes_per_token: None,
        operations_per_token: per_token,
        operations_per_prompt_token: per_token,
    };
    if let Some(spec) = &shape {
        let spec = Spec { weight_bytes, context_max: entry.context, ..spec.clone() };
        (size, demand) = (self::size(&[&spec], kv), self::demand(&spec, kv));
    }
    let wishes = wishes(&ModelLimits::default());
    let share = Share::of_cpu(format);
    let outcome = fit::plan(&size, &wishes, room.available_bytes).map(|plan| needs(plan, Cards::ONE));
    let forecast = Forecast {
        what: format!("{} ({})", entry.architecture, human_bytes(weight_bytes)),
        outcome: outcome.map_err(|why| Refusal { why, advice: Vec::new() }),
        rates: room.hardware.map(|hardware| rates(&demand, hardware.ceiling(format), share)),
        share,
        asks: Some(Asks { size, wishes, demand }),
    };
    (forecast, shape.is_some())
}

/// `llama3.2:1b` of the catalogue is `llama-3.2-1b` among the built-in shapes.
fn shape_named(name: &str) -> Option<Spec> {
    let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
    let wanted = plain(name.trim_end_matches("-bf16"));
    let found = sconce_models::dummy_shapes().find(|shape| plain(shape) == wanted)?;
    sconce_models::read_spec(&Source::Dummy(found.to_owned())).ok()
}

pub(super) fn kv_dtype(wanted: KvCacheDtype) -> KvDtype {
    match wanted {
        // As llama.cpp: half the memory of f32, and far more precise than bf16.
        KvCacheDtype::Auto | KvCacheDtype::F16 => KvDtype::F16,
        KvCacheDtype::Bf16 => KvDtype::Bf16,
        KvCacheDtype::F32 => KvDtype::F32,
        KvCacheDtype::Fp8 => KvDtype::Fp8,
    }
}

/// For a model, and then its draft model if it has one. What does not fit comes with what would.
pub(super) fn plan(
    specs: &[&Spec],
    source: &Source,
    limits: &ModelLimits,
    available_bytes: Option<u64>,
) -> Result<(ModelSize, Plan)> {
    let kv = kv_dtype(limits.kv_cache_dtype);
    let (size, wishes) = (size(specs, kv), wishes(limits));
    let plan = fit::plan(&size, &wishes, available_bytes).map_err(|why| {
        let found = advice(&size, &wishes, available_bytes, &options(specs[0], source, kv, limits));
        let would: Vec<String> = found.iter().map(fit::advice::Advice::sentence).collect();
        let message = if would.is_empty() { why } else { format!("{why}; what would fit: {}", would.join(", or ")) };
        does_not_fit(message)
    })?;
    Ok((size, plan))
}

pub(super) fn does_not_fit(why: String) -> Error {
    Error::new(ErrorKind::Unavailable, why).with_code(NO_MEMORY)
}

pub(super) fn size(specs: &[&Spec], kv: KvDtype) -> ModelSize {
    ModelSize {
        weight_bytes: specs.iter().map(|spec| spec.weight_bytes).sum(),
        kv_bytes_per_token: specs.iter().map(|spec| spec.kv_bytes_per_token(kv)).sum(),
        // A draft model has none, see `Draft::read`.
        state_bytes: specs[0].state_bytes(),
        context_max: specs[0].context_max,
        step_bytes_per_token: specs.iter().map(|spec| step_bytes_per_token(spec)).max().unwrap_or(0),
        // In f32, as the head's matmul leaves them and as the sampler reads them.
        logits_row_bytes: 2 * 4 * specs.iter().map(|spec| spec.vocab as u64).sum::<u64>(),
    }
}

/// What one of several ranks has of that: about, as the embedding is with each and what does not come out even differs.
pub(super) fn of_rank(size: ModelSize, spec: &Spec, Cards { ranks, .. }: Cards) -> ModelSize {
    let ranks = u64::from(ranks);
    let share = |bytes: u64, part: u128, of: u128| (u128::from(bytes) * part / of.max(1)) as u64;
    let table = (spec.vocab * spec.hidden) as u128;
    let whole = if ranks > 1 { share(size.weight_bytes, table, spec.parameters.into()) } else { 0 };
    let kv_heads = spec.kv_heads as u64;
    let own_kv_heads = (kv_heads / ranks).max(1);
    ModelSize {
        weight_bytes: whole + (size.weight_bytes - whole.min(size.weight_bytes)).div_ceil(ranks),
        kv_bytes_per_token: share(size.kv_bytes_per_token, own_kv_heads.into(), kv_heads.into()),
        ..size
    }
}

/// Activations of one token: residual, normed, q, k, v, attention output, gate, up and their product, in f32.
fn step_bytes_per_token(spec: &Spec) -> u64 {
    let heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    // What a delta rule projects, convolves and gives.
    let of_deltas = spec.uneven.delta.as_ref().map_or(0, |delta| 2 * delta.sizes.projected());
    let heads = heads.max(of_deltas / 2);
    let widest = spec.experts.as_ref().map_or(0, |experts| experts.ffn.max(experts.shared_ffn)).max(spec.ffn);
    4 * (4 * spec.hidden + 2 * heads + 3 * widest) as u64
}

pub(super) fn wishes(limits: &ModelLimits) -> Wishes {
    Wishes {
        block_size: limits.block_size,
        max_model_len: limits.max_model_len,
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        kv_cache_bytes: limits.kv_cache_memory_bytes,
        further_rows_max: further_rows_max(limits),
        memory_share_permille: limits.memory_share_permille,
        kv_bytes_chosen_max: Some(fit::KV_BYTES_CHOSEN_MAX_ON_CPU),
        saves_states: limits.enable_prefix_caching,
    }
}

/// Rows of logits that a step may need beyond one a sequence: for prompt scores and for drafts.
fn further_rows_max(limits: &ModelLimits) -> u64 {
    let drafts = if limits.speculation == Speculation::Off { 0 } else { DRAFTS_PER_STEP_MAX };
    (SCORED_PER_STEP_MAX + drafts) as u64
}

/// What could be changed of a model that does not fit.
fn options(spec: &Spec, source: &Source, kv: KvDtype, limits: &ModelLimits) -> Options {
    let is_dense = matches!(spec.weight_format.as_str(), "BF16" | "F16" | "F32") && spec.experts.is_none();
    let is_checkpoint = matches!(source, Source::Folder(_)) && limits.quantize.is_none();
    Options {
        quantizable_parameters: (is_dense && is_checkpoint).then_some(spec.parameters),
        fp8_kv_bytes_per_token: (kv != KvDtype::Fp8).then(|| spec.kv_bytes_per_token(KvDtype::Fp8)),
        devices: Vec::new(),
    }
}

pub(super) fn demand(spec: &Spec, kv: KvDtype) -> Demand {
    const PROMPT_TOKENS: f64 = 256.0;
    let one = Shape { sequences: 1.0, context: 0.0, tokens_each: 1.0, samples: 1.0 };
    let token = limit::needs(spec, kv, one);
    let prompt = limit::needs(spec, kv, Shape { context: PROMPT_TOKENS / 2.0, tokens_each: PROMPT_TOKENS, ..one });
    Demand {
        weight_bytes_per_token: token.bytes,
        weight_bytes: spec.weight_bytes as f64,
        kv_bytes_per_token: Some(spec.kv_bytes_per_token(kv) as f64),
        operations_per_token: token.operations,
        operations_per_prompt_token: prompt.operations / PROMPT_TOKENS,
    }
}

/// The line of a start: rates if this machine was measured once, and memory.
pub(super) fn predicted(spec: &Spec, kv: KvDtype, plan: &Plan) -> String {
    let memory = format!("{} of memory when the KV cache is full", human_bytes(plan.memory_bytes));
    let share = Share::of_cpu(&spec.weight_format);
    let said = hardware::kept()
        .and_then(|hardware| rates(&demand(spec, kv), hardware.ceiling(&spec.weight_format), share).sentence(share));
    match said {
        Some(said) => format!("{said}; {memory}"),
        None => format!("{memory}; rates once 'sconce doctor' has measured this machine"),
    }
}
