//! Matrices in a GPU's memory: plain, or quantised as their file has them.

use std::sync::Arc;

use candle_core::Tensor;
use half::{bf16, f16};
use sconce_cuda::ops::columns::place_columns;
use sconce_cuda::ops::embed::Embedding;
use sconce_cuda::ops::fp8::{Fp8Gemm, Fp8Weight};
use sconce_cuda::ops::gemm::Gemm;
use sconce_cuda::ops::quant::{self, QuantGemm, QuantType, QuantWeight, QuantisedRows};
use sconce_cuda::{Buffer, Device, ElementType, Slice};
use sconce_kernels::{GgmlType, Weight};

use super::share::Cut;
use crate::assemble::{Place, Role};
use crate::error::Result;
use crate::names::Part as NamedPart;
use crate::quantised::Fp8Matrix;

/// Rows are converted and copied in pieces of about so many elements.
const PIECE_ELEMENTS: usize = 4 << 20;

pub(super) struct OnGpu {
    pub device: Device,
    pub ty: ElementType,
    pub cut: Cut,
}

/// One or more matrices of one input, one below the other: `[out, input]`. Clones are the same memory.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub out: usize,
    pub input: usize,
    pub(super) parts: Arc<[Part]>,
}

/// Rows of one kind.
pub(super) struct Part {
    pub rows: usize,
    pub values: Values,
}

pub(super) enum Values {
    Dense(Buffer),
    Quantised(Box<QuantWeight>),
    Fp8(Box<Fp8Weight>),
    /// Of an expert, until all of its layer's are laid together: see [`Stack`].
    Waiting(Weight),
    WaitingFp8(Fp8Matrix),
}

/// The same matrices of all experts of a layer: `[experts, out, input]`.
pub(super) struct Stack {
    pub out: usize,
    pub input: usize,
    pub values: StackValues,
}

pub(super) enum StackValues {
    Dense(Buffer),
    Quantised(Box<QuantWeight>),
    Fp8(Box<Fp8Weight>),
}

/// What a product needs beside its factors.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    pub device: &'a Device,
    /// U8 `[Matrix::workspace_bytes]`
    pub workspace: Slice<'a>,
    /// T `[rows, Matrix::widest_part]`
    pub part: Slice<'a>,
}

impl Matrix {
    /// `y = x w^T`, or added to what y holds: x `[rows, input]`, y `[rows, out]`.
    pub fn multiply(&self, room: Room, x: Slice, y: Slice, rows: usize, add: bool) -> Result<()> {
        if let [part] = &*self.parts {
            return part.multiply(room, (x, self.input), y, rows, add);
        }
        let mut first = 0;
        let of_part = |part| match part {
            &Part { values: Values::Quantised(ref w), .. } => (!w.is_dense(rows, x.ty())).then_some(w),
            _ => None,
        };
        if self.parts.iter().all(|part| of_part(part).is_some()) {
            // x is quantised once, and each part writes its own columns.
            let shared = QuantisedRows::new(room.device, x, (rows, self.input), room.workspace)?;
            for w in self.parts.iter().filter_map(of_part) {
                QuantGemm { x, w, y, m: rows, add }.into_columns(room.device, &shared, (first, self.out))?;
                first += w.n();
            }
            return Ok(());
        }
        for part in &*self.parts {
            if rows == 1 {
                part.multiply(room, (x, self.input), y.range(first, part.rows), rows, add)?;
            } else {
                let own = room.part.first(rows * part.rows);
                part.multiply(room, (x, self.input), own, rows, false)?;
                place_columns(room.device, own, y, rows, (first, part.rows, self.out))?;
            }
            first += part.rows;
        }
        Ok(())
    }

    /// Rows `ids` of it, times a factor: out F32 `[ids, input]`.
    pub fn embed(&self, device: &Device, ids: Slice, scale: f32, out: Slice) -> Result<()> {
        match &self.parts[0].values {
            Values::Dense(table) => {
                Ok(Embedding { table: table.all(), ids, scale, out, hidden: self.input }.on(device)?)
            }
            Values::Quantised(table) => Ok(quant::embedding(device, table, (ids, scale), out, ids.len())?),
            Values::Fp8(_) => unreachable!("tables are made plain"),
            Values::Waiting(_) | Values::WaitingFp8(_) => unreachable!("no expert is a table"),
        }
    }

