//! Text that arrives in pieces equals text that arrives at once.
