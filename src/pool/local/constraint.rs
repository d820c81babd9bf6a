//! Constraints on answers: compiled away from everything else, remembered, and handed to the engine as filters.
//!
//! Compiling is work that a client sends: it has threads of its own at a low priority, few at once, with a large stack
//! and a time limit, so that a hostile schema costs nobody but its sender. Whatever is wrong with a constraint is told
//! before a token is generated, naming the client's field.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::Loaded;
use crate::engine::{NextTokens, TokenFilter};
use crate::error::{Error, ErrorKind, Result};
use crate::request::{Constraint, Params, Request};
use crate::text::grammar::{Begin, Grammar, Vocabulary, Walk};

/// How long a request waits for its constraint to be compiled, its turn included.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long compiling may take where nobody else is before it.
const COMPILE_STACK_BYTES: usize = 512 << 20;
/// Compiled constraints that are kept for the next request that has the same.
const REMEMBERED_MAX: usize = 32;

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub constraint: Constraint,
    pub begin: Begin,
    /// The client's name of the field, for messages.
    pub param: &'static str,
}

impl Wanted {
    /// What the request itself asks for, if it does.
    pub fn of(params: &Params, begin: Begin) -> Option<Self> {
        let constraint = params.constraint.clone()?;
        let param = params.constraint_param.unwrap_or(match constraint {
            Constraint::JsonObject => "response_format",
            Constraint::JsonSchema(_) => "response_format.json_schema.schema",
            Constraint::Regex(_) => "structured_outputs.regex",
            Constraint::Choice(_) => "structured_outputs.choice",
            Constraint::Grammar(_) => "structured_outputs.grammar",
        });
        Some(Self { constraint, begin, param })
    }
}

/// A request's constraint, ready for any number of choices.
pub struct Ready {
    grammar: Arc<Grammar>,
    begin: Begin,
    holds_end: bool,
}

impl Ready {
    /// The filter of one choice.
    pub fn filter(&self) -> Box<dyn TokenFilter> {
        Box::new(Filter(self.grammar.walk(self.begin.clone()).holding_end(self.holds_end)))
    }
}

struct Filter(Walk);

impl TokenFilter for Filter {
    fn advance(&mut self, tokens: &[u32], next: &mut NextTokens) -> Result<(), String> {
        self.0.take(tokens)?;
        self.0.next(&mut next.allowed, &mut next.forced)
    }
}

/// Compiles the constraints of one model.
pub struct Compiler {
    /// Turns: compiling takes a core each.
    turns: Arc<Semaphore>,
    shared: Arc<Shared>,
}

struct Shared {
    vocabulary: OnceLock<Result<Arc<Vocabulary>>>,
    /// The latest last.
    remembered: Mutex<VecDeque<(Constraint, Arc<Grammar>)>>,
}

impl Default for Compiler {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            turns: Arc::new(Semaphore::new((cores / 4).max(1))),
            shared: Arc::new(Shared { vocabulary: OnceLock::new(), remembered: Mutex::default() }),
        }
    }
}

impl Compiler {
    /// Compiles what is wanted, or takes it from the remembered ones.
    pub async fn ready(&self, loaded: &Arc<Loaded>, wanted: Wanted, request: &Request) -> Result<Ready> {
        let Wanted { constraint, begin, param } = wanted;
        let grammar = match self.shared.remembered(&constraint) {
            Some(grammar) => grammar,
            None => self.compiled(loaded, constraint, param).await?,
        };
        Ok(Ready { grammar, begin, holds_end: request.params.ignore_eos })
    }

    async fn compiled(
        &self,
        loaded: &Arc<Loaded>,
        constraint: Constraint,
        param: &'static str,
    ) -> Result<Arc<Grammar>> {
        let (answer, outcome) = oneshot::channel();
        let (turns, shared, loaded) = (Arc::clone(&self.turns), Arc::clone(&self.shared), Arc::clone(loaded));
        let work = async move {
            let turn = turns.acquire_owned().await;
            let turn = turn.map_err(|_| Error::internal("the turns to compile constraints were closed"))?;
            let thread = std::thread::Builder::new().name("constraint".to_owned()).stack_size(COMPILE_STACK_BYTES);
            thread
                .spawn(move || {
                    // Held to the end, also when the client has gone: what still runs still takes its core.
                    let _turn = turn;
                    lower_priority();
                    // The receiver may have given up.
                    let _ = answer.send(shared.compile(&loaded, constraint, param));
                })
                .map_err(|why| Error::internal(format!("cannot start a thread for a constraint: {why}")))?;
            outcome.await.map_err(|_| Error::internal("compiling the constraint failed; simplify it"))?
        };
        tokio::time::timeout(COMPILE_TIME_MAX, work).await.map_err(|_| {
            let seconds = COMPILE_TIME_MAX.as_secs();
            let message =
                format!("{param} was not compiled within {seconds} s; simplify it, or retry when less is going on");
            Error::new(ErrorKind::Timeout, message).with_param(param)
        })?
    }
}

impl Shared {
    fn remembered(&self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let at = remembered.iter().position(|(known, _)| known == constraint)?;
        let entry = remembered.remove(at)?;
        let grammar = Arc::clone(&entry.1);
        remembered.push_back(entry);
        Some(grammar)
    }

    fn compile(&self, loaded: &Loaded, constraint: Constraint, param: &'static str) -> Result<Arc<Grammar>> {
        // Whoever waited for its turn may have waited for the same constraint.
        if let Some(grammar) = self.remembered(&constraint) {
            return Ok(grammar);
        }
        let vocabulary = self.vocabulary.get_or_init(|| {
            Vocabulary::new(Arc::clone(&loaded.tokenizer), &loaded.eos_ids, loaded.vocab_size).map(Arc::new)
        });
        let vocabulary = vocabulary.as_ref().map_err(|why| Error { param: Some(param.to_owned()), ..why.clone() })?;
        let grammar = Grammar::compile(vocabulary, &constraint)
            .map_err(|why| Error::invalid(param, format!("{param}: {why}")).with_code("invalid_constraint"))?;
        let grammar = Arc::new(grammar);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back((constraint, Arc::clone(&grammar)));
        Ok(grammar)
    }
}

/// The engine and the streams go first. On Linux this is of the calling thread alone; elsewhere it would be of the
/// whole process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, 10);
}