    /// The weights of an expert, not uploaded yet.
    fn waiting(&self) -> Result<Vec<Weight>> {
        let weight = |part: &Part| match &part.values {
            Values::Waiting(weight) => Ok(weight.clone()),
            Values::WaitingFp8(matrix) => matrix.as_bf16(),
            Values::Dense(_) | Values::Quantised(_) | Values::Fp8(_) => {
                unreachable!("experts wait until all are there")
            }
        };
        self.parts.iter().map(weight).collect()
    }

    /// Of the workspace that products of up to `rows` rows need.
    pub fn workspace_bytes(&self, rows: usize, ty: ElementType) -> usize {
        let of_part = |part: &Part| match &part.values {
            Values::Dense(_) => 0,
            Values::Quantised(weight) => weight.workspace_bytes(rows, ty),
            Values::Fp8(weight) => weight.workspace_bytes(rows, ty),
            Values::Waiting(_) | Values::WaitingFp8(_) => unreachable!("experts are multiplied together"),
        };
        self.parts.iter().map(of_part).max().unwrap_or(0)
    }

    /// Outputs of the widest of several parts; 0 where it is in one piece.
    pub fn widest_part(&self) -> usize {
        if self.parts.len() == 1 { 0 } else { self.parts.iter().map(|part| part.rows).max().unwrap_or(0) }
    }
}

impl Part {
    fn multiply(&self, room: Room, (x, k): (Slice, usize), y: Slice, m: usize, add: bool) -> Result<()> {
        match &self.values {
            Values::Dense(w) => Ok(Gemm { x, w: w.all(), y, m, n: self.rows, k, add }.on(room.device)?),
            Values::Quantised(w) => Ok(QuantGemm { x, w, y, m, add }.on(room.device, room.workspace)?),
            Values::Fp8(w) => Ok(Fp8Gemm { x, w, y, m, add }.on(room.device, room.workspace)?),
            Values::Waiting(_) | Values::WaitingFp8(_) => unreachable!("experts are multiplied together"),
        }
    }
}

impl Place for OnGpu {
    type Matrix = Matrix;

    const KEEPS_FP8: bool = true;

    fn fp8(&mut self, matrices: &[Fp8Matrix], role: Role) -> Result<Option<Matrix>> {
        self.in_fp8(matrices, role)
    }

    fn matrix(&mut self, weights: &[&Weight]) -> Result<Matrix> {
        let input = weights[0].input();
        let out = weights.iter().map(|weight| weight.out()).sum();
        let kinds = weights.chunk_by(|a, b| self.quant_type(a) == self.quant_type(b));
        let parts: Vec<Part> = kinds.map(|weights| self.part(weights, input)).collect::<Result<_>>()?;
        Ok(Matrix { out, input, parts: parts.into() })
    }

    fn expert(&mut self, weights: &[&Weight]) -> Result<Matrix> {
        let part = |weight: &&Weight| Part { rows: weight.out(), values: Values::Waiting((*weight).clone()) };
        let (out, input) = (weights.iter().map(|weight| weight.out()).sum(), weights[0].input());
        Ok(Matrix { out, input, parts: weights.iter().map(part).collect() })
    }

    fn share(&self, part: NamedPart, weight: &Weight) -> Result<Weight> {
        self.cut.weight(part, weight)
    }

    fn share_vector(&self, part: NamedPart, vector: Tensor) -> Result<Tensor> {
        self.cut.vector(part, vector)
    }
}

