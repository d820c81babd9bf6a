//! Flags that several commands share, and how they become a checked configuration.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use sconce_models::{QuantFormat, Quantize};

use crate::config::env;
use crate::config::file::ModelSection;
use crate::config::lora::{LoraConfig, LoraModule, LoraWishes};
use crate::config::packed::PackedPlace;
use crate::config::speculation::SpeculativeSection;
use crate::config::{
    DeviceChoice, ItlTarget, KvCacheDtype, LoadPolicy, MatmulPrecision, ModelConfig, ModelLimits, ParserNames,
    TaskChoice, parse_bytes, parse_load,
};
use crate::error::{Error, Result};

/// How a model is run. Flags that `vllm serve` has carry its names.
#[derive(Args, Debug, Clone, Default)]
pub struct ModelFlags {
    /// Where to run: auto, cpu, cuda, cuda:N or pjrt:/path/to/plugin.so (experimental) [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Replicas of the model, each with all weights on a GPU of its own from that of --device on: with cuda:2, 2 of them are
    /// on cuda:2 and cuda:3. A request goes to the one that has computed most of its beginning, or to the idlest
    /// [default: 1]
    #[arg(long, value_name = "N")]
    pub data_parallel_size: Option<u32>,
    /// GPUs that compute the model together, each with a share of the weights and of the KV cache, from that of --device on.
    /// With several replicas, each has so many: the first has the first ones [default: 1]
    #[arg(long, value_name = "N")]
    pub tensor_parallel_size: Option<u32>,
    /// What the model does: generate text, embed (vectors of texts), score (rerank pairs of texts), or auto: what its
    /// files say [default: auto]
    #[arg(long, value_name = "TASK")]
    pub task: Option<TaskChoice>,
    /// CPU threads for the model [default: one for each fast core that this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Longest prompt plus answer, in tokens [default: all the model supports]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<u32>,
    /// Sequences computed at once [default: 64]
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<u32>,
    /// Tokens computed in one step, over all sequences [default: 256]
    #[arg(long, value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<u32>,
    /// Tokens in a KV block, a power of two [default: 16]
    #[arg(long, value_name = "TOKENS")]
    pub block_size: Option<u32>,
    /// Share of the available memory that weights and KV cache may take, 0 to 1 [default: 0.9]
    #[arg(long, value_name = "SHARE")]
    pub gpu_memory_utilization: Option<f64>,
    /// Size of the KV cache, e.g. 2GiB [default: what the sequences can fill, at most 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Element type of the KV cache: auto (f16 on the CPU), f16, bf16, f32, or fp8 (E4M3: half of f16's memory, 4 bits of
    /// precision) [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub kv_cache_dtype: Option<KvCacheDtype>,
    /// Activations in matrix products on the CPU: fast (8 bits with quantised weights, as llama.cpp; bf16 with bf16
    /// weights) or high (16 bits and f32: equal to f32 arithmetic, slower where many tokens are computed at once)
    /// [default: fast]
    #[arg(long, value_name = "PRECISION")]
    pub matmul_precision: Option<MatmulPrecision>,
    /// Quantise the weights of a dense checkpoint when it is loaded: q8_0, q6_k, q5_k, q5_0, q5_1, q4_k, q4_0, q4_1, q3_k
    /// or q2_k. The result is kept on disk, so that only the first start takes longer [default: as the files are]
    #[arg(long, short = 'q', value_name = "FORMAT")]
    pub quantization: Option<QuantFormat>,
    /// Folder for quantised weights; what lies there may be deleted [default: sconce/quantized in $XDG_CACHE_HOME or
    /// ~/.cache]
    #[arg(long, value_name = "FOLDER")]
    pub quantization_cache: Option<PathBuf>,
    /// Folder for the weights of models over 256 MiB as the CPU multiplies with them, which takes as much disk as the
    /// model and makes its next start as fast as reading; or off. What lies there may be deleted [default: sconce/packed
    /// in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "FOLDER")]
    pub packed_cache: Option<String>,
    /// Bytes that all files in that folder may take; the ones not used for longest make room [default: 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub packed_cache_size: Option<u64>,
    /// Reuse the KV of equal prompt beginnings (on by default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,
    /// Compute every prompt from its first token
    #[arg(long)]
    pub no_enable_prefix_caching: bool,
    /// On a GPU, issue a step of decoding before the tokens of the one before it are here (on by default)
    #[arg(long, overrides_with = "no_async_scheduling")]
    pub async_scheduling: bool,
    /// Plan each step when the tokens of the one before it are here
    #[arg(long)]
    pub no_async_scheduling: bool,
    /// Longest wait for the next token that streams should have while prompts are read beside them: auto (about twice
    /// their wait without), off, or milliseconds [default: auto]
    #[arg(long, value_name = "MS")]
    pub itl_target_ms: Option<ItlTarget>,
    /// Guessing tokens ahead: off, or JSON as vLLM takes it, {"method": "ngram", "num_speculative_tokens": 8,
    /// "prompt_lookup_max": 5, "prompt_lookup_min": 3} (the default), or by a smaller model of the same vocabulary,
    /// {"method": "draft_model", "model": "smollm2:135m", "num_speculative_tokens": 4}. Answers stay the same; where
    /// guesses do not pay none are made
    #[arg(long, value_name = "JSON", value_parser = SpeculativeSection::parse)]
    pub speculative_config: Option<SpeculativeSection>,
    #[command(flatten)]
    pub lora: LoraFlags,
    /// A Jinja chat template file that replaces the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Let the model call tools when a request leaves it the choice, as vllm's flag does (always on)
    #[arg(long)]
    pub enable_auto_tool_choice: bool,
    /// Form of the model's tool calls, e.g. hermes, llama3_json, mistral; none leaves them text [default: what the chat
    /// template shows]
    #[arg(long, value_name = "NAME")]
    pub tool_call_parser: Option<String>,
    /// Marks of the model's reasoning, e.g. qwen3, deepseek_r1; none leaves it text [default: what the chat template
    /// shows]
    #[arg(long, value_name = "NAME")]
    pub reasoning_parser: Option<String>,
}

