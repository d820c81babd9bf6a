//! What the operator asked for: environment variables as documented constants, later the TOML file.

pub mod env;
