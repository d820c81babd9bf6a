//! `sconce.toml` as typed. Unknown keys are refused, with the line they stand on.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use toml::Spanned;

use super::keys::KeySection;
use super::listing::Listing;
use super::lora::LoraModule;
use super::orca::LoadReports;
use super::pool::{LedgerSection, MemberSection, PoolSections, PricesSection, RouteSection, hint};
use super::speculation::SpeculativeSection;
use crate::error::{Error, ErrorKind, Result};

/// The whole file. Every key is optional; flags win over it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    #[serde(default)]
    pub server: ServerSection,
    /// `[[keys]]`, one table an API key with limits.
    #[serde(default)]
    pub keys: Vec<KeySection>,
    /// `[[models]]`, one table a model.
    #[serde(default)]
    pub models: Vec<ModelSection>,
    /// `[[member]]`, one table a hosted model, or what routes must know of a local one.
    #[serde(default)]
    pub member: Vec<Spanned<MemberSection>>,
    /// `[[route]]`, one table a name over several members.
    #[serde(default)]
    pub route: Vec<Spanned<RouteSection>>,
    /// `[[listing]]`, one table a model that is offered through OpenRouter.
    #[serde(default)]
    pub listing: Vec<Listing>,
    #[serde(default)]
    pub prices: PricesSection,
    #[serde(default)]
    pub ledger: LedgerSection,
    /// The file itself, for the lines of faults that are found later.
    #[serde(skip)]
    pub text: String,
}

