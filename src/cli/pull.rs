//! `sconce pull`: fetch a model's files and say where they are.

use clap::Args;

use super::output;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{self, HubOptions, LocalFiles, ModelRef, progress};

#[derive(Args)]
pub struct PullArgs {
    /// A catalogue name (smollm2:135m), org/name, org/name@rev or org/name:file.gguf
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
}

pub async fn pull(args: PullArgs) -> Result<()> {
    let options = HubOptions::from_env()?;
    let progress = progress::for_stderr();
    for model in &args.models {
        let reference = ModelRef::parse(model)?;
        let fetching = hub::fetch(&reference, &options, progress.as_ref());
        let local = tokio::select! {
            local = fetching => local?,
            _ = tokio::signal::ctrl_c() => {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!("interrupted; run 'sconce pull {model}' again to go on from here"),
                ));
            }
        };
        match &local.files {
            LocalFiles::Gguf(path) | LocalFiles::Folder(path) => output::line(&path.display().to_string()),
            LocalFiles::Dummy(_) | LocalFiles::Sim => output::line(&format!("{model} has no files to download")),
        }
    }
    Ok(())
}
