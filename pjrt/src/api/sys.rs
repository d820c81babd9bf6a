//! The declarations of the C API that are used here, as its header has them since version 0.33.
//!
//! The header only ever appends: to the table of calls and to each call's arguments. So what is declared here is a prefix of
//! what newer plugins have, and zeros stand for whatever was appended.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

/// Something of the plugin's, known by its address only.
pub(super) type Handle = *mut c_void;

/// A call: one pointer to its arguments, back comes an error or null.
pub(super) type Call = unsafe extern "C" fn(*mut c_void) -> Handle;

/// Calls from the start of the table that a plugin must have: up to `PJRT_Buffer_ReadyEvent`.
pub(super) const CALLS: usize = 73;

pub(super) const MAJOR: c_int = 0;
/// Older tables have other orders.
pub(super) const MINOR_LEAST: c_int = 33;

/// The head of the table, which says how far it goes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub struct_size: usize,
    pub extension_start: Handle,
    pub version_struct_size: usize,
    pub version_extension_start: Handle,
    pub major: c_int,
    pub minor: c_int,
}

/// What `GetPjrtApi` points to.
#[repr(C)]
pub(super) struct Api {
    pub head: Head,
    pub calls: [Option<Call>; CALLS],
}

/// Arguments of one call.
///
/// # Safety
/// `CALL` is the place in the table of the call that takes exactly these arguments, and they begin with their size.
pub(super) unsafe trait Arguments {
    const CALL: usize;
    const NAME: &'static str;
}

/// A structure that begins with its size and a chain of extensions, which is empty here.
macro_rules! structure {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        pub(super) struct $name {
            pub struct_size: usize,
            pub extension_start: Handle,
            $(pub $field: $ty,)*
        }

        impl $name {
            /// Up to the end of the last field, as the header counts.
            const BYTES: usize = {
                let end = offset_of!(Self, extension_start) + size_of::<Handle>();
                $(let end = { let _ = end; offset_of!(Self, $field) + size_of::<$ty>() };)*
                end
            };

            pub fn new() -> Self {
                // SAFETY: every field is an integer, a bool, a pointer or an optional function, for which zeros are a value.
                let mut zeros: Self = unsafe { std::mem::zeroed() };
                zeros.struct_size = Self::BYTES;
                zeros
            }
        }
    };
}

macro_rules! arguments {
    ($($call:literal $label:literal $name:ident { $($field:ident: $ty:ty,)* })*) => {$(
        structure!($name { $($field: $ty,)* });

        // SAFETY: place and fields are those of the header.
        unsafe impl Arguments for $name {
            const CALL: usize = $call;
            const NAME: &'static str = $label;
        }

        const _: () = assert!($call < CALLS, "the table is long enough for every call");
    )*
        /// Every call that is made, by its place.
        pub(super) const MADE: &[(usize, &str)] = &[$(($call, $label)),*];
    };
}

