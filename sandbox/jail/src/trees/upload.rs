// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One upload: chunks checked, written and hashed as they come, then made final.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use hearth_protocol::spawner::{TREE_BYTES_MAX, TREE_CHUNK_BYTES_MAX, TREE_FILES_MAX};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, mkdirat};
use sha2::{Digest, Sha256};

use super::content::{self, Listing, UploadedFile};
use super::{COPY_BYTES, Chunk, NewFile, TreeError, at, is_plain_file, open_beneath};

/// Up to this many files are flushed one by one; a larger tree by one flush of the whole file system.
const FLUSHED_SINGLY_MAX: usize = 32;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) path: PathBuf,
    pub(super) directory: File,
    pub(super) listing: Listing,
    pub(super) directories: BTreeSet<String>,
    /// Of all files together.
    pub(super) bytes: u64,
    /// The first chunk that failed.
    pub(super) failed: Option<TreeError>,
}

/// Checks a chunk against everything known, then copies it.
pub(super) fn append(
    upload: &mut Upload,
    chunk: Chunk<'_>,
    source: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(), TreeError> {
    if TREE_CHUNK_BYTES_MAX < chunk.bytes {
        return Err(TreeError::Limit {
            what: "bytes of one chunk",
            limit: TREE_CHUNK_BYTES_MAX,
        });
    }
    let bad_source = |problem| TreeError::BadSource {
        path: chunk.path.into(),
        problem,
    };
    // A pipe or a device could keep the spawner waiting; a plain file cannot.
    if !fstat(source).is_ok_and(|stat| is_plain_file(&stat)) {
        return Err(bad_source("it is not a plain file"));
    }
    let mut file = upload.file(chunk)?;
    let mut done = 0;
    while done < chunk.bytes {
        let rest = usize::try_from(chunk.bytes - done).unwrap_or(usize::MAX);
        let piece = &mut buffer[..rest.min(COPY_BYTES)];
        let position = i64::try_from(chunk.offset + done)
            .map_err(|_beyond_i64| bad_source("its offset is beyond any file"))?;
        let read = match nix::sys::uio::pread(source, piece, position) {
            Ok(0) => return Err(bad_source("it ended early")),
            Ok(read) => read,
            Err(Errno::EINTR) => continue,
            Err(_) => return Err(bad_source("reading failed")),
        };
        file.write(&piece[..read])?;
        done += read as u64;
    }
    Ok(())
}

pub(super) fn append_all(upload: &mut Upload, file: &NewFile<'_>) -> Result<(), TreeError> {
    let whole = Chunk {
        path: file.path,
        executable: file.executable,
        offset: 0,
        bytes: file.content.len() as u64,
    };
    upload.file(whole)?.write(file.content)
}

/// Final modes and on disk, files before the directories that name them.
pub(super) fn finish(upload: &Upload) -> Result<(), TreeError> {
    let singly = upload.listing.files.len() <= FLUSHED_SINGLY_MAX;
    // Opened anew: the upload's own descriptor is not there any more in the process that does this.
    let root = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY)
        .open(&upload.path)
        .map_err(at("open", &upload.path))?;
    for (path, file) in &upload.listing.files {
        let opened = open_beneath(root.as_fd(), path, OFlag::O_RDONLY, Mode::empty());
        let path = upload.path.join(path);
        let opened = File::from(opened.map_err(|errno| at("open", &path)(errno.into()))?);
        opened
            .set_permissions(Permissions::from_mode(file.mode()))
            .map_err(at("set mode of", &path))?;
        if singly {
            opened.sync_all().map_err(at("flush", &path))?;
        }
    }
    let directories = upload.directories.iter().rev().map(String::as_str);
    for directory in directories.chain(["."]) {
        let path = upload.path.join(directory);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let opened = open_beneath(root.as_fd(), directory, flags, Mode::empty());
        let opened = File::from(opened.map_err(|errno| at("open", &path)(errno.into()))?);
        opened
            .set_permissions(Permissions::from_mode(content::EXECUTABLE))
            .map_err(at("set mode of", &path))?;
        if singly {
            opened.sync_all().map_err(at("flush", &path))?;
        }
    }
    if !singly {
        nix::unistd::syncfs(&root).map_err(|errno| at("flush", &upload.path)(errno.into()))?;
    }
    Ok(())
}

