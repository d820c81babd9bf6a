//! A plugin: a shared library whose table of calls was checked before any of them is made.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use super::sys::{Api, Arguments, CALLS, ErrorDestroy, ErrorMessage, EventAwait, EventDestroy, Handle, Head, MAJOR};
use super::sys::{MINOR_LEAST, PluginInitialize};
use crate::error::{Error, Result, one_line};

/// Plugins that this process has opened: each is initialised once.
static OPENED: Mutex<Vec<(PathBuf, Plugin)>> = Mutex::new(Vec::new());

/// An opened plugin, cheap to copy.
#[derive(Clone, Copy)]
pub struct Plugin {
    api: &'static Api,
}

// SAFETY: the table is constant once the plugin is open, and the calls of the C API may be made from any thread.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

impl Plugin {
    /// Opens the shared library at `path`, checks what it offers, and lets it set itself up.
    pub fn open(path: &Path) -> Result<Self> {
        let refused = |detail: String| Error::Plugin { path: path.to_owned(), detail };
        if !path.is_file() {
            return Err(refused("there is no such file; name the shared library of a PJRT plugin".to_owned()));
        }
        let path = path.canonicalize().map_err(|why| refused(why.to_string()))?;
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plugin)) = opened.iter().find(|(known, _)| *known == path) {
            return Ok(*plugin);
        }
        let api = load(&path).map_err(refused)?;
        let plugin = Self { api };
        plugin.call(&mut PluginInitialize::new())?;
        opened.push((path, plugin));
        Ok(plugin)
    }

    /// Version of the C API that it was built with.
    pub fn version(self) -> (i32, i32) {
        (self.api.head.major, self.api.head.minor)
    }

    /// Makes a call. `args` must hold handles of this plugin that are still theirs, and pointers that outlive the call.
    pub(super) fn call<A: Arguments>(self, args: &mut A) -> Result<()> {
        let error = self.raw(args);
        if error.is_null() { Ok(()) } else { Err(self.error(A::NAME, error)) }
    }

    fn raw<A: Arguments>(self, args: &mut A) -> Handle {
        let call = self.api.calls[A::CALL].expect("the table was checked to have every call that is made");
        // SAFETY: the arguments are those of this call, as `Arguments` promises, and begin with their size.
        unsafe { call(std::ptr::from_mut(args).cast()) }
    }

    /// Takes over an error of the plugin.
    fn error(self, call: &'static str, error: Handle) -> Error {
        let mut args = ErrorMessage::new();
        args.error = error;
        self.raw(&mut args);
        let message = text(args.message, args.message_size);
        let mut args = ErrorDestroy::new();
        args.error = error;
        self.raw(&mut args);
        Error::Call { call, message: one_line(&message) }
    }

    /// Waits for an event and gives it back; null is an event that was there before it began.
    pub(super) fn wait(self, event: Handle) -> Result<()> {
        if event.is_null() {
            return Ok(());
        }
        let mut args = EventAwait::new();
        args.event = event;
        let awaited = self.call(&mut args);
        let mut args = EventDestroy::new();
        args.event = event;
        self.call(&mut args)?;
        awaited
    }
}

/// Text that the plugin owns, copied.
pub(super) fn text(start: *const c_char, bytes: usize) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: the plugin gave this start and length together, for as long as what they belong to is held.
    let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes) };
    String::from_utf8_lossy(bytes).into_owned()
}

fn load(path: &Path) -> Result<&'static Api, String> {
    // SAFETY: the initialisers of a shared library that the operator named as a plugin run here; nothing else is assumed
    // of it before its table was checked.
    let library = unsafe { Library::new(path) };
    let library =
        library.map_err(|why| format!("it cannot be opened as a shared library: {}", one_line(&why.to_string())))?;
    const ENTRY: &CStr = c"GetPjrtApi";
    // SAFETY: every plugin exports this function with this signature.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const Api>(ENTRY.to_bytes_with_nul()) };
    let entry = entry.map_err(|_| "it has no function GetPjrtApi, so it is no PJRT plugin".to_owned())?;
    // SAFETY: as above; it takes nothing.
    let api = unsafe { entry() };
    if api.is_null() {
        return Err("its GetPjrtApi gives no table of calls".to_owned());
    }
    // SAFETY: a table begins with its head, whatever its version; the rest is looked at only after the head says it is there.
    check_head(unsafe { *api.cast::<Head>() })?;
    // SAFETY: the head says that the table is at least as long as `Api`, and a plugin's table lives as long as the plugin.
    let api = unsafe { &*api };
    check_calls(api)?;
    // The plugin's threads run until the process ends, so its code stays.
    std::mem::forget(library);
    Ok(api)
}

