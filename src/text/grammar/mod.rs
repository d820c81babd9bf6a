//! Constraints on an answer: JSON schemas, expressions, choices and grammars, compiled by `llguidance`.
//!
//! A [`Vocabulary`] is built once a model, a [`Grammar`] once a constraint, a [`Walk`] once a choice. Compiling takes
//! milliseconds to tenths of a second and recurses over what a client sent: the caller does it on a thread with a large
//! stack. Everything here is bounded by `limits`, and what is over a limit is refused by name before any token.

mod limits;
mod schema;
mod vocabulary;
mod walk;

use std::sync::Arc;

use llguidance::TokenParser;
use llguidance::api::TopLevelGrammar;

pub(in crate::text) use schema::embedded;
pub use vocabulary::Vocabulary;
pub use walk::{Begin, Walk};

use crate::request::Constraint;

/// A compiled constraint. Immutable; every walk starts from a copy.
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    parser: TokenParser,
}

impl Grammar {
    /// Compiles, or says in one line what is wrong with the constraint or which limit it passes.
    pub fn compile(vocabulary: &Arc<Vocabulary>, constraint: &Constraint) -> Result<Self, String> {
        let source = source(constraint)?;
        let parser = vocabulary.factory.create_parser(source).map_err(|error| plain(&error.to_string()))?;
        Ok(Self { vocabulary: Arc::clone(vocabulary), parser })
    }

    /// A walk of its own: it shares nothing that changes with other walks.
    pub fn walk(&self, begin: Begin) -> Walk {
        Walk::new(Arc::clone(&self.vocabulary), self.parser.deep_clone(), begin)
    }
}

fn source(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    match constraint {
        Constraint::JsonObject => schema::any_object(),
        Constraint::JsonSchema(schema) => schema::grammar(schema),
        Constraint::Regex(expression) => {
            limits::check_expression(expression)?;
            Ok(TopLevelGrammar::from_regex(expression))
        }
        Constraint::Choice(choices) => {
            limits::check_choices(choices)?;
            Ok(TopLevelGrammar::from_lark(choice_grammar(choices)))
        }
        Constraint::Grammar(lark) => {
            limits::check_grammar(lark)?;
            Ok(TopLevelGrammar::from_lark(lark.clone()))
        }
    }
}

/// Texts as JSON strings, which is how Lark writes them.
fn choice_grammar(choices: &[String]) -> String {
    let mut lark = "start: CHOICE\nCHOICE: ".to_owned();
    for (at, choice) in choices.iter().enumerate() {
        if at > 0 {
            lark.push_str(" | ");
        }
        lark.push_str(&serde_json::Value::from(choice.as_str()).to_string());
    }
    lark
}

/// The library's message as one line without its internals.
fn plain(message: &str) -> String {
    const BYTES_MAX: usize = 400;
    let end =
        ["<state>", "<non-verbose", "<backtrace>", "<grammar>"].iter().filter_map(|mark| message.find(mark)).min();
    let lines = message[..end.unwrap_or(message.len())].lines().map(str::trim).filter(|line| !line.is_empty());
    let mut line = lines.collect::<Vec<_>>().join("; ");
    if line.len() > BYTES_MAX {
        line.truncate(line.floor_char_boundary(BYTES_MAX));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
