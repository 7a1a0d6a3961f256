// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packs a folder into a tar archive. The same files give the same bytes: no times, no owners, sorted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hearth_gateway::learned::FILE_NAME;

use super::{Folder, FolderError, MANIFEST, read_bounded};

/// The largest file that is packed, in bytes: the server's own limit is lower or equal, and this keeps a mistaken `entry`
/// from filling memory.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How deep `files/` may be nested.
const DEPTH_MAX: usize = 32;

/// Where the folder's additional files are.
const FILES: &str = "files";

/// What is packed: the place in the archive, and the file.
type Contents = BTreeMap<PathBuf, PathBuf>;

pub(super) fn pack(folder: &Folder, entry: &Path) -> Result<Vec<u8>, FolderError> {
    let mut contents = Contents::new();
    add(&mut contents, MANIFEST.into(), folder.path.join(MANIFEST))?;
    let base_name = entry.file_name().unwrap_or(entry.as_os_str());
    add(&mut contents, base_name.into(), entry.to_owned())?;
    let learned = folder.path.join(FILE_NAME);
    // Where it is missing, the server says so.
    if folder.manifest.is_learned() && learned.symlink_metadata().is_ok() {
        add(&mut contents, FILE_NAME.into(), learned)?;
    }
    let files = folder.path.join(FILES);
    let kind = files
        .symlink_metadata()
        .map(|metadata| metadata.file_type());
    if kind.as_ref().is_ok_and(std::fs::FileType::is_symlink) {
        return Err(FolderError::NotAFile { path: files });
    }
    if kind.is_ok_and(|kind| kind.is_dir()) {
        add_tree(&mut contents, Path::new(""), &files, DEPTH_MAX)?;
    }

    let mut archive = tar::Builder::new(Vec::new());
    for (place, file) in &contents {
        let content = read_bounded(file, FILE_BYTES_MAX)?;
        let executable = content.is_executable || file == entry;
        let content = content.bytes;
        let read_error = |source| FolderError::Read {
            path: file.clone(),
            source,
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
        header.set_mtime(0);
        archive
            .append_data(&mut header, place, content.as_slice())
            .map_err(read_error)?;
    }
    // Writing into memory does not fail but for a path that tar cannot hold.
    archive.into_inner().map_err(|source| FolderError::Read {
        path: folder.path.clone(),
        source,
    })
}

fn add(contents: &mut Contents, place: PathBuf, file: PathBuf) -> Result<(), FolderError> {
    match contents.insert(place, file.clone()) {
        None => Ok(()),
        Some(_) => Err(FolderError::Twice { path: file }),
    }
}

fn add_tree(
    contents: &mut Contents,
    place: &Path,
    dir: &Path,
    depth_left: usize,
) -> Result<(), FolderError> {
    let read_error = |source| FolderError::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(read_error)? {
        let entry = entry.map_err(read_error)?;
        let inner = place.join(entry.file_name());
        let path = entry.path();
        // Not followed: a link could lead out of the folder, and the server refuses links.
        let kind = entry.file_type().map_err(read_error)?;
        if kind.is_file() {
            add(contents, inner, path)?;
        } else if kind.is_dir() && 0 < depth_left {
            add_tree(contents, &inner, &path, depth_left - 1)?;
        } else {
            return Err(FolderError::NotAFile { path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn unpack(archive: &[u8]) -> BTreeMap<String, (u32, String)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                let mode = entry.header().mode().unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (path, (mode, text))
            })
            .collect()
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let manifest = "name = \"a\"\nentry = \"bin/a\"\n";
        std::fs::write(dir.path().join(MANIFEST), manifest).unwrap();
        std::fs::create_dir_all(dir.path().join("bin")).unwrap();
        std::fs::create_dir_all(dir.path().join("files/data")).unwrap();
        std::fs::write(dir.path().join("bin/a"), "program").unwrap();
        std::fs::write(dir.path().join("files/data/words"), "words").unwrap();
        std::fs::write(dir.path().join("source.c"), "not packed").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn the_archive_holds_manifest_entry_and_files_and_nothing_else() {
        let (dir, folder) = folder();
        let files = unpack(&pack(&folder, &dir.path().join("bin/a")).unwrap());
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "data/words", MANIFEST]);
        assert_eq!(files["a"], (0o755, "program".to_owned()));
        assert_eq!(files["data/words"], (0o644, "words".to_owned()));
    }

    #[test]
    fn packing_twice_gives_the_same_bytes() {
        let (dir, folder) = folder();
        let entry = dir.path().join("bin/a");
        let first = pack(&folder, &entry).unwrap();
        std::fs::write(&entry, "program").unwrap();
        assert_eq!(first, pack(&folder, &entry).unwrap());
    }

    #[test]
    fn a_link_in_files_is_refused() {
        let (dir, folder) = folder();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("files/link")).unwrap();
        let packed = pack(&folder, &dir.path().join("bin/a"));
        assert!(matches!(packed, Err(FolderError::NotAFile { .. })));
    }

    #[test]
    fn links_are_refused_wherever_the_folder_has_them() {
        for link in ["files", "bin/a", MANIFEST] {
            let (dir, folder) = folder();
            let path = dir.path().join(link);
            if path.is_dir() {
                std::fs::remove_dir_all(&path).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            let target = if link == "files" {
                "/etc"
            } else {
                "/etc/passwd"
            };
            std::os::unix::fs::symlink(target, &path).unwrap();
            let packed = pack(&folder, &dir.path().join("bin/a"));
            assert!(
                matches!(packed, Err(FolderError::NotAFile { .. })),
                "{link}"
            );
        }
    }

    #[test]
    fn a_file_that_would_replace_the_entry_is_refused() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join("files/a"), "other").unwrap();
        let packed = pack(&folder, &dir.path().join("bin/a"));
        assert!(matches!(packed, Err(FolderError::Twice { .. })));
    }
}
