//! Measures any OpenAI-compatible server: load generation, statistics, comparisons, reports.
//!
//! Invariants: the load generator needs nothing of ours to be served against; arrival times never wait for answers; a
//! figure that the samples cannot bound is said to be unbounded; what makes a figure doubtful (a busy generator, chunks
//! of several tokens, answers of other lengths than asked) stands beside it.
//!
//! | room | what |
//! |---|---|
//! | [`http`], [`answer`] | an HTTP/1.1 client that knows when each byte came, and what the bytes say |
//! | [`load`] | arrivals, requests, one record each |
//! | [`dataset`] | what is asked |
//! | [`stats`], [`metrics`] | records become figures with intervals |
//! | [`report`] | tables, CSV, a page with plots, an index |
//! | [`commands`], [`args`] | the command line |

pub mod answer;
pub mod args;
pub mod commands;
pub mod dataset;
pub mod http;
pub mod load;
pub mod metrics;
mod progress;
pub mod random;
pub mod report;
pub mod stats;
