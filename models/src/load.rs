//! From a source on disk (or a dummy's name) to a model that can run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use sconce_kernels::Precision;

use crate::Model;
use crate::assemble::{Assembler, OnCpu, WeightSource};
use crate::dummy;
use crate::embedder::{self, Embedder, EmbedderOptions};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kv::memory_is_given;
use crate::names::Naming;
use crate::packed::{PackedCache, Shelf};
use crate::quantise::{self, QuantFormat, Quantize};
use crate::safetensors::{self, read_text};
use crate::spec::config_json::{self, Parsed};
use crate::spec::{Spec, from_gguf};
use crate::tensors::TensorSet;
use crate::weights::MappedFile;

const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json` and `model.safetensors`, or its shards and their index.
    Folder(PathBuf),
    /// A built-in shape with made-up weights, `qwen3-0.6b` or `qwen3-0.6b:q8_0`; see [`crate::dummy_shapes`].
    Dummy(String),
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    #[default]
    Cpu,
}

/// Called with the bytes that are ready and the bytes in all; the last call has the two equal.
pub type OnProgress = Box<dyn Fn(u64, u64) + Send>;

#[derive(Default)]
pub struct LoadOptions {
    pub device: DeviceChoice,
    pub precision: Precision,
    /// The longest context that will be served, if shorter than the model's: LongRoPE turns by it.
    pub max_model_len: Option<u32>,
    /// Quantise a dense checkpoint. [`load_embedder`] refuses it.
    pub quantize: Option<Quantize>,
    /// Keep what is packed for the CPU, and use what was kept. Only [`load`] does.
    pub packed: Option<PackedCache>,
    pub progress: Option<OnProgress>,
}

/// Counts loaded bytes towards a known total.
pub(crate) struct Progress<'a> {
    done: u64,
    total: u64,
    report: Option<&'a OnProgress>,
}

impl<'a> Progress<'a> {
    pub fn new(total: u64, report: Option<&'a OnProgress>) -> Self {
        Self { done: 0, total, report }
    }

    /// Everything is ready.
    pub fn finish(mut self) {
        self.done = self.total;
        self.tell();
    }

    pub fn add(&mut self, bytes: u64) {
        self.done = (self.done + bytes).min(self.total);
        self.tell();
    }

    fn tell(&self) {
        if let Some(report) = self.report {
            report(self.done, self.total);
        }
    }
}

/// Reads headers only: fast, whatever the size of the weights.
pub fn read_spec(source: &Source) -> Result<Spec> {
    open(source).map(|(spec, _)| spec)
}

/// What [`read_spec`] says of the model when it is quantised at load.
pub fn read_spec_as(source: &Source, format: QuantFormat) -> Result<Spec> {
    pretended(source, format).map(|(spec, _)| spec)
}

/// Spec and tensors as if they were quantised; they cannot be read.
pub(crate) fn pretended(source: &Source, format: QuantFormat) -> Result<(Spec, WeightSource)> {
    let (spec, mut tensors) = dense(open(source)?, source)?;
    let planned = quantise::plan(&tensors, spec.layers, format)?;
    quantise::pretend(&mut tensors, &planned);
    Ok(with_totals(spec, tensors))
}

/// The tensors of a source that can be quantised.
fn dense((spec, weights): (Spec, WeightSource), source: &Source) -> Result<(Spec, TensorSet)> {
    match (weights, source) {
        (WeightSource::Files(tensors), _) => Ok((spec, tensors)),
        (WeightSource::Dummy(_), Source::Gguf(path) | Source::Folder(path)) => {
            unreachable!("{} has files", path.display())
        }
        (WeightSource::Dummy(_), Source::Dummy(name)) => Err(Error::Unsupported {
            file: PathBuf::from(format!("dummy:{name}")),
            feature: "quantising made-up weights".to_owned(),
            next: "name their format instead, as in dummy:qwen3-0.6b:q8_0",
        }),
    }
}

/// Loads a model: maps its files, checks every tensor against the spec, reads the weights in once.
pub fn load(source: &Source, options: LoadOptions) -> Result<Box<dyn Model>> {
    let device = match options.device {
        DeviceChoice::Cpu => Device::Cpu,
    };
    let report = options.progress.as_ref();
    let (spec, weights) = open_any(source, options.quantize.as_ref(), report)?;
    if matches!(source, Source::Dummy(_)) && !memory_is_given(spec.weight_bytes) {
        return Err(Error::WeightMemory { bytes: spec.weight_bytes });
    }
    let mut progress = Progress::new(spec.weight_bytes, report);
    let shelf = match (&options.packed, &weights) {
        (Some(cache), WeightSource::Files(tensors)) => Shelf::open(cache, tensors, spec.weight_bytes, &mut progress),
        _ => None,
    };
    let place = OnCpu::with(options.precision, shelf);
    let context = options.max_model_len.unwrap_or(spec.context_max);
    let decoder = Assembler::new(weights, device, place, progress).decoder(spec, context)?;
    // Tensors that files carry and models do not read count as ready, too.
    Progress::new(decoder.spec.weight_bytes, report).finish();
    Ok(Box::new(decoder))
}

/// Spec and weights of a source, quantised on the way if that is wanted.
pub(crate) fn open_any(
    source: &Source,
    quantize: Option<&Quantize>,
    report: Option<&OnProgress>,
) -> Result<(Spec, WeightSource)> {
    match quantize {
        None => open(source),
        Some(quantize) => open_quantised(source, quantize, report),
    }
}

/// The model with its matrices quantised; the first time that takes reading and converting all of them.
fn open_quantised(source: &Source, quantize: &Quantize, report: Option<&OnProgress>) -> Result<(Spec, WeightSource)> {
    let (spec, mut tensors) = dense(open(source)?, source)?;
    let planned = quantise::plan(&tensors, spec.layers, quantize.format)?;
    let total: u64 = planned.iter().map(|planned| planned.from.bytes as u64).sum();
    // One byte short of the end, which is when the weights are loaded.
    let mut progress = Progress::new(total + 1, report);
    quantise::convert(&mut tensors, &planned, quantize, &mut progress)?;
    Ok(with_totals(spec, tensors))
}

/// Loads an embedder: as [`load`], for models of which a vector or a score is wanted.
pub fn load_embedder(source: &Source, embedder: EmbedderOptions, options: LoadOptions) -> Result<Box<dyn Embedder>> {
    let device = match options.device {
        DeviceChoice::Cpu => Device::Cpu,
    };
    if options.quantize.is_some() {
        let file = match source {
            Source::Gguf(path) | Source::Folder(path) => path.clone(),
            Source::Dummy(name) => PathBuf::from(format!("dummy:{name}")),
        };
        let feature = "quantising models that make vectors or scores".to_owned();
        return Err(Error::Unsupported { file, feature, next: "leave --quantization out" });
    }
    let plan = embedder::plan(source, embedder)?;
    let total = plan.spec().weight_bytes;
    if matches!(source, Source::Dummy(_)) && !memory_is_given(total) {
        return Err(Error::WeightMemory { bytes: total });
    }
    let report = options.progress.as_ref();
    let loaded = plan.load(device, options.precision, Progress::new(total, report))?;
    Progress::new(total, report).finish();
    Ok(loaded)
}

/// Reads headers only.
pub(crate) fn open(source: &Source) -> Result<(Spec, WeightSource)> {
    open_source(source, false)
}

/// `headless`: the output head is not wanted, and files may lack it.
pub(crate) fn open_source(source: &Source, headless: bool) -> Result<(Spec, WeightSource)> {
    match source {
        Source::Folder(path) if headless => open_headless(path),
        Source::Gguf(path) => open_gguf(path),
        Source::Folder(path) => open_folder(path),
        Source::Dummy(name) => {
            let (spec, weights) = dummy::open(name)?;
            Ok((spec, WeightSource::Dummy(weights)))
        }
    }
}

fn open_gguf(path: &Path) -> Result<(Spec, WeightSource)> {
    let file = Arc::new(MappedFile::open(path)?);
    let header = Header::parse((*file).as_ref(), path)?;
    let mut tensors = TensorSet::from_gguf(&file, &header);
    let mut spec = from_gguf::spec(&header, &tensors)?;
    if spec.family.traits().has_extra_layers {
        drop_extra_layers(&mut spec, &mut tensors);
        return Ok(with_totals(spec, tensors));
    }
    Ok((spec, WeightSource::Files(tensors)))
}

/// A decoder whose hidden states are wanted. Such files are often saved from the inner model: without the prefix
/// `model.`, without a head, and with a class that ends in `Model`.
fn open_headless(folder: &Path) -> Result<(Spec, WeightSource)> {
    let config = folder.join("config.json");
    let text = read_text(&config, CONFIG_BYTES_MAX)?;
    let parsed = config_json::parse(&config_json::as_causal(&text, &config)?, &config)?;
    let (mut spec, mut tensors) = described(parsed, folder)?;
    // What is tied is not looked for, and what is there of it is not an unknown tensor.
    spec.tied_embeddings = true;
    if tensors.get("embed_tokens.weight").is_some() {
        tensors = tensors.prefixed("model.");
    }
    Ok(with_totals(spec, tensors))
}

fn open_folder(folder: &Path) -> Result<(Spec, WeightSource)> {
    let config = folder.join("config.json");
    let parsed = config_json::parse(&read_text(&config, CONFIG_BYTES_MAX)?, &config)?;
    let (spec, tensors) = described(parsed, folder)?;
    Ok(with_totals(spec, tensors))
}

/// The tensors of a folder under the names of their family, in the form that its config says they have.
fn described(parsed: Parsed, folder: &Path) -> Result<(Spec, TensorSet)> {
    let Parsed { mut spec, quantisation, is_text_part } = parsed;
    let traits = spec.family.traits();
    let mut tensors = safetensors::open(folder, Naming::HuggingFace(traits.names))?;
    if traits.names_in_one.iter().any(|(_, name)| tensors.has_experts_in_one(name)) {
        tensors.naming = Naming::HuggingFace(traits.names_in_one);
    }
    if is_text_part {
        tensors.keep_text_part();
    }
    tensors.rename(spec.family.traits().renamed);
    if spec.family.traits().has_extra_layers {
        drop_extra_layers(&mut spec, &mut tensors);
    }
    tensors.quantisation = quantisation;
    tensors.interleaved_experts = spec.family.traits().interleaved_experts;
    tensors.transposed_experts = spec.family.traits().transposed_experts;
    Ok((spec, tensors))
}

fn drop_extra_layers(spec: &mut Spec, tensors: &mut TensorSet) {
    if tensors.drop_layers_from(spec.layers) {
        spec.notes.push("layers that predict further tokens are left out".to_owned());
    }
}

fn with_totals(mut spec: Spec, tensors: TensorSet) -> (Spec, WeightSource) {
    let totals = tensors.totals();
    spec.weight_format = totals.weight_format;
    spec.parameters = totals.parameters;
    spec.weight_bytes = totals.weight_bytes;
    spec.fp8_bytes = tensors.fp8_bytes();
    (spec, WeightSource::Files(tensors))
}
