//! What `sconce serve` is to do: flags over the environment (clap reads it) over `sconce.toml` over defaults.

use std::path::Path;
use std::time::Duration;

use super::serve::ServeArgs;
use crate::config::file::{self, FileConfig, ModelSection, ServerSection};
use crate::config::keys::{self, KeySection};
use crate::config::listing;
use crate::config::pool::PoolConfig;
use crate::config::{self, FilesConfig, ModelConfig, ResponsesConfig, ServeConfig, StorePlace};
use crate::error::{Error, Result};
use crate::launch::served_names;

/// Flags over environment (clap reads it) over file over defaults.
/// What the file alone says.
pub fn from_file(path: &Path) -> Result<ServeConfig> {
    resolve(&ServeArgs::with_config(path))
}

pub fn resolve(args: &ServeArgs) -> Result<ServeConfig> {
    let file = args.config.as_deref().map_or_else(|| Ok(FileConfig::default()), file::read)?;
    let mut sections = if args.models.is_empty() { file.models.clone() } else { named(&args.models) };
    // With members of other places there need not be a model here.
    if sections.is_empty() && file.member.is_empty() {
        sections = named(&[config::MODEL_DEFAULT.to_owned()]);
    }
    for section in &mut sections {
        with_defaults(section, args, &file.server);
    }
    match (args.served_model_name.is_empty(), sections.as_mut_slice()) {
        (true, _) => {}
        (false, [only]) => only.served_model_names.clone_from(&args.served_model_name),
        (false, _) => {
            return Err(Error::invalid(
                "--served-model-name",
                "--served-model-name works with a single model; name several in sconce.toml (served_model_names)",
            ));
        }
    }
    if !args.model.lora.lora_modules.is_empty() && sections.len() != 1 {
        let message = "--lora-modules works with a single model; name several in sconce.toml (lora_modules)";
        return Err(Error::invalid("--lora-modules", message));
    }
    let mut models = sections.iter().map(|section| args.model.resolve(section)).collect::<Result<Vec<_>>>()?;
    for model in &mut models {
        model.limits.max_queue = args.max_queue.unwrap_or(model.limits.max_queue);
    }
    let mut pool = pool(&file, args, &mut models)?;
    preload(&mut models, args, &file.server)?;
    pool.models_memory_bytes = size(args.models_memory, file.server.models_memory.as_deref(), "models_memory")?;
    pool.sleep_memory_bytes = size(args.sleep_memory, file.server.sleep_memory.as_deref(), "sleep_memory")?;
    let step_timeout_s = args.step_timeout.or(file.server.step_timeout_s).unwrap_or(config::STEP_TIMEOUT_DEFAULT_S);
    pool.step_timeout = (step_timeout_s > 0).then(|| Duration::from_secs(step_timeout_s));
    let listings = listing::checked(&file.listing, &served_names(&models)?)?;
    let (responses, files) = (responses(args, &file.server)?, files(args, &file.server)?);
    let api_keys = if args.api_key.is_empty() { file.server.api_keys } else { args.api_key.clone() };
    // Such a key can never be sent, so everyone would be locked out. The value itself is not repeated.
    if api_keys.iter().any(|key| key.is_empty() || key.trim() != key) {
        let message = "an API key is empty or begins or ends with a space; set it, or leave it out to need none";
        return Err(Error::invalid("--api-key", message));
    }
    let http_threads = args.http_threads.or(file.server.http_threads);
    if http_threads == Some(0) {
        return Err(Error::invalid("http_threads", "http_threads is 0; allow at least one thread for connections"));
    }
    let timeout_s = args.shutdown_timeout.or(file.server.shutdown_timeout_s);
    let mut keys = keys::checked(&file.keys)?;
    for key in &mut keys {
        key.members = key.members.iter().flat_map(|name| pool.meant_by(name)).map(str::to_owned).collect();
    }
    Ok(ServeConfig {
        host: args.host.clone().or(file.server.host).unwrap_or_else(|| config::HOST_DEFAULT.to_owned()),
        port: args.port.or(file.server.port).unwrap_or(config::PORT_DEFAULT),
        api_keys,
        keys,
        responses,
        files,
        web: args.web.or(file.server.web).unwrap_or(true),
        load_reports: args.orca_load_report.or(file.server.orca_load_report).unwrap_or_default(),
        listings,
        http_threads,
        drain_delay: Duration::from_secs(args.drain_delay.or(file.server.drain_delay_s).unwrap_or(0)),
        shutdown_timeout: Duration::from_secs(timeout_s.unwrap_or(config::SHUTDOWN_TIMEOUT_DEFAULT_S)),
        models,
        pool,
    })
}

/// What the server says of models that say nothing else.
fn with_defaults(section: &mut ModelSection, args: &ServeArgs, file: &ServerSection) {
    if args.load_on_demand || file.load_on_demand == Some(true) {
        section.load.get_or_insert_with(|| "demand".to_owned());
    }
    section.idle_unload_s = section.idle_unload_s.or(args.idle_unload).or(file.idle_unload_s);
}

