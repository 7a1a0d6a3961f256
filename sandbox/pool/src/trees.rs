// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Storing file trees through the spawner, which alone may write them.

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd},
};

use bytes::Bytes;
use hearth_protocol::{
    TreeId,
    spawner::{Event, Request, TREE_CHUNK_BYTES_MAX, UploadId},
};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{
    link::{Link, LinkError},
    pool::Pool,
};

/// One file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// Relative, `/`-separated, no empty, `.` or `..` component.
    pub path: String,
    /// Mode 0555 instead of 0444.
    pub executable: bool,
    /// All of it.
    pub content: Bytes,
}

/// Why a tree was not stored or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The spawner refused or is gone.
    #[error(transparent)]
    Spawner(#[from] LinkError),
    /// A file could not be handed over.
    #[error("cannot hand {path} over")]
    HandOver {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Pool {
    /// Stores a tree under its content hash; storing the same again gives the same id.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is left behind then.
    pub async fn store_tree(&self, files: Vec<TreeFile>) -> Result<TreeId, StoreError> {
        let link = self.link().await?;
        let upload = link.tree_begin().await?;
        for file in &files {
            if let Err(error) = send_file(&link, upload, file).await {
                link.tree_abort(upload).await;
                return Err(error);
            }
        }
        Ok(link.tree_commit(upload).await?)
    }

    /// Removes a stored tree that no target uses any more.
    ///
    /// # Errors
    /// [`StoreError`]; refused while a sandbox is bound to it.
    pub async fn remove_tree(&self, tree: &TreeId) -> Result<(), StoreError> {
        Ok(self.link().await?.tree_remove(tree.clone()).await?)
    }
}

impl Link {
    /// Begins to store a tree.
    pub(crate) async fn tree_begin(&self) -> Result<UploadId, LinkError> {
        let answer = self
            .ask(|request| Request::TreeBegin { request }, None)
            .await?;
        let Event::TreeBegun { upload, .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        Ok(upload)
    }

    /// Sends one piece of a file; a failure shows at the commit.
    pub(crate) async fn tree_chunk(
        &self,
        chunk: Request,
        content: BorrowedFd<'_>,
    ) -> Result<(), LinkError> {
        self.channel
            .send(&chunk, &[], &[content])
            .await
            .map_err(|_gone| LinkError::Down)
    }

    /// Makes the tree permanent.
    pub(crate) async fn tree_commit(&self, upload: UploadId) -> Result<TreeId, LinkError> {
        let answer = self
            .ask(|request| Request::TreeCommit { request, upload }, None)
            .await?;
        let Event::TreeStored { tree, .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        Ok(tree)
    }

    /// Forgets an upload.
    pub(crate) async fn tree_abort(&self, upload: UploadId) {
        // A spawner that is gone has forgotten it already.
        drop(
            self.channel
                .send(&Request::TreeAbort { upload }, &[], &[])
                .await,
        );
    }

    /// Removes a stored tree.
    pub(crate) async fn tree_remove(&self, tree: TreeId) -> Result<(), LinkError> {
        let answer = self
            .ask(|request| Request::TreeRemove { request, tree }, None)
            .await?;
        let Event::TreeRemoved { .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        Ok(())
    }
}

async fn send_file(link: &Link, upload: UploadId, file: &TreeFile) -> Result<(), StoreError> {
    let hand_over = |source| StoreError::HandOver {
        path: file.path.clone(),
        source,
    };
    let memfd = memfd_create(c"hearth-upload", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| hand_over(errno.into()))?;
    let mut memfd = std::fs::File::from(memfd);
    memfd.write_all(&file.content).map_err(hand_over)?;
    let size = file.content.len() as u64;
    let mut offset = 0;
    loop {
        let bytes = (size - offset).min(TREE_CHUNK_BYTES_MAX);
        let chunk = Request::TreeChunk {
            upload,
            path: file.path.clone(),
            executable: file.executable,
            offset,
            bytes,
        };
        link.tree_chunk(chunk, memfd.as_fd()).await?;
        offset += bytes;
        if offset == size {
            return Ok(());
        }
    }
}
