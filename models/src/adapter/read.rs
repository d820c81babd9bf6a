//! From an adapter's folder to matrices in their places.

use std::collections::BTreeMap;
use std::path::Path;

use sconce_kernels::LowRank;

use super::config::{self, AdapterConfig};
use super::{Adapter, Site};
use crate::error::{Error, Result, shown};
use crate::names::{LayerPart, Naming, Part};
use crate::safetensors::{self, read_text};
use crate::spec::Spec;
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
    let traits = spec.family.traits();
    let (queries, kvs, ffn) = (spec.query_width(), spec.kv_width(), spec.ffn);
    // A GGUF's converter may have changed the order of q's and k's rows.
    let reordered = |heads: usize| (spec.rope.style != traits.rope).then_some(heads);
    let mut places = BTreeMap::new();
    for layer in 0..spec.layers {
        let mut put = |part: LayerPart, site, (first, width), input, interleaved_heads| {
            let name = Part::Layer(layer, part).name(Naming::HuggingFace(traits.names));
            let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
            places.insert(module, Place { layer, site, first, width, input, interleaved_heads });
        };
        if traits.fused_qkv {
            put(LayerPart::Qkv, Site::Qkv, (0, queries + 2 * kvs), spec.hidden, None);
        } else {
            put(LayerPart::Query, Site::Qkv, (0, queries), spec.hidden, reordered(spec.heads));
            put(LayerPart::Key, Site::Qkv, (queries, kvs), spec.hidden, reordered(spec.kv_heads));
            put(LayerPart::Value, Site::Qkv, (queries + kvs, kvs), spec.hidden, None);
        }
        put(LayerPart::Output, Site::Output, (0, spec.hidden), queries, None);
        if spec.experts_of(layer).is_some() {
            continue;
        }
        match (spec.gated, traits.fused_gate_up) {
            (true, true) => put(LayerPart::GateUp, Site::GateUp, (0, 2 * ffn), spec.hidden, None),
            (true, false) => {
                put(LayerPart::Gate, Site::GateUp, (0, ffn), spec.hidden, None);
                put(LayerPart::Up, Site::GateUp, (ffn, ffn), spec.hidden, None);
            }
            (false, _) => put(LayerPart::Up, Site::GateUp, (0, ffn), spec.hidden, None),
        }
        put(LayerPart::Down, Site::Down, (0, spec.hidden), ffn, None);
    }
    places
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
