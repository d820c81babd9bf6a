// performance-critical: no allocation per token, no lock, no log, no format
//! Choosing from logits: the largest, or the k largest.

use super::simd::{Isa, Kernel, LANES, Simd, dispatch};

/// Up to this k, the best so far are kept sorted; above, everything is selected at once.
const KEPT_MAX: usize = 128;

/// Index of the largest value: the lowest index wins a tie, NaN never wins; 0 when nothing can win.
pub fn argmax(isa: Isa, logits: &[f32]) -> u32 {
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    // SAFETY: the instruction set was checked.
    let largest = unsafe { dispatch(isa, Largest(logits)) };
    logits.iter().position(|value| *value == largest).unwrap_or(0) as u32
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (whole, rest) = self.0.as_chunks::<LANES>();
        // SAFETY: each chunk has 16 values; the caller promises the instructions.
        let vectors = unsafe {
            let mut largest = S::splat(f32::NEG_INFINITY);
            for chunk in whole {
                // The new values stand first: where they are NaN, the old ones stay.
                largest = S::max(S::load(chunk.as_ptr()), largest);
            }
            S::max_lane(largest)
        };
        rest.iter().fold(vectors, |largest, value| if *value > largest { *value } else { largest })
    }
}

/// The `k` largest values into `out`, best first, ties by lowest index; NaN never appears.
pub fn top_k(logits: &[f32], k: usize, out: &mut Vec<(u32, f32)>) {
    out.clear();
    let found = logits.iter().enumerate().filter(|(_, value)| !value.is_nan()).map(|(at, value)| (at as u32, *value));
    if k > KEPT_MAX {
        out.extend(found);
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        // Zero and minus zero are equal values, but not to the total order.
        out.iter_mut().for_each(|(_, value)| *value += 0.0);
        if k < out.len() {
            out.select_nth_unstable_by(k, order);
            out.truncate(k);
        }
        out.sort_unstable_by(order);
        out.iter_mut().for_each(|(at, value)| *value = logits[*at as usize]);
        return;
    }
    for (at, value) in found {
        if out.len() == k {
            match out.last() {
                Some((_, worst)) if value > *worst => drop(out.pop()),
                _ => continue,
            }
        }
        let place = out.partition_point(|(_, kept)| *kept >= value);
        out.insert(place, (at, value));
    }
}
