// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every sandbox that exists, and the ids that each one takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    rc::Rc,
    time::Instant,
};

use hearth_protocol::{
    TreeId,
    spawner::{Cause, RequestId, Root, SandboxId, SandboxLimits, Totals},
};
use nix::{sys::eventfd::EventFd, unistd::Pid};

use super::{observe::Launch, violations::Violations};
use crate::{cgroup::SandboxCgroup, idmap::Ids, instance::IdBlock, seccomp::Filter};

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
    /// The calls that its filter asks about.
    pub(super) violations: Violations,
    /// Whether its root can be written.
    pub(super) root: Root,
    pub(super) filter: Rc<Filter>,
    /// For an observed sandbox: which calls are init's.
    pub(super) launch: Launch,
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
    /// The cgroup files that the gateway reads by itself.
    pub(super) reports: Vec<OwnedFd>,
    pub(super) deadline: Instant,
}

/// All sandboxes, and what is free.
#[derive(Debug)]
pub(super) struct Table {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// Those of which something is still to come by itself: the few that every turn looks at.
    restless: BTreeSet<SandboxId>,
    free_pairs: Vec<u32>,
    block: IdBlock,
    next: u64,
}

impl Table {
    pub(super) fn new(block: IdBlock, sandboxes_max: u32) -> Self {
        // Popped from the end: the lowest pair first.
        Self {
            sandboxes: BTreeMap::new(),
            restless: BTreeSet::new(),
            free_pairs: (0..sandboxes_max).rev().collect(),
            block,
            next: 1,
        }
    }

    /// An id that no sandbox has had.
    pub(super) fn next_id(&mut self) -> SandboxId {
        let id = SandboxId(self.next);
        self.next += 1;
        id
    }

    /// A pair for one more sandbox; None where all are taken. A pair comes back by [`Table::remove`] or
    /// [`Table::give_back`] only, so it is never shared and never reused while a process could still have it.
    pub(super) fn reserve(&mut self) -> Option<(u32, Ids)> {
        let pair = self.free_pairs.pop()?;
        let Some(first) = self.block.pair(pair) else {
            self.free_pairs.push(pair);
            return None;
        };
        Some((pair, Ids::from_first(first)))
    }

    /// A pair that no process ever got.
    pub(super) fn give_back(&mut self, pair: u32) {
        self.free_pairs.push(pair);
    }

    pub(super) fn insert(&mut self, id: SandboxId, sandbox: Sandbox) {
        self.restless.insert(id);
        self.sandboxes.insert(id, sandbox);
    }

    /// Moves a sandbox on; gives the state that it leaves.
    pub(super) fn set_state(&mut self, id: SandboxId, state: State) -> Option<State> {
        let sandbox = self.sandboxes.get_mut(&id)?;
        match state {
            State::Starting(_) | State::Dying(_) | State::Reaped(..) => self.restless.insert(id),
            State::Skeleton | State::Bound(_) => self.restless.remove(&id),
        };
        Some(std::mem::replace(&mut sandbox.state, state))
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
        self.restless.remove(&id);
        self.free_pairs.push(sandbox.pair);
        Some(sandbox)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sandboxes.is_empty()
    }

    pub(super) fn ids(&self) -> Vec<SandboxId> {
        self.sandboxes.keys().copied().collect()
    }

    /// The first after `id`, in a ring, that `wanted` accepts.
    pub(super) fn next_after(
        &self,
        id: SandboxId,
        wanted: impl Fn(&Sandbox) -> bool,
    ) -> Option<SandboxId> {
        let after = self.sandboxes.range(SandboxId(id.0 + 1)..);
        let mut ring = after.chain(self.sandboxes.range(..=id));
        ring.find(|(_, sandbox)| wanted(sandbox)).map(|(id, _)| *id)
    }

    /// Those that are starting, dying or reaped.
    pub(super) fn restless(&self) -> impl Iterator<Item = (SandboxId, &Sandbox)> {
        self.restless
            .iter()
            .filter_map(|id| Some((*id, self.sandboxes.get(id)?)))
    }

    /// Those of [`Table::restless`] whose state `wanted` accepts.
    pub(super) fn restless_where(&self, wanted: impl Fn(&Sandbox) -> bool) -> Vec<SandboxId> {
        self.restless()
            .filter(|(_, sandbox)| wanted(sandbox))
            .map(|(id, _)| id)
            .collect()
    }

    /// Whether a sandbox uses this tree.
    pub(super) fn uses(&self, tree: &TreeId) -> bool {
        self.sandboxes
            .values()
            .any(|sandbox| matches!(&sandbox.state, State::Bound(bound) if bound == tree))
    }
}
