//! Products by cuBLASLt, with what its heuristic chose for a shape kept for the next time.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::result as driver_result;
use cudarc::driver::sys::CUstream;

use super::{Gemm, OP};
use crate::element::ElementType;
use crate::error::{Error, Result, driver, shape};
use crate::memory::Slice;

/// What Hopper's fastest products take; earlier GPUs need less.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Slices may begin anywhere that a vector may; without word of it the library counts on 256.
pub(super) const ALIGN_BYTES: u32 = 16;
const ALIGNMENTS: [sys::cublasLtMatmulPreferenceAttributes_t; 4] = [
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
];

/// The library's handle, its workspace, and a product's descriptors for every shape that was met.
pub(crate) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    known: HashMap<Key, Product>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    types: [ElementType; 2],
    add: bool,
}

#[derive(Clone, Copy)]
struct Product {
    description: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Products {
    pub fn new() -> Result<Self> {
        let handle = result::create_handle().map_err(|error| failed("cuBLASLt", error))?;
        // SAFETY: the library alone uses it, in the order of the stream.
        let workspace = unsafe { driver_result::malloc_sync(WORKSPACE_BYTES) };
        let workspace = workspace.map_err(|error| driver("workspace of cuBLASLt", format!("{error:?}")))?;
        Ok(Self { handle, workspace, known: HashMap::new() })
    }

    pub fn run(&mut self, gemm: &Gemm, stream: CUstream) -> Result<()> {
        let is_aligned = |slice: Slice| slice.address().is_multiple_of(u64::from(ALIGN_BYTES));
        if ![gemm.x, gemm.w, gemm.y].into_iter().all(is_aligned) {
            return Err(shape(OP, format!("x, w and y must begin at multiples of {ALIGN_BYTES} bytes")));
        }
        let key = Key { sizes: [gemm.m, gemm.n, gemm.k], types: [gemm.x.ty(), gemm.y.ty()], add: gemm.add };
        let product = match self.known.get(&key) {
            Some(product) => *product,
            None => {
                let product = self.choose(gemm)?;
                self.known.insert(key, product);
                product
            }
        };
        let (one, add) = (1.0_f32, if gemm.add { 1.0_f32 } else { 0.0 });
        let y = gemm.y.address() as *mut c_void;
        // SAFETY: `Gemm::on` checked the sizes; descriptors live until `close`.
        let run = unsafe {
            result::matmul(
                self.handle,
                product.description,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&add).cast(),
                gemm.w.address() as *const c_void,
                product.w,
                gemm.x.address() as *const c_void,
                product.x,
                y,
                product.y,
                y,
                product.y,
                &product.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        run.map_err(|error| failed(&shape_of(gemm), error))
    }

    /// The library counts columns first, so that it sees y^T = w x^T: w is its first matrix, transposed.
    fn choose(&self, gemm: &Gemm) -> Result<Product> {
        let (m, n, k) = (gemm.m as u64, gemm.n as u64, gemm.k as u64);
        let fail = |error| failed(&shape_of(gemm), error);
        let (input, output) = (type_of(gemm.x.ty())?, type_of(gemm.y.ty())?);
        let scale = sys::cudaDataType::CUDA_R_32F;
        let description = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, scale);
        let description = description.map_err(fail)?;
        // cublasOperation_t's CUBLAS_OP_T, which these bindings lack.
        let transposed = 1_i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the attribute is an operation of that size.
        let set = unsafe {
            let value = std::ptr::from_ref(&transposed).cast();
            result::set_matmul_desc_attribute(description, attribute, value, size_of_val(&transposed))
        };
        set.map_err(fail)?;
        let w = result::create_matrix_layout(input, k, n, k as i64).map_err(fail)?;
        let x = result::create_matrix_layout(input, k, m, k as i64).map_err(fail)?;
        let y = result::create_matrix_layout(output, n, m, n as i64).map_err(fail)?;
        let wishes = result::create_matmul_pref().map_err(fail)?;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the attribute is a u64; all descriptors were just made.
        let chosen = unsafe {
            let bytes = WORKSPACE_BYTES as u64;
            let value = std::ptr::from_ref(&bytes).cast();
            result::set_matmul_pref_attribute(wishes, attribute, value, size_of_val(&bytes)).map_err(fail)?;
            for attribute in ALIGNMENTS {
                let value = std::ptr::from_ref(&ALIGN_BYTES).cast();
                result::set_matmul_pref_attribute(wishes, attribute, value, size_of_val(&ALIGN_BYTES)).map_err(fail)?;
            }
            let chosen = result::get_matmul_algo_heuristic(self.handle, description, w, x, y, y, wishes);
            let _ = result::destroy_matmul_pref(wishes);
            chosen
        };
        Ok(Product { description, w, x, y, algorithm: chosen.map_err(fail)?.algo })
    }

    /// Gives everything back. Nothing of it may be under way.
    pub fn close(&mut self) {
        // SAFETY: the descriptors and the handle were made here and are used nowhere else.
        unsafe {
            for product in self.known.drain().map(|(_, product)| product) {
                let _ = result::destroy_matmul_desc(product.description);
                for layout in [product.w, product.x, product.y] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_handle(self.handle);
            let _ = driver_result::free_sync(self.workspace);
        }
    }
}

fn type_of(ty: ElementType) -> Result<sys::cudaDataType> {
    match ty {
        ElementType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        ElementType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        ElementType::Bf16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => Err(driver(OP, format!("no product of {}", other.name()))),
    }
}

fn shape_of(gemm: &Gemm) -> String {
    format!("{OP} [{}, {}] x [{}, {}] of {}", gemm.m, gemm.k, gemm.n, gemm.k, gemm.x.ty().name())
}

fn failed(what: &str, error: CublasError) -> Error {
    driver(what, format!("{:?}", error.0))
}
