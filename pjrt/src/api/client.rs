//! A client of a plugin, and the devices that it can use.

use std::ffi::c_int;
use std::ptr::null;
use std::sync::Arc;

use super::buffer::Buffer;
use super::executable::Executable;
use super::plugin::{Plugin, text};
use super::sys::{
    ClientAddressableDevices, ClientBufferFromHostBuffer, ClientCompile, ClientCreate, ClientDestroy,
    ClientPlatformName, ClientPlatformVersion, DeviceDescriptionKind, DeviceGetDescription, Handle,
    IMMUTABLE_ONLY_DURING_CALL, Program, TYPE_BF16, TYPE_F32, TYPE_PRED, TYPE_S32,
};
use crate::element::ElementType;
use crate::error::{Error, Result};

/// One replica, one partition, and nothing else said: field 3 of `CompileOptionsProto` is `ExecutableBuildOptions`, whose
/// fields 4 and 5 are the two counts.
const COMPILE_OPTIONS: [u8; 6] = [0x1a, 0x04, 0x20, 0x01, 0x28, 0x01];

/// A client: what compiles, holds memory and executes. Clones are the same client.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    plugin: Plugin,
    client: Handle,
}

/// A device that a client can use; it lives as long as the client.
#[derive(Clone)]
pub struct Device {
    client: Client,
    device: Handle,
}

// SAFETY: clients may be used from any thread, as the C API promises.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}
// SAFETY: a device is its client's, of which a clone is held.
unsafe impl Send for Device {}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut args = ClientDestroy::new();
        args.client = self.client;
        if let Err(why) = self.plugin.call(&mut args) {
            tracing::warn!("a pjrt client could not be ended: {why}");
        }
    }
}

impl Client {
    /// A client with the plugin's own defaults.
    pub fn new(plugin: Plugin) -> Result<Self> {
        let mut args = ClientCreate::new();
        plugin.call(&mut args)?;
        Ok(Self { inner: Arc::new(Inner { plugin, client: args.client }) })
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(super) fn plugin(&self) -> Plugin {
        self.inner.plugin
    }

    /// `cpu`, `neuron`, ...
    pub fn platform(&self) -> Result<String> {
        let mut args = ClientPlatformName::new();
        args.client = self.inner.client;
        self.plugin().call(&mut args)?;
        Ok(text(args.name, args.name_size))
    }

    pub fn platform_version(&self) -> Result<String> {
        let mut args = ClientPlatformVersion::new();
        args.client = self.inner.client;
        self.plugin().call(&mut args)?;
        Ok(text(args.version, args.version_size))
    }

    /// The first device that this process may use.
    pub fn device(&self) -> Result<Device> {
        let mut args = ClientAddressableDevices::new();
        args.client = self.inner.client;
        self.plugin().call(&mut args)?;
        if args.num_devices == 0 || args.devices.is_null() {
            return Err(Error::Refused("the pjrt plugin has no device that this process can use".to_owned()));
        }
        // SAFETY: the list has at least one entry and lives as long as the client.
        let device = unsafe { *args.devices };
        Ok(Device { client: self.clone(), device })
    }

    /// Compiles a program in StableHLO text.
    pub fn compile(&self, program: &str) -> Result<Executable> {
        const FORMAT: &str = "mlir";
        let mut code = Program::new();
        (code.code, code.code_size) = (program.as_ptr().cast(), program.len());
        (code.format, code.format_size) = (FORMAT.as_ptr().cast(), FORMAT.len());
        let mut args = ClientCompile::new();
        args.client = self.inner.client;
        args.program = &raw const code;
        (args.compile_options, args.compile_options_size) = (COMPILE_OPTIONS.as_ptr().cast(), COMPILE_OPTIONS.len());
        self.plugin().call(&mut args)?;
        Executable::new(self.clone(), args.executable)
    }
}

impl Device {
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it is, in the plugin's words.
    pub fn kind(&self) -> Result<String> {
        let mut args = DeviceGetDescription::new();
        args.device = self.device;
        self.client.plugin().call(&mut args)?;
        let mut kind = DeviceDescriptionKind::new();
        kind.description = args.description;
        self.client.plugin().call(&mut kind)?;
        Ok(text(kind.kind, kind.kind_size))
    }

    /// Copies a tensor to the device: `bytes` in order, the last dimension fastest.
    pub fn upload(&self, element: ElementType, dims: &[usize], bytes: &[u8]) -> Result<Buffer> {
        let elements = dims.iter().try_fold(element.bytes(), |all, dim| all.checked_mul(*dim));
        if elements != Some(bytes.len()) {
            let detail = format!("{} bytes for a tensor of {dims:?} of {element}", bytes.len());
            return Err(Error::Program { operation: "upload", detail });
        }
        let dims: Vec<i64> = dims.iter().map(|dim| *dim as i64).collect();
        let mut args = ClientBufferFromHostBuffer::new();
        args.client = self.client.inner.client;
        args.data = bytes.as_ptr().cast();
        args.element_type = element_type(element);
        (args.dims, args.num_dims) = (dims.as_ptr(), dims.len());
        args.byte_strides = null();
        args.host_buffer_semantics = IMMUTABLE_ONLY_DURING_CALL;
        args.device = self.device;
        self.client.plugin().call(&mut args)?;
        let buffer = Buffer::new(self.client.clone(), args.buffer);
        // The copy is made when the call returns; the event is there to be given back.
        self.client.plugin().wait(args.done_with_host_buffer)?;
        Ok(buffer)
    }
}

fn element_type(element: ElementType) -> c_int {
    match element {
        ElementType::Bool => TYPE_PRED,
        ElementType::I32 => TYPE_S32,
        ElementType::F32 => TYPE_F32,
        ElementType::Bf16 => TYPE_BF16,
    }
}