impl FileConfig {
    /// The tables of the pool.
    pub fn pool(&self) -> PoolSections {
        PoolSections {
            members: self.member.clone(),
            routes: self.route.clone(),
            prices: self.prices.clone(),
            ledger: self.ledger.clone(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    pub host: Option<String>,
    pub port: Option<u16>,
    #[serde(default)]
    pub api_keys: Vec<String>,
    pub shutdown_timeout_s: Option<u64>,
    /// As `--http-threads` takes it.
    pub http_threads: Option<u16>,
    /// As `--drain-delay` takes it.
    pub drain_delay_s: Option<u64>,
    /// `asked`, `always` or `off`, as `--orca-load-report` takes it.
    pub orca_load_report: Option<LoadReports>,
    /// A path or `off`, as `--responses-store` takes it.
    pub responses_store: Option<String>,
    pub responses_age_days: Option<u32>,
    /// A size as `--responses-max-bytes` takes it: `"1GiB"`.
    pub responses_max_bytes: Option<String>,
    /// A folder or `off`, as `--files-dir` takes it.
    pub files_dir: Option<String>,
    /// Sizes as `--file-max-bytes` and `--files-max-bytes` take them.
    pub file_max_bytes: Option<String>,
    pub files_max_bytes: Option<String>,
    pub batch_concurrency: Option<u32>,
    /// The page at `/` and the reference at `/docs`.
    pub web: Option<bool>,
    /// A size as `--models-memory` takes it.
    pub models_memory: Option<String>,
    /// A size as `--sleep-memory` takes it.
    pub sleep_memory: Option<String>,
    /// Models that say nothing else are loaded when a request asks for them.
    pub load_on_demand: Option<bool>,
    /// Names of models that are loaded at the start all the same.
    #[serde(default)]
    pub preload: Vec<String>,
    /// As `--idle-unload` takes it, for models that say nothing else.
    pub idle_unload_s: Option<u64>,
    pub step_timeout_s: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    pub model: String,
    #[serde(default)]
    pub served_model_names: Vec<String>,
    pub device: Option<String>,
    pub data_parallel_size: Option<u32>,
    pub tensor_parallel_size: Option<u32>,
    /// `auto`, `generate`, `embed` or `score`.
    pub task: Option<String>,
    pub max_model_len: Option<u32>,
    pub max_num_seqs: Option<u32>,
    pub max_num_batched_tokens: Option<u32>,
    pub max_queue: Option<u32>,
    pub block_size: Option<u32>,
    /// A size as `--kv-cache-memory-bytes` takes it: `"4GiB"`.
    pub kv_cache_memory: Option<String>,
    /// `fast` or `high`.
    pub matmul_precision: Option<String>,
    /// `auto`, `f16`, `bf16`, `f32` or `fp8`.
    pub kv_cache_dtype: Option<String>,
    /// As `--quantization` takes it: `"q8_0"`.
    pub quantization: Option<String>,
    pub quantization_cache: Option<PathBuf>,
    /// As `--packed-cache` takes it: a folder or `"off"`.
    pub packed_cache: Option<String>,
    /// A size as `--packed-cache-size` takes it: `"20GiB"`.
    pub packed_cache_size: Option<String>,
    pub gpu_memory_utilization: Option<f64>,
    pub enable_prefix_caching: Option<bool>,
    pub async_scheduling: Option<bool>,
    /// As `--itl-target-ms` takes it: `"auto"`, `"off"` or `"40"`.
    pub itl_target_ms: Option<String>,
    /// `speculative_config = { method = "ngram", num_speculative_tokens = 4 }`
    pub speculative_config: Option<SpeculativeSection>,
    pub chat_template: Option<PathBuf>,
    pub tool_call_parser: Option<String>,
    pub reasoning_parser: Option<String>,
    /// `lora_modules = [{ name = "sql", path = "adapters/sql" }]`
    #[serde(default)]
    pub lora_modules: Vec<LoraModule>,
    pub max_loras: Option<u32>,
    pub max_lora_rank: Option<u32>,
    /// As `--lora-dir`: adapters below it may be loaded while the server runs.
    pub lora_dir: Option<PathBuf>,
    /// `start` or `demand`.
    pub load: Option<String>,
    /// 0: never.
    pub idle_unload_s: Option<u64>,
    /// Never unloaded for want of room or use.
    pub pinned: Option<bool>,
}

pub fn read(path: &Path) -> Result<FileConfig> {
    let text = std::fs::read_to_string(path).map_err(|why| {
        Error::new(
            ErrorKind::NotFound,
            format!("cannot read the configuration {}: {why}; check --config", path.display()),
        )
    })?;
    parse(&text).map_err(|why| Error::new(ErrorKind::InvalidRequest, format!("{} is not valid: {why}", path.display())))
}

fn parse(text: &str) -> Result<FileConfig, String> {
    let file: FileConfig = toml::from_str(text).map_err(|why| {
        let line = why.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        format!("line {line}: {}", said(why.message()))
    })?;
    Ok(FileConfig { text: text.to_owned(), ..file })
}

/// serde lists every key there is; the nearest one is of more use.
fn said(message: &str) -> String {
    let mut words = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field `"), words.next()) {
        (true, Some(unknown)) => {
            let known: Vec<&str> = words.collect();
            format!("the key '{unknown}' is not known here{}", hint(unknown, known.iter().copied()))
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_typed() {
        let file = parse("[server]\nport = 9000\n[[models]]\nmodel = \"sim\"\nmax_num_seqs = 4\n").expect("valid");
        assert_eq!(file.server.port, Some(9000));
        assert_eq!((file.models[0].model.as_str(), file.models[0].max_num_seqs), ("sim", Some(4)));
    }

    #[test]
    fn nested_tables_are_read_and_checked_too() {
        let model = "[[models]]\nmodel = \"sim\"\nitl_target_ms = \"40\"\n";
        let text = format!("{model}speculative_config = {{ method = \"ngram\", prompt_lookup_max = 4 }}\n");
        let file = parse(&text).expect("valid");
        let speculation = file.models[0].speculative_config.as_ref().expect("it is there");
        assert_eq!((speculation.method.as_deref(), speculation.prompt_lookup_max), (Some("ngram"), Some(4)));
        let error = parse(&format!("{model}speculative_config = {{ draft = 1 }}\n")).expect_err("unknown key");
        assert!(error.starts_with("line 4: ") && error.contains("draft"), "{error}");
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_line() {
        let error = parse("[server]\nport = 9000\nprot = 1\n").expect_err("unknown key");
        assert!(error.starts_with("line 3: ") && error.contains("prot"), "{error}");
    }
}
