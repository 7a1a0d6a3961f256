// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Trees: the gateway's requests on the store.

use std::os::fd::{AsFd, OwnedFd};

use hearth_protocol::{
    TreeId,
    spawner::{Event, RequestId, UploadId},
};
use nix::errno::Errno;

use super::{
    Spawner,
    requests::{failed, wrong_state},
};
use crate::{
    failure::Failure,
    trees::{Chunk, Tidied, TreeError},
};

impl Spawner {
    pub(super) fn tree_begin(&mut self, request: RequestId) {
        let outcome = self.parts.store.begin();
        self.answer_tree(
            request,
            outcome.map(|upload| Event::TreeBegun { request, upload }),
        );
    }

    pub(super) fn tree_chunk(&mut self, upload: UploadId, chunk: Chunk<'_>, fds: &[OwnedFd]) {
        match fds {
            [source] => self.parts.store.chunk(upload, chunk, source.as_fd()),
            // No source, or which of several: nothing is stored, and the commit finds the upload gone.
            _ => self.tree_abort(upload),
        }
    }

    pub(super) fn tree_commit(&mut self, request: RequestId, upload: UploadId) {
        match self.parts.store.begin_commit(upload) {
            Ok(commit) => self.commits.push(request, commit),
            Err(error) => {
                self.untidy = true;
                self.link.push(&refusal(request, &error), Vec::new());
            }
        }
        self.begin_commit();
    }

    pub(super) fn tree_abort(&mut self, upload: UploadId) {
        // What cannot be moved away now is swept at the next start: it carries an unfinished tree's name.
        let _later = self.parts.store.abort(upload);
        self.untidy = true;
    }

    pub(super) fn tree_remove(&mut self, request: RequestId, tree: &TreeId) {
        if self.table.uses(tree) {
            return self.answer(
                request,
                Err(wrong_state("remove files that a sandbox uses")),
            );
        }
        let outcome = self.parts.store.remove(tree);
        self.untidy = true;
        self.answer_tree(request, outcome.map(|()| Event::TreeRemoved { request }));
    }

    /// Deletes a little of what was removed, in a moment without events.
    pub(super) fn tidy(&mut self) {
        // An error stops it until the next removal; the next start sweeps.
        self.untidy = matches!(self.parts.store.tidy(), Ok(Tidied::Some));
    }

    fn answer_tree(&mut self, request: RequestId, outcome: Result<Event, TreeError>) {
        let event = outcome.unwrap_or_else(|error| refusal(request, &error));
        self.link.push(&event, Vec::new());
    }
}

/// The answer to a request on the store that failed.
pub(super) fn refusal(request: RequestId, error: &TreeError) -> Event {
    // The error's text names the file; its step is the part before the name.
    let text = error.to_string();
    let step = text
        .strip_prefix("cannot ")
        .map_or(text.clone(), str::to_owned);
    failed(
        request,
        Failure {
            step: step.into(),
            errno: Errno::from_raw(error.errno()),
        },
    )
}
