// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The steps of the spawner that depend on which walls go up, compiled for one choice of them.

use std::os::fd::{BorrowedFd, OwnedFd};

use hearth_protocol::spawner::SandboxLimits;
use nix::unistd::Pid;

use crate::{
    cgroup::SandboxCgroup,
    clock,
    enter::{self, Plan},
    failure::{Failure, at},
    idmap::Ids,
    namespace::{self, HostNetwork},
    sys::clone::{Cloned, fork_into},
    verify,
    walls::{self, Raise, Wall, Walls},
};

/// A sandbox's first process.
type First = (Pid, OwnedFd);

/// Makes a network namespace and comes back.
pub(super) type MakeNetwork = fn(&HostNetwork) -> Result<OwnedFd, Failure>;

/// One choice of walls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Build {
    /// Makes the first process, in its namespaces and its v2 cgroup.
    pub(super) clone: fn(&Plan<'_>, Option<BorrowedFd<'_>>) -> Result<First, Failure>,
    /// Sets the limits; those of before, where there were any.
    pub(super) limit:
        fn(&SandboxCgroup, &SandboxLimits, Option<&SandboxLimits>) -> Result<(), Failure>,
    /// Makes a network namespace ahead of need; none where sandboxes get none.
    pub(super) network: Option<MakeNetwork>,
    /// Looks at init from outside before the skeleton is handed out.
    pub(super) look: fn(Pid, Ids) -> Result<(), Failure>,
    /// Whether a sandbox whose walls do not all stand is destroyed: always, unless some were left out.
    pub(super) watchful: bool,
    /// Whether there is a filter, which asks.
    pub(super) asks: bool,
}

impl Build {
    pub(super) fn of<W: Walls>() -> Self {
        const { walls::assert_harmless::<W>() }
        Self {
            clone: clone::<W>,
            limit: limit::<W>,
            network: W::stands(Wall::NetworkNamespace).then_some(HostNetwork::make_another),
            look: verify::from_outside::<W>,
            watchful: W::LEFT_OUT.is_empty(),
            asks: W::stands(Wall::Seccomp),
        }
    }
}

fn clone<W: Walls>(plan: &Plan<'_>, unified: Option<BorrowedFd<'_>>) -> Result<First, Failure> {
    W::raise(Wall::TimeNamespace, clock::unshare_for_children)?;
    let unified = unified.filter(|_| W::stands(Wall::Cgroup));
    let cloned = fork_into(namespace::with_clone::<W>(plan.network), unified);
    match cloned.map_err(at("clone the first process"))? {
        Cloned::Child => enter::child::<W>(plan),
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
    }
}

fn limit<W: Walls>(
    cgroup: &SandboxCgroup,
    limits: &SandboxLimits,
    before: Option<&SandboxLimits>,
) -> Result<(), Failure> {
    W::raise(Wall::CgroupLimits, || cgroup.limit(limits, before))
}
