//! `sconce list` and `sconce rm`: what is downloaded here.

use clap::Args;

use super::{catalogue, output};
use crate::device::fit::human_bytes;
use crate::error::Result;
use crate::hub::{self, HubOptions, ModelRef};

#[derive(Args)]
pub struct ListArgs {
    /// List the models that have short names, downloaded or not
    #[arg(long, visible_alias = "catalog")]
    catalogue: bool,
}

#[derive(Args)]
pub struct RemoveArgs {
    /// As `sconce list` prints it, or any reference it was pulled by
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
}

pub fn list(args: &ListArgs) -> Result<()> {
    if args.catalogue {
        catalogue::print();
        return Ok(());
    }
    let models = hub::list_local(&HubOptions::from_env()?)?;
    if models.is_empty() {
        eprintln!("no models downloaded; 'sconce list --catalogue' shows what 'sconce pull' knows by name");
        return Ok(());
    }
    let width = models.iter().map(|model| model.name.chars().count()).max().unwrap_or(0).max(5);
    output::line(&format!("{:width$}  {:>10}  PATH", "MODEL", "SIZE"));
    for model in models {
        let size = human_bytes(model.bytes);
        output::line(&format!("{:width$}  {size:>10}  {}", model.name, model.path.display()));
    }
    Ok(())
}

pub fn remove(args: &RemoveArgs) -> Result<()> {
    let options = HubOptions::from_env()?;
    for model in &args.models {
        let removed = hub::remove(&ModelRef::parse(model)?, &options)?;
        output::line(&format!("removed {model}, {} freed", human_bytes(removed.bytes)));
    }
    Ok(())
}
