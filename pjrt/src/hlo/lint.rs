//! Reads program text for what Neuron's compiler refuses, whoever wrote it.
//!
//! What is on the list: no loop or branch that depends on data, no reduction of several operands at once (a naive argmax), no
//! product of integers, no dynamic shape, no sort, no custom call, integers of 32 bits, floats that the hardware has.
//! That indices of gathers and scatters are inside cannot be read off a text: who runs the programs checks the indices.

use std::fmt;

/// Operations that may occur: those that models here are made of.
const KNOWN: [&str; 24] = [
    "add",
    "and",
    "broadcast_in_dim",
    "compare",
    "concatenate",
    "constant",
    "convert",
    "divide",
    "dot_general",
    "exponential",
    "gather",
    "iota",
    "logistic",
    "maximum",
    "multiply",
    "reduce",
    "reshape",
    "return",
    "rsqrt",
    "scatter",
    "select",
    "slice",
    "subtract",
    "transpose",
];

/// Operations whose refusal has a reason that is worth saying.
const REFUSED: [(&str, &str); 8] = [
    ("while", "a loop that depends on data"),
    ("if", "a branch that depends on data"),
    ("case", "a branch that depends on data"),
    ("sort", "a sort, which is limited there"),
    ("custom_call", "a call of something that only one compiler knows"),
    ("rng", "random numbers made on the device"),
    ("rng_bit_generator", "random numbers made on the device"),
    ("dynamic_reshape", "a shape that depends on data"),
];

const ELEMENTS: [&str; 4] = ["i1", "i32", "f32", "bf16"];

/// One line that the compiler would refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.what)
    }
}

/// Everything in `text` that is on the list, in order.
pub fn lint(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut found = |what: String| findings.push(Finding { line: index + 1, what });
        for operation in operations(line) {
            if let Some((_, why)) = REFUSED.iter().find(|(name, _)| *name == operation) {
                found(format!("stablehlo.{operation} is {why}"));
            } else if !KNOWN.contains(&operation) {
                found(format!("stablehlo.{operation} is not known to compile there"));
            }
            if operation == "reduce" && reduced(line) > 1 {
                found("stablehlo.reduce of several operands at once".to_owned());
            }
            if matches!(operation, "dot_general" | "dot" | "convolution") && multiplies_integers(line) {
                found(format!("stablehlo.{operation} of integers"));
            }
        }
        for element in elements(line) {
            if element.contains('?') {
                found("a dimension that depends on data".to_owned());
            } else if !ELEMENTS.contains(&element) {
                found(format!("elements of {element}; i32, f32, bf16 and i1 are what programs here have"));
            }
        }
    }
    findings
}

/// Names of operations: `stablehlo.NAME`, but for attributes, which begin with `#`.
fn operations(line: &str) -> impl Iterator<Item = &str> {
    const PREFIX: &str = "stablehlo.";
    line.match_indices(PREFIX).filter(|(at, _)| !line[..*at].ends_with('#')).map(|(at, _)| {
        let rest = &line[at + PREFIX.len()..];
        let end = rest.find(|symbol: char| !symbol.is_ascii_alphanumeric() && symbol != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// How many tensors a reduction reduces: one has one start value, or as an operation in quotes two operands.
fn reduced(line: &str) -> usize {
    let starts = line.matches("init:").count();
    if starts > 0 {
        return starts;
    }
    let operands = line.split_once("\"stablehlo.reduce\"(").and_then(|(_, rest)| rest.split_once(')'));
    operands.map_or(1, |(operands, _)| operands.split(',').count() / 2)
}

/// Whether the first operand's elements are integers.
fn multiplies_integers(line: &str) -> bool {
    elements(line).next().is_some_and(|element| element.starts_with('i') || element.starts_with("ui"))
}

/// What stands behind the dimensions of every `tensor<...>`; the whole where a dimension is dynamic.
fn elements(line: &str) -> impl Iterator<Item = &str> {
    line.split("tensor<").skip(1).filter_map(|rest| {
        let inside = &rest[..rest.find(['>', ',', ' ']).unwrap_or(rest.len())];
        if inside.contains('?') { Some(inside) } else { inside.rsplit('x').next() }
    })
}
