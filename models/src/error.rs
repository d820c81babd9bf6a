//! What can go wrong with a model file, a spec or a step.
//!
//! Every message is one line: it names the file, tensor, field or byte count, and says what to do next. Text that comes
//! out of a file passes through [`shown`], so that no file can smuggle line breaks or pages of noise into a log.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot {action}: {source}; {next}", file.display())]
    Io { file: PathBuf, action: &'static str, source: std::io::Error, next: &'static str },

    /// The bytes contradict the format: cut short, altered, or never that format.
    #[error("{}: not a usable {format} file: {detail}; download or convert it again", file.display())]
    Damaged { file: PathBuf, format: &'static str, detail: String },

    #[error("{}: {detail}; check the file against the model's published config", file.display())]
    Config { file: PathBuf, detail: String },

    #[error("{}: architecture {found} is not supported; use a model of one of: {supported}", file.display())]
    Architecture { file: PathBuf, found: String, supported: String },

    #[error("{}: {feature} is not supported; {next}", file.display())]
    Unsupported { file: PathBuf, feature: String, next: &'static str },

    /// So many GPUs cannot have a part of the model each.
    #[error("{}: --tensor-parallel-size {ranks} is not possible: {why}; {next}", file.display())]
    Share { file: PathBuf, ranks: usize, why: String, next: String },

    #[error("{}: tensor {tensor} is missing; the file is incomplete or of another model, download it again",
        file.display())]
    MissingTensor { file: PathBuf, tensor: String },

    #[error("{}: tensor {tensor} has shape {found:?}, the config asks for {expected:?}; the weights and the config \
             are of different models", file.display())]
    TensorShape { file: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },

    #[error("{}: tensor {tensor} is stored as {format}, which is not supported; use a file in {supported}",
        file.display())]
    TensorFormat { file: PathBuf, tensor: String, format: String, supported: &'static str },

    #[error("dummy model {name}: {detail}; known shapes: {known}")]
    Dummy { name: String, detail: String, known: String },

    #[error(
        "the kv cache of {blocks} blocks of {block_size} tokens needs {bytes} bytes, which this machine does not \
             give; lower --max-model-len or the number of kv blocks"
    )]
    KvMemory { blocks: u32, block_size: u32, bytes: u64 },

    #[error("{slots} states of sequences need {bytes} bytes, which this machine does not give; lower --max-num-seqs")]
    StateMemory { slots: u32, bytes: u64 },

    #[error("the weights need {bytes} bytes of memory, which this machine does not give; use a smaller model")]
    WeightMemory { bytes: u64 },

    /// A batch that breaks its own contract: a bug of the caller, reported instead of computed.
    #[error("batch refused: {0}; this is a bug in the caller, please report it")]
    Batch(String),

    #[error(transparent)]
    Kernel(#[from] sconce_kernels::Error),

    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Cuda(#[from] sconce_cuda::Error),

    #[error("tensor library: {0}; please report this")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// Whether more free memory on the GPU would cure it.
    #[cfg(feature = "gpu")]
    pub fn lacks_device_memory(&self) -> bool {
        matches!(self, Self::Cuda(sconce_cuda::Error::Memory { .. }))
    }
}

/// Text from a file, fit for one line of a message: escaped, and cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut line: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn text_from_files_stays_on_one_short_line() {
        for (text, expected) in [
            ("blk.0.attn_q.weight", "blk.0.attn_q.weight".to_owned()),
            ("a\nb\u{1b}[31m", "a\\nb\\u{1b}[31m".to_owned()),
            (&"x".repeat(200), format!("{}...", "x".repeat(80))),
        ] {
            assert_eq!(shown(text), expected);
        }
    }
}
