// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A function folder on the caller's side: what of its manifest the CLI needs, building it, packing it.
//!
//! The archive holds `function.toml`, the entry file under its base name and, at the root, whatever the folder `files/`
//! holds. The entry is the file in the folder where there is one, else the newest build output of that name in the
//! folder's cargo target directory (`release/` or `<triple>/release/`).

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::config::Caller;

mod build;
mod pack;
mod seccomp;

pub(crate) use build::Builder;
pub(crate) use seccomp::with_learned;

/// The manifest's file name.
pub(crate) const MANIFEST: &str = "function.toml";

/// The largest manifest, in bytes; the longest bundled one is under 1 KiB.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;

/// The longest example path, in bytes.
const EXAMPLE_PATH_BYTES_MAX: u64 = 2048;

/// Why a folder could not be turned into an archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// No manifest, or not readable.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file above its limit.
    #[error("{} has {bytes} bytes, more than {limit}", path.display())]
    TooLarge {
        path: PathBuf,
        bytes: u64,
        limit: u64,
    },
    /// The manifest is not TOML, or lacks name or entry.
    #[error("{} is not a manifest", path.display())]
    Manifest {
        path: PathBuf,
        source: toml::de::Error,
    },
    /// The name cannot be a part of a URL.
    #[error("{}: {name:?} is not a function name", path.display())]
    Name {
        path: PathBuf,
        name: String,
        source: hearth_protocol::NameProblem,
    },
    /// The build command could not be run.
    #[error("cannot run the build command {command:?}")]
    RunBuild {
        command: String,
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("the build command {command:?} failed ({status})")]
    Build {
        command: String,
        status: std::process::ExitStatus,
    },
    /// Neither in the folder nor built.
    #[error("there is no file {entry:?} in {}{}", folder.display(), searched(.target.as_deref()))]
    NoEntry {
        folder: PathBuf,
        entry: String,
        target: Option<PathBuf>,
    },
    /// A link, a device, … in `files/`.
    #[error("{} is neither a file nor a folder; only those can be deployed", path.display())]
    NotAFile { path: PathBuf },
    /// Two files with one place in the archive.
    #[error("{} would replace another file of the archive", path.display())]
    Twice { path: PathBuf },
}

fn searched(target: Option<&Path>) -> String {
    target.map_or_else(String::new, |target| {
        format!(", nor a build output of that name in {}", target.display())
    })
}

/// What the CLI needs of a manifest. The server checks all of it; here unknown keys pass.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    /// The function's name.
    pub(crate) name: String,
    /// The file that is run.
    pub(crate) entry: String,
    /// What makes it.
    pub(crate) build: Option<String>,
    /// Its section of that name.
    sandbox: Option<toml::Value>,
}

impl Manifest {
    /// Whether the folder's learned profile belongs to it.
    fn is_learned(&self) -> bool {
        let seccomp = self.sandbox.as_ref().and_then(|table| table.get("seccomp"));
        seccomp.and_then(toml::Value::as_str) == Some("learned")
    }
}

/// A folder with a readable manifest.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it says.
    pub(crate) manifest: Manifest,
}

impl Folder {
    /// Reads the manifest.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        let file = path.join(MANIFEST);
        let text = read_manifest(&file)?;
        let manifest: Manifest = toml::from_str(&text).map_err(|source| FolderError::Manifest {
            path: file.clone(),
            source,
        })?;
        if let Err(source) = hearth_protocol::SmallName::new(manifest.name.as_str()) {
            let name = manifest.name;
            return Err(FolderError::Name {
                path: file,
                name,
                source,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            manifest,
        })
    }

    /// The manifest as it is now.
    pub(crate) fn manifest_text(&self) -> Result<String, FolderError> {
        read_manifest(&self.path.join(MANIFEST))
    }

    /// The folder's learned profile as it is now.
    pub(crate) fn learned_profile(&self) -> Result<Vec<u8>, FolderError> {
        let file = self.path.join(hearth_gateway::learned::FILE_NAME);
        Ok(read_bounded(&file, MANIFEST_BYTES_MAX)?.bytes)
    }

    /// The archive of the folder as it is now.
    pub(crate) fn pack(&self, builder: &Builder) -> Result<Vec<u8>, FolderError> {
        pack::pack(self, &self.entry_file(builder)?)
    }

    /// The checked-in example input, where there is one.
    pub(crate) fn example_input(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.path.join("testdata")).ok()?;
        let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut inputs: Vec<PathBuf> = names
            .filter(|path| path.file_stem().is_some_and(|stem| stem == "input"))
            .collect();
        inputs.sort();
        inputs.into_iter().next()
    }

    /// For a function that is not called on `/invoke`: the example's path, such as `/fn/hello-cgi/world?lang=en`.
    pub(crate) fn example_path(&self) -> Option<String> {
        let path = self.path.join("testdata/path");
        let text = read_bounded(&path, EXAMPLE_PATH_BYTES_MAX).ok()?.bytes;
        let text = String::from_utf8(text).ok()?.trim().to_owned();
        text.starts_with('/').then_some(text)
    }

    fn entry_file(&self, builder: &Builder) -> Result<PathBuf, FolderError> {
        let entry = &self.manifest.entry;
        let in_folder = self.path.join(entry);
        if in_folder.is_file() {
            return Ok(in_folder);
        }
        let target = builder.target_dir(&self.path);
        let built = target.as_deref().and_then(|target| newest(target, entry));
        built.ok_or_else(|| FolderError::NoEntry {
            folder: self.path.clone(),
            entry: entry.clone(),
            target,
        })
    }
}

