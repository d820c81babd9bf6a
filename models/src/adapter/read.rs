//! From an adapter's folder to matrices in their places.

use std::collections::BTreeMap;
use std::path::Path;

use sconce_kernels::LowRank;

use super::config::{self, AdapterConfig};
use super::{Adapter, Site};
use crate::error::{Error, Result, shown};
use crate::names::{LayerPart, Naming, Part};
use crate::safetensors::{self, read_text};
use crate::spec::{CacheKind, KvHeads, Spec};
use crate::tensors::TensorSet;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What PEFT writes before the name of a module.
const PREFIX: &str = "base_model.model.";
/// The layers of a text part by the names that they have beside a vision part, and alone.
const TEXT_PARTS: [(&str, &str); 2] = [("language_model.model.", "model."), ("model.language_model.", "model.")];

/// Where a module's addition goes.
#[derive(Debug, Clone, Copy)]
struct Place {
    layer: usize,
    site: Site,
    /// The first of its columns in the projection, and how many there are.
    first: usize,
    width: usize,
    input: usize,
    /// Heads whose rows the base model's file has in another order: a rotated pair side by side.
    interleaved_heads: Option<usize>,
}

/// The halves of one module's addition.
#[derive(Default)]
struct Halves {
    a: Option<String>,
    b: Option<String>,
}

/// Reads the adapter in `folder` for the model of this spec. Ranks above `rank_max` are refused.
pub fn load_adapter(folder: &Path, spec: &Spec, rank_max: usize) -> Result<Adapter> {
    let file = folder.join(CONFIG);
    let config = config::parse(&read_text(&file, CONFIG_BYTES_MAX)?, &file)?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() && folder.join("adapter_model.bin").exists() {
        let (feature, next) = ("adapter_model.bin".to_owned(), "save the adapter as safetensors");
        return Err(Error::Unsupported { file: folder.to_owned(), feature, next });
    }
    let tensors = safetensors::open_file(&weights, Naming::HuggingFace(spec.family.traits().names))?;
    let places = places(spec);
    let mut adapter = Adapter {
        layers: (0..spec.layers).map(|_| Default::default()).collect(),
        rank: 0,
        bytes: 0,
        base_model: config.base_model.clone(),
    };
    for (module, halves) in &modules(&tensors)? {
        let own = own_name(module);
        let Some(place) = places.get(own.as_str()) else { return Err(no_place(&weights, module)) };
        config.check_target(module, place.layer)?;
        let part = matrices(&tensors, &config, (module, halves), place, rank_max)?;
        adapter.rank = adapter.rank.max(part.rank());
        adapter.bytes += part.bytes();
        adapter.layers[place.layer][place.site as usize].push(part);
    }
    if adapter.rank == 0 {
        let detail = "it holds no tensor".to_owned();
        return Err(Error::Damaged { file: weights, format: "adapter", detail });
    }
    for parts in adapter.layers.iter_mut().flatten() {
        parts.sort_by_key(|part| part.columns().start);
    }
    Ok(adapter)
}

/// Every module that an adapter may change, by its name in the base model's Hugging Face files.
fn places(spec: &Spec) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    for layer in 0..spec.layers {
        let mut put = |part: LayerPart, place: Place| {
            let name = Part::Layer(layer, part).name(Naming::HuggingFace(spec.family.traits().names));
            places.insert(name.strip_suffix(".weight").unwrap_or(&name).to_owned(), place);
        };
        // A query's matrix that has gates between its rows takes none.
        let is_plain = spec.delta_of(layer).is_none() && !spec.uneven.output_gate;
        if spec.latent.is_none() && !spec.convolves(layer) && is_plain {
            attention_places(spec, layer, &mut put);
        }
        if spec.experts_of(layer).is_none() {
            feed_forward_places(spec, layer, &mut put);
        }
    }
    places
}

/// As the projections lie in `assemble/layer.rs`.
fn attention_places(spec: &Spec, layer: usize, put: &mut impl FnMut(LayerPart, Place)) {
    let traits = spec.family.traits();
    let KvHeads { kv_heads, head_dim } = spec.kv_heads_of(layer);
    let (queries, kvs, input) = (spec.heads * head_dim, kv_heads * head_dim, spec.hidden);
    // A GGUF's converter may have changed the order of q's and k's rows.
    let reordered = |heads: usize| (spec.rope.style != traits.rope).then_some(heads);
    let qkv = |first, width, heads: Option<usize>| Place {
        layer,
        site: Site::Qkv,
        first,
        width,
        input,
        interleaved_heads: heads.and_then(reordered),
    };
    put(LayerPart::Output, Place { site: Site::Output, input: queries, ..qkv(0, spec.hidden, None) });
    if traits.fused_qkv {
        return put(LayerPart::Qkv, qkv(0, queries + 2 * kvs, None));
    }
    put(LayerPart::Query, qkv(0, queries, Some(spec.heads)));
    let keys_are_values = spec.uneven.global_keys_are_values && spec.window(layer).is_none();
    // Keys and values of another layer, or one projection for both: an adapter for those has no place.
    if !keys_are_values && !matches!(spec.cache_of(layer), CacheKind::Shared(_)) {
        put(LayerPart::Key, qkv(queries, kvs, Some(kv_heads)));
        put(LayerPart::Value, qkv(queries + kvs, kvs, None));
    }
}

