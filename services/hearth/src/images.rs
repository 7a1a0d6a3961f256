// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The programs that run inside sandboxes: embedded by `build.rs`, written to files of their own at start.
//!
//! A sandbox never runs an inode that the host runs: a kernel bug that lets it write into the page cache of a file that it
//! can only read (CVE-2026-31431 and its kin) would otherwise reach the monitor and the spawner.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearth-init"));
const WASM_WORKER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearth-wasm-worker"));

/// The compiler is a tree, run as an ordinary function; see the gateway's deploy.
pub(crate) const WASM_COMPILER: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/hearth-wasm-compiler"));

/// What the gateway expects the compiler to be called in its tree.
pub(crate) const WASM_COMPILER_FILE: &str = "hearth-wasm-compiler";

/// Where images are, in the data directory.
const FOLDER: &str = "images";

/// Execute only: a process whose file it may not read is not dumpable from its first instruction.
const MODE: u32 = 0o111;

/// Why the images are not in place.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub(crate) struct ImageError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Where the images are.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    /// PID 1 of every sandbox.
    pub(crate) init: PathBuf,
    /// The resident program of wasm sandboxes.
    pub(crate) wasm_worker: PathBuf,
}

/// Puts both images in place, and removes those of earlier versions.
pub(crate) fn install(data_dir: &Path) -> Result<Images, ImageError> {
    let folder = data_dir.join(FOLDER);
    make_dir(&folder)?;
    let images = Images {
        init: install_one(&folder, "hearth-init", INIT)?,
        wasm_worker: install_one(&folder, "hearth-wasm-worker", WASM_WORKER)?,
    };
    remove_others(&folder, &[&images.init, &images.wasm_worker])?;
    Ok(images)
}

fn install_one(folder: &Path, name: &str, content: &[u8]) -> Result<PathBuf, ImageError> {
    let place = folder.join(hex(&Sha256::digest(content)));
    make_dir(&place)?;
    let path = place.join(name);
    if !holds(&path, content) {
        // Written beside and renamed: a file that was found wrong is not repaired but replaced, inode and all.
        let beside = place.join(format!("{name}.new"));
        write_new(&beside, content)?;
        fs::rename(&beside, &path).map_err(|source| ImageError {
            step: "rename to",
            path: path.clone(),
            source,
        })?;
    }
    Ok(path)
}

/// Whether the file is the image: content, owner and mode. Whatever keeps us from seeing it counts as no.
fn holds(path: &Path, content: &[u8]) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let ours = metadata.is_file()
        && metadata.uid() == nix::unistd::Uid::effective().as_raw()
        && metadata.mode() & 0o7777 == MODE
        && metadata.nlink() == 1;
    ours && fs::read(path).is_ok_and(|found| found == content)
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    let write = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.sync_all()
    };
    write().map_err(|source| ImageError {
        step: "write",
        path: path.to_owned(),
        source,
    })
}

fn make_dir(path: &Path) -> Result<(), ImageError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(ImageError {
            step: "make",
            path: path.to_owned(),
            source: error,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_others(folder: &Path, kept: &[&Path]) -> Result<(), ImageError> {
    let failed = |step, path: &Path, source| ImageError {
        step,
        path: path.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(|error| failed("list", folder, error))? {
        let path = entry.map_err(|error| failed("list", folder, error))?.path();
        if !kept.iter().any(|image| image.starts_with(&path)) {
            fs::remove_dir_all(&path).map_err(|error| failed("remove", &path, error))?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_written_once_and_kept_when_they_are_right() {
        let dir = tempfile::tempdir().unwrap();
        let first = install(dir.path()).unwrap();
        let inode = fs::metadata(&first.init).unwrap().ino();
        let second = install(dir.path()).unwrap();
        assert_eq!(first.init, second.init);
        assert_eq!(fs::metadata(&second.init).unwrap().ino(), inode);
        assert_eq!(fs::metadata(&second.init).unwrap().mode() & 0o7777, MODE);
    }

    #[test]
    fn a_changed_image_is_replaced_by_a_new_inode() {
        let dir = tempfile::tempdir().unwrap();
        let images = install(dir.path()).unwrap();
        let inode = fs::metadata(&images.init).unwrap().ino();
        fs::set_permissions(&images.init, Permissions::from_mode(0o755)).unwrap();
        fs::write(&images.init, b"other").unwrap();
        install(dir.path()).unwrap();
        let metadata = fs::metadata(&images.init).unwrap();
        assert_ne!(metadata.ino(), inode);
        assert_eq!(metadata.len(), u64::try_from(INIT.len()).unwrap());
    }

    #[test]
    fn images_of_another_version_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join(FOLDER).join("0123");
        fs::create_dir_all(&old).unwrap();
        install(dir.path()).unwrap();
        assert!(!old.exists());
    }
}
