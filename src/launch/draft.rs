//! The smaller model that guesses ahead of a model, checked against it before anything is loaded.

use sconce_models::{Source, Spec};

use super::text;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{LocalFiles, LocalModel};
use crate::text::Tokenizer;

/// A draft model that fits its model.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub source: Source,
    pub spec: Spec,
}

/// Where the weights of a model are; `None` for one that has none.
pub(super) fn source_of(files: &LocalFiles) -> Option<Source> {
    match files {
        LocalFiles::Gguf(path) => Some(Source::Gguf(path.clone())),
        LocalFiles::Folder(path) => Some(Source::Folder(path.clone())),
        LocalFiles::Dummy(name) => Some(Source::Dummy(name.clone())),
        LocalFiles::Sim => None,
    }
}

impl Draft {
    /// Reads what the draft model is, and refuses one whose guesses could mean other text than the model's tokens.
    pub fn read(model: &LocalModel, target: &Spec, tokenizer: &Tokenizer) -> Result<Self> {
        let refused = |why: String| {
            Err(Error::new(ErrorKind::InvalidRequest, format!("the draft model of --speculative-config: {why}")))
        };
        let Some(source) = source_of(&model.files) else {
            return refused("sim has no weights to guess with; name another or use method ngram".to_owned());
        };
        let spec = sconce_models::read_spec(&source)
            .map_err(|why| Error::new(ErrorKind::InvalidRequest, format!("the draft model: {why}")))?;
        if let Some(which) = [(&spec, "it"), (target, "the model")].iter().find(|(spec, _)| spec.state_bytes() > 0) {
            let why = "keeps a state a sequence, which cannot take guesses back; use method off";
            return refused(format!("{} {why}", which.1));
        }
        if spec.vocab != target.vocab {
            let (has, wanted) = (spec.vocab, target.vocab);
            return refused(format!("it has {has} logits and the model has {wanted}; take one of the same family"));
        }
        let parts = text::read(&source, spec.vocab, None)?;
        let most = tokenizer.vocab_size().max(parts.tokenizer.vocab_size()) as u32;
        if let Some(id) = (0..most).find(|id| parts.tokenizer.token_bytes(*id) != tokenizer.token_bytes(*id)) {
            let (draft, model) = (parts.tokenizer.token_text(id), tokenizer.token_text(id));
            return refused(format!(
                "its token {id} is {draft:?} and the model's {model:?}; take one of the same family"
            ));
        }
        Ok(Self { source, spec })
    }

    /// Refuses a context that is longer than the draft model's.
    pub fn check_context(&self, max_model_len: u32) -> Result<()> {
        let most = self.spec.context_max;
        if most >= max_model_len {
            return Ok(());
        }
        let why = format!("the draft model sees {most} tokens and the context is {max_model_len}");
        Err(Error::new(ErrorKind::InvalidRequest, format!("{why}; give --max-model-len {most}")))
    }
}
