//! Writes packed weights while the model already runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file::{EXTENSION, header, padding};
use super::{Laid, PackedCache};

const PART: &str = "packed.part";

/// Writes the file and gives its size; else why not.
pub(super) fn keep(cache: &PackedCache, path: &Path, made_of: &str, laid: &[Laid]) -> Result<u64, String> {
    let (head, panels_bytes) = header(laid, made_of);
    let bytes = (head.len() + panels_bytes) as u64;
    if bytes > cache.bytes_max {
        let most = cache.bytes_max;
        return Err(format!("its {bytes} bytes are more than all packed weights together may take ({most} bytes)"));
    }
    fs::create_dir_all(&cache.folder).map_err(|why| why.to_string())?;
    let part = path.with_extension("").with_extension(PART);
    make_room(&cache.folder, cache.bytes_max - bytes, [path, &part]).map_err(|why| why.to_string())?;
    if let Some(free) = free_bytes(&cache.folder).filter(|free| free / 2 < bytes) {
        return Err(format!("its {bytes} bytes would take more than half of the {free} that the disk has free"));
    }
    let written = write(&part, &head, laid);
    let renamed = written.and_then(|()| fs::rename(&part, path));
    if let Err(why) = renamed {
        // Whoever holds the lock is still at it.
        if why.kind() != io::ErrorKind::WouldBlock {
            _ = fs::remove_file(&part);
        }
        return Err(why.to_string());
    }
    Ok(bytes)
}

fn write(part: &Path, head: &[u8], laid: &[Laid]) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(part)?;
    file.try_lock().map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "another process is writing it"))?;
    file.set_len(0)?;
    let mut to = BufWriter::with_capacity(1 << 20, &file);
    to.write_all(head)?;
    for Laid { weight, .. } in laid {
        if !weight.is_shared() {
            return Err(io::Error::other("the model was unloaded meanwhile"));
        }
        for (_, _, panels) in weight.parts() {
            to.write_all(panels)?;
            to.write_all(padding(panels.len()))?;
        }
    }
    to.flush()?;
    drop(to);
    File::sync_all(&file)
}

/// Removes what was not used for longest, until no more than `bytes_left` are there beside the files of `own`.
fn make_room(folder: &Path, bytes_left: u64, own: [&Path; 2]) -> io::Result<()> {
    let mut others: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours =
            [EXTENSION, PART].iter().any(|end| name.strip_suffix(end).is_some_and(|stem| stem.ends_with('.')));
        if let Ok(metadata) = fs::metadata(&path)
            && is_ours
            && !own.contains(&path.as_path())
        {
            others.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), path));
        }
    }
    others.sort();
    let mut bytes: u64 = others.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, size, path) in others {
        if bytes <= bytes_left {
            break;
        }
        fs::remove_file(&path)?;
        bytes -= size;
    }
    Ok(())
}

/// What the disk has for us; `None` where that cannot be told.
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::statvfs(folder).ok().map(|all| all.f_bavail.saturating_mul(all.f_frsize));
    #[cfg(not(unix))]
    return None;
}
