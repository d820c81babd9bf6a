//! The one error type of this package.

/// Why something could not be done on a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device, or no driver.
    #[error("{0}")]
    NoDevice(String),
    /// The device has less free memory than that.
    #[error("{bytes} bytes of GPU memory are not to be had: {free} are free")]
    Memory { bytes: u64, free: u64 },
    /// The machine has less free memory than that.
    #[error("{bytes} bytes of the machine's memory are not to be had")]
    HostMemory { bytes: u64 },
    /// Arguments that do not fit together.
    #[error("{op}: {detail}")]
    Shape { op: &'static str, detail: String },
    /// The driver or a library of it failed.
    #[error("{what}: {detail}")]
    Driver { what: String, detail: String },
}

/// Result of everything in this package.
pub type Result<T> = std::result::Result<T, Error>;

/// An [`Error::Shape`] of `op`.
pub(crate) fn shape(op: &'static str, detail: impl Into<String>) -> Error {
    Error::Shape { op, detail: detail.into() }
}

/// An [`Error::Driver`].
pub(crate) fn driver(what: impl Into<String>, detail: impl Into<String>) -> Error {
    Error::Driver { what: what.into(), detail: detail.into() }
}
