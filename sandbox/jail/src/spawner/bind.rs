// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Giving a skeleton to one revision of one function, for good; and a fresh scratch between two invocations.

use std::os::fd::{AsFd, OwnedFd};

use hearth_protocol::{
    TreeId,
    init::ScratchUse,
    spawner::{Cause, Handover, Root, SandboxId, SandboxLimits},
};
use nix::errno::Errno;

use super::{
    Spawner, c_path, limits,
    requests::{refused, unknown, wrong_state},
    table::State,
};
use crate::{
    failure::Failure,
    mounts::{self, Scratch},
};

impl Spawner {
    /// Gives the descriptors that go with the answer. A sandbox that was bound by half is destroyed.
    pub(super) fn bind(
        &mut self,
        id: SandboxId,
        tree: TreeId,
        handover: &Handover,
        wanted: &SandboxLimits,
    ) -> Result<Vec<OwnedFd>, Failure> {
        limits::check(wanted)?;
        if !self.parts.store.contains(&tree) {
            return Err(Failure {
                step: "find the function's files".into(),
                errno: Errno::ENOENT,
            });
        }
        let sandbox = self.table.get(id).ok_or_else(unknown)?;
        if !matches!(sandbox.state, State::Skeleton) {
            return Err(wrong_state("bind a sandbox that is not a skeleton"));
        }
        let path = c_path(&self.parts.store.path(&tree));
        let (mounted, fds) = match handover {
            Handover::Mount => (Some(path.as_c_str()), Vec::new()),
            Handover::OpenFile(name) => {
                let file = self
                    .parts
                    .store
                    .open_file(&tree, name)
                    .map_err(|error| Failure {
                        step: "open the function's file".into(),
                        errno: Errno::from_raw(error.errno()),
                    })?;
                (None, vec![file])
            }
        };
        // Before the first change: whatever happens now, it is never a skeleton again.
        self.table.set_state(id, State::Bound(tree));
        let sandbox = self.table.get_mut(id).ok_or_else(unknown)?;
        let before = std::mem::replace(&mut sandbox.limits, *wanted);
        let scratch_of = |limits| Scratch::new(limits, sandbox.ids, sandbox.root);
        let scratch = scratch_of(wanted);
        let resized = (scratch != scratch_of(&before)).then_some(&scratch);
        let bound = (self.parts.build.limit)(&sandbox.cgroup, wanted, Some(&before))
            .and_then(|()| mounts::bind(sandbox.pidfd.as_fd(), &self.parts.home, mounted, resized));
        if let Err(failure) = bound {
            self.destroy(id, Cause::Destroyed);
            return Err(failure);
        }
        Ok(fds)
    }

    /// Replaces scratch. A sandbox where that fails is not clean, and is destroyed.
    pub(super) fn renew(&mut self, id: SandboxId) -> Result<ScratchUse, Failure> {
        let sandbox = self.table.get(id).ok_or_else(unknown)?;
        if !matches!(sandbox.state, State::Skeleton | State::Bound(_)) {
            return Err(wrong_state(
                "renew the scratch of a sandbox that is not ready",
            ));
        }
        if sandbox.root == Root::Writable {
            // What was written lies under the root itself, which no mount can be taken from.
            return Err(refused("renew a writable root"));
        }
        let scratch = Scratch::new(&sandbox.limits, sandbox.ids, sandbox.root);
        let renewed = mounts::renew(sandbox.pidfd.as_fd(), &self.parts.home, &scratch);
        if renewed.is_err() {
            self.destroy(id, Cause::Destroyed);
        }
        renewed
    }
}
