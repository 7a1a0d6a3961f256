// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The management key: made by the first start, in a file that only its owner can read, and kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::client::KEY_FILE;

/// 256 bits: not to be guessed at any rate of requests.
const KEY_BYTES: usize = 32;

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The file cannot be made or read.
    #[error("cannot {step} {}", path.display())]
    File {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Somebody else could have written or read it.
    #[error(
        "{} must belong to this user and be readable by nobody else (mode 0600); it has mode {mode:04o}",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    /// It is not what this program writes.
    #[error("{} does not hold a key of {} hexadecimal digits", path.display(), 2 * KEY_BYTES)]
    Malformed { path: PathBuf },
}

/// The key of this data directory.
pub(super) fn ensure(data_dir: &Path) -> Result<String, KeyError> {
    let path = data_dir.join(KEY_FILE);
    match File::open(&path) {
        Ok(file) => read(&path, &file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path),
        Err(source) => Err(KeyError::File {
            step: "open",
            path,
            source,
        }),
    }
}

fn read(path: &Path, file: &File) -> Result<String, KeyError> {
    let failed = |source| KeyError::File {
        step: "read",
        path: path.to_owned(),
        source,
    };
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    let owner = nix::unistd::Uid::effective().as_raw();
    if metadata.uid() != owner || mode & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    // One byte more than a key and its newline, so that a longer file is seen to be one.
    let limit = 2 * KEY_BYTES + 2;
    file.take(u64::try_from(limit).unwrap_or(u64::MAX))
        .read_to_string(&mut text)
        .map_err(failed)?;
    let key = text.trim_end();
    if key.len() == 2 * KEY_BYTES && key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(key.to_owned());
    }
    Err(KeyError::Malformed {
        path: path.to_owned(),
    })
}

fn make(path: &Path) -> Result<String, KeyError> {
    let beside = path.with_extension("new");
    let write = || {
        let mut random = [0; KEY_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let key = random.map(|byte| format!("{byte:02x}")).concat();
        // A left-over of a start that was killed here.
        if beside.exists() {
            fs::remove_file(&beside)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        writeln!(file, "{key}")?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        Ok(key)
    };
    write().map_err(|source| KeyError::File {
        step: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_private_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let key = ensure(dir.path()).unwrap();
        assert_eq!(key.len(), 64);
        assert_eq!(ensure(dir.path()).unwrap(), key);
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn two_data_directories_have_two_keys() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_ne!(ensure(one.path()).unwrap(), ensure(other.path()).unwrap());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(ensure(dir.path()), Err(KeyError::Exposed { .. })));
    }

    #[test]
    fn a_key_file_with_other_content_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path()).unwrap();
        fs::write(dir.path().join(KEY_FILE), "secret").unwrap();
        assert!(matches!(
            ensure(dir.path()),
            Err(KeyError::Malformed { .. })
        ));
    }
}
