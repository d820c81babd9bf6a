//! Models as the pool's lifecycle brings them in: fetched, planned, loaded, with their progress told.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::apart::apart;
#[cfg(feature = "gpu")]
use super::cards::Cards;
use super::model::{self, Files};
use super::{Planned, load_one};
use crate::error::Result;
use crate::hub::{self, HubOptions, Progress};
use crate::pool::lifecycle::{Loader, Managed};
use crate::pool::local::{Held, LocalMember, Memory};

pub(super) fn managed(planned: &[Planned]) -> Vec<Managed> {
    planned.iter().map(managed_one).collect()
}

pub(super) fn managed_one(planned: &Planned) -> Managed {
    Managed {
        member: Arc::clone(&planned.member),
        loader: Arc::new(ModelLoader { planned: planned.clone() }),
        policy: planned.config.loading,
    }
}

/// The files of a model, and of the one that guesses ahead of it.
pub(super) async fn fetched(planned: &Planned, progress: &dyn Progress) -> Result<Files> {
    let options = HubOptions::from_env()?;
    let model = hub::fetch(&planned.reference, &options, progress).await?;
    let draft = match &planned.draft {
        Some(draft) => Some(hub::fetch(draft, &options, progress).await?),
        None => None,
    };
    Ok(Files { model, draft })
}

struct ModelLoader {
    planned: Planned,
}

impl Loader for ModelLoader {
    fn need(&self, room_bytes: Option<u64>) -> BoxFuture<'_, Result<Memory>> {
        async move {
            let files = fetched(&self.planned, &Told(Arc::clone(&self.planned.member))).await?;
            let config = self.planned.config_now();
            apart("plan", move || model::need(&model::Job { config: &config, files: &files, room_bytes })).await
        }
        .boxed()
    }

    fn load(&self, room_bytes: Option<u64>) -> BoxFuture<'_, Result<(Held, Memory)>> {
        async move {
            let told = Arc::new(Told(Arc::clone(&self.planned.member)));
            let (held, memory, report) = load_one(&self.planned, told, room_bytes).await?;
            for choice in &report.choices {
                tracing::info!(model = %report.id, "chosen: {choice}");
            }
            Ok((held, memory))
        }
        .boxed()
    }

    #[cfg(feature = "gpu")]
    fn gpus(&self) -> std::ops::Range<u32> {
        let config = &self.planned.config;
        // Whoever names GPUs that there are not was told at the start.
        super::gpu::ordinals(&config.device, Cards::of(&config.limits)).unwrap_or(0..0)
    }

    #[cfg(feature = "gpu")]
    fn seems_to_fit(&self) -> BoxFuture<'_, Result<bool>> {
        async move {
            let files = fetched(&self.planned, &Told(Arc::clone(&self.planned.member))).await?;
            let config = self.planned.config_now();
            apart("look", move || super::gpu::seems_to_fit(&config, &files)).await
        }
        .boxed()
    }
}

/// Progress of a load as its member's state, for whoever waits for it.
struct Told(Arc<LocalMember>);

impl Progress for Told {
    fn started(&self, file: &str, bytes_done: u64, bytes_total: Option<u64>) {
        self.0.tell(|loading| {
            loading.what = file.to_owned();
            loading.bytes_done = bytes_done;
            loading.bytes_total = bytes_total;
        });
    }

    fn advanced(&self, _file: &str, bytes_done: u64) {
        self.0.tell(|loading| loading.bytes_done = bytes_done);
    }

    fn finished(&self, _file: &str) {
        self.0.tell(|loading| loading.bytes_done = loading.bytes_total.unwrap_or(loading.bytes_done));
    }

    fn note(&self, text: &str) {
        tracing::info!(model = %crate::pool::Model::card(&*self.0).id, "{text}");
    }
}