/// Adapters beside a model.
#[derive(Args, Debug, Clone, Default)]
pub struct LoraFlags {
    /// Serve LoRA adapters beside the model, each under its name: name=path, or JSON {"name": ..., "path": ...}, path
    /// being a folder with PEFT's files. Only with a single model
    #[arg(long, value_name = "NAME=PATH", num_args = 1..)]
    pub lora_modules: Vec<LoraModule>,
    /// Serve LoRA adapters, as vllm's flag does (always on)
    #[arg(long)]
    pub enable_lora: bool,
    /// Adapters that may be loaded at a time; all of them may be in one step [default: 8]
    #[arg(long, value_name = "N")]
    pub max_loras: Option<u32>,
    /// Largest rank of an adapter [default: 64]
    #[arg(long, value_name = "RANK")]
    pub max_lora_rank: Option<u32>,
    /// Adapters below this folder may be loaded and unloaded while the server runs, with /v1/load_lora_adapter and
    /// /v1/unload_lora_adapter [default: none may]
    #[arg(long, value_name = "FOLDER")]
    pub lora_dir: Option<PathBuf>,
}

impl LoraFlags {
    /// The file's section, overridden by whatever flag was given.
    fn resolve(&self, section: &ModelSection) -> Result<LoraConfig> {
        let modules = if self.lora_modules.is_empty() { &section.lora_modules } else { &self.lora_modules };
        LoraConfig::checked(LoraWishes {
            modules: modules.clone(),
            max_loras: self.max_loras.or(section.max_loras),
            max_lora_rank: self.max_lora_rank.or(section.max_lora_rank),
            folder: self.lora_dir.clone().or_else(|| section.lora_dir.clone()),
        })
    }
}