impl OnGpu {
    /// Lays the matrices of all experts together, in their order.
    pub fn stack(&self, experts: &[&Matrix]) -> Result<Stack> {
        let (out, input) = (experts[0].out, experts[0].input);
        if let Some(values) = self.stack_fp8(experts)? {
            return Ok(Stack { out, input, values });
        }
        let weights = experts.iter().map(|expert| expert.waiting()).collect::<Result<Vec<_>>>()?;
        let mut types = weights.iter().flatten().map(|weight| self.quant_type(weight));
        let first = types.next().flatten();
        let values = match first.filter(|ty| types.all(|other| other == Some(*ty))) {
            Some(ty) => {
                let joined =
                    |weights: &Vec<Weight>| weights.iter().map(|weight| weight.bytes()).collect::<Vec<_>>().concat();
                let matrices: Vec<Vec<u8>> = weights.iter().map(joined).collect();
                let matrices: Vec<&[u8]> = matrices.iter().map(Vec::as_slice).collect();
                StackValues::Quantised(Box::new(QuantWeight::upload_all(&self.device, ty, &matrices, out, input)?))
            }
            None => {
                let values = self.device.alloc(experts.len() * out * input, self.ty)?;
                let mut at = 0;
                for weight in weights.into_iter().flatten() {
                    self.dense(&weight, &values, at)?;
                    at += weight.out() * input;
                }
                StackValues::Dense(values)
            }
        };
        Ok(Stack { out, input, values })
    }

    /// How a matrix stays quantised; `None` is plain, which all are when products are in F32.
    fn quant_type(&self, weight: &Weight) -> Option<QuantType> {
        if self.ty == ElementType::F32 { None } else { QuantType::from_ggml(weight.ty().id()) }
    }

    /// Matrices of one kind.
    fn part(&self, weights: &[&Weight], input: usize) -> Result<Part> {
        let rows = weights.iter().map(|weight| weight.out()).sum();
        let values = match (self.quant_type(weights[0]), weights) {
            (Some(ty), [weight]) => {
                Values::Quantised(Box::new(QuantWeight::upload(&self.device, ty, weight.bytes(), rows, input)?))
            }
            (Some(ty), weights) => {
                let blocks = weights.iter().map(|weight| weight.bytes()).collect::<Vec<_>>().concat();
                Values::Quantised(Box::new(QuantWeight::upload(&self.device, ty, &blocks, rows, input)?))
            }
            (None, weights) => {
                let values = self.device.alloc(rows * input, self.ty)?;
                let mut at = 0;
                for weight in weights {
                    self.dense(weight, &values, at)?;
                    at += weight.out() * input;
                }
                Values::Dense(values)
            }
        };
        Ok(Part { rows, values })
    }

    /// Writes all elements of `weight` to `values` from `at` on.
    fn dense(&self, weight: &Weight, values: &Buffer, at: usize) -> Result<()> {
        let input = weight.input();
        let rows_max = (PIECE_ELEMENTS / input).max(1);
        let mut row = vec![0.0; input];
        for first in (0..weight.out()).step_by(rows_max) {
            let rows = first..(first + rows_max).min(weight.out());
            let to = at + first * input;
            let mut each = |write: &mut dyn FnMut(&[f32])| {
                for index in rows.clone() {
                    weight.row_f32(index, &mut row);
                    write(&row);
                }
            };
            match (self.ty, weight.ty()) {
                (ElementType::F16, GgmlType::F16) | (ElementType::Bf16, GgmlType::Bf16) => {
                    let row_bytes = weight.row_bytes();
                    values.write_bytes(to, &weight.bytes()[rows.start * row_bytes..rows.end * row_bytes])?;
                }
                (ElementType::F32, _) => {
                    let mut piece = Vec::with_capacity(rows.len() * input);
                    each(&mut |row| piece.extend_from_slice(row));
                    values.write(to, &piece)?;
                }
                (ElementType::F16, _) => {
                    let mut piece = Vec::with_capacity(rows.len() * input);
                    each(&mut |row| piece.extend(row.iter().map(|value| f16::from_f32(*value))));
                    values.write(to, &piece)?;
                }
                _ => {
                    let mut piece = Vec::with_capacity(rows.len() * input);
                    each(&mut |row| piece.extend(row.iter().map(|value| bf16::from_f32(*value))));
                    values.write(to, &piece)?;
                }
            }
        }
        Ok(())
    }
}
