//! The operations that models here are made of: each checks its operands and knows the type of its result.
//!
//! Gathers and scatters clamp or drop nothing: whoever gives indices has made sure that they are inside.

use super::emit::{Function, TensorType, Value, fault};
use crate::element::ElementType;
use crate::error::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    Exponential,
    Logistic,
    Rsqrt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `a <= b`
    LessOrEqual,
    /// `a > b`
    Greater,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Max,
}

/// Dimensions of the two factors of a product that belong together; the others come out in order.
#[derive(Debug, Clone, Copy)]
pub struct Contraction<'a> {
    pub batch: (&'a [usize], &'a [usize]),
    pub summed: (usize, usize),
}

impl Function {
    /// A number, alone. Floats are written as their bits, so that none is rounded on the way.
    pub fn float(&mut self, value: f32) -> Result<Value> {
        let ty = TensorType::new(ElementType::F32, &[]);
        let text = format!("stablehlo.constant dense<0x{:08X}> : {ty}", value.to_bits());
        self.push(ty, text)
    }

    pub fn integer(&mut self, value: i32) -> Result<Value> {
        let ty = TensorType::new(ElementType::I32, &[]);
        let text = format!("stablehlo.constant dense<{value}> : {ty}");
        self.push(ty, text)
    }

    /// 0, 1, 2, ... `[count]`
    pub fn count_up(&mut self, count: usize) -> Result<Value> {
        let ty = TensorType::new(ElementType::I32, &[count]);
        let text = format!("stablehlo.iota dim = 0 : {ty}");
        self.push(ty, text)
    }

    pub fn unary(&mut self, operation: Unary, x: &Value) -> Result<Value> {
        if !x.ty.element.is_float() {
            return fault("unary", format!("{operation:?} of {}", x.ty));
        }
        let name = match operation {
            Unary::Exponential => "exponential",
            Unary::Logistic => "logistic",
            Unary::Rsqrt => "rsqrt",
        };
        self.push(x.ty.clone(), format!("stablehlo.{name} {x} : {}", x.ty))
    }

    pub fn binary(&mut self, operation: Binary, a: &Value, b: &Value) -> Result<Value> {
        if a.ty != b.ty || a.ty.element == ElementType::Bool {
            return fault("binary", format!("{operation:?} of {} and {}", a.ty, b.ty));
        }
        let name = match operation {
            Binary::Add => "add",
            Binary::Subtract => "subtract",
            Binary::Multiply => "multiply",
            Binary::Divide => "divide",
        };
        self.push(a.ty.clone(), format!("stablehlo.{name} {a}, {b} : {}", a.ty))
    }

    /// Compares integers.
    pub fn compare(&mut self, comparison: Comparison, a: &Value, b: &Value) -> Result<Value> {
        if a.ty != b.ty || a.ty.element != ElementType::I32 {
            return fault("compare", format!("{} with {}", a.ty, b.ty));
        }
        let direction = match comparison {
            Comparison::LessOrEqual => "LE",
            Comparison::Greater => "GT",
        };
        let ty = TensorType::new(ElementType::Bool, &a.ty.dims);
        let text = format!("stablehlo.compare {direction}, {a}, {b}, SIGNED : ({}, {}) -> {ty}", a.ty, b.ty);
        self.push(ty, text)
    }

    /// Where both hold.
    pub fn both(&mut self, a: &Value, b: &Value) -> Result<Value> {
        if a.ty != b.ty || a.ty.element != ElementType::Bool {
            return fault("and", format!("{} with {}", a.ty, b.ty));
        }
        self.push(a.ty.clone(), format!("stablehlo.and {a}, {b} : {}", a.ty))
    }

    pub fn select(&mut self, condition: &Value, yes: &Value, no: &Value) -> Result<Value> {
        let fits = condition.ty.element == ElementType::Bool && condition.ty.dims == yes.ty.dims && yes.ty == no.ty;
        if !fits {
            return fault("select", format!("{} between {} and {}", condition.ty, yes.ty, no.ty));
        }
        self.push(yes.ty.clone(), format!("stablehlo.select {condition}, {yes}, {no} : {}, {}", condition.ty, yes.ty))
    }

    /// Nothing where it has that type already.
    pub fn convert(&mut self, x: &Value, element: ElementType) -> Result<Value> {
        if x.ty.element == element {
            return Ok(x.clone());
        }
        let ty = TensorType::new(element, &x.ty.dims);
        let text = format!("stablehlo.convert {x} : ({}) -> {ty}", x.ty);
        self.push(ty, text)
    }

