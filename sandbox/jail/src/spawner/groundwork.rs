// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Parts of sandboxes made ahead of need, in moments in which nobody wants anything: network namespaces, and cgroups with
//! their limits and open files. Both take long (0.6 and 0.5 of 3.3 ms, 20 ms apart) and need no process, so whoever waits
//! for a sandbox need not wait for them.
//!
//! A part has never been in a sandbox and goes to one only; what is taken is owned by the sandbox from then on. Where none
//! is ready the part is made on the spot, so that a burst is slower, not refused.

use std::{fs::File, os::fd::OwnedFd};

use hearth_protocol::spawner::{SandboxId, SandboxLimits};
use nix::sys::eventfd::EventFd;

use super::{Parts, Spawner, build::MakeNetwork};
use crate::{
    cgroup::{self, SandboxCgroup},
    failure::Failure,
    namespace::HostNetwork,
};

/// Of each kind: a few first calls in a row find theirs. An unused network namespace holds some 100 KiB of kernel memory.
const READY_MAX: usize = 4;

/// For how long nothing must have happened before a part is made: making one holds the core for up to 0.6 ms, and most
/// first calls are over by then. One part each time.
pub(super) const GROUNDWORK_QUIET_MS: u8 = 5;

/// The stock of parts.
#[derive(Debug, Default)]
pub(super) struct Groundwork {
    networks: Vec<OwnedFd>,
    places: Vec<Place>,
    /// With which cgroups are made: the limits that were wanted last. None before the first sandbox, or after a failure,
    /// until the next sandbox is wanted: that one hears why.
    limits: Option<SandboxLimits>,
}

/// The cgroups of one sandbox, with limits, and no process in them yet.
#[derive(Debug)]
pub(super) struct Place {
    /// Whose; part of the directories' names.
    pub(super) id: SandboxId,
    pub(super) cgroup: SandboxCgroup,
    /// The v1 `tasks` files.
    pub(super) tasks: Vec<File>,
    /// Signalled by the kernel when the memory limit is hit; v1 only.
    pub(super) oom: Option<EventFd>,
    /// The files that the gateway reads by itself.
    pub(super) reports: Vec<OwnedFd>,
    /// Those that hold.
    pub(super) limits: SandboxLimits,
}

impl Place {
    /// Makes everything that is made before a process is.
    pub(super) fn make(
        parts: &Parts,
        id: SandboxId,
        limits: &SandboxLimits,
    ) -> Result<Self, Failure> {
        let cgroup = parts.cgroups.create(id)?;
        let furnish = || {
            (parts.build.limit)(&cgroup, limits, None)?;
            Ok((
                cgroup.tasks()?,
                cgroup.watch_oom()?,
                cgroup::report_files(&cgroup)?,
            ))
        };
        match furnish() {
            Ok((tasks, oom, reports)) => Ok(Self {
                id,
                cgroup,
                tasks,
                oom,
                reports,
                limits: *limits,
            }),
            Err(failure) => {
                remove(&cgroup);
                Err(failure)
            }
        }
    }

    /// Removes it again.
    pub(super) fn give_up(self) {
        remove(&self.cgroup);
    }
}

fn remove(cgroup: &SandboxCgroup) {
    // No process was ever in it, so this cannot be EBUSY; were it something else, the instance's next start sweeps.
    let _left = cgroup.remove();
}

impl Groundwork {
    /// What is ready of it, for a sandbox with these limits; the next ones are made with them.
    pub(super) fn take(&mut self, limits: &SandboxLimits) -> (Option<OwnedFd>, Option<Place>) {
        self.limits = Some(*limits);
        (self.networks.pop(), self.take_place())
    }

    /// One whose limits are as they were made. The audit looks at sandboxes only, and whoever takes a place writes only what
    /// differs from what was made: one that was changed from outside meanwhile would be a sandbox without a limit.
    fn take_place(&mut self) -> Option<Place> {
        while let Some(place) = self.places.pop() {
            if cgroup::still_holds(&place.cgroup, &place.limits) {
                return Some(place);
            }
            place.give_up();
        }
        None
    }

    /// Removes what nobody took.
    pub(super) fn give_up(&mut self) {
        self.networks.clear();
        self.places.drain(..).for_each(Place::give_up);
        self.limits = None;
    }
}

impl Parts {
    /// How network namespaces are made ahead; none where sandboxes get none, or the clone has to make them.
    fn makes_networks(&self) -> Option<(MakeNetwork, &HostNetwork)> {
        Some((self.build.network?, self.host_network.as_ref()?))
    }
}

impl Spawner {
    /// Whether a quiet moment could be used.
    pub(super) fn lacks_groundwork(&self) -> bool {
        let lacks_network =
            self.parts.makes_networks().is_some() && self.groundwork.networks.len() < READY_MAX;
        self.groundwork.limits.is_some()
            && (lacks_network || self.groundwork.places.len() < READY_MAX)
    }

    /// Whether nobody waits for a sandbox, and none is on its way out.
    pub(super) fn is_quiet(&self) -> bool {
        self.creates.is_empty() && self.table.restless().next().is_none()
    }

    /// Makes one part: of what there is less.
    pub(super) fn lay_groundwork(&mut self) {
        let Some(limits) = self.groundwork.limits.filter(|_| self.lacks_groundwork()) else {
            return;
        };
        let made = match self.parts.makes_networks() {
            Some((make, host))
                if self.groundwork.networks.len() <= self.groundwork.places.len() =>
            {
                make(host).map(|one| self.groundwork.networks.push(one))
            }
            _ => Place::make(&self.parts, self.table.next_id(), &limits)
                .map(|one| self.groundwork.places.push(one)),
        };
        if made.is_err() {
            self.groundwork.limits = None;
        }
    }
}
