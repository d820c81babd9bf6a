//! Sconce serves open-weight models on your own hardware behind the OpenAI API.

pub mod api;
pub mod cli;
pub mod config;
pub mod device;
pub mod engine;
pub mod error;
pub mod hub;
pub mod launch;
pub mod pool;
pub mod request;
pub mod telemetry;
pub mod text;
