//! Adapters beside a model: named when it is planned, read when it is loaded, and later by request.

use std::path::Path;
use std::sync::Arc;

use sconce_models::Spec;

use crate::config::lora::LoraConfig;
use crate::engine::EngineHandle;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::ModelCard;
use crate::pool::local::{AdapterLimits, AdapterLoader, LocalMember};

/// The member with the names of the adapters that come with it.
pub(super) fn announced(member: LocalMember, config: &LoraConfig, base: &ModelCard) -> LocalMember {
    let limits = AdapterLimits { max_loras: config.max_loras, folder: config.folder.clone() };
    let member = member.with_adapters(limits);
    for module in &config.modules {
        member.announce_adapter(ModelCard {
            id: module.name.clone(),
            aliases: Vec::new(),
            root: module.path.clone(),
            parent: Some(base.id.clone()),
            ..base.clone()
        });
    }
    member
}

/// Reads the adapters that come with the model, to fail before its weights are read. Returns their bytes.
pub(super) fn check(config: &LoraConfig, spec: &Spec) -> Result<u64> {
    let mut bytes = 0;
    for module in &config.modules {
        let read = sconce_models::load_adapter(Path::new(&module.path), spec, config.max_lora_rank as usize);
        bytes += read.map_err(|why| unusable(&format!("the adapter '{}': {why}", module.name)))?.bytes();
    }
    Ok(bytes)
}

/// What reads an adapter for this model and hands it to its engine.
pub(super) fn loader(spec: Spec, config: &LoraConfig, engine: EngineHandle) -> AdapterLoader {
    let rank_max = config.max_lora_rank as usize;
    Arc::new(move |folder| {
        let read = sconce_models::load_adapter(folder, &spec, rank_max).map_err(|why| unusable(&why.to_string()))?;
        tracing::info!(folder = %folder.display(), rank = read.rank(), base = read.base_model(), "read an adapter");
        engine.load_adapter(Arc::new(read)).map_err(|why| Error::new(ErrorKind::Unavailable, why))
    })
}

/// Models that no adapter can be added to.
pub(super) fn refuse(config: &LoraConfig, what: &str) -> Result<()> {
    if config.is_wanted() {
        return Err(Error::invalid("--lora-modules", format!("{what} takes no adapters; leave the flags of LoRA out")));
    }
    Ok(())
}

fn unusable(why: &str) -> Error {
    Error::invalid("--lora-modules", why)
}
