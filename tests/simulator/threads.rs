//! The real engine thread.
