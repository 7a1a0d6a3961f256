// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a tree's id stands for: the hash of a listing that names every file with its mode, size and content.
//!
//! ```text
//! hearth-tree-1\n
//! <path>\0<x or ->\0<size>\0<SHA-256 of the content, hexadecimal>\n     for each file, in the order of the bytes of its path
//! ```
//!
//! Directories are not listed: there is one for each path that has files below it, and no other.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use hearth_protocol::TreeId;
use hearth_protocol::spawner::TREE_PATH_BYTES_MAX;
use sha2::{Digest, Sha256};

use super::{COPY_BYTES, TreeError, at};

/// The longest component of a path, in bytes (NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// The modes of stored files; directories have the second.
const READABLE: u32 = 0o444;
pub(super) const EXECUTABLE: u32 = 0o555;

/// The files of a tree by path.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: BTreeMap<String, UploadedFile>,
}

/// One file as far as it is known.
#[derive(Debug)]
pub(super) struct UploadedFile {
    pub(super) executable: bool,
    pub(super) size: u64,
    pub(super) hash: Sha256,
}

impl UploadedFile {
    pub(super) fn mode(&self) -> u32 {
        if self.executable {
            EXECUTABLE
        } else {
            READABLE
        }
    }
}

impl Listing {
    /// The id of a tree with these files.
    pub(super) fn id(&self) -> TreeId {
        let mut whole = Sha256::new();
        whole.update(b"hearth-tree-1\n");
        for (path, file) in &self.files {
            let executable = if file.executable { "x" } else { "-" };
            let content = hexadecimal(file.hash.clone());
            let line = format!("{path}\0{executable}\0{}\0{content}\n", file.size);
            whole.update(line.as_bytes());
        }
        let text = hexadecimal(whole);
        match TreeId::new(text) {
            Ok(id) => id,
            Err(_) => unreachable!("a SHA-256 has the form of a tree's id"),
        }
    }

    /// Reads a stored tree. Anything that Hearth does not store is damage: links, devices, writable files, empty
    /// directories, foreign owners.
    pub(super) fn read(tree: &TreeId, root: &Path) -> Result<Self, TreeError> {
        let damaged = |path: &Path, problem: &str| TreeError::Damaged {
            tree: tree.clone(),
            problem: format!("{} {problem}", path.display()),
        };
        let owner = nix::unistd::geteuid().as_raw();
        let mut listing = Self::default();
        let mut buffer = vec![0; COPY_BYTES];
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            let mut entries = 0;
            for entry in fs::read_dir(&directory).map_err(at("list", &directory))? {
                let path = entry.map_err(at("list", &directory))?.path();
                entries += 1;
                let metadata = fs::symlink_metadata(&path).map_err(at("inspect", &path))?;
                if metadata.uid() != owner {
                    return Err(damaged(&path, "has another owner"));
                }
                let mode = metadata.mode() & 0o7777;
                match (metadata.is_dir(), metadata.is_file(), mode) {
                    (true, _, EXECUTABLE) => pending.push(path),
                    (_, true, READABLE | EXECUTABLE) => {
                        let name = path.strip_prefix(root).ok().and_then(Path::to_str);
                        let name = name.ok_or_else(|| damaged(&path, "has a strange name"))?;
                        let file = read_file(&path, mode, &mut buffer)?;
                        listing.files.insert(name.to_owned(), file);
                    }
                    _ => return Err(damaged(&path, &format!("has mode {mode:04o}"))),
                }
            }
            if entries == 0 && directory != root {
                return Err(damaged(&directory, "is empty"));
            }
        }
        Ok(listing)
    }
}

fn read_file(path: &Path, mode: u32, buffer: &mut [u8]) -> Result<UploadedFile, TreeError> {
    let mut source = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(at("open", path))?;
    let mut file = UploadedFile {
        executable: mode == EXECUTABLE,
        size: 0,
        hash: Sha256::new(),
    };
    loop {
        let read = source.read(buffer).map_err(at("read", path))?;
        if read == 0 {
            return Ok(file);
        }
        file.size += read as u64;
        file.hash.update(&buffer[..read]);
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Refuses every path that could mean something else to somebody: absolute, climbing, empty parts, control characters
/// (also the listing's own separators), too long.
pub(super) fn check_path(path: &str) -> Result<(), TreeError> {
    let bad = |problem| TreeError::BadPath {
        path: path.chars().take(TREE_PATH_BYTES_MAX).collect(),
        problem,
    };
    if path.is_empty() || TREE_PATH_BYTES_MAX < path.len() {
        return Err(bad("it is empty or too long"));
    }
    if path.contains(char::is_control) || path.contains('\\') {
        return Err(bad("it has a control character or a backslash"));
    }
    for part in path.split('/') {
        if ["", ".", ".."].contains(&part) {
            return Err(bad("it is absolute, or has an empty, . or .. part"));
        }
        if NAME_BYTES_MAX < part.len() {
            return Err(bad("a part of it is too long"));
        }
    }
    Ok(())
}
