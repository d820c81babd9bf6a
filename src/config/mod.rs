//! What the operator asked for, checked: flags over environment over file over defaults.

pub mod env;
pub mod file;
pub mod keys;
pub mod listing;
pub mod lora;
pub mod orca;
pub mod packed;
pub mod pool;
pub mod secret;
pub mod speculation;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sconce_models::Quantize;

use self::speculation::Speculation;
use crate::error::{Error, Result};

/// Everything `sconce serve` needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    pub host: String,
    pub port: u16,
    pub api_keys: Vec<String>,
    pub keys: Vec<keys::KeyConfig>,
    pub responses: ResponsesConfig,
    pub files: FilesConfig,
    /// The pages for people are served.
    pub web: bool,
    /// Answers with a load report.
    pub load_reports: orca::LoadReports,
    /// What is on offer to others.
    pub listings: Vec<listing::Listing>,
    /// Threads that serve connections; `None`: one a core.
    pub http_threads: Option<u16>,
    /// From SIGTERM on, as long as balancers need to notice that the server is leaving.
    pub drain_delay: Duration,
    pub shutdown_timeout: Duration,
    pub models: Vec<ModelConfig>,
    pub pool: pool::PoolConfig,
}

/// Where `/v1/responses` keeps what it answered, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponsesConfig {
    pub store: StorePlace,
    /// Conversations that were not gone on with for this long are deleted.
    pub age_days: u32,
    pub bytes_max: u64,
}

/// Where `/v1/files` and `/v1/batches` keep what they are given and make, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    pub folder: StorePlace,
    pub file_bytes_max: u64,
    pub total_bytes_max: u64,
    /// Sequences up to which requests of batches are begun on a model.
    pub batch_concurrency: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    Off,
    /// In the user's data folder: made when something is first kept.
    Default(PathBuf),
    /// Named by the operator: opened at the start, which fails if it cannot be.
    Named(PathBuf),
}

impl StorePlace {
    /// `off`, a path, or nothing for `name` in the data folder; without a home folder there is no default.
    pub fn from_flag(flag: Option<&str>, name: &str) -> Self {
        match flag {
            Some("off") => Self::Off,
            Some(path) => Self::Named(PathBuf::from(path)),
            None => {
                let data = env::XDG_DATA_HOME.path().or_else(|| Some(env::HOME.path()?.join(".local/share")));
                data.map_or(Self::Off, |folder| Self::Default(folder.join("sconce").join(name)))
            }
        }
    }
}

/// One model and its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// As the operator typed it: `smollm2:135m`, `org/name`, a path, `sim`.
    pub reference: String,
    /// Client-visible names, the first one reported; empty: a short name made from the reference.
    pub served_names: Vec<String>,
    pub device: DeviceChoice,
    pub task: TaskChoice,
    pub limits: ModelLimits,
    /// A template file that replaces the model's own.
    pub chat_template: Option<PathBuf>,
    pub parsers: ParserNames,
    pub lora: lora::LoraConfig,
    pub loading: LoadPolicy,
}

impl ModelConfig {
    /// Whether what is loaded for one serves the other as well.
    pub fn is_same_model(&self, other: &Self) -> bool {
        Self { loading: other.loading, ..self.clone() } == *other
    }
}

/// When a model comes into memory and goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadPolicy {
    /// Loaded when a request asks for it, not at the start.
    pub on_demand: bool,
    /// Unloaded when nobody has used it for so long.
    pub idle_unload: Option<Duration>,
    /// Never unloaded for want of room or use.
    pub pinned: bool,
}

/// What a model is to do (`--task`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskChoice {
    /// What its files say.
    #[default]
    Auto,
    Generate,
    Embed,
    Score,
}

impl FromStr for TaskChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "generate" => Ok(Self::Generate),
            "embed" => Ok(Self::Embed),
            "score" => Ok(Self::Score),
            _ => Err(format!("'{text}' is no task; use auto, generate, embed or score")),
        }
    }
}

/// Which parsers read a model's answers, by vLLM's names; `none` for none, and what the chat template tells by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParserNames {
    pub tool_calls: Option<String>,
    pub reasoning: Option<String>,
}

/// `None` means: choose what fits.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelLimits {
    pub max_model_len: Option<u32>,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: Option<u32>,
    /// Sequences that may wait beyond the running ones before requests are refused.
    pub max_queue: u32,
    pub block_size: u32,
    pub kv_cache_memory_bytes: Option<u64>,
    pub kv_cache_dtype: KvCacheDtype,
    pub matmul_precision: MatmulPrecision,
    /// Share of the available memory for weights and KV, in thousandths.
    pub memory_share_permille: u32,
    pub enable_prefix_caching: bool,
    /// On devices that take them, steps are issued before the tokens of those before them are known.
    pub async_scheduling: bool,
    pub itl_target: ItlTarget,
    pub speculation: Speculation,
    /// Engines with all weights each, on as many devices.
    pub data_parallel_size: u32,
    /// Devices that have a share of the weights each, of every one of these engines.
    pub tensor_parallel_size: u32,
    /// Quantise the weights at load.
    pub quantize: Option<Quantize>,
    /// Keep what is packed for the CPU, and use what was kept.
    pub packed: Option<packed::PackedPlace>,
}

