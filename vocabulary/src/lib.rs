//! The words that every room of Sconce shares: a checked request going in, events coming out, errors.
//!
//! It does no I/O and knows no wire format and no other room. It is a package of its own so that the rooms that need
//! nothing else of Sconce are, too.

#![forbid(unsafe_code)]

pub mod calendar;
pub mod error;
pub mod request;
