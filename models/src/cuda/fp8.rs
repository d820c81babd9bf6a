//! Matrices that files have in FP8, kept so: half the memory and half the reading of BF16.

use std::sync::Arc;

use sconce_cuda::ElementType;
use sconce_cuda::ops::fp8::Fp8Weight;

use super::place::{Matrix, OnGpu, Part, StackValues, Values};
use crate::assemble::Role;
use crate::error::Result;
use crate::quantised::{FP8_NOTE, Fp8Matrix};
use crate::spec::Spec;

/// What a spec says of the weights, said of a GPU, where FP8 does not become BF16.
pub fn on_gpu(mut spec: Spec) -> Spec {
    spec.weight_bytes = spec.weight_bytes.saturating_sub(spec.fp8_bytes);
    for note in spec.notes.iter_mut().filter(|note| *note == FP8_NOTE) {
        *note = "FP8 weights stay as they are, activations are in BF16".to_owned();
    }
    spec
}

impl OnGpu {
    /// A matrix of these, if kernels read all of them. Tables are looked up in plain elements, and products in F32 have plain
    /// factors.
    pub(super) fn in_fp8(&self, matrices: &[Fp8Matrix], role: Role) -> Result<Option<Matrix>> {
        // A rank's part of a matrix is cut out of plain elements.
        if self.ty == ElementType::F32 || role == Role::Table || self.cut.share.ranks > 1 {
            return Ok(None);
        }
        let joined = joined(matrices);
        let all = joined.as_ref().map_or(matrices, std::slice::from_ref);
        if role == Role::Expert {
            // Experts are multiplied together or not at all in FP8: see `stack_fp8`.
            let one = joined.filter(|all| is_takable(all) && Fp8Weight::is_multiplied_directly(all.input, all.block));
            return Ok(one.map(|all| matrix(vec![Part { rows: all.out, values: Values::WaitingFp8(all) }], matrices)));
        }
        if !all.iter().all(is_takable) {
            return Ok(None);
        }
        let part = |all: &Fp8Matrix| {
            let weight = Fp8Weight::upload(&self.device, all.codes(), &all.scales, (all.out, all.input), all.block)?;
            Ok(Part { rows: all.out, values: Values::Fp8(Box::new(weight)) })
        };
        Ok(Some(matrix(all.iter().map(part).collect::<Result<_>>()?, matrices)))
    }

    /// Experts that wait in FP8, laid together; `None` where they are not all of one kind.
    pub(super) fn stack_fp8(&self, experts: &[&Matrix]) -> Result<Option<StackValues>> {
        let mut all = Vec::with_capacity(experts.len());
        for expert in experts {
            let [Part { values: Values::WaitingFp8(matrix), .. }] = &*expert.parts else { return Ok(None) };
            all.push(matrix);
        }
        let block = all[0].block;
        if all.iter().any(|matrix| matrix.block != block) {
            return Ok(None);
        }
        let matrices: Vec<(&[u8], &[f32])> = all.iter().map(|matrix| (matrix.codes(), &matrix.scales[..])).collect();
        let sizes = (experts[0].out, experts[0].input);
        let weight = Fp8Weight::upload_all(&self.device, &matrices, sizes, block)?;
        Ok(Some(StackValues::Fp8(Box::new(weight))))
    }
}

fn matrix(parts: Vec<Part>, of: &[Fp8Matrix]) -> Matrix {
    Matrix { out: of.iter().map(|matrix| matrix.out).sum(), input: of[0].input, parts: parts.into() }
}

fn is_takable(matrix: &Fp8Matrix) -> bool {
    Fp8Weight::takes((matrix.out, matrix.input), matrix.block)
}

/// Matrices of one input, one below the other, as one; `None` where blocks of scales do not meet.
fn joined(matrices: &[Fp8Matrix]) -> Option<Fp8Matrix> {
    let (first, before_last) = (&matrices[0], &matrices[..matrices.len() - 1]);
    let (block, scales) = if let [one] = matrices {
        (one.block, one.scales.clone())
    } else if matrices.iter().all(|matrix| matrix.block.1 >= matrix.input) {
        // One a row is what one for all of them comes down to.
        let of_rows = matrices.iter().flat_map(|matrix| (0..matrix.out).map(|row| matrix.scales[row / matrix.block.0]));
        ((1, first.input), of_rows.collect())
    } else if matrices.iter().all(|matrix| matrix.block == first.block)
        && before_last.iter().all(|matrix| matrix.out.is_multiple_of(matrix.block.0))
    {
        (first.block, matrices.iter().flat_map(|matrix| matrix.scales.iter().copied()).collect())
    } else {
        return None;
    };
    if let [one] = matrices {
        return Some(Fp8Matrix { block, scales, ..one.clone() });
    }
    let codes: Vec<u8> = matrices.iter().flat_map(|matrix| matrix.codes()).copied().collect();
    let out = matrices.iter().map(|matrix| matrix.out).sum();
    Some(Fp8Matrix { out, input: first.input, block, scales, bytes: Arc::new(codes), offset: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(out: usize, block: (usize, usize), scales: &[f32]) -> Fp8Matrix {
        let bytes = Arc::new(vec![out as u8; out * 256]);
        Fp8Matrix { out, input: 256, block, scales: scales.to_vec(), bytes, offset: 0 }
    }

    #[test]
    fn scales_are_joined_where_they_meet() {
        let rows = joined(&[matrix(2, (2, 256), &[0.5]), matrix(3, (1, 256), &[1.0, 2.0, 3.0])]).unwrap();
        assert_eq!((rows.out, rows.block), (5, (1, 256)));
        assert_eq!(rows.scales, [0.5, 0.5, 1.0, 2.0, 3.0]);
        assert_eq!(rows.codes(), [[2; 512].as_slice(), &[3; 768]].concat());
        let block = (2, 128);
        let blocks = joined(&[matrix(4, block, &[1.0, 2.0, 3.0, 4.0]), matrix(1, block, &[5.0, 6.0])]).unwrap();
        assert_eq!((blocks.out, blocks.block, blocks.scales.len()), (5, block, 6));
        // A block would reach over the end of the first, a scale would be for other columns.
        assert!(joined(&[matrix(3, block, &[1.0; 4]), matrix(2, block, &[1.0; 2])]).is_none());
        assert!(joined(&[matrix(2, block, &[1.0; 2]), matrix(2, (2, 256), &[1.0])]).is_none());
        let one = joined(&[matrix(3, block, &[1.0; 4])]).unwrap();
        assert_eq!((one.block, one.scales.len()), (block, 4));
    }
}
