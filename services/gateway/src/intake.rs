// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Archives from strangers, in memory, without one file being made: an archive is taken whole or refused whole. What
//! two readers could understand differently is refused rather than interpreted.

mod tarball;
mod zipped;

use std::collections::BTreeMap;

use bytes::Bytes;
use hearth_protocol::{
    TreeId,
    spawner::{TREE_FILES_MAX, TREE_PATH_BYTES_MAX},
};
use sha2::{Digest, Sha256};

use crate::manifest;

/// The most bytes of all files together once unpacked.
const UNPACKED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How many times larger than the archive the files may be, beyond [`RATIO_FREE_BYTES`]. Programs and texts pack three
/// to ten times; deflate can do a thousand, and only for what was made to.
const RATIO_MAX: u64 = 100;

/// Up to here no ratio is looked at. In bytes.
const RATIO_FREE_BYTES: u64 = 1024 * 1024;

/// The most entries, folders included.
const ENTRIES_MAX: usize = TREE_FILES_MAX as usize;

/// The most folders above a file.
const DEPTH_MAX: usize = 32;

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Tar,
    Zip,
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error("the archive cannot be read: {0}")]
    Unreadable(String),
    #[error("the archive has more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("the archive unpacks to more than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("the path {path:?} {problem}")]
    BadPath { path: String, problem: &'static str },
    #[error("{path:?} is {what}; only plain files and folders are taken")]
    NotPlain { path: String, what: &'static str },
    #[error("{path:?} is there twice, or both as a file and as a folder")]
    Ambiguous { path: String },
    #[error("the archive has no function.toml at its root")]
    NoManifest,
    #[error("function.toml is not UTF-8 text")]
    ManifestNotText,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedFile {
    /// Of the mode's nine permission bits and the three above them, the only one that is kept.
    pub(crate) executable: bool,
    pub(crate) content: Bytes,
}

/// An unpacked archive.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) files: BTreeMap<String, PackedFile>,
    /// The text of function.toml.
    pub(crate) manifest: String,
    /// The hash of all that is in it, whatever the archive's format, order and times.
    pub(crate) revision: TreeId,
}

/// The format that the first bytes show.
pub(crate) fn sniff(archive: &[u8]) -> Option<Format> {
    /// POSIX.1-1988 ustar, and GNU's variant, have it at this place of the first header.
    const USTAR: (usize, &[u8]) = (257, b"ustar");
    if archive.starts_with(b"PK\x03\x04") {
        return Some(Format::Zip);
    }
    let magic = archive.get(USTAR.0..USTAR.0 + USTAR.1.len());
    (magic == Some(USTAR.1)).then_some(Format::Tar)
}

/// Unpacks and checks an archive.
pub(crate) fn unpack(archive: Bytes, format: Format) -> Result<Package, IntakeError> {
    let by_ratio = RATIO_FREE_BYTES.max((archive.len() as u64).saturating_mul(RATIO_MAX));
    let mut intake = Intake::new(UNPACKED_BYTES_MAX.min(by_ratio));
    match format {
        Format::Tar => tarball::read(archive, &mut intake)?,
        Format::Zip => zipped::read(archive, &mut intake)?,
    }
    intake.finish()
}

/// What has been taken so far.
struct Intake {
    files: BTreeMap<String, PackedFile>,
    folders: std::collections::BTreeSet<String>,
    entries: usize,
    bytes_left: u64,
    limit_bytes: u64,
}

impl Intake {
    fn new(limit_bytes: u64) -> Self {
        Self {
            files: BTreeMap::new(),
            folders: std::collections::BTreeSet::new(),
            entries: 0,
            bytes_left: limit_bytes,
            limit_bytes,
        }
    }

    /// Counts an entry of any sort.
    fn count_entry(&mut self) -> Result<(), IntakeError> {
        self.entries += 1;
        if ENTRIES_MAX < self.entries {
            Err(IntakeError::TooManyEntries)
        } else {
            Ok(())
        }
    }

    /// Counts bytes before they are held.
    fn count_bytes(&mut self, bytes: u64) -> Result<(), IntakeError> {
        let limit_bytes = self.limit_bytes;
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes)
            .ok_or(IntakeError::TooLarge { limit_bytes })?;
        Ok(())
    }

    fn add_folder(&mut self, raw: &[u8]) -> Result<(), IntakeError> {
        // tar writes the packed folder itself as `./`.
        if matches!(raw, b"." | b"./") {
            return Ok(());
        }
        let path = checked_path(raw.strip_suffix(b"/").unwrap_or(raw))?;
        self.claim_folders_of(&path)?;
        if self.files.contains_key(&path) {
            return Err(IntakeError::Ambiguous { path });
        }
        self.folders.insert(path);
        Ok(())
    }

    fn add_file(&mut self, raw: &[u8], file: PackedFile) -> Result<(), IntakeError> {
        let path = checked_path(raw)?;
        self.claim_folders_of(&path)?;
        if self.folders.contains(&path) || self.files.contains_key(&path) {
            return Err(IntakeError::Ambiguous { path });
        }
        self.files.insert(path, file);
        Ok(())
    }

    /// Every part above `path` is a folder, whether the archive lists it or not.
    fn claim_folders_of(&mut self, path: &str) -> Result<(), IntakeError> {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if self.files.contains_key(folder) {
                return Err(IntakeError::Ambiguous {
                    path: folder.to_owned(),
                });
            }
            if !self.folders.contains(folder) {
                self.folders.insert(folder.to_owned());
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Package, IntakeError> {
        let manifest = self
            .files
            .get(manifest::FILE_NAME)
            .ok_or(IntakeError::NoManifest)?;
        let text = std::str::from_utf8(&manifest.content)
            .map_err(|_not_text| IntakeError::ManifestNotText)?;
        let (manifest, revision) = (text.to_owned(), hash(&self.files));
        Ok(Package {
            files: self.files,
            manifest,
            revision,
        })
    }
}

/// The longest part of a path: NAME_MAX of Linux file systems. In bytes.
const PATH_PART_BYTES_MAX: usize = 255;

/// Characters that change how a name looks without being seen: zero-width ones and those that change the direction of
/// text (Unicode Technical Report 36, section 2.5).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The path as it will be in the tree: relative, plain, and the same for every system.
fn checked_path(raw: &[u8]) -> Result<String, IntakeError> {
    /// How much of a stranger's path is shown in an answer.
    const SHOWN_CHARS_MAX: usize = 120;
    let refuse = |problem| {
        let path = String::from_utf8_lossy(raw)
            .chars()
            .take(SHOWN_CHARS_MAX)
            .collect();
        Err(IntakeError::BadPath { path, problem })
    };
    let Ok(text) = std::str::from_utf8(raw) else {
        return refuse("is not UTF-8");
    };
    let path = text.strip_prefix("./").unwrap_or(text);
    if TREE_PATH_BYTES_MAX < path.len() || DEPTH_MAX < path.split('/').count() {
        return refuse("is too long or too deep");
    }
    if path.split('/').any(|part| PATH_PART_BYTES_MAX < part.len()) {
        return refuse("has a part that is longer than file systems take");
    }
    if path.contains(|c: char| c.is_control() || is_invisible(c) || c == '\\') {
        return refuse("holds a control character, an invisible one or a backslash");
    }
    // A colon in the first part is a drive or a stream to some systems.
    if path.starts_with('/')
        || path
            .split('/')
            .next()
            .is_some_and(|first| first.contains(':'))
    {
        return refuse("is absolute");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("holds an empty, . or .. part");
    }
    Ok(path.to_owned())
}

/// Whether a path is one that is taken, and means the same when it is taken again.
pub(crate) fn is_taken_as_it_is(path: &str) -> bool {
    checked_path(path.as_bytes()).is_ok_and(|again| again == path)
}

/// SHA-256 over every file in the order of paths, each length before its bytes, so that no two sets of files give the
/// same input.
fn hash(files: &BTreeMap<String, PackedFile>) -> TreeId {
    let mut sha = Sha256::new();
    sha.update(b"hearth revision 1\0");
    for (path, file) in files {
        sha.update((path.len() as u64).to_le_bytes());
        sha.update(path);
        sha.update([u8::from(file.executable)]);
        sha.update((file.content.len() as u64).to_le_bytes());
        sha.update(&file.content);
    }
    tree_id(&sha.finalize())
}

/// A SHA-256 as an id.
pub(crate) fn tree_id(digest: &[u8]) -> TreeId {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    TreeId::new(hex).expect("32 bytes are 64 hexadecimal digits")
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod second_reader;
#[cfg(test)]
mod tests;