pub const HOST_DEFAULT: &str = "127.0.0.1";
pub const PORT_DEFAULT: u16 = 8080;
pub const MODEL_DEFAULT: &str = "smollm2:135m";
pub const MAX_NUM_SEQS_DEFAULT: u32 = 64;
pub const MAX_QUEUE_DEFAULT: u32 = 256;
/// Far beyond what one machine serves; what a mistyped flag asks for is refused instead of allocated.
pub const SEQUENCES_MAX: u32 = 100_000;
pub const BLOCK_SIZE_DEFAULT: u32 = 16;
/// More than one machine has of any device.
pub const DATA_PARALLEL_MAX: u32 = 64;
pub const TENSOR_PARALLEL_MAX: u32 = 64;
pub const SHUTDOWN_TIMEOUT_DEFAULT_S: u64 = 30;
/// As long as OpenAI keeps responses.
pub const RESPONSES_AGE_DAYS_DEFAULT: u32 = 30;
pub const RESPONSES_BYTES_MAX_DEFAULT: u64 = 1 << 30;
/// As OpenAI limits a file.
pub const FILE_BYTES_MAX_DEFAULT: u64 = 512 << 20;
pub const FILES_BYTES_MAX_DEFAULT: u64 = 10 << 30;
pub const BATCH_CONCURRENCY_DEFAULT: u32 = 8;
pub const MEMORY_UTILIZATION_DEFAULT: f64 = 0.9;
/// Far beyond any step that comes to an end.
pub const STEP_TIMEOUT_DEFAULT_S: u64 = 300;

impl Default for ModelLimits {
    fn default() -> Self {
        Self {
            max_model_len: None,
            max_num_seqs: MAX_NUM_SEQS_DEFAULT,
            max_num_batched_tokens: None,
            max_queue: MAX_QUEUE_DEFAULT,
            block_size: BLOCK_SIZE_DEFAULT,
            kv_cache_memory_bytes: None,
            kv_cache_dtype: KvCacheDtype::Auto,
            matmul_precision: MatmulPrecision::Fast,
            memory_share_permille: (MEMORY_UTILIZATION_DEFAULT * 1000.0) as u32,
            enable_prefix_caching: true,
            async_scheduling: true,
            itl_target: ItlTarget::default(),
            speculation: Speculation::default(),
            data_parallel_size: 1,
            tensor_parallel_size: 1,
            quantize: None,
            packed: None,
        }
    }
}

/// How long streams may wait for their next token while prompts are being read (`--itl-target-ms`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ItlTarget {
    /// Twice what they wait without prompts.
    #[default]
    Auto,
    Milliseconds(u32),
    /// As long as a step of `--max-num-batched-tokens` takes.
    Off,
}

impl std::str::FromStr for ItlTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => match text.parse() {
                Ok(milliseconds @ 1..=60_000) => Ok(Self::Milliseconds(milliseconds)),
                _ => Err(format!("'{text}' is not a target; give auto, off or 1 to 60000 milliseconds")),
            },
        }
    }
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheDtype {
    /// f16 on the CPU.
    #[default]
    Auto,
    F32,
    F16,
    Bf16,
    /// E4M3.
    Fp8,
}

impl FromStr for KvCacheDtype {
    type Err = String;

    /// Takes vLLM's names and the short ones.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "fp8" | "fp8_e4m3" => Ok(Self::Fp8),
            _ => Err(format!("'{text}' is no KV cache type; use auto, f16, bf16, f32 or fp8")),
        }
    }
}

/// How exactly activations are kept in matrix products on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatmulPrecision {
    /// 8 bits with quantised weights, as llama.cpp; bf16 with bf16 weights.
    #[default]
    Fast,
    /// As good as f32.
    High,
}

impl FromStr for MatmulPrecision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "high" => Ok(Self::High),
            _ => Err(format!("'{text}' is no precision; use fast or high")),
        }
    }
}

/// Where a model runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best device there is; today the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(u32),
    /// A PJRT plugin: the path of its shared library.
    Pjrt(PathBuf),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let cuda = text.strip_prefix("cuda:").and_then(|index| index.parse().ok()).map(Self::Cuda);
                let plugin = text.strip_prefix("pjrt:").filter(|path| !path.is_empty());
                cuda.or(plugin.map(|path| Self::Pjrt(PathBuf::from(path)))).ok_or_else(|| {
                    format!("'{text}' is not a device; give auto, cpu, cuda, cuda:N or pjrt:/path/to/plugin.so")
                })
            }
        }
    }
}

/// `start` or `demand`: whether a model is loaded on demand.
pub fn parse_load(text: &str) -> Result<bool, String> {
    match text {
        "start" => Ok(false),
        "demand" => Ok(true),
        _ => Err(format!("'{text}' is not a time to load; write start or demand")),
    }
}