fn check_head(head: Head) -> Result<(), String> {
    let (major, minor) = (head.major, head.minor);
    if major != MAJOR {
        return Err(format!(
            "it speaks PJRT {major}.{minor}; this program speaks {MAJOR}.{MINOR_LEAST} and newer {MAJOR}.x"
        ));
    }
    if minor < MINOR_LEAST || head.struct_size < size_of::<Api>() {
        let (found, needed) = (head.struct_size, size_of::<Api>());
        return Err(format!(
            "it speaks PJRT {major}.{minor} with a table of {found} bytes, older than the calls that are made here, which \
             need {MAJOR}.{MINOR_LEAST} and {needed} bytes; use a newer plugin"
        ));
    }
    Ok(())
}

/// The calls that are made must all be there: a null in the table would be jumped to.
fn check_calls(api: &Api) -> Result<(), String> {
    let made = super::sys::MADE;
    match made.iter().find(|(call, _)| api.calls[*call].is_none()) {
        Some((_, name)) => Err(format!("its table lacks {name}, which is needed here; use another plugin")),
        None => Ok(()),
    }
}

const _: () = assert!(size_of::<Api>() == size_of::<Head>() + CALLS * size_of::<usize>());

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::ptr::null_mut;

    use super::*;

    unsafe extern "C" fn nothing(_args: *mut c_void) -> Handle {
        null_mut()
    }

    fn head(struct_size: usize, major: i32, minor: i32) -> Head {
        let nowhere = null_mut();
        Head {
            struct_size,
            extension_start: nowhere,
            version_struct_size: 24,
            version_extension_start: nowhere,
            major,
            minor,
        }
    }

    #[test]
    fn plugins_of_other_ages_are_told_apart() {
        let whole = size_of::<Api>();
        for (head, expected) in [
            (head(whole, 0, 33), None),
            (head(whole + 400, 0, 115), None),
            (head(whole - 8, 0, 33), Some("older than the calls")),
            (head(whole, 0, 20), Some("older than the calls")),
            (head(40, 0, 1), Some("older than the calls")),
            (head(whole, 1, 0), Some("it speaks PJRT 1.0; this program speaks 0.33")),
        ] {
            let found = check_head(head);
            match expected {
                None => assert_eq!(found, Ok(())),
                Some(part) => assert!(found.clone().is_err_and(|why| why.contains(part)), "{found:?}"),
            }
        }
    }

    #[test]
    fn a_hole_in_the_table_is_named() {
        let mut api = Api { head: head(size_of::<Api>(), 0, 115), calls: [Some(nothing); CALLS] };
        assert_eq!(check_calls(&api), Ok(()));
        // Not made here: a hole that does not matter.
        api.calls[2] = None;
        assert_eq!(check_calls(&api), Ok(()));
        api.calls[55] = None;
        let why = check_calls(&api).expect_err("execution is needed");
        assert!(why.contains("PJRT_LoadedExecutable_Execute"), "{why}");
    }

    #[test]
    fn files_that_are_no_plugins_are_refused() {
        let text = std::env::current_exe().expect("a path").with_file_name("no-such-plugin.so");
        for (path, expected) in [
            (text, "there is no such file"),
            (PathBuf::from("/"), "there is no such file"),
            (PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")), "cannot be opened as a shared library"),
        ] {
            let Err(Error::Plugin { detail, .. }) = Plugin::open(&path) else { panic!("{}", path.display()) };
            assert!(detail.contains(expected), "{detail}");
        }
    }

    /// The C library is a shared library of every Linux and no plugin.
    #[test]
    fn a_library_without_the_entry_is_no_plugin() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let library =
            maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/libc.so"));
        let Some(library) = library else {
            println!("skipped: this program is linked without a shared C library");
            return;
        };
        let Err(Error::Plugin { detail, .. }) = Plugin::open(Path::new(library)) else { panic!("{library}") };
        assert!(detail.contains("no function GetPjrtApi"), "{detail}");
    }
}
