//! How many devices a model wants: replicas with all of it, and ranks that share one replica out.

use crate::config::ModelLimits;
use crate::error::{Error, Result};

/// At least one of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cards {
    pub replicas: u32,
    /// Of each replica, on adjacent devices.
    pub ranks: u32,
}

impl Cards {
    pub const ONE: Self = Self { replicas: 1, ranks: 1 };

    pub fn of(limits: &ModelLimits) -> Self {
        Self { replicas: limits.data_parallel_size, ranks: limits.tensor_parallel_size }
    }

    /// Refuses more than one device.
    pub fn check_one(self, what: &str) -> Result<()> {
        if self.replicas > 1 {
            let message = format!(
                "--data-parallel-size: {what} has one replica; leave it out, or put replicas on GPUs of their own with \
                 --device cuda"
            );
            return Err(Error::invalid("--data-parallel-size", message));
        }
        self.check_whole(what)
    }

    /// Refuses to share a replica out.
    pub fn check_whole(self, what: &str) -> Result<()> {
        if self.ranks == 1 {
            return Ok(());
        }
        let message = format!(
            "--tensor-parallel-size: {what} is not shared out among devices; leave it out, or name GPUs with --device cuda"
        );
        Err(Error::invalid("--tensor-parallel-size", message))
    }
}

#[cfg(feature = "gpu")]
mod on_gpus {
    use std::fmt;

    use super::Cards;

    impl Cards {
        pub fn count(self) -> u32 {
            self.replicas.saturating_mul(self.ranks)
        }

        /// The flag that asks for most.
        pub fn flag(self) -> &'static str {
            if self.ranks > 1 { "--tensor-parallel-size" } else { "--data-parallel-size" }
        }
    }

    /// As flags.
    impl fmt::Display for Cards {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { replicas, ranks } = self;
            match (replicas, ranks) {
                (_, 1) => write!(f, "--data-parallel-size {replicas}"),
                (1, _) => write!(f, "--tensor-parallel-size {ranks}"),
                _ => write!(f, "--data-parallel-size {replicas} times --tensor-parallel-size {ranks}"),
            }
        }
    }
}
