//! Results for readers: tables for a terminal, CSV, a page with plots, an index of committed runs.

pub mod csv;
mod engine;
pub mod html;
pub mod index;
pub mod regression;
pub mod table;
