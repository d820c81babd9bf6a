//! What is asked: synthetic prompts of exact length, shared prefixes, conversations, and files of either.
//!
//! Everything is made before the load starts, from one seed: the same flags make the same requests on every machine
//! whose server tokenises alike.

mod files;
mod synthetic;
mod tokens;

use serde_json::Value;

pub use files::{replay, sharegpt};
pub use synthetic::{Lengths, Synthetic};
#[cfg(test)]
pub use tokens::tests::serve_content;
pub use tokens::{Counter, TEXT_FIELDS, words};

use crate::load::Turn;

/// Conversations, their arrival times where the data set has them, and how token counts were come by.
#[derive(Debug, Default, PartialEq)]
pub struct Dataset {
    pub conversations: Vec<Vec<Turn>>,
    /// Seconds after the start, one a conversation.
    pub offsets_s: Option<Vec<f64>>,
    /// For the report: what was asked for, and what could not be had exactly.
    pub notes: Vec<String>,
}

/// A number under any of these names.
fn number(value: &Value, names: &[&str]) -> Option<f64> {
    names.iter().find_map(|name| value.get(name)?.as_f64())
}

fn user(text: String, input_tokens: Option<u32>, output_tokens: Option<u32>) -> Turn {
    Turn { messages: vec![("user".to_owned(), text)], input_tokens, output_tokens, think_s: 0.0 }
}