    pub fn reshape(&mut self, x: &Value, dims: &[usize]) -> Result<Value> {
        let ty = TensorType::new(x.ty.element, dims);
        if ty.elements() != x.ty.elements() {
            return fault("reshape", format!("{} to {ty}", x.ty));
        }
        if ty == x.ty {
            return Ok(x.clone());
        }
        let text = format!("stablehlo.reshape {x} : ({}) -> {ty}", x.ty);
        self.push(ty, text)
    }

    pub fn transpose(&mut self, x: &Value, order: &[usize]) -> Result<Value> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.ty.dims.len()) {
            return fault("transpose", format!("{} by {order:?}", x.ty));
        }
        let dims: Vec<usize> = order.iter().map(|dim| x.ty.dims[*dim]).collect();
        let ty = TensorType::new(x.ty.element, &dims);
        let text = format!("stablehlo.transpose {x}, dims = {order:?} : ({}) -> {ty}", x.ty);
        self.push(ty, text)
    }

    /// Repeats x over `dims`: its own dimensions are those of the result that `places` names, in ascending order.
    pub fn broadcast(&mut self, x: &Value, dims: &[usize], places: &[usize]) -> Result<Value> {
        let fits = |(own, place): (&usize, &usize)| dims.get(*place).is_some_and(|dim| dim == own || *own == 1);
        let is_ascending = places.windows(2).all(|pair| pair[0] < pair[1]);
        if places.len() != x.ty.dims.len() || !is_ascending || !x.ty.dims.iter().zip(places).all(fits) {
            return fault("broadcast", format!("{} to {dims:?} by {places:?}", x.ty));
        }
        if x.ty.dims == dims {
            return Ok(x.clone());
        }
        let ty = TensorType::new(x.ty.element, dims);
        let text = format!("stablehlo.broadcast_in_dim {x}, dims = {places:?} : ({}) -> {ty}", x.ty);
        self.push(ty, text)
    }

    /// `start..start + len` of the last dimension.
    pub fn columns(&mut self, x: &Value, start: usize, len: usize) -> Result<Value> {
        let Some((last, outer)) = x.ty.dims.split_last() else { return fault("slice", "of a number alone") };
        if len == 0 || start + len > *last {
            return fault("slice", format!("{len} columns from {start} on of {}", x.ty));
        }
        if len == *last {
            return Ok(x.clone());
        }
        let mut ranges: Vec<String> = outer.iter().map(|dim| format!("0:{dim}")).collect();
        ranges.push(format!("{start}:{}", start + len));
        let ty = TensorType::new(x.ty.element, &[outer, &[len]].concat());
        let text = format!("stablehlo.slice {x} [{}] : ({}) -> {ty}", ranges.join(", "), x.ty);
        self.push(ty, text)
    }

    /// Side by side in the last dimension.
    pub fn join_columns(&mut self, parts: &[&Value]) -> Result<Value> {
        let Some(first) = parts.first() else { return fault("concatenate", "of nothing") };
        let Some((_, outer)) = first.ty.dims.split_last() else { return fault("concatenate", "of numbers alone") };
        let mut columns = 0;
        for part in parts {
            match part.ty.dims.split_last() {
                Some((last, same)) if same == outer && part.ty.element == first.ty.element => columns += last,
                _ => return fault("concatenate", format!("{} beside {}", part.ty, first.ty)),
            }
        }
        let ty = TensorType::new(first.ty.element, &[outer, &[columns]].concat());
        let names: Vec<String> = parts.iter().map(|part| part.to_string()).collect();
        let types: Vec<String> = parts.iter().map(|part| part.ty.to_string()).collect();
        let (names, types) = (names.join(", "), types.join(", "));
        self.push(ty.clone(), format!("stablehlo.concatenate {names}, dim = {} : ({types}) -> {ty}", outer.len()))
    }

    /// The last dimension, reduced away. In F32 only: sums of BF16 lose too much.
    pub fn reduce_last(&mut self, reduction: Reduction, x: &Value) -> Result<Value> {
        let Some((_, outer)) = x.ty.dims.split_last() else { return fault("reduce", "of a number alone") };
        if x.ty.element != ElementType::F32 {
            return fault("reduce", format!("of {}", x.ty));
        }
        let (name, start) = match reduction {
            Reduction::Sum => ("add", 0.0),
            Reduction::Max => ("maximum", f32::NEG_INFINITY),
        };
        let start = self.float(start)?;
        let ty = TensorType::new(ElementType::F32, outer);
        let text = format!(
            "stablehlo.reduce({x} init: {start}) applies stablehlo.{name} across dimensions = [{}] : ({}, {}) -> {ty}",
            outer.len(),
            x.ty,
            start.ty
        );
        self.push(ty, text)
    }

    /// A product that is summed in F32, whatever its factors are.
    pub fn product(&mut self, a: &Value, b: &Value, contraction: Contraction) -> Result<Value> {
        let Contraction { batch: (batch_a, batch_b), summed: (sum_a, sum_b) } = contraction;
        let dim = |x: &Value, at: usize| x.ty.dims.get(at).copied();
        let fits = batch_a.len() == batch_b.len()
            && batch_a
                .iter()
                .zip(batch_b)
                .chain([(&sum_a, &sum_b)])
                .all(|(at_a, at_b)| dim(a, *at_a).is_some() && dim(a, *at_a) == dim(b, *at_b));
        let is_apart = !batch_a.contains(&sum_a) && !batch_b.contains(&sum_b);
        if !fits || !is_apart || a.ty.element != b.ty.element || !a.ty.element.is_float() {
            return fault("dot_general", format!("{} by {} with {contraction:?}", a.ty, b.ty));
        }
        let free = |x: &Value, batch: &[usize], sum: usize| {
            let dims = x.ty.dims.iter().enumerate();
            dims.filter(|(at, _)| !batch.contains(at) && *at != sum).map(|(_, dim)| *dim).collect::<Vec<_>>()
        };
        let shared: Vec<usize> = batch_a.iter().map(|at| a.ty.dims[*at]).collect();
        let dims = [shared, free(a, batch_a, sum_a), free(b, batch_b, sum_b)].concat();
        let ty = TensorType::new(ElementType::F32, &dims);
        let batching =
            if batch_a.is_empty() { String::new() } else { format!("batching_dims = {batch_a:?} x {batch_b:?}, ") };
        let text = format!(
            "stablehlo.dot_general {a}, {b}, {batching}contracting_dims = [{sum_a}] x [{sum_b}], \
             precision = [HIGHEST, HIGHEST] : ({}, {}) -> {ty}",
            a.ty, b.ty
        );
        self.push(ty, text)
    }

    /// Rows `indices` `[n]` of `table` `[rows, ...]`: `[n, ...]`.
    pub fn rows(&mut self, table: &Value, indices: &Value) -> Result<Value> {
        let (Some((_, row)), [count]) = (table.ty.dims.split_first(), &indices.ty.dims[..]) else {
            return fault("gather", format!("{} of {}", indices.ty, table.ty));
        };
        if indices.ty.element != ElementType::I32 {
            return fault("gather", format!("by {}", indices.ty));
        }
        let ty = TensorType::new(table.ty.element, &[&[*count], row].concat());
        let offsets: Vec<usize> = (1..ty.dims.len()).collect();
        let sizes: Vec<String> = std::iter::once(&1).chain(row).map(ToString::to_string).collect();
        let text = format!(
            "\"stablehlo.gather\"({table}, {indices}) {{dimension_numbers = #stablehlo.gather<offset_dims = {offsets:?}, \
             collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, \
             slice_sizes = array<i64: {}>, indices_are_sorted = false}} : ({}, {}) -> {ty}",
            sizes.join(", "),
            table.ty,
            indices.ty
        );
        self.push(ty, text)
    }

    /// `table` `[rows, ...]` with `new` `[n, ...]` in the rows `indices` `[n]`; of a row that is named twice one is taken.
    pub fn with_rows(&mut self, table: &Value, indices: &Value, new: &Value) -> Result<Value> {
        let fits = table.ty.dims.len() == new.ty.dims.len()
            && table.ty.dims.get(1..) == new.ty.dims.get(1..)
            && new.ty.dims.first() == indices.ty.dims.first()
            && (table.ty.element, indices.ty.element) == (new.ty.element, ElementType::I32)
            && indices.ty.dims.len() == 1;
        if !fits {
            return fault("scatter", format!("{} into {} by {}", new.ty, table.ty, indices.ty));
        }
        let window: Vec<usize> = (1..table.ty.dims.len()).collect();
        let number = TensorType::new(table.ty.element, &[]);
        let text = format!(
            "\"stablehlo.scatter\"({table}, {indices}, {new}) ({{\n    ^bb0(%old: {number}, %new: {number}):\n      \
             stablehlo.return %new : {number}\n    }}) {{scatter_dimension_numbers = #stablehlo.scatter<\
             update_window_dims = {window:?}, inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], \
             index_vector_dim = 1>, indices_are_sorted = false, unique_indices = false}} : ({}, {}, {}) -> {}",
            table.ty, indices.ty, new.ty, table.ty
        );
        self.push(table.ty.clone(), text)
    }
}
