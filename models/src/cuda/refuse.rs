//! What models ask for that the GPU has no kernels for yet, said by name.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::load::Source;
use crate::spec::Spec;

/// Refuses a model that needs them.
pub fn check(spec: &Spec, source: &Source) -> Result<()> {
    let feature = if spec.uneven.delta.is_some() || spec.uneven.output_gate {
        "linear attention"
    } else {
        return Ok(());
    };
    let file = match source {
        Source::Gguf(path) | Source::Folder(path) => path.clone(),
        Source::Dummy(name) => PathBuf::from(format!("dummy:{name}")),
    };
    let feature = format!("{} ({feature}) on a GPU", spec.architecture);
    Err(Error::Unsupported { file, feature, next: "use --device cpu" })
}