/// Values that are possible at all; whether they fit is `device::fit`'s business.
pub fn check_limits(limits: &ModelLimits) -> Result<()> {
    let at_least_one = [
        ("--max-num-seqs", limits.max_num_seqs),
        ("--max-model-len", limits.max_model_len.unwrap_or(1)),
        ("--max-num-batched-tokens", limits.max_num_batched_tokens.unwrap_or(1)),
        ("--data-parallel-size", limits.data_parallel_size),
        ("--tensor-parallel-size", limits.tensor_parallel_size),
    ];
    if let Some((flag, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
        return Err(Error::invalid(*flag, format!("{flag} must be at least 1")));
    }
    // Queues are allocated as a whole at the start.
    let bounded = [("--max-num-seqs", limits.max_num_seqs), ("--max-queue", limits.max_queue)];
    if let Some((flag, value)) = bounded.iter().find(|(_, value)| *value > SEQUENCES_MAX) {
        return Err(Error::invalid(*flag, format!("{flag} {value} is over the limit of {SEQUENCES_MAX}")));
    }
    let devices = [
        ("--data-parallel-size", limits.data_parallel_size, DATA_PARALLEL_MAX),
        ("--tensor-parallel-size", limits.tensor_parallel_size, TENSOR_PARALLEL_MAX),
    ];
    if let Some((flag, value, max)) = devices.iter().find(|(_, value, max)| value > max) {
        return Err(Error::invalid(*flag, format!("{flag} {value} is over the limit of {max}")));
    }
    if !(1..=256).contains(&limits.block_size) || !limits.block_size.is_power_of_two() {
        return Err(Error::invalid(
            "--block-size",
            format!("--block-size {} is not a power of two from 1 to 256", limits.block_size),
        ));
    }
    if !(1..=1000).contains(&limits.memory_share_permille) {
        return Err(Error::invalid(
            "--gpu-memory-utilization",
            "--gpu-memory-utilization must be over 0 and at most 1",
        ));
    }
    Ok(())
}

/// `on` or `off`.
pub fn parse_switch(text: &str) -> std::result::Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("'{other}' is neither on nor off")),
    }
}

/// `4096`, `512MiB`, `4GiB`, `4GB`, `1.5g`: a byte count as people write it. Binary units unless spelt `KB`, `MB`, `GB`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let split = trimmed.find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(format!("'{text}' is not a size; write 4GiB, 512MiB or a number of bytes")),
    };
    let value: f64 =
        number.parse().map_err(|_| format!("'{text}' is not a size; write 4GiB, 512MiB or a number of bytes"))?;
    Ok((value * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases =
            [("4096", 4096), ("1KiB", 1024), ("2g", 2 << 30), ("1.5 GiB", 3 << 29), ("4GB", 4_000_000_000), ("7b", 7)];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        assert!(parse_bytes("lots").is_err() && parse_bytes("4XB").is_err() && parse_bytes("").is_err());
    }

    #[test]
    fn devices_are_named_as_in_the_contract() {
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("pjrt:/a/b.so".parse(), Ok(DeviceChoice::Pjrt("/a/b.so".into())));
        assert!("pjrt:".parse::<DeviceChoice>().is_err() && "pjrt".parse::<DeviceChoice>().is_err());
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert!("gpu".parse::<DeviceChoice>().is_err() && "cuda:x".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn targets_are_words_or_milliseconds() {
        assert_eq!("auto".parse(), Ok(ItlTarget::Auto));
        assert_eq!("off".parse(), Ok(ItlTarget::Off));
        assert_eq!("40".parse(), Ok(ItlTarget::Milliseconds(40)));
        for text in ["0", "-3", "fast", "", "60001", "1.5"] {
            assert!(text.parse::<ItlTarget>().is_err(), "{text}");
        }
    }

    #[test]
    fn impossible_limits_name_their_flag() {
        let cases = [
            (ModelLimits { max_num_seqs: 0, ..ModelLimits::default() }, "--max-num-seqs"),
            (ModelLimits { max_num_seqs: u32::MAX, ..ModelLimits::default() }, "--max-num-seqs"),
            (ModelLimits { max_queue: 4_000_000_000, ..ModelLimits::default() }, "--max-queue"),
            (ModelLimits { data_parallel_size: 0, ..ModelLimits::default() }, "--data-parallel-size"),
            (ModelLimits { data_parallel_size: 1000, ..ModelLimits::default() }, "--data-parallel-size"),
            (ModelLimits { tensor_parallel_size: 0, ..ModelLimits::default() }, "--tensor-parallel-size"),
            (ModelLimits { tensor_parallel_size: 65, ..ModelLimits::default() }, "--tensor-parallel-size"),
            (ModelLimits { block_size: 12, ..ModelLimits::default() }, "--block-size"),
            (ModelLimits { memory_share_permille: 0, ..ModelLimits::default() }, "--gpu-memory-utilization"),
        ];
        for (limits, flag) in cases {
            let error = check_limits(&limits).expect_err(flag);
            assert_eq!(error.param.as_deref(), Some(flag));
        }
        assert!(check_limits(&ModelLimits::default()).is_ok());
    }
}
