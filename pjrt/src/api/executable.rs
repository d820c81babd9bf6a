//! A compiled program.

use std::ptr::null_mut;

use super::buffer::Buffer;
use super::client::Client;
use super::sys::{
    ExecutableDestroy, ExecutableNumOutputs, ExecuteOptions, Handle, LoadedExecutableDestroy, LoadedExecutableExecute,
    LoadedExecutableGetExecutable,
};
use crate::error::{Error, Result};

/// A program that one device can run.
pub struct Executable {
    client: Client,
    executable: Handle,
    outputs: usize,
}

// SAFETY: executables may be used from any thread, as the C API promises.
unsafe impl Send for Executable {}

impl Drop for Executable {
    fn drop(&mut self) {
        let mut args = LoadedExecutableDestroy::new();
        args.executable = self.executable;
        if let Err(why) = self.client.plugin().call(&mut args) {
            tracing::warn!("a pjrt executable could not be given back: {why}");
        }
    }
}

impl Executable {
    /// Takes over what the plugin handed out.
    pub(super) fn new(client: Client, loaded: Handle) -> Result<Self> {
        let mut executable = Self { client, executable: loaded, outputs: 0 };
        let plugin = executable.client.plugin();
        let mut described = LoadedExecutableGetExecutable::new();
        described.loaded = loaded;
        plugin.call(&mut described)?;
        let mut count = ExecutableNumOutputs::new();
        count.executable = described.executable;
        let counted = plugin.call(&mut count);
        let mut given_back = ExecutableDestroy::new();
        given_back.executable = described.executable;
        plugin.call(&mut given_back)?;
        counted?;
        executable.outputs = count.num_outputs;
        Ok(executable)
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Runs it on the device that it was compiled for, and waits until it has run. Arguments that the program donates are
    /// deleted afterwards, whatever came of it; their [`Buffer`]s can only be dropped then.
    pub fn execute(&self, arguments: &[&Buffer]) -> Result<Vec<Buffer>> {
        if arguments.iter().any(|buffer| !buffer.is_of(&self.client)) {
            return Err(Error::Refused("a buffer of one pjrt client was given to a program of another".to_owned()));
        }
        let handles: Vec<Handle> = arguments.iter().map(|buffer| buffer.handle()).collect();
        let mut outputs: Vec<Handle> = vec![null_mut(); self.outputs];
        let (argument_lists, output_lists) = ([handles.as_ptr()], [outputs.as_mut_ptr()]);
        // Always asked for: there are plugins that do not finish without.
        let mut events: [Handle; 1] = [null_mut()];
        let mut options = ExecuteOptions::new();
        let mut args = LoadedExecutableExecute::new();
        args.executable = self.executable;
        args.options = &raw mut options;
        args.argument_lists = argument_lists.as_ptr();
        args.num_devices = 1;
        args.num_args = handles.len();
        args.output_lists = output_lists.as_ptr();
        args.device_complete_events = events.as_mut_ptr();
        let plugin = self.client.plugin();
        plugin.call(&mut args)?;
        let outputs: Vec<Buffer> = outputs.into_iter().map(|output| Buffer::new(self.client.clone(), output)).collect();
        plugin.wait(events[0])?;
        Ok(outputs)
    }
}
