//! Adapters that come and go while the pool runs.

use std::sync::Arc;

use super::member::{Member, Model, NewAdapter};
use super::{Pool, Task};
use crate::error::{Error, ErrorKind, Result};

impl Pool {
    /// The model that an adapter is for: the only one that this server runs and that makes text, unless it is named.
    pub fn adapter_base(&self, name: Option<&str>) -> Result<Arc<dyn Member>> {
        if let Some(name) = name {
            return self.member(name);
        }
        let generates = |member: &Arc<dyn Member>| member.card().task == Task::Generate;
        let mut bases = self.local_members().into_iter().filter(generates);
        match (bases.next(), bases.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => {
                let message = "this server runs no model that takes adapters";
                Err(Error::invalid("base_model_name", message))
            }
            (Some(_), Some(_)) => {
                let message = "this server runs several models; name the adapter's with base_model_name";
                Err(Error::invalid("base_model_name", message))
            }
        }
    }

    /// Loads an adapter; from then on requests find it by its name.
    pub async fn load_adapter(&self, base: Arc<dyn Member>, new: NewAdapter) -> Result<()> {
        let _turn = self.adapting.lock().await;
        let is_own = |route: &Arc<super::Route>| route.card().parent.as_deref() == Some(base.card().id.as_str());
        if self.table().route(&new.name).is_ok_and(|route| !is_own(route)) {
            let message = format!("the name '{}' is taken by another model; choose another", new.name);
            return Err(Error::invalid("lora_name", message));
        }
        let loading = tokio::task::spawn_blocking(move || base.load_adapter(&new));
        loading.await.map_err(|panic| Error::internal(format!("loading the adapter failed: {panic}")))??;
        self.find_adapters();
        Ok(())
    }

    /// New requests do not find it any more; those that have begun go on with it.
    pub async fn unload_adapter(&self, base: &Arc<dyn Member>, name: &str) -> Result<()> {
        let _turn = self.adapting.lock().await;
        if !base.unload_adapter(name)? {
            let message = format!("there is no adapter '{name}'");
            return Err(Error::new(ErrorKind::NotFound, message).with_param("lora_name").with_code("lora_not_found"));
        }
        self.find_adapters();
        Ok(())
    }
}
