// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Function files, stored under the hash of their content: `trees/<id>/…`, root-owned, read-only, never changed.
//!
//! ```text
//! begin ─▶ trees/.upload-…/   (0700)   chunk: one piece of one file, hashed as it is written
//!                │ commit: modes, flush, id = SHA-256 of the listing
//!                ▼ rename(2)
//!          trees/<id>/        (0555)   remove: rename to .removed-…, deleted piece by piece in `tidy`
//! ```
//!
//! The one who uploads is not trusted: paths, sizes and order are checked here, and the source is read, never mapped,
//! so that one who shrinks it meanwhile causes an error and not a signal.

mod commit;
mod content;
mod delete;
mod upload;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use hearth_protocol::TreeId;
use hearth_protocol::spawner::UploadId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use content::Listing;
use upload::{Upload, append, append_all};

pub(crate) use commit::Commit;

pub use delete::delete_whole;

/// Uploads at once. A gateway has a few deploys in flight; more would be one that forgets to end them.
const UPLOADS_MAX: usize = 32;

/// How much is read and written at a time, in bytes: fits the caches, few system calls per chunk.
const COPY_BYTES: usize = 128 * 1024;

/// Entries that one call of [`Store::tidy`] deletes: a millisecond at most on most file systems, twenty on one that
/// discards blocks as it frees them.
const TIDY_ENTRIES_MAX: usize = 20;

/// Paths inside a tree stay inside it: no link, no `..`, no other mount.
const BENEATH: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_XDEV);

/// Why a tree could not be stored, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A step on a path failed.
    #[error("cannot {step} {}", path.display())]
    Path {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such upload: never begun, ended, or lost with an earlier spawner.
    #[error("cannot find upload {}", upload.0)]
    UnknownUpload {
        /// Its number.
        upload: UploadId,
    },
    /// Too many uploads at once.
    #[error("cannot begin another upload while {UPLOADS_MAX} are in progress")]
    TooManyUploads,
    /// The path could leave the tree, or is not one that every tool understands.
    #[error("cannot use the path {path:?} in a tree: {problem}")]
    BadPath {
        /// As it came.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The chunk does not follow what is there.
    #[error("cannot continue {path:?} at byte {offset}: it has {present}")]
    OutOfOrder {
        /// The file.
        path: String,
        /// Where the chunk begins.
        offset: u64,
        /// What the file holds.
        present: u64,
    },
    /// A limit of the tree was passed.
    #[error("cannot store more than {limit} {what} in one tree")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The source is not a plain file, or ended early.
    #[error("cannot read {path:?} from its source: {problem}")]
    BadSource {
        /// The file.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No such tree.
    #[error("cannot find tree {tree}")]
    UnknownTree {
        /// Its id.
        tree: TreeId,
    },
    /// The files are not those that the id stands for.
    #[error("cannot trust tree {tree}: {problem}")]
    Damaged {
        /// Its id.
        tree: TreeId,
        /// What is wrong.
        problem: String,
    },
}

impl TreeError {
    /// The errno behind it, 0 where there is none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Path { source, .. } => source.raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }
}

/// One piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Relative, `/`-separated.
    pub path: &'a str,
    /// Mode 0555 instead of 0444.
    pub executable: bool,
    /// Where in the source and in the file it begins; must equal what the file holds already.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// A file for [`Store::install`].
#[derive(Debug, Clone, Copy)]
pub struct NewFile<'a> {
    /// Relative, `/`-separated.
    pub path: &'a str,
    /// Mode 0555 instead of 0444.
    pub executable: bool,
    /// All of it.
    pub content: &'a [u8],
}

/// The directory of all trees, and the uploads in progress.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    uploads: BTreeMap<UploadId, Upload>,
    /// Uploads between [`Store::begin_commit`] and [`Store::end_commit`].
    committing: usize,
    /// For names of uploads and removed trees, together with the process's id: a spawner before this one may have left
    /// some, until the next sweep.
    next: u64,
    buffer: Vec<u8>,
}