/// A file of an upload, open at its end.
struct OpenFile<'a> {
    file: File,
    path: PathBuf,
    state: &'a mut UploadedFile,
}

impl OpenFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.file
            .write_all_at(bytes, self.state.size)
            .map_err(at("write", &self.path))?;
        self.state.size += bytes.len() as u64;
        self.state.hash.update(bytes);
        Ok(())
    }
}

impl Upload {
    pub(super) fn new(path: PathBuf, directory: File) -> Self {
        Self {
            path,
            directory,
            listing: Listing::default(),
            directories: Default::default(),
            bytes: 0,
            failed: None,
        }
    }

    /// Makes the file, or opens it to go on, once the chunk is known to be allowed.
    fn file(&mut self, chunk: Chunk<'_>) -> Result<OpenFile<'_>, TreeError> {
        let Chunk {
            path,
            executable,
            offset,
            bytes,
        } = chunk;
        content::check_path(path)?;
        if TREE_BYTES_MAX - self.bytes < bytes {
            return Err(TreeError::Limit {
                what: "bytes",
                limit: TREE_BYTES_MAX,
            });
        }
        let known = self.listing.files.get(path);
        let present = known.map_or(0, |file| file.size);
        let continues = known.is_some_and(|file| file.executable == executable && 0 < offset);
        if offset != present || (known.is_some() && !continues) {
            return Err(TreeError::OutOfOrder {
                path: path.into(),
                offset,
                present,
            });
        }
        let (flags, mode) = if continues {
            // openat2(2) refuses a mode where nothing is made.
            (OFlag::O_WRONLY, Mode::empty())
        } else {
            self.make_room(path)?;
            let make = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            (make, Mode::S_IRUSR | Mode::S_IWUSR)
        };
        let directory = self.directory.as_fd();
        let full_path = self.path.join(path);
        let file = open_beneath(directory, path, flags, mode)
            .map_err(|errno| at("make", &full_path)(errno.into()))?;
        self.bytes += bytes;
        let state = self.listing.files.entry(path.into());
        Ok(OpenFile {
            file: File::from(file),
            path: full_path,
            state: state.or_insert_with(|| UploadedFile {
                executable,
                size: 0,
                hash: Sha256::new(),
            }),
        })
    }

    /// Counts a new file and makes the directories above it.
    fn make_room(&mut self, path: &str) -> Result<(), TreeError> {
        // Directories count too: otherwise a tree of nothing but directories would have no limit.
        let entries = self.listing.files.len() + self.directories.len();
        let above: Vec<&str> = path
            .match_indices('/')
            .map(|(end, _)| &path[..end])
            .collect();
        if TREE_FILES_MAX as usize <= entries + above.len() {
            return Err(TreeError::Limit {
                what: "files and directories",
                limit: u64::from(TREE_FILES_MAX),
            });
        }
        for directory in above {
            if self.directories.contains(directory) {
                continue;
            }
            make_directory(self.directory.as_fd(), directory)
                .map_err(|errno| at("make directory", &self.path.join(directory))(errno.into()))?;
            self.directories.insert(directory.into());
        }
        Ok(())
    }
}

/// Makes the last part of a path whose other parts are there, none of them a link: mkdirat(2) itself would follow them.
fn make_directory(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    match path.rsplit_once('/') {
        None => mkdirat(root, path, Mode::S_IRWXU),
        Some((above, name)) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let above = open_beneath(root, above, flags, Mode::empty())?;
            mkdirat(&above, name, Mode::S_IRWXU)
        }
    }
}
