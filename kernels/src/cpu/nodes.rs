//! Memory of machines whose processors are near to different parts of it (NUMA).
//!
//! Every thread takes chunks of every product, so no part of a weight belongs to one node. Pages that lie on all nodes in
//! turn let all memory channels work whichever threads read; without, a model lies on the node of the thread that
//! loaded it, and the others read it through the link between the nodes.

use std::io;

/// Bits of a mask word.
const WORD_BITS: usize = usize::BITS as usize;
/// Nodes that a mask has room for.
const NODES_MAX: usize = 1024;

const MPOL_DEFAULT: i32 = 0;
const MPOL_INTERLEAVE: i32 = 3;

/// What became of [`interleave`].
#[derive(Debug)]
pub enum Interleaved {
    /// New memory of this thread, and of threads that it starts from now on, lies on these nodes in turn.
    Over(usize),
    /// There are no two nodes.
    OneNode,
    /// Somebody chose a policy for this process (`numactl`): it stays.
    Chosen,
}

/// Places the memory that is touched first by this thread and by those it starts later on `nodes` in turn, page by page,
/// unless a policy was chosen from outside. The error is the system's refusal, as containers may give it.
pub fn interleave(nodes: &[usize]) -> io::Result<Interleaved> {
    if nodes.len() < 2 {
        return Ok(Interleaved::OneNode);
    }
    if policy()? != MPOL_DEFAULT {
        return Ok(Interleaved::Chosen);
    }
    set(nodes)?;
    Ok(Interleaved::Over(nodes.len()))
}

#[cfg(target_os = "linux")]
fn set(nodes: &[usize]) -> io::Result<()> {
    let mut mask = [0_usize; NODES_MAX / WORD_BITS];
    for node in nodes {
        let word = mask.get_mut(node / WORD_BITS).ok_or(io::ErrorKind::InvalidInput)?;
        *word |= 1 << (node % WORD_BITS);
    }
    // SAFETY: the mask has the bits that the call is told of; nothing else is touched. The kernel takes one bit off.
    let status = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_INTERLEAVE, mask.as_ptr(), NODES_MAX + 1) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The policy of this thread.
#[cfg(target_os = "linux")]
fn policy() -> io::Result<i32> {
    let mut policy = MPOL_DEFAULT;
    let none = std::ptr::null::<usize>();
    // SAFETY: the call writes the policy and nothing else: no mask is asked for, and no address.
    let status = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut policy, none, 0_usize, none, 0_usize) };
    if status == 0 { Ok(policy) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn set(_nodes: &[usize]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn policy() -> io::Result<i32> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn one_node_is_left_alone_and_a_chosen_policy_stays() {
        let outcome = std::thread::spawn(|| {
            assert!(matches!(interleave(&[]), Ok(Interleaved::OneNode)));
            assert!(matches!(interleave(&[0]), Ok(Interleaved::OneNode)));
            // Some sandboxes refuse these calls: then there is nothing to see.
            let Ok(before) = policy() else { return };
            assert_eq!(before, MPOL_DEFAULT);
            if set(&[0]).is_err() {
                return;
            }
            assert_eq!(policy().expect("it worked before"), MPOL_INTERLEAVE);
            let inherited = std::thread::spawn(|| policy().expect("it worked before")).join().expect("no panic");
            assert_eq!(inherited, MPOL_INTERLEAVE);
            assert!(matches!(interleave(&[0, 1]), Ok(Interleaved::Chosen)));
        });
        outcome.join().expect("no panic");
    }

    #[test]
    fn a_node_that_no_mask_holds_is_an_error() {
        assert!(set(&[NODES_MAX]).is_err());
    }
}
