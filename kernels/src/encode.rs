//! The operations that only encoders need: layer norm, and rotation and attention in both directions over a ragged
//! batch.

use candle_core::Tensor;

use crate::cpu::encode::{self, Encoding};
use crate::cpu::{Isa, activate, heads};
use crate::error::{Result, shape};
use crate::rope::RopeTable;
use crate::tensors;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` for each row (arXiv 1607.06450): x `[rows, dim]`, weight and bias
/// `[dim]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    tensors::require_cpu(OP, x.device())?;
    let (_, dim) = tensors::dims2(OP, "x", x)?;
    tensors::require_dims(OP, "weight", weight, &[dim])?;
    tensors::require_dims(OP, "bias", bias, &[dim])?;
    let ((x_storage, x_layout), (w_storage, w_layout)) = (x.storage_and_layout(), weight.storage_and_layout());
    let (b_storage, b_layout) = bias.storage_and_layout();
    let x_values = tensors::values(OP, "x", &x_storage, x_layout)?;
    let weight = tensors::values(OP, "weight", &w_storage, w_layout)?;
    let bias = tensors::values(OP, "bias", &b_storage, b_layout)?;
    let normed = activate::layer_norm(Isa::best(), x_values, (weight, bias), eps);
    Ok(Tensor::from_vec(normed, x.shape(), x.device())?)
}

/// `softmax(q k^T / sqrt(head_dim)) v` within each sequence of a ragged batch. A token sees all of its sequence, or with
/// a `reach` only as many positions on either side of its own.
///
/// qkv is `[tokens, 3 * heads * head_dim]`, all of q before all of k before all of v; sequence `r` is the tokens
/// `row_ends[r-1]..row_ends[r]`. Gives `[tokens, heads * head_dim]`.
pub fn bidirectional_attention(qkv: &Tensor, row_ends: &[u32], heads: usize, reach: Option<u32>) -> Result<Tensor> {
    const OP: &str = "bidirectional_attention";
    let (tokens, head_dim) = encoded(OP, qkv, row_ends, heads)?;
    let (storage, layout) = qkv.storage_and_layout();
    let values = tensors::values(OP, "qkv", &storage, layout)?;
    let reach = reach.map_or(usize::MAX, |reach| reach as usize);
    let sizes = Encoding { heads, head_dim, scale: (head_dim as f64).sqrt().recip() as f32, reach };
    let seen = encode::attention(Isa::best(), values, row_ends, sizes);
    Ok(Tensor::from_vec(seen, (tokens, heads * head_dim), qkv.device())?)
}

/// Turns q and k by their tokens' places in their sequences; v stays. qkv and `row_ends` as for
/// [`bidirectional_attention`].
pub fn rotate_encoder(qkv: &Tensor, row_ends: &[u32], heads: usize, table: &RopeTable) -> Result<Tensor> {
    const OP: &str = "rotate_encoder";
    let (tokens, head_dim) = encoded(OP, qkv, row_ends, heads)?;
    let mut positions = Vec::with_capacity(tokens);
    let mut start = 0;
    for &end in row_ends {
        positions.extend(0..end - start);
        start = end;
    }
    table.check(OP, &positions, tokens, head_dim)?;
    let (storage, layout) = qkv.storage_and_layout();
    let mut values = tensors::values(OP, "qkv", &storage, layout)?.to_vec();
    heads::turn_rows(Isa::best(), &mut values, (3 * heads * head_dim, 2 * heads * head_dim), head_dim, |token| {
        table.angles(positions[token])
    });
    Ok(Tensor::from_vec(values, qkv.shape(), qkv.device())?)
}

/// Tokens and size of a head, checked.
fn encoded(op: &'static str, qkv: &Tensor, row_ends: &[u32], heads: usize) -> Result<(usize, usize)> {
    tensors::require_cpu(op, qkv.device())?;
    let (tokens, columns) = tensors::dims2(op, "qkv", qkv)?;
    if heads == 0 || columns == 0 || !columns.is_multiple_of(3 * heads) {
        return Err(shape(op, format!("{columns} columns are no q, k and v of {heads} heads")));
    }
    if row_ends.last().map_or(0, |&end| end as usize) != tokens || !row_ends.is_sorted() {
        return Err(shape(op, format!("rows must end in ascending order at {tokens} tokens")));
    }
    Ok((tokens, columns / (3 * heads)))
}
