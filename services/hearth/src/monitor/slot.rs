// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One role's place in the monitor: a running child, or the time at which the next one is started.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;
use tracing::warn;

use crate::exit::chain;
use crate::link;

/// A child and the monitor's end of its link.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// None once the child has closed its end.
    link: Option<OwnedFd>,
    /// Where there is one, the child is killed then.
    kill_at: Option<Instant>,
}

/// One role's place.
#[derive(Debug)]
pub(super) enum Slot {
    /// It runs.
    Running(Running),
    /// It is to be started then.
    Due(Instant),
}

impl Running {
    /// Just started.
    pub(super) fn new(child: Child, link: OwnedFd) -> Self {
        Self {
            child,
            link: Some(link),
            kill_at: None,
        }
    }
}

impl Drop for Running {
    /// Of a child that has ended and was reaped nothing happens here. Reached with a live one only when supervising itself
    /// failed: no child outlives the monitor.
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Slot {
    /// Whether a child runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// Whether one is to be started by now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self, Self::Due(at) if *at <= now)
    }

    /// The next time at which something is to be done.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match self {
            Self::Running(running) => running.kill_at,
            Self::Due(at) => Some(*at),
        }
    }

    /// The link of a running child that has not closed it.
    pub(super) fn link(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Running(running) => running.link.as_ref().map(AsFd::as_fd),
            Self::Due(_) => None,
        }
    }

    /// Closes the monitor's end: there is nothing more to hear.
    pub(super) fn unlink(&mut self) {
        if let Self::Running(running) = self {
            running.link = None;
        }
    }

    /// Sends a message to a running child. One that does not take it is of no use, and killed.
    pub(super) fn tell(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) {
        let Some(link) = self.link() else {
            return;
        };
        if let Err(error) = link::send(link, message, fds) {
            warn!(
                error = chain(&error),
                "a child does not take messages and is killed"
            );
            self.kill_by(Instant::now());
        }
    }

    /// Sends a signal to a running child.
    pub(super) fn signal(&self, signal: Signal) {
        if let Self::Running(running) = self
            && let Ok(pid) = i32::try_from(running.child.id())
        {
            // Fails only where it has ended already; it is not reaped yet, so the number is not another's.
            nix::sys::signal::kill(Pid::from_raw(pid), signal).ok();
        }
    }

    /// A running child is killed at this time, or earlier where that was said before.
    pub(super) fn kill_by(&mut self, at: Instant) {
        if let Self::Running(running) = self {
            running.kill_at = Some(running.kill_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Kills a child whose time has come; whether it did.
    pub(super) fn kill_if_late(&mut self, now: Instant) -> bool {
        match self {
            Self::Running(running) if running.kill_at.is_some_and(|at| at <= now) => {
                running.kill_at = None;
                drop(running.child.kill());
                true
            }
            _ => false,
        }
    }

    /// How the child ended, if it did; the slot still holds it.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Running(running) => running.child.try_wait().ok().flatten(),
            Self::Due(_) => None,
        }
    }
}
