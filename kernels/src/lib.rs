//! One function an operation, for every back end.
//!
//! Activations are contiguous candle tensors, f32 on the CPU. A [`Weight`] is a matrix as its file has it; a
//! [`PackedWeight`] is one or more of them as the CPU multiplies with them.
//! Each function checks shapes and dispatches on the device. `reference` holds the f32 truth of every operation as
//! plain loops; one conformance suite runs every operation on every back end against it.
//!
//! Invariant: on the CPU a row's result does not depend on which other rows stand in the batch, nor on how a prompt
//! was cut into chunks (every reduction has one fixed order), bit for bit.

pub mod allocator;
pub mod attention;
pub mod cpu;
pub mod delta;
pub mod encode;
pub mod error;
pub mod low_rank;
pub mod matmul;
pub mod ops;
pub mod reference;
pub mod rope;
mod tensors;
pub mod vectors;
pub mod weight;

pub use attention::{
    AttentionBatch, AttentionParams, HeadNorms, KvDtype, KvLayer, QkvHeads, paged_attention, rope_and_write_kv,
    write_kv,
};
pub use cpu::packed::{Arena, FiledPart, PACKED_ALIGN, PACKED_VERSION, PackedFile, PackedWeight, Precision};
pub use delta::{DeltaBatch, DeltaSizes, DeltaStates, DeltaWeights, HeadOrder, StateSave, gated_delta_rule};
pub use encode::{bidirectional_attention, layer_norm, rotate_encoder};
pub use error::{Error, Result};
pub use low_rank::{LowRank, Segment, add_low_rank};
pub use matmul::{Activation, Added, Prologue, matmul, matmul_into};
pub use ops::{
    add_rms_norm, add_scaled, argmax, embedding, gelu_tanh_mul, rms_norm, scale_and_cap, sigmoid_mul, silu_mul, top_k,
};
pub use rope::{RopeStyle, RopeTable, norm_and_rope, rope};
pub use vectors::{short_convolution, write_vectors};
pub use weight::{GgmlType, SharedBytes, Weight};