/// Of `release/ENTRY` and `TRIPLE/release/ENTRY` the one that was written last.
fn newest(target: &Path, entry: &str) -> Option<PathBuf> {
    let triples = std::fs::read_dir(target).ok()?;
    let triples = triples.filter_map(|triple| Some(triple.ok()?.path().join("release")));
    let places = triples.chain([target.join("release")]);
    places
        .map(|place| place.join(entry))
        .filter(|file| file.is_file())
        .max_by_key(|file| file.metadata().and_then(|data| data.modified()).ok())
}

fn read_manifest(file: &Path) -> Result<String, FolderError> {
    let text = read_bounded(file, MANIFEST_BYTES_MAX)?.bytes;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What a file holds, and whether its mode makes it a program.
struct Content {
    bytes: Vec<u8>,
    is_executable: bool,
}

/// Reads a plain file. Under sudo this is done as root, of files that a build script left: so a link is not followed
/// (it could lead to what the caller may not read), a FIFO or a device is not waited for, and what is looked at is what
/// is read.
fn read_bounded(path: &Path, limit: u64) -> Result<Content, FolderError> {
    let read_error = |source| FolderError::Read {
        path: path.to_owned(),
        source,
    };
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            // What O_NOFOLLOW answers for a link (open(2)).
            Some(nix::libc::ELOOP) => FolderError::NotAFile {
                path: path.to_owned(),
            },
            _ => read_error(source),
        })?;
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(FolderError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    let read = u64::try_from(read.map_err(read_error)?).unwrap_or(u64::MAX);
    if limit < read {
        return Err(FolderError::TooLarge {
            path: path.to_owned(),
            bytes: metadata.len().max(read),
            limit,
        });
    }
    Ok(Content {
        bytes,
        is_executable: metadata.permissions().mode() & 0o111 != 0,
    })
}

/// Lets a command run as the caller, with what cargo needs to find itself under sudo.
fn as_caller(command: &mut Command, caller: &Caller, path: &str) {
    use std::os::unix::process::CommandExt;
    let cargo_bin = caller.home.join(".cargo/bin");
    command
        // Also drops root's supplementary groups.
        .uid(caller.uid.as_raw())
        .gid(caller.gid.as_raw())
        .env("HOME", &caller.home)
        .env("USER", &caller.name)
        .env("LOGNAME", &caller.name)
        // sudo's own PATH does not lead to a user's toolchain.
        .env("PATH", format!("{}:{path}", cargo_bin.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(manifest: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST), manifest).unwrap();
        dir
    }

    #[test]
    fn a_folder_without_a_manifest_says_which_file_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let error = Folder::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(MANIFEST));
    }

    #[test]
    fn a_name_that_would_change_the_url_is_refused() {
        let dir = folder("name = \"../x\"\nentry = \"x\"\n");
        assert!(matches!(
            Folder::open(dir.path()),
            Err(FolderError::Name { .. })
        ));
    }

    #[test]
    fn the_build_output_that_was_written_last_is_taken() {
        let target = tempfile::tempdir().unwrap();
        let old = target.path().join("release");
        let new = target.path().join("x86_64-unknown-linux-gnu/release");
        for place in [&old, &new] {
            std::fs::create_dir_all(place).unwrap();
            std::fs::write(place.join("f"), "x").unwrap();
        }
        let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let file = std::fs::File::open(old.join("f")).unwrap();
        file.set_modified(hour_ago).unwrap();
        assert_eq!(newest(target.path(), "f"), Some(new.join("f")));
        assert_eq!(newest(target.path(), "g"), None);
    }

    #[test]
    fn an_example_path_begins_at_the_root() {
        let dir = folder("name = \"a\"\nentry = \"a\"\n");
        let data = dir.path().join("testdata");
        std::fs::create_dir(&data).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.example_path(), None);
        std::fs::write(data.join("path"), "/fn/a/b?c\n").unwrap();
        assert_eq!(folder.example_path().as_deref(), Some("/fn/a/b?c"));
        std::fs::write(data.join("path"), "@evil.example/\n").unwrap();
        assert_eq!(folder.example_path(), None);
    }

    #[test]
    fn the_example_input_is_found_whatever_its_extension() {
        let dir = folder("name = \"a\"\nentry = \"a\"\n");
        let data = dir.path().join("testdata");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("expected.jpg"), "").unwrap();
        std::fs::write(data.join("input.jpg"), "").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.example_input(), Some(data.join("input.jpg")));
    }
}
