// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The end of a sandbox: killed, reaped, its cgroups removed, its ids given back. Nothing here waits.

use std::os::fd::AsFd;

use hearth_protocol::spawner::{Cause, Event, SandboxId};
use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};

use super::{
    Spawner, SpawnerError, at,
    table::{Sandbox, State},
};
use crate::sys;

impl Spawner {
    /// Begins the end of a sandbox, in whatever state; unknown ids are ignored. `Gone` follows.
    pub(super) fn destroy(&mut self, id: SandboxId, cause: Cause) {
        let Some(sandbox) = self.table.get_mut(id) else {
            return;
        };
        if matches!(sandbox.state, State::Dying(_) | State::Reaped(..)) {
            return;
        }
        kill(sandbox);
        self.leave_setup(id);
        self.stop_listening(id);
        self.table.set_state(id, State::Dying(cause));
    }

    /// A sandbox hit its memory limit (v1): the rest of it goes with the kernel's first victim, as
    /// memory.oom.group does on v2.
    pub(super) fn out_of_memory(&mut self, id: SandboxId) {
        let Some(sandbox) = self.table.get_mut(id) else {
            return;
        };
        if let Some(event) = &sandbox.oom {
            // Drained, so that the event is seen once; what it counts, the cgroup counts better.
            let _count = event.read();
        }
        sandbox.oom_seen = true;
        kill(sandbox);
    }

    /// PID 1 has ended, and with it every process of its namespace.
    pub(super) fn reap(&mut self, id: SandboxId) -> Result<(), SpawnerError> {
        // Its last words may lie unread on the setup socket: they say why it died.
        self.hear_setup(id);
        let Some(sandbox) = self.table.get(id) else {
            return Ok(());
        };
        if matches!(sandbox.state, State::Reaped(..)) {
            return Ok(());
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let by_itself =
            match waitid(Id::PIDFd(sandbox.pidfd.as_fd()), flags).map_err(at("reap a sandbox"))? {
                WaitStatus::StillAlive => return Ok(()),
                WaitStatus::Exited(_, code) => Cause::Exited(code),
                WaitStatus::Signaled(_, signal, _) => Cause::Signaled(signal as i32),
                other => Cause::Exited(other.pid().map_or(0, nix::unistd::Pid::as_raw)),
            };
        self.poller
            .forget(sandbox.pidfd.as_fd())
            .map_err(at("leave a pidfd"))?;
        if let Some(event) = &sandbox.oom {
            self.poller
                .forget(event.as_fd())
                .map_err(at("leave an eventfd"))?;
        }
        self.stop_listening(id);
        if let Some(Sandbox {
            state: State::Starting(starting),
            ..
        }) = self.table.get(id)
        {
            // It said nothing.
            let request = starting.request;
            let step = "start init".into();
            self.leave_setup(id);
            self.answer(
                request,
                Err(crate::failure::Failure {
                    step,
                    errno: Errno::ECHILD,
                }),
            );
        }
        if let Some(sandbox) = self.table.get(id) {
            let cause = match sandbox.state {
                State::Dying(cause) => cause,
                _ => by_itself,
            };
            let mut totals = sandbox.cgroup.totals();
            // Seen, but not counted: the whole sandbox was killed before the kernel had chosen a victim.
            totals.oom_kills = totals.oom_kills.max(u64::from(sandbox.oom_seen));
            self.table.set_state(id, State::Reaped(cause, totals));
        }
        Ok(())
    }

    fn leave_setup(&mut self, id: SandboxId) {
        if let Some(Sandbox {
            state: State::Starting(starting),
            ..
        }) = self.table.get(id)
        {
            // Not being watched (a failure before that) is as good.
            let _unwatched = self.poller.forget(starting.setup.as_fd());
        }
    }

    /// Removes the cgroups of reaped sandboxes, and says which are gone. What is still busy is tried again.
    pub(super) fn look_at_the_dying(&mut self) {
        for id in self
            .table
            .restless_where(|sandbox| matches!(sandbox.state, State::Reaped(..)))
        {
            let Some(sandbox) = self.table.get(id) else {
                continue;
            };
            let State::Reaped(cause, totals) = sandbox.state else {
                continue;
            };
            if sandbox.cgroup.remove().is_err() {
                continue;
            }
            let announced = self
                .table
                .remove(id)
                .is_some_and(|sandbox| sandbox.announced);
            // Its descriptors are closed by now as well: nothing is left when `Gone` is read.
            if announced {
                self.link.push(
                    &Event::Gone {
                        sandbox: id,
                        cause,
                        totals,
                    },
                    Vec::new(),
                );
            }
        }
    }
}

/// Both ways, because either may be missing: v1 has no cgroup.kill, and PID 1's death takes its namespace along.
fn kill(sandbox: &Sandbox) {
    // ENODEV, ENOENT: the cgroup is gone, so nothing is in it. The pidfd speaks for the rest.
    let _gone = sandbox.cgroup.kill();
    match sys::clone::signal(sandbox.pidfd.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => super::die("cannot kill a sandbox", errno),
    }
}