impl Store {
    /// The store in this directory, which exists and which nobody else writes to.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            uploads: BTreeMap::new(),
            committing: 0,
            next: 0,
            buffer: Vec::new(),
        }
    }

    /// Where the tree is, whether it exists or not.
    #[must_use]
    pub fn path(&self, tree: &TreeId) -> PathBuf {
        self.directory.join(tree.as_str())
    }

    /// Whether the tree is stored.
    #[must_use]
    pub fn contains(&self, tree: &TreeId) -> bool {
        self.path(tree).is_dir()
    }

    /// Every stored tree.
    ///
    /// # Errors
    /// [`TreeError::Path`] where the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<TreeId>, TreeError> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(at("list", &self.directory))? {
            let name = entry.map_err(at("list", &self.directory))?.file_name();
            trees.extend(name.to_str().and_then(|name| TreeId::new(name).ok()));
        }
        trees.sort();
        Ok(trees)
    }

    /// Opens one file of a tree for reading.
    ///
    /// # Errors
    /// [`TreeError`] where tree or file is missing, or the path is not one of a tree.
    pub fn open_file(&self, tree: &TreeId, path: &str) -> Result<OwnedFd, TreeError> {
        content::check_path(path)?;
        let root = self.path(tree);
        let directory = match File::open(&root) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TreeError::UnknownTree { tree: tree.clone() });
            }
            Err(error) => return Err(at("open", &root)(error)),
        };
        let fd = open_beneath(directory.as_fd(), path, OFlag::O_RDONLY, Mode::empty())
            .map_err(|errno| at("open", &root.join(path))(errno.into()))?;
        let is_file = fstat(&fd).is_ok_and(|stat| is_plain_file(&stat));
        if !is_file {
            return Err(at("open", &root.join(path))(Errno::EISDIR.into()));
        }
        Ok(fd)
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// [`TreeError`]; nothing is left then.
    pub fn begin(&mut self) -> Result<UploadId, TreeError> {
        if UPLOADS_MAX <= self.uploads.len() + self.committing {
            return Err(TreeError::TooManyUploads);
        }
        let upload = UploadId(self.fresh());
        let path = self.hidden("upload", upload.0);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(at("make directory", &path))?;
        let directory = File::open(&path).map_err(at("open", &path))?;
        self.uploads.insert(upload, Upload::new(path, directory));
        Ok(upload)
    }

    /// Appends to a file of an upload. The first failure ends the upload's chances and is what [`Store::commit`]
    /// gives back; a chunk for an upload that does not exist is dropped.
    pub fn chunk(&mut self, upload: UploadId, chunk: Chunk<'_>, source: BorrowedFd<'_>) {
        self.buffer.resize(COPY_BYTES, 0);
        let Some(upload) = self.uploads.get_mut(&upload) else {
            return;
        };
        if upload.failed.is_none() {
            upload.failed = append(upload, chunk, source, &mut self.buffer).err();
        }
    }

    /// Makes an upload permanent. Content that is stored already is not stored twice.
    ///
    /// # Errors
    /// The first failure of a chunk, or a step of this; the upload is gone either way.
    pub fn commit(&mut self, upload: UploadId) -> Result<TreeId, TreeError> {
        let commit = self.begin_commit(upload)?;
        let stored = commit.run();
        self.end_commit(&commit)?;
        stored
    }

    /// The checked part of a commit; what waits for the disk is [`Commit::run`]. [`Store::end_commit`] must follow.
    ///
    /// # Errors
    /// The first failure of a chunk; the upload is gone then.
    pub(crate) fn begin_commit(&mut self, upload: UploadId) -> Result<Commit, TreeError> {
        let mut upload = self
            .uploads
            .remove(&upload)
            .ok_or(TreeError::UnknownUpload { upload })?;
        if let Some(failed) = upload.failed.take() {
            self.discard(&upload.path)?;
            return Err(failed);
        }
        self.committing += 1;
        Ok(Commit::new(upload, self.directory.clone()))
    }

    /// Removes what a commit has left, however it ended.
    ///
    /// # Errors
    /// [`TreeError::Path`] where it cannot be moved away.
    pub(crate) fn end_commit(&mut self, commit: &Commit) -> Result<(), TreeError> {
        self.committing -= 1;
        if commit.path().exists() {
            self.discard(commit.path())?;
        }
        Ok(())
    }

    /// Forgets an upload; unknown ones are ignored.
    ///
    /// # Errors
    /// [`TreeError::Path`] where its files cannot be moved away.
    pub fn abort(&mut self, upload: UploadId) -> Result<(), TreeError> {
        match self.uploads.remove(&upload) {
            None => Ok(()),
            Some(upload) => self.discard(&upload.path),
        }
    }

    /// Removes a stored tree. That no sandbox uses it is the caller's to know.
    ///
    /// # Errors
    /// [`TreeError::UnknownTree`], or the step that failed.
    pub fn remove(&mut self, tree: &TreeId) -> Result<(), TreeError> {
        if !self.contains(tree) {
            return Err(TreeError::UnknownTree { tree: tree.clone() });
        }
        self.discard(&self.path(tree))
    }

    /// Deletes some of what was removed. For idle moments: a large tree takes many calls.
    ///
    /// # Errors
    /// [`TreeError::Path`] where something cannot be deleted.
    pub fn tidy(&mut self) -> Result<Tidied, TreeError> {
        let mut budget = TIDY_ENTRIES_MAX;
        for entry in fs::read_dir(&self.directory).map_err(at("list", &self.directory))? {
            let entry = entry.map_err(at("list", &self.directory))?;
            if !entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b".removed-")
            {
                continue;
            }
            let path = entry.path();
            match delete::delete_some(&path, &mut budget).map_err(at("delete", &path))? {
                Tidied::Everything => {}
                Tidied::Some => return Ok(Tidied::Some),
            }
        }
        Ok(Tidied::Everything)
    }

    /// Stores these files as a tree. One that is stored already is read again, and replaced where it is damaged: what
    /// is installed is Hearth's own, and is run.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn install(&mut self, files: &[NewFile<'_>]) -> Result<TreeId, TreeError> {
        let tree = self.store_all(files)?;
        match self.verify(&tree) {
            Ok(()) => Ok(tree),
            Err(TreeError::Damaged { .. }) => {
                self.remove(&tree)?;
                self.store_all(files)
            }
            Err(error) => Err(error),
        }
    }

    fn store_all(&mut self, files: &[NewFile<'_>]) -> Result<TreeId, TreeError> {
        let upload = self.begin()?;
        for file in files {
            let Some(begun) = self.uploads.get_mut(&upload) else {
                break;
            };
            if let Err(error) = append_all(begun, file) {
                self.abort(upload)?;
                return Err(error);
            }
        }
        self.commit(upload)
    }

    /// Reads a whole tree again: every byte, every mode, every owner.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] where anything differs from what the id stands for.
    pub fn verify(&self, tree: &TreeId) -> Result<(), TreeError> {
        if !self.contains(tree) {
            return Err(TreeError::UnknownTree { tree: tree.clone() });
        }
        let found = Listing::read(tree, &self.path(tree))?.id();
        if found == *tree {
            return Ok(());
        }
        Err(TreeError::Damaged {
            tree: tree.clone(),
            problem: format!("its files have the id {found}"),
        })
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn hidden(&self, what: &str, number: u64) -> PathBuf {
        let process = std::process::id();
        self.directory.join(format!(".{what}-{process}-{number}"))
    }

    /// Out of the way at once; deleted by and by.
    fn discard(&mut self, path: &Path) -> Result<(), TreeError> {
        let number = self.fresh();
        let away = self.hidden("removed", number);
        fs::rename(path, &away).map_err(at("move away", path))?;
        self.tidy().map(drop)
    }
}

impl Drop for Store {
    /// Whoever uploads is gone too, so nobody will commit what is in progress.
    fn drop(&mut self) {
        for upload in self.uploads.values() {
            // What cannot be deleted now is swept at the next start: it carries an unfinished tree's name.
            drop(delete_whole(&upload.path));
        }
    }
}

/// How far [`Store::tidy`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tidied {
    /// Nothing is left to delete.
    Everything,
    /// More is left.
    Some,
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> TreeError + use<'a> {
    move |source| TreeError::Path {
        step,
        path: path.to_owned(),
        source,
    }
}

fn open_beneath(at: BorrowedFd<'_>, path: &str, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(mode)
        .resolve(BENEATH);
    openat2(at, path, how)
}

fn is_plain_file(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

#[cfg(test)]
mod tests;
