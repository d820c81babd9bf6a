//! Model specs, weights, and one file an architecture family over shared layers.
//!
//! A model is a pure function of a ragged batch and a paged KV cache ([`Model::forward`]); it knows nothing of
//! requests or sequences. [`sampling`] is how a model that samples on its own device is told what a step's logits are for.
//!
//! Invariants: a file is checked before a byte of it is trusted (sizes, offsets, shapes, names), so that no file can
//! make this crate panic or allocate more than the file's own size justifies; what a file asks for and this crate
//! cannot do is refused by name, never ignored; on the CPU a row of logits is the same bit for bit in
//! whatever batch it is computed and however the prompt was cut. `unsafe` stands in `weights.rs` only (the memory map).

use std::sync::Arc;

mod adapter;
mod assemble;
mod cache_names;
mod check;
#[cfg(feature = "gpu")]
pub mod cuda;
mod decoder;
mod dummy;
mod embedder;
mod families;
mod family;
mod layers;
mod load;
mod names;
mod packed;
mod quantise;
mod quantised;
mod safetensors;
mod tensors;
mod weights;

pub mod batch;
pub mod error;
pub mod gguf;
pub mod kv;
pub mod plain;
pub mod sampling;
pub mod spec;
pub mod timing;

pub use adapter::{Adapter, AdapterId, load_adapter};
pub use batch::{BatchInput, Logits};
pub use dummy::dummy_shapes;
pub use embedder::{
    Embedder, EmbedderOptions, EmbedderSpec, Output, Pooling, Purpose, TextBatch, read_embedder_spec, read_purpose,
};
pub use error::{Error, Result};
pub use family::Family;
pub use kv::KvCache;
pub use load::{DeviceChoice, LoadOptions, OnProgress, Source, load, load_embedder, read_spec, read_spec_as};
pub use packed::{PackedCache, PackedNews};
pub use quantise::{QuantFormat, Quantize};
pub use sampling::{Sample, SampleRequest, SampleRequests, SampleScores, Want};
pub use sconce_kernels::{DeltaSizes, HeadOrder, KvDtype, Precision, StateSave};
pub use spec::{
    Activation, CacheKind, Convolution, DeltaRule, Experts, GroupScore, Groups, KvHeads, Latent, NormKind, Norms,
    QkNorm, RopeScaling, RopeSpec, Routing, Scales, Scoring, SlidingWindow, Spec, Uneven,
};

/// A loaded decoder-only language model.
pub trait Model: Send {
    fn spec(&self) -> &Spec;

    /// K and V memory for `blocks` blocks of `block_size` tokens, on the model's device; of a model that keeps a state a
    /// sequence, with a slot for one of them.
    fn new_kv_cache(&self, blocks: u32, block_size: u32, dtype: KvDtype) -> Result<KvCache>;

    /// Puts an adapter at hand for batches that name it, or takes it away again.
    fn set_adapter(&mut self, id: AdapterId, adapter: Option<Arc<Adapter>>) -> Result<()>;

    /// One ragged step: writes K and V of every token into their slots, and the logits of `sample_rows` into `logits`,
    /// which is resized to fit. A batch that contradicts itself is refused before anything is written.
    fn forward(&self, batch: &BatchInput, kv: &mut KvCache, logits: &mut Logits) -> Result<()>;
}
