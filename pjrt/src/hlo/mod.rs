//! StableHLO text, written by an emitter that checks shapes as it writes, and linted for what Neuron's compiler refuses.
//!
//! Invariants: a program that came out of [`Function::finish`] has the types that it says, and its donated parameters the
//! types of the outputs that take their memory. Nothing here knows of models.

mod emit;
mod lint;
mod operations;
#[cfg(test)]
mod tests;

pub use emit::{Function, Program, TensorType, Value};
pub use lint::{Finding, lint};
pub use operations::{Binary, Comparison, Contraction, Reduction, Unary};
