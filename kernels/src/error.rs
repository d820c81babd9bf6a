//! The one error type of this package: what operation refused what, in one line.

/// Why an operation could not run. Nothing was computed or written when one of these is returned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sizes, contents or layout of the arguments do not fit together.
    #[error("{op}: {detail}")]
    Shape { op: &'static str, detail: String },
    /// The arguments are sound, but this device or element type has no kernel for them.
    #[error("{op}: {detail}")]
    Unsupported { op: &'static str, detail: String },
    /// The operating system does not hand out so much memory.
    #[error(
        "{bytes} bytes of memory for weights are not to be had: free memory or use a smaller model or quantisation"
    )]
    Memory { bytes: u64 },
    /// The tensor library failed, usually for want of memory.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result of every operation in this package.
pub type Result<T> = std::result::Result<T, Error>;

/// An [`Error::Shape`] of `op`.
pub(crate) fn shape(op: &'static str, detail: impl Into<String>) -> Error {
    Error::Shape { op, detail: detail.into() }
}