impl ModelFlags {
    /// One model: the file's section (or none), overridden by whatever flag was given.
    pub fn resolve(&self, section: &ModelSection) -> Result<ModelConfig> {
        let defaults = ModelLimits::default();
        let utilization = self.gpu_memory_utilization.or(section.gpu_memory_utilization);
        let in_file_kv = section.kv_cache_memory.as_deref().map(parse_bytes).transpose();
        let in_file_kv = in_file_kv.map_err(|why| Error::invalid("kv_cache_memory", why))?;
        let in_file_device = in_file("device", section.device.as_ref())?;
        let in_file_task = in_file("task", section.task.as_ref())?;
        let in_file_itl = in_file("itl_target_ms", section.itl_target_ms.as_ref())?;
        let speculative = self.speculative_config.as_ref().or(section.speculative_config.as_ref());
        let speculation = speculative.map(SpeculativeSection::resolve).transpose()?;
        let in_file_dtype = in_file("kv_cache_dtype", section.kv_cache_dtype.as_ref())?;
        let in_file_precision = in_file("matmul_precision", section.matmul_precision.as_ref())?;
        let quantize = self.quantization.or(in_file("quantization", section.quantization.as_ref())?);
        let in_file_packed = section.packed_cache_size.as_deref().map(parse_bytes).transpose();
        let in_file_packed = in_file_packed.map_err(|why| Error::invalid("packed_cache_size", why))?;
        let packed_place = self.packed_cache.as_ref().or(section.packed_cache.as_ref());
        let quantize_cache = self.quantization_cache.as_ref().or(section.quantization_cache.as_ref());
        let limits = ModelLimits {
            max_model_len: self.max_model_len.or(section.max_model_len),
            max_num_seqs: self.max_num_seqs.or(section.max_num_seqs).unwrap_or(defaults.max_num_seqs),
            max_num_batched_tokens: self.max_num_batched_tokens.or(section.max_num_batched_tokens),
            max_queue: section.max_queue.unwrap_or(defaults.max_queue),
            block_size: self.block_size.or(section.block_size).unwrap_or(defaults.block_size),
            kv_cache_memory_bytes: self.kv_cache_memory_bytes.or(in_file_kv),
            kv_cache_dtype: self.kv_cache_dtype.or(in_file_dtype).unwrap_or_default(),
            matmul_precision: self.matmul_precision.or(in_file_precision).unwrap_or_default(),
            memory_share_permille: utilization.map_or(defaults.memory_share_permille, permille),
            enable_prefix_caching: !self.no_enable_prefix_caching
                && (self.enable_prefix_caching || section.enable_prefix_caching.unwrap_or(true)),
            async_scheduling: !self.no_async_scheduling
                && (self.async_scheduling || section.async_scheduling.unwrap_or(true)),
            itl_target: self.itl_target_ms.or(in_file_itl).unwrap_or(defaults.itl_target),
            speculation: speculation.unwrap_or(defaults.speculation),
            data_parallel_size: self
                .data_parallel_size
                .or(section.data_parallel_size)
                .unwrap_or(defaults.data_parallel_size),
            tensor_parallel_size: self
                .tensor_parallel_size
                .or(section.tensor_parallel_size)
                .unwrap_or(defaults.tensor_parallel_size),
            quantize: quantize.map(|format| quantized(format, quantize_cache)).transpose()?,
            packed: PackedPlace::from_flags(
                packed_place.map(String::as_str),
                self.packed_cache_size.or(in_file_packed),
            ),
        };
        Ok(ModelConfig {
            reference: section.model.clone(),
            served_names: section.served_model_names.clone(),
            device: self.device.clone().or(in_file_device).unwrap_or_default(),
            task: self.task.or(in_file_task).unwrap_or_default(),
            limits,
            chat_template: self.chat_template.clone().or_else(|| section.chat_template.clone()),
            loading: LoadPolicy {
                on_demand: section.load.as_deref().map(parse_load).transpose().map_err(wrong_load)?.unwrap_or(false),
                idle_unload: section.idle_unload_s.filter(|seconds| *seconds > 0).map(Duration::from_secs),
                pinned: section.pinned.unwrap_or(false),
            },
            parsers: ParserNames {
                tool_calls: self.tool_call_parser.clone().or_else(|| section.tool_call_parser.clone()),
                reasoning: self.reasoning_parser.clone().or_else(|| section.reasoning_parser.clone()),
            },
            lora: self.lora.resolve(section)?,
        })
    }

    /// Sizes the compute threads; before the first model is loaded.
    pub fn apply_threads(&self) {
        let threads = self.threads.map_or_else(crate::device::topology::threads, usize::from);
        sconce_kernels::cpu::set_threads(threads);
    }
}

/// A value of the file that is written as the flag takes it.
fn in_file<T: FromStr<Err = String>>(field: &str, text: Option<&String>) -> Result<Option<T>> {
    text.map(|text| text.parse().map_err(|why| Error::invalid(field, why))).transpose()
}

fn wrong_load(why: String) -> Error {
    Error::invalid("load", format!("load: {why}"))
}

fn quantized(format: QuantFormat, cache: Option<&PathBuf>) -> Result<Quantize> {
    let usual = || Some(env::caches()?.join("sconce/quantized"));
    let cache = cache.cloned().or_else(usual).ok_or_else(|| {
        Error::invalid("--quantization-cache", "there is no home folder for quantised weights; give a folder")
    })?;
    Ok(Quantize { format, cache })
}

/// Out-of-range shares become 0 or over 1000, which the configuration check refuses by name.
fn permille(share: f64) -> u32 {
    (share * 1000.0).round().clamp(0.0, 1_000_000.0) as u32
}