fn feed_forward_places(spec: &Spec, layer: usize, put: &mut impl FnMut(LayerPart, Place)) {
    let ffn = spec.ffn_of(layer);
    let wide =
        |first, width| Place { layer, site: Site::GateUp, first, width, input: spec.hidden, interleaved_heads: None };
    match (spec.gated, spec.family.traits().fused_gate_up) {
        (true, true) => put(LayerPart::GateUp, wide(0, 2 * ffn)),
        (true, false) => {
            put(LayerPart::Gate, wide(0, ffn));
            put(LayerPart::Up, wide(ffn, ffn));
        }
        (false, _) => put(LayerPart::Up, wide(0, ffn)),
    }
    put(LayerPart::Down, Place { site: Site::Down, input: ffn, ..wide(0, spec.hidden) });
}

/// The tensors by module, in its name without PEFT's prefix.
fn modules(tensors: &TensorSet) -> Result<BTreeMap<String, Halves>> {
    let mut modules: BTreeMap<String, Halves> = BTreeMap::new();
    for (name, stored) in tensors.iter() {
        let refused = || Error::Unsupported {
            file: stored.file.path().to_owned(),
            feature: format!("tensor {}", shown(name)),
            next: "only lora_A and lora_B of linear layers can be served: export the adapter as plain LoRA",
        };
        let inner = name.strip_prefix(PREFIX).ok_or_else(refused)?;
        if let Some(module) = inner.strip_suffix(".lora_A.weight") {
            modules.entry(module.to_owned()).or_default().a = Some(name.clone());
        } else if let Some(module) = inner.strip_suffix(".lora_B.weight") {
            modules.entry(module.to_owned()).or_default().b = Some(name.clone());
        } else {
            return Err(refused());
        }
    }
    Ok(modules)
}

fn own_name(module: &str) -> String {
    let of_text = TEXT_PARTS.iter().find_map(|(from, to)| Some(format!("{to}{}", module.strip_prefix(from)?)));
    of_text.unwrap_or_else(|| module.to_owned())
}

fn no_place(file: &Path, module: &str) -> Error {
    Error::Unsupported {
        file: file.to_owned(),
        feature: format!("an adapter for {} of this model", shown(module)),
        next: "adapters may change the projections of attention and of dense feed-forward blocks",
    }
}

fn matrices(
    tensors: &TensorSet,
    config: &AdapterConfig,
    (module, halves): (&str, &Halves),
    place: &Place,
    rank_max: usize,
) -> Result<LowRank> {
    let missing = |half: &str| Error::MissingTensor {
        file: tensors.source.clone(),
        tensor: format!("{PREFIX}{}.{half}.weight", shown(module)),
    };
    let (a, b) =
        (halves.a.as_ref().ok_or_else(|| missing("lora_A"))?, halves.b.as_ref().ok_or_else(|| missing("lora_B"))?);
    let (rank, scale) = config.rank_and_scale(module);
    if rank > rank_max || rank == 0 {
        return Err(Error::Unsupported {
            file: tensors.source.clone(),
            feature: format!("rank {rank} of {}, with a limit of {rank_max},", shown(module)),
            next: "raise --max-lora-rank",
        });
    }
    let values = |name: &str, expected: [usize; 2]| {
        let (found, values) = tensors.floats_of(name)?;
        if found != expected {
            let (file, tensor) = (tensors.source.clone(), shown(name));
            return Err(Error::TensorShape { file, tensor, expected: expected.to_vec(), found });
        }
        Ok(values)
    };
    let a = values(a, [rank, place.input])?;
    let mut b = values(b, [place.width, rank])?;
    if let Some(heads) = place.interleaved_heads {
        b = interleaved(&b, heads, rank);
    }
    let part = LowRank::new(a, &b, rank, scale, place.first);
    part.ok_or_else(|| Error::Batch(format!("an adapter for {module} without values")))
}

/// The rows of each head with the two of a rotated pair side by side, where the halves of a head held them before.
fn interleaved(b: &[f32], heads: usize, rank: usize) -> Vec<f32> {
    let rows = b.len() / rank / heads;
    let mut out = Vec::with_capacity(b.len());
    for head in b.chunks_exact(rows * rank) {
        let (first, second) = head.split_at(rows / 2 * rank);
        for (first, second) in first.chunks_exact(rank).zip(second.chunks_exact(rank)) {
            out.extend_from_slice(first);
            out.extend_from_slice(second);
        }
    }
    out
}
