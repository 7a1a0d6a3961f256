// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Looking at sandboxes that live: whole when the gateway asks, at a glance in turn. One that is not as it was made
//! is told and destroyed, whoever it was that changed it.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use hearth_protocol::{
    isolation::{IsolationReport, WallReading},
    spawner::{Cause, Event, SandboxId},
};

use super::{
    Spawner,
    requests::{unknown, wrong_state},
    table::{Sandbox, State},
};
use crate::{
    failure::Failure,
    isolation::{self, Depth, Expected},
};

/// One sandbox is looked at this often, in turn: two dozen small files of the kernel, which is nothing beside a second.
pub(super) const AUDIT_INTERVAL_MS: u16 = 1000;

/// Whose turn it is, and when.
#[derive(Debug)]
pub(super) struct Audit {
    due: Instant,
    last: SandboxId,
}

impl Audit {
    pub(super) fn new() -> Self {
        Self {
            due: Instant::now(),
            last: SandboxId(0),
        }
    }
}

impl Spawner {
    /// The whole report as JSON in a memfd. A sandbox that cannot be looked at, or is not as it was made, is destroyed.
    pub(super) fn inspect(&mut self, id: SandboxId) -> Result<OwnedFd, Failure> {
        let sandbox = self.table.get(id).ok_or_else(unknown)?;
        if !is_up(sandbox) {
            return Err(wrong_state("inspect the sandbox"));
        }
        let report = match self.look_at(sandbox, Depth::Whole) {
            Ok(report) => report,
            Err(failure) => {
                self.destroy(id, Cause::Destroyed);
                return Err(failure);
            }
        };
        self.judge(id, &report);
        isolation::to_memfd(&report)
    }

    /// Looks at the next one, if it is time to.
    pub(super) fn audit(&mut self) {
        let now = Instant::now();
        if !self.parts.build.watchful || now < self.audit.due {
            return;
        }
        self.audit.due = now + Duration::from_millis(AUDIT_INTERVAL_MS.into());
        let Some(id) = self.table.next_after(self.audit.last, is_up) else {
            return;
        };
        self.audit.last = id;
        let Some(sandbox) = self.table.get(id) else {
            return;
        };
        // One that cannot be read is dying: its pidfd says so.
        if let Ok(report) = self.look_at(sandbox, Depth::Glance) {
            self.judge(id, &report);
        }
    }

    fn look_at(&self, sandbox: &Sandbox, depth: Depth) -> Result<IsolationReport, Failure> {
        let label = self.parts.apparmor.label(sandbox.root);
        let expected = Expected {
            ground: self.parts.ground,
            label: label.as_deref(),
            ids: sandbox.ids,
            root: sandbox.root,
            limits: &sandbox.limits,
            profile: sandbox.filter.name(),
        };
        let known = [(sandbox.filter.name(), sandbox.filter.program())];
        isolation::report(sandbox.pid, &expected, &sandbox.cgroup, &known, depth)
    }

    fn judge(&mut self, id: SandboxId, report: &IsolationReport) {
        if !self.parts.build.watchful {
            return;
        }
        let Some(WallReading { wall, reading, .. }) = report.walls.iter().find(|wall| !wall.holds)
        else {
            return;
        };
        let breached = Event::Breached {
            sandbox: id,
            wall: wall.clone(),
            reading: reading.clone(),
        };
        self.link.push(&breached, Vec::new());
        self.destroy(id, Cause::Destroyed);
    }
}

/// Whether its walls are up and it is to live on.
pub(super) fn is_up(sandbox: &Sandbox) -> bool {
    matches!(sandbox.state, State::Skeleton | State::Bound(_))
}
