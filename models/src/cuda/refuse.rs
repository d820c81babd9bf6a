//! What models ask for that the GPU has no kernels for yet, said by name.

use std::path::PathBuf;

use sconce_cuda::ops::delta::KEY_DIM_MAX;

use crate::error::{Error, Result};
use crate::load::Source;
use crate::spec::Spec;

/// Refuses a model that needs them.
pub fn check(spec: &Spec, source: &Source) -> Result<()> {
    let widest = spec.uneven.delta.as_ref().map_or(0, |delta| delta.sizes.key_dim);
    if widest <= KEY_DIM_MAX {
        return Ok(());
    }
    let feature = format!("linear attention with keys of {widest} elements, of which a kernel takes {KEY_DIM_MAX}");
    let file = match source {
        Source::Gguf(path) | Source::Folder(path) => path.clone(),
        Source::Dummy(name) => PathBuf::from(format!("dummy:{name}")),
    };
    let feature = format!("{} ({feature}) on a GPU", spec.architecture);
    Err(Error::Unsupported { file, feature, next: "use --device cpu" })
}