arguments! {
    0 "PJRT_Error_Destroy" ErrorDestroy { error: Handle, }
    1 "PJRT_Error_Message" ErrorMessage { error: Handle, message: *const c_char, message_size: usize, }
    3 "PJRT_Plugin_Initialize" PluginInitialize {}
    5 "PJRT_Event_Destroy" EventDestroy { event: Handle, }
    8 "PJRT_Event_Await" EventAwait { event: Handle, }
    10 "PJRT_Client_Create" ClientCreate {
        create_options: *const c_void,
        num_options: usize,
        kv_get_callback: Option<Call>,
        kv_get_user_arg: Handle,
        kv_put_callback: Option<Call>,
        kv_put_user_arg: Handle,
        client: Handle,
        // Newer plugins have another callback behind the answer.
        kv_try_get_callback: Option<Call>,
        kv_try_get_user_arg: Handle,
    }
    11 "PJRT_Client_Destroy" ClientDestroy { client: Handle, }
    12 "PJRT_Client_PlatformName" ClientPlatformName { client: Handle, name: *const c_char, name_size: usize, }
    14 "PJRT_Client_PlatformVersion" ClientPlatformVersion { client: Handle, version: *const c_char, version_size: usize, }
    16 "PJRT_Client_AddressableDevices" ClientAddressableDevices {
        client: Handle,
        devices: *const Handle,
        num_devices: usize,
    }
    20 "PJRT_Client_Compile" ClientCompile {
        client: Handle,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        executable: Handle,
    }
    22 "PJRT_Client_BufferFromHostBuffer" ClientBufferFromHostBuffer {
        client: Handle,
        data: *const c_void,
        element_type: c_int,
        dims: *const i64,
        num_dims: usize,
        byte_strides: *const i64,
        num_byte_strides: usize,
        host_buffer_semantics: c_int,
        device: Handle,
        memory: Handle,
        device_layout: Handle,
        done_with_host_buffer: Handle,
        buffer: Handle,
    }
    26 "PJRT_DeviceDescription_Kind" DeviceDescriptionKind { description: Handle, kind: *const c_char, kind_size: usize, }
    29 "PJRT_Device_GetDescription" DeviceGetDescription { device: Handle, description: Handle, }
    40 "PJRT_Executable_Destroy" ExecutableDestroy { executable: Handle, }
    44 "PJRT_Executable_NumOutputs" ExecutableNumOutputs { executable: Handle, num_outputs: usize, }
    50 "PJRT_LoadedExecutable_Destroy" LoadedExecutableDestroy { executable: Handle, }
    51 "PJRT_LoadedExecutable_GetExecutable" LoadedExecutableGetExecutable { loaded: Handle, executable: Handle, }
    55 "PJRT_LoadedExecutable_Execute" LoadedExecutableExecute {
        executable: Handle,
        options: *mut ExecuteOptions,
        argument_lists: *const *const Handle,
        num_devices: usize,
        num_args: usize,
        output_lists: *const *mut Handle,
        device_complete_events: *mut Handle,
        execute_device: Handle,
    }
    58 "PJRT_Buffer_Destroy" BufferDestroy { buffer: Handle, }
    60 "PJRT_Buffer_Dimensions" BufferDimensions { buffer: Handle, dims: *const i64, num_dims: usize, }
    68 "PJRT_Buffer_IsDeleted" BufferIsDeleted { buffer: Handle, is_deleted: bool, }
    70 "PJRT_Buffer_ToHostBuffer" BufferToHostBuffer {
        source: Handle,
        host_layout: Handle,
        destination: *mut c_void,
        destination_size: usize,
        event: Handle,
    }
}

structure!(Program { code: *const c_char, code_size: usize, format: *const c_char, format_size: usize, });

structure!(ExecuteOptions {
    send_callbacks: Handle,
    recv_callbacks: Handle,
    num_send_ops: usize,
    num_recv_ops: usize,
    launch_id: c_int,
    non_donatable_input_indices: *const i64,
    num_non_donatable_input_indices: usize,
    context: Handle,
    call_location: *const c_char,
    num_tasks: usize,
    task_ids: *mut c_int,
    incarnation_ids: *mut i64,
    multi_slice_config: Handle,
    use_major_to_minor_data_layout_for_callbacks: bool,
    hlo_output_callbacks: Handle,
    num_hlo_output_callbacks: usize,
});

/// `PJRT_Buffer_Type` of the types that are used here.
pub(super) const TYPE_PRED: c_int = 1;
pub(super) const TYPE_S32: c_int = 4;
pub(super) const TYPE_F32: c_int = 11;
pub(super) const TYPE_BF16: c_int = 13;

/// The plugin copies while the call lasts.
pub(super) const IMMUTABLE_ONLY_DURING_CALL: c_int = 0;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that the header's own macro gives on 64-bit machines.
    #[test]
    fn arguments_are_as_long_as_the_header_says() {
        assert_eq!(size_of::<Head>(), 40);
        for (name, found, expected) in [
            ("ErrorMessage", ErrorMessage::BYTES, 40),
            ("PluginInitialize", PluginInitialize::BYTES, 16),
            ("EventAwait", EventAwait::BYTES, 24),
            ("ClientCompile", ClientCompile::BYTES, 56),
            ("ClientBufferFromHostBuffer", ClientBufferFromHostBuffer::BYTES, 120),
            ("LoadedExecutableExecute", LoadedExecutableExecute::BYTES, 80),
            ("BufferIsDeleted", BufferIsDeleted::BYTES, 25),
            ("BufferToHostBuffer", BufferToHostBuffer::BYTES, 56),
            ("Program", Program::BYTES, 48),
            ("ExecuteOptions", ExecuteOptions::BYTES, 144),
        ] {
            assert_eq!(found, expected, "{name}");
        }
    }
}
