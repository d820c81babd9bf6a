//! From a model reference to files on this machine.
