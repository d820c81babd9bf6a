//! What hardware is here, and what fits on it.
