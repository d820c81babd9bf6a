//! All memory of a device handle set aside: what must last goes to host memory, the rest is given up, and both come back
//! when they are wanted again. How a model sleeps.
//!
//! Pieces come back at other addresses: the driver hands out what is free then. So slices and graphs that were made before
//! are void, and their owner makes them anew. Keeping addresses would take the driver's virtual memory calls, whose pages of
//! 2 MiB a small vector would fill alone; recording a few graphs again takes milliseconds, beside copies that take seconds.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::{Piece, Pinned};

/// A moment in the life of a device handle: what was allocated until then.
#[derive(Debug, Clone, Copy)]
pub struct Mark(pub(crate) u64);

/// What [`Device::set_aside`] took. Buffers whose content is lost with it stay empty for ever.
pub struct SetAside {
    pieces: Vec<(Arc<Piece>, Option<Copy>)>,
}

/// Of a piece, in host memory.
enum Copy {
    Pinned(Pinned),
    /// Where the system grants no more memory that stays in its place.
    Pageable(Vec<u8>),
}

impl Copy {
    fn of(device: &Device, piece: &Piece) -> Result<Self> {
        let (address, bytes) = (piece.address(), piece.bytes());
        if let Ok(pinned) = Pinned::copy_of(device, address, bytes) {
            return Ok(Self::Pinned(pinned));
        }
        let mut values = Vec::new();
        values.try_reserve_exact(bytes).map_err(|_| Error::HostMemory { bytes: bytes as u64 })?;
        values.resize(bytes, 0);
        device.copy_out(address, &mut values)?;
        Ok(Self::Pageable(values))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Pinned(pinned) => pinned.bytes(),
            Self::Pageable(values) => values,
        }
    }
}

impl SetAside {
    /// Host memory that it takes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().filter_map(|(_, copy)| copy.as_ref()).map(|copy| copy.bytes().len() as u64).sum()
    }
}

impl Device {
    /// What was allocated through this handle and its clones so far.
    pub fn mark(&self) -> Mark {
        Mark(self.pieces().next)
    }

    /// Gives back the memory of every buffer that was allocated through this handle and its clones. What was allocated
    /// before `kept` is copied to host memory; the rest is lost. Waits for what was issued. An error leaves all as it was.
    ///
    /// Until [`Self::bring_back`] nothing may be issued with these buffers, and with slices and graphs of before never again.
    pub fn set_aside(&self, kept: Mark) -> Result<SetAside> {
        self.synchronize()?;
        let pieces = self.pieces().live();
        let mut copied = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let lasts = piece.number < kept.0 && piece.bytes() > 0;
            let copy = if lasts { Some(Copy::of(self, &piece)?) } else { None };
            copied.push((piece, copy));
        }
        for (piece, _) in &copied {
            self.free(piece.move_to(None));
        }
        Ok(SetAside { pieces: copied })
    }

    /// Gives every buffer memory again: with what it held, or zeros where that was not kept. An error leaves all aside, to
    /// be tried again.
    pub fn bring_back(&self, aside: SetAside) -> std::result::Result<(), (SetAside, Error)> {
        let mut addresses = Vec::with_capacity(aside.pieces.len());
        let outcome = aside.pieces.iter().try_for_each(|(piece, copy)| {
            let address = self.allocate(piece.bytes())?;
            addresses.push(address);
            match copy {
                Some(copy) => self.send(address, copy.bytes().as_ptr(), piece.bytes()),
                None if piece.bytes() == 0 => Ok(()),
                None => self.fill_zero(address, piece.bytes()),
            }
        });
        // The copies' memory goes with `aside`, so all of them must have been read by then.
        match outcome.and_then(|()| self.synchronize()) {
            Ok(()) => {
                for ((piece, _), address) in aside.pieces.iter().zip(addresses) {
                    piece.move_to(Some(address));
                }
                Ok(())
            }
            Err(error) => {
                addresses.into_iter().for_each(|address| self.free(address));
                Err((aside, error))
            }
        }
    }
}
