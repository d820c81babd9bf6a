//! A function as it grows, line by line.

use std::fmt::{self, Write as _};

use crate::element::ElementType;
use crate::error::{Error, Result};

/// Dimensions, slowest first, and what stands in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    pub dims: Vec<usize>,
    pub element: ElementType,
}

/// The result of an operation, or a parameter. It belongs to the function that made it.
#[derive(Debug, Clone)]
pub struct Value {
    id: usize,
    pub ty: TensorType,
}

/// A function with its parameters and what it computes so far.
pub struct Function {
    name: String,
    parameters: Vec<TensorType>,
    body: String,
    values: usize,
}

/// A finished program.
#[derive(Debug, Clone)]
pub struct Program {
    /// A module with the one function `main`.
    pub text: String,
    pub parameters: Vec<TensorType>,
    pub outputs: Vec<TensorType>,
}

impl TensorType {
    pub fn new(element: ElementType, dims: &[usize]) -> Self {
        Self { dims: dims.to_vec(), element }
    }

    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.element.bytes()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("tensor<")?;
        for dim in &self.dims {
            write!(formatter, "{dim}x")?;
        }
        write!(formatter, "{}>", self.element)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "%{}", self.id)
    }
}

impl Function {
    /// `name` is for people: letters, digits and `_`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), parameters: Vec::new(), body: String::new(), values: 0 }
    }

    /// The next parameter. All of them come before the first operation.
    pub fn parameter(&mut self, ty: TensorType) -> Result<Value> {
        if !self.body.is_empty() {
            return fault("parameter", "comes behind an operation");
        }
        self.parameters.push(ty.clone());
        Ok(self.value(ty))
    }

    fn value(&mut self, ty: TensorType) -> Value {
        self.values += 1;
        Value { id: self.values - 1, ty }
    }

    /// Adds `%n = operation`.
    pub(super) fn push(&mut self, ty: TensorType, operation: impl fmt::Display) -> Result<Value> {
        if ty.dims.contains(&0) {
            return fault("result", format!("{ty} has no elements"));
        }
        let value = self.value(ty);
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "    {value} = {operation}");
        Ok(value)
    }

    /// Ends the function. Of each `(parameter, output)` in `donated` the output takes over the parameter's memory.
    pub fn finish(self, outputs: &[&Value], donated: &[(&Value, usize)]) -> Result<Program> {
        if outputs.is_empty() {
            return fault("return", "there are no outputs");
        }
        for (parameter, output) in donated {
            let taken = outputs.get(*output).map(|output| &output.ty);
            let is_twice = donated.iter().filter(|(other, to)| other.id == parameter.id || to == output).count() > 1;
            if parameter.id >= self.parameters.len() || taken != Some(&parameter.ty) || is_twice {
                return fault(
                    "donation",
                    format!("{parameter} of {} becomes output {output} of {taken:?}", parameter.ty),
                );
            }
        }
        let parameters = self.parameters.iter().enumerate().map(|(id, ty)| {
            match donated.iter().find(|(parameter, _)| parameter.id == id) {
                Some((_, output)) => format!("%{id}: {ty} {{tf.aliasing_output = {output} : i32}}"),
                None => format!("%{id}: {ty}"),
            }
        });
        let parameters: Vec<String> = parameters.collect();
        let types: Vec<String> = outputs.iter().map(|output| output.ty.to_string()).collect();
        let names: Vec<String> = outputs.iter().map(|output| output.to_string()).collect();
        let text = format!(
            "module @{} {{\n  func.func public @main({}) -> ({}) {{\n{}    return {} : {}\n  }}\n}}\n",
            self.name,
            parameters.join(",\n      "),
            types.join(", "),
            self.body,
            names.join(", "),
            types.join(", "),
        );
        let outputs = outputs.iter().map(|output| output.ty.clone()).collect();
        Ok(Program { text, parameters: self.parameters, outputs })
    }
}

/// An [`Error::Program`] of `operation`.
pub(super) fn fault<T>(operation: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::Program { operation, detail: detail.into() })
}
