// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The part of a commit that waits for the disk. It touches nothing of the store but its directory, so that a process
//! of its own can do it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hearth_protocol::TreeId;

use super::upload::{Upload, finish};
use super::{TreeError, at};

/// An upload whose chunks were all good, on its way to its final name.
#[derive(Debug)]
pub(crate) struct Commit {
    upload: Upload,
    /// Of the store.
    directory: PathBuf,
}

impl Commit {
    pub(super) fn new(upload: Upload, directory: PathBuf) -> Self {
        Self { upload, directory }
    }

    /// Where the upload is, until it has been renamed.
    pub(super) fn path(&self) -> &Path {
        &self.upload.path
    }

    /// Final modes, everything on disk, the final name; in this order, so that no name ever stands for less than its
    /// content.
    pub(crate) fn run(&self) -> Result<TreeId, TreeError> {
        let tree = self.upload.listing.id();
        let path = self.directory.join(tree.as_str());
        if path.is_dir() {
            return Ok(tree);
        }
        finish(&self.upload)?;
        match fs::rename(self.path(), &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(tree),
            Err(error) => return Err(at("store", &path)(error)),
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(at("flush", &self.directory))?;
        Ok(tree)
    }
}