/// Models that are loaded at the start whatever else was said.
fn preload(models: &mut [ModelConfig], args: &ServeArgs, file: &ServerSection) -> Result<()> {
    let names = if args.preload.is_empty() { &file.preload } else { &args.preload };
    for name in names {
        let mut is_known = false;
        for model in models.iter_mut() {
            if model.reference == *name || served_names(std::slice::from_ref(model))?.contains(name) {
                model.loading.on_demand = false;
                is_known = true;
            }
        }
        if !is_known {
            return Err(Error::invalid(
                "--preload",
                format!("--preload: '{name}' is no model of this server; name one"),
            ));
        }
    }
    Ok(())
}

/// Members and routes, and the models of local members that nothing else names.
fn pool(file: &FileConfig, args: &ServeArgs, models: &mut Vec<ModelConfig>) -> Result<PoolConfig> {
    let in_file = |error: Error| match &args.config {
        Some(path) => Error { message: format!("{}: {}", path.display(), error.message), ..error },
        None => error,
    };
    for member in file.member.iter().map(toml::Spanned::get_ref).filter(|member| member.kind == "local") {
        let is_served = served_names(models)?.contains(&member.model);
        if !is_served && !models.iter().any(|model| model.reference == member.model) {
            let mut section = ModelSection { model: member.model.clone(), ..ModelSection::default() };
            with_defaults(&mut section, args, &file.server);
            let mut model = args.model.resolve(&section)?;
            model.limits.max_queue = args.max_queue.unwrap_or(model.limits.max_queue);
            models.push(model);
        }
    }
    let config = config::pool::checked(&file.pool(), &file.text, &served_names(models)?).map_err(in_file)?;
    let adapters = models.iter().flat_map(|model| &model.lora.modules).map(|module| module.name.clone());
    check_keys(&file.keys, &config, &served_names(models)?.into_iter().chain(adapters).collect::<Vec<_>>())?;
    Ok(config)
}

/// A misspelt name would lock its key out without a word.
fn check_keys(keys: &[KeySection], config: &PoolConfig, served: &[String]) -> Result<()> {
    for key in keys {
        let is_model =
            |name: &String| served.contains(name) || config.routes.iter().any(|route| route.answers_to(name));
        if let Some(name) = key.models.iter().find(|name| !is_model(name)) {
            let message = format!("the key '{}' may use the model '{name}', which is not served here", key.name);
            return Err(Error::invalid("keys.models", message));
        }
        let is_member = |name: &String| {
            served.contains(name)
                || config.members.iter().any(|member| config.meant_by(name).contains(&member.name.as_str()))
        };
        if let Some(name) = key.members.iter().find(|name| !is_member(name)) {
            let message = format!("the key '{}' may use the member '{name}', which does not exist", key.name);
            return Err(Error::invalid("keys.members", message));
        }
    }
    Ok(())
}

fn responses(args: &ServeArgs, file: &ServerSection) -> Result<ResponsesConfig> {
    let place = args.responses_store.as_deref().or(file.responses_store.as_deref());
    let bytes_max = size(args.responses_max_bytes, file.responses_max_bytes.as_deref(), "responses_max_bytes")?;
    let age_days = args.responses_age_days.or(file.responses_age_days);
    Ok(ResponsesConfig {
        store: StorePlace::from_flag(place, "responses.db"),
        age_days: age_days.unwrap_or(config::RESPONSES_AGE_DAYS_DEFAULT),
        bytes_max: bytes_max.unwrap_or(config::RESPONSES_BYTES_MAX_DEFAULT),
    })
}

fn files(args: &ServeArgs, file: &ServerSection) -> Result<FilesConfig> {
    let folder = args.files_dir.as_deref().or(file.files_dir.as_deref());
    let file_bytes_max = size(args.file_max_bytes, file.file_max_bytes.as_deref(), "file_max_bytes")?;
    let total_bytes_max = size(args.files_max_bytes, file.files_max_bytes.as_deref(), "files_max_bytes")?;
    let batch_concurrency = args.batch_concurrency.or(file.batch_concurrency);
    let batch_concurrency = batch_concurrency.unwrap_or(config::BATCH_CONCURRENCY_DEFAULT);
    if batch_concurrency == 0 {
        let message = "batch_concurrency is 0; set files_dir to \"off\" to have no batches";
        return Err(Error::invalid("batch_concurrency", message));
    }
    Ok(FilesConfig {
        folder: StorePlace::from_flag(folder, "files"),
        file_bytes_max: file_bytes_max.unwrap_or(config::FILE_BYTES_MAX_DEFAULT),
        total_bytes_max: total_bytes_max.unwrap_or(config::FILES_BYTES_MAX_DEFAULT),
        batch_concurrency,
    })
}

/// A size from a flag, or from the file.
fn size(flag: Option<u64>, in_file: Option<&str>, key: &str) -> Result<Option<u64>> {
    let in_file = in_file.map(config::parse_bytes).transpose().map_err(|why| Error::invalid(key, why))?;
    Ok(flag.or(in_file))
}

fn named(references: &[String]) -> Vec<ModelSection> {
    references.iter().map(|model| ModelSection { model: model.clone(), ..ModelSection::default() }).collect()
}
