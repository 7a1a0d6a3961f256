// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Giving a skeleton to one revision of one function, for good; and a fresh scratch between two invocations.

use std::os::fd::{AsFd, OwnedFd};

use hearth_protocol::{
    TreeId,
    init::ScratchUse,
    spawner::{Cause, Handover, SCRATCH_INODES_MAX, SandboxId, SandboxLimits},
};
use nix::errno::Errno;

use super::{
    Spawner, c_path,
    requests::{refused, unknown, wrong_state},
    table::State,
};
use crate::{
    failure::Failure,
    mounts::{self, Scratch},
};

/// Below this the kernel cannot start a process in the cgroup: init's own pages, page tables and stacks.
const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;
const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// Init and one process of the function.
const PIDS_MIN: u32 = 2;
const PIDS_MAX: u32 = 32 * 1024;

/// The kernel's shortest quota is 1 ms of the period of 100 ms.
const CPU_MILLIS_MIN: u32 = 10;
const CPU_MILLIS_MAX: u32 = 1024 * 1000;

/// One page.
const SCRATCH_BYTES_MIN: u64 = 4096;
const SCRATCH_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// The root directory and one file.
const SCRATCH_INODES_MIN: u64 = 2;

impl Spawner {
    /// Gives the descriptors that go with the answer. A sandbox that was bound by half is destroyed.
    pub(super) fn bind(
        &mut self,
        id: SandboxId,
        tree: TreeId,
        handover: &Handover,
        limits: &SandboxLimits,
    ) -> Result<Vec<OwnedFd>, Failure> {
        check(limits)?;
        if !self.parts.store.contains(&tree) {
            return Err(Failure {
                step: "find the function's files".into(),
                errno: Errno::ENOENT,
            });
        }
        let sandbox = self.table.get_mut(id).ok_or_else(unknown)?;
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
        sandbox.state = State::Bound(tree);
        sandbox.scratch = Scratch {
            bytes: limits.scratch_bytes,
            inodes: limits.scratch_inodes,
            ids: sandbox.ids,
        };
        let bound = sandbox.cgroup.limit(limits).and_then(|()| {
            mounts::bind(
                sandbox.pidfd.as_fd(),
                &self.parts.home,
                mounted,
                &sandbox.scratch,
            )
        });
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
        let renewed = mounts::renew(sandbox.pidfd.as_fd(), &self.parts.home, &sandbox.scratch);
        if renewed.is_err() {
            self.destroy(id, Cause::Destroyed);
        }
        renewed
    }
}

fn check(limits: &SandboxLimits) -> Result<(), Failure> {
    let within = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&limits.memory_bytes)
        && (PIDS_MIN..=PIDS_MAX).contains(&limits.pids)
        && (CPU_MILLIS_MIN..=CPU_MILLIS_MAX).contains(&limits.cpu_millis)
        && (SCRATCH_BYTES_MIN..=SCRATCH_BYTES_MAX).contains(&limits.scratch_bytes)
        && (SCRATCH_INODES_MIN..=SCRATCH_INODES_MAX).contains(&limits.scratch_inodes);
    if within {
        Ok(())
    } else {
        Err(refused("set limits outside their bounds"))
    }
}
