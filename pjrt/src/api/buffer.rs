//! A tensor in a device's memory.

use std::ptr::null_mut;

use super::client::Client;
use super::sys::{BufferDestroy, BufferDimensions, BufferIsDeleted, BufferToHostBuffer, Handle};
use crate::error::{Error, Result};

/// Its memory goes back when it is dropped, or when a program takes it as a donated argument.
pub struct Buffer {
    client: Client,
    buffer: Handle,
}

// SAFETY: buffers may be used from any thread, as the C API promises.
unsafe impl Send for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut args = BufferDestroy::new();
        args.buffer = self.buffer;
        if let Err(why) = self.client.plugin().call(&mut args) {
            tracing::warn!("a pjrt buffer could not be given back: {why}");
        }
    }
}

impl Buffer {
    /// Takes over what the plugin handed out.
    pub(super) fn new(client: Client, buffer: Handle) -> Self {
        Self { client, buffer }
    }

    pub(super) fn handle(&self) -> Handle {
        self.buffer
    }

    pub(super) fn is_of(&self, client: &Client) -> bool {
        self.client.is(client)
    }

    /// Whether its memory is gone, as after it was donated.
    pub fn is_deleted(&self) -> Result<bool> {
        let mut args = BufferIsDeleted::new();
        args.buffer = self.buffer;
        self.client.plugin().call(&mut args)?;
        Ok(args.is_deleted)
    }

    pub fn dims(&self) -> Result<Vec<usize>> {
        let mut args = BufferDimensions::new();
        args.buffer = self.buffer;
        self.client.plugin().call(&mut args)?;
        if args.num_dims == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: the plugin gave this start and length together, for as long as the buffer lives.
        let dims = unsafe { std::slice::from_raw_parts(args.dims, args.num_dims) };
        Ok(dims.iter().map(|dim| *dim as usize).collect())
    }

    /// Copies all of it to the host and waits for that: `bytes` becomes as long as the tensor.
    pub fn read(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let mut size = BufferToHostBuffer::new();
        size.source = self.buffer;
        size.destination = null_mut();
        self.client.plugin().call(&mut size)?;
        self.client.plugin().wait(size.event)?;
        bytes.resize(size.destination_size, 0);
        self.read_into(bytes)
    }

    /// As [`Self::read`], where the size is known.
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        let mut args = BufferToHostBuffer::new();
        args.source = self.buffer;
        args.destination = bytes.as_mut_ptr().cast();
        args.destination_size = bytes.len();
        self.client.plugin().call(&mut args)?;
        self.client.plugin().wait(args.event)
    }

    /// All values of a tensor of F32.
    pub fn read_f32(&self, values: &mut Vec<f32>) -> Result<()> {
        let mut bytes = Vec::new();
        self.read(&mut bytes)?;
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            let detail = format!("{} bytes are no whole number of f32", bytes.len());
            return Err(Error::Program { operation: "read", detail });
        }
        values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        Ok(())
    }
}
