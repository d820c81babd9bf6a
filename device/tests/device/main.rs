//! Machines that are not here: trees of files as each of them has, and a library that answers as NVIDIA's does.

mod cpu;
mod findings;
mod neuron;
mod nvidia;
mod rates;
mod trees;
