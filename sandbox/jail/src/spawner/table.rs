// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every sandbox that exists, and the ids that each one takes.

use std::{collections::BTreeMap, os::fd::OwnedFd, time::Instant};

use hearth_protocol::{
    TreeId,
    spawner::{Cause, RequestId, SandboxId, SandboxLimits, Totals},
};
use nix::{sys::eventfd::EventFd, unistd::Pid};

use crate::{cgroup::SandboxCgroup, idmap::Ids, instance::IdBlock};

/// One sandbox, from its clone to its cgroups' removal.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// Index of its id pair in the block.
    pub(super) pair: u32,
    pub(super) ids: Ids,
    /// Its PID 1, not reaped while this is here: the number cannot be somebody else's.
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) cgroup: SandboxCgroup,
    /// Signalled by the kernel when the memory limit is hit; v1 only.
    pub(super) oom: Option<EventFd>,
    /// Whether it was.
    pub(super) oom_seen: bool,
    /// Those that hold now.
    pub(super) limits: SandboxLimits,
    pub(super) state: State,
    /// Whether the gateway knows it, and is to be told when it is gone.
    pub(super) announced: bool,
}

/// Where in its life a sandbox is.
#[derive(Debug)]
pub(super) enum State {
    /// The first process builds its walls.
    Starting(Starting),
    /// Ready, without a function.
    Skeleton,
    /// Given to one revision of one function, for good.
    Bound(TreeId),
    /// Killed, or dead by itself; PID 1 is not reaped yet.
    Dying(Cause),
    /// No process is left; cgroups may be, and what they counted was read while they were whole.
    Reaped(Cause, Totals),
}

/// A sandbox that is not up yet.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) request: RequestId,
    /// This end of the setup socket.
    pub(super) setup: OwnedFd,
    /// The gateway's end of the control socket.
    pub(super) control: OwnedFd,
    pub(super) deadline: Instant,
}

/// All sandboxes, and what is free.
#[derive(Debug)]
pub(super) struct Table {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    free_pairs: Vec<u32>,
    block: IdBlock,
    next: u64,
}

impl Table {
    pub(super) fn new(block: IdBlock, sandboxes_max: u32) -> Self {
        // Popped from the end: the lowest pair first.
        Self {
            sandboxes: BTreeMap::new(),
            free_pairs: (0..sandboxes_max).rev().collect(),
            block,
            next: 1,
        }
    }

    /// An id and a pair for one more sandbox; None where all are taken. A pair comes back by [`Table::remove`] or
    /// [`Table::give_back`] only, so it is never shared and never reused while a process could still have it.
    pub(super) fn reserve(&mut self) -> Option<(SandboxId, u32, Ids)> {
        let pair = self.free_pairs.pop()?;
        let Some(first) = self.block.pair(pair) else {
            self.free_pairs.push(pair);
            return None;
        };
        let id = SandboxId(self.next);
        self.next += 1;
        Some((id, pair, Ids::from_first(first)))
    }

    /// A pair that no process ever got.
    pub(super) fn give_back(&mut self, pair: u32) {
        self.free_pairs.push(pair);
    }

    pub(super) fn insert(&mut self, id: SandboxId, sandbox: Sandbox) {
        self.sandboxes.insert(id, sandbox);
    }

    pub(super) fn get(&self, id: SandboxId) -> Option<&Sandbox> {
        self.sandboxes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SandboxId) -> Option<&mut Sandbox> {
        self.sandboxes.get_mut(&id)
    }

    /// Takes out a sandbox of which nothing is left.
    pub(super) fn remove(&mut self, id: SandboxId) -> Option<Sandbox> {
        let sandbox = self.sandboxes.remove(&id)?;
        self.free_pairs.push(sandbox.pair);
        Some(sandbox)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sandboxes.is_empty()
    }

    pub(super) fn ids(&self) -> Vec<SandboxId> {
        self.sandboxes.keys().copied().collect()
    }

    /// Those whose state `wanted` accepts.
    pub(super) fn ids_where(&self, wanted: impl Fn(&Sandbox) -> bool) -> Vec<SandboxId> {
        self.sandboxes
            .iter()
            .filter(|(_, sandbox)| wanted(sandbox))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether a sandbox uses this tree.
    pub(super) fn uses(&self, tree: &TreeId) -> bool {
        self.sandboxes
            .values()
            .any(|sandbox| matches!(&sandbox.state, State::Bound(bound) if bound == tree))
    }
}
