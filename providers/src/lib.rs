//! Hosted providers behind Sconce's vocabulary: a checked request goes in, events come out, whoever answers.
//!
//! [`Provider`] is one model at one provider. `config.rs` says what it may be told, `openai/`, `azure.rs`, `anthropic/`,
//! `bedrock/`, `gemini/` and `mistral/` are the kinds, each with its own wire format; compatible servers are
//! `openai/` with more parameters. Everything else is shared: connections (`connect.rs`), an exchange and its patience (`transport.rs`), messages out of
//! bytes (`sse.rs`, `bedrock/frames.rs`), the order of events (`answer.rs`), what is refused before anything is sent
//! (`limits.rs`), what a trace is told of it (`exchange.rs`), and what failures mean (`failure.rs`).
//!
//! 1. Requests always stream. An answer ends in exactly one `Done` or `Failed`; usage is in `Done`.
//! 2. An error's kind says whether another member may be tried: `InvalidRequest` is wrong everywhere; everything else
//!    is about this provider.
//! 3. Bytes go only to the configured host. Redirects are not followed; proxies of the environment are not used.
//! 4. No credential is printed, logged or told in an error; what a provider echoes of one is cut out.
//! 5. What a provider cannot honour is refused by name before anything is sent.

#![forbid(unsafe_code)]

mod answer;
mod anthropic;
mod azure;
mod bedrock;
mod config;
mod connect;
mod counts;
mod exchange;
mod failure;
mod forms;
mod gemini;
mod limits;
mod mistral;
mod openai;
mod provider;
mod seal;
mod secret;
mod sse;
mod stream;
mod transport;
mod turns;
mod wish;

pub use bedrock::role::{RoleSource, RoleToken};
pub use config::{Credentials, Kind, ProviderConfig, SchemaBy, Timeouts};
pub use connect::HttpClient;
pub use exchange::{EXCHANGE, Exchange};
pub use provider::Provider;
pub use secret::Secret;
pub use stream::EventStream;

#[cfg(test)]
mod tests;
