//! Operations: each checks that what a kernel indexes lies inside its memory, and launches it.

pub mod activate;
pub mod attention;
pub mod attention_latent;
pub mod columns;
pub mod convolution;
pub mod delta;
pub mod embed;
pub mod experts;
pub mod follow;
pub mod fp8;
pub mod gemm;
pub mod latent;
pub mod matvec;
pub mod norm;
pub mod own_input;
pub mod quant;
pub mod rates;
pub mod rope;
pub mod routes;
pub mod rows;
pub mod sample;
pub mod share;
