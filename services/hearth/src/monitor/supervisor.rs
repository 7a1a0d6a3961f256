// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Keeps one gateway and one spawner alive, wired to each other, until it is told to stop.
//!
//! ```text
//! gateway dies   the spawner sees its socket close, destroys every sandbox and ends; both are started again
//! spawner dies   its sandboxes die with it; another is started, the gateway is sent its socket and goes on
//! SIGTERM        the gateway drains and ends, then the spawner; a second signal ends the draining
//! this dies      both children end (PDEATHSIG), and with them every sandbox
//! ```
//!
//! Every wait here has a deadline where it waits for a child, and every message is sent without waiting: no child can
//! hold the monitor up.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hearth_protocol::monitor::{Event, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use tracing::{error, info, warn};

use super::MonitorError;
use super::children::{Children, StartError};
use super::restart::{Failures, Verdict};
use super::signals::{self, Notice};
use super::slot::Slot;
use crate::args::RoleName;
use crate::exit::chain;
use crate::link::{self, LinkError};
use crate::terminal;

/// What is printed once invocations are accepted.
pub(crate) const READY: &str = "READY";

/// How long a spawner may take to destroy every sandbox: killing and removing 256 takes under 1 s.
const CLEAN_MAX: Duration = Duration::from_secs(10);

/// What the gateway gets beyond its own drain limit, before it is killed.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// A second signal asks for haste only this long after the first: timeout(1), and a terminal together with sudo, send
/// each of theirs twice.
const HASTE_AFTER: Duration = Duration::from_millis(500);

/// What the whole is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Children are started when they are missing.
    Serving,
    /// The gateway finishes what runs.
    Draining {
        /// When it was told to.
        since: Instant,
    },
    /// The gateway is gone; the spawner cleans up.
    Ending,
}

/// What there is to read.
struct Woken {
    signal: bool,
    gateway: bool,
}

/// The monitor's life after everything is prepared.
#[derive(Debug)]
pub(super) struct Supervisor<'a> {
    children: &'a Children,
    signals: SignalFd,
    phase: Phase,
    gateway: Slot,
    gateway_failures: Failures,
    spawner: Slot,
    spawner_failures: Failures,
    /// The gateway's end of the running spawner's socket, until a gateway has it.
    spawner_socket: Option<OwnedFd>,
    ready_was_said: bool,
}

impl<'a> Supervisor<'a> {
    /// Nothing is started yet.
    pub(super) fn new(children: &'a Children, signals: SignalFd) -> Self {
        let now = Instant::now();
        Self {
            children,
            signals,
            phase: Phase::Serving,
            gateway: Slot::Due(now),
            gateway_failures: Failures::default(),
            spawner: Slot::Due(now),
            spawner_failures: Failures::default(),
            spawner_socket: None,
            ready_was_said: false,
        }
    }

    /// Until both children have ended because they were told to, or one of them cannot be kept alive.
    pub(super) fn run(mut self) -> Result<(), MonitorError> {
        loop {
            let now = Instant::now();
            if self.phase == Phase::Serving {
                self.start_what_is_due(now)?;
            }
            self.kill_what_is_late(now);
            self.end_spawner_after_gateway();
            if self.phase == Phase::Ending && !self.spawner.is_running() {
                return Ok(());
            }
            let woken = self.wait()?;
            if woken.gateway {
                self.hear_gateway();
            }
            if woken.signal {
                for notice in signals::pending(&self.signals).map_err(MonitorError::Signals)? {
                    match notice {
                        Notice::Stop => self.stop(),
                        Notice::Child => self.reap()?,
                    }
                }
            }
        }
    }

    fn start_what_is_due(&mut self, now: Instant) -> Result<(), MonitorError> {
        if self.spawner.is_due(now) {
            match self.children.start_spawner() {
                Ok((running, socket)) => {
                    self.spawner = Slot::Running(running);
                    self.wire(socket);
                }
                Err(error) => {
                    self.spawner = failed(RoleName::Spawner, &error, &mut self.spawner_failures)?;
                }
            }
        }
        if self.gateway.is_due(now)
            && let Some(socket) = self.spawner_socket.take()
        {
            match self.children.start_gateway(&socket) {
                Ok(running) => self.gateway = Slot::Running(running),
                Err(error) => {
                    self.spawner_socket = Some(socket);
                    self.gateway = failed(RoleName::Gateway, &error, &mut self.gateway_failures)?;
                }
            }
        }
        Ok(())
    }

    /// Gives the running gateway a new spawner's socket, or keeps it for the next gateway.
    fn wire(&mut self, socket: OwnedFd) {
        if self.gateway.is_running() {
            self.gateway.tell(&Request::Spawner, &[socket.as_fd()]);
        } else {
            self.spawner_socket = Some(socket);
        }
    }

    fn kill_what_is_late(&mut self, now: Instant) {
        if self.gateway.kill_if_late(now) {
            warn!("the gateway did not end in time and was killed");
        }
        if self.spawner.kill_if_late(now) {
            warn!("the spawner did not end in time and was killed");
        }
    }

    /// Once the gateway is gone for good it is the spawner's turn.
    fn end_spawner_after_gateway(&mut self) {
        if matches!(self.phase, Phase::Draining { .. }) && !self.gateway.is_running() {
            self.phase = Phase::Ending;
            // Where no gateway ever had it: closed here, so that the spawner sees its end.
            self.spawner_socket = None;
            self.spawner.signal(Signal::SIGTERM);
            self.spawner.kill_by(Instant::now() + CLEAN_MAX);
        }
    }

    /// Waits for a signal, a packet of the gateway, or the next deadline.
    fn wait(&self) -> Result<Woken, MonitorError> {
        let gateway_at = match (&self.gateway, &self.spawner_socket) {
            // Started when its spawner is, not at a time.
            (Slot::Due(_), None) => None,
            (slot, _) => slot.wake_at(),
        };
        let deadline = [gateway_at, self.spawner.wake_at()].into_iter().flatten();
        let timeout = match deadline.min() {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up: waking a fraction too early would only mean another round.
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.gateway
                .link()
                .map(|link| PollFd::new(link, PollFlags::POLLIN)),
        );
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(MonitorError::Poll(error)),
        }
        let woken = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
        Ok(Woken {
            signal: woken(fds.first()),
            gateway: woken(fds.get(1)),
        })
    }

    fn hear_gateway(&mut self) {
        let Some(link) = self.gateway.link() else {
            return;
        };
        match link::receive::<Event>(link) {
            Ok((Event::Ready, _)) if self.ready_was_said => info!("ready again"),
            Ok((Event::Ready, _)) => {
                self.ready_was_said = true;
                terminal::line(READY);
            }
            Err(LinkError::Closed | LinkError::Io(_)) => {
                // It is ending, and SIGCHLD will say how; one that only closed its link is not waited for.
                self.gateway.unlink();
                self.gateway.kill_by(Instant::now() + DRAIN_GRACE);
            }
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the gateway sent what is no message and is killed"
                );
                self.gateway.unlink();
                self.gateway.kill_by(Instant::now());
            }
        }
    }

    fn stop(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Serving => {
                info!("stopping; running invocations may finish");
                self.phase = Phase::Draining { since: now };
                self.gateway.tell(&Request::Drain, &[]);
                self.gateway
                    .kill_by(now + self.children.drain_max() + DRAIN_GRACE);
            }
            Phase::Draining { since } if now < since + HASTE_AFTER => {}
            Phase::Draining { .. } => {
                info!("stopping now");
                self.gateway.kill_by(now);
            }
            Phase::Ending => self.spawner.kill_by(now),
        }
    }

    /// Takes note of the children that ended.
    fn reap(&mut self) -> Result<(), MonitorError> {
        let now = Instant::now();
        if let Some(status) = self.gateway.ended() {
            self.gateway = Slot::Due(now);
            if self.phase == Phase::Serving {
                error!(%status, "the gateway ended");
                self.gateway = again(RoleName::Gateway, &mut self.gateway_failures, now)?;
                // Its spawner sees the socket close and ends; one that no gateway had yet stays for the next.
                if self.spawner_socket.is_none() {
                    self.spawner.kill_by(now + CLEAN_MAX);
                }
            }
        }
        if let Some(status) = self.spawner.ended() {
            self.spawner = Slot::Due(now);
            self.spawner_socket = None;
            self.children.sweep()?;
            // One that ended well after its gateway did what it should.
            let asked_to = status.success() && !self.gateway.is_running();
            if self.phase == Phase::Serving && !asked_to {
                error!(%status, "the spawner ended");
                self.spawner = again(RoleName::Spawner, &mut self.spawner_failures, now)?;
            }
        }
        Ok(())
    }
}

/// What becomes of a role whose child could not be started.
fn failed(
    role: RoleName,
    error: &StartError,
    failures: &mut Failures,
) -> Result<Slot, MonitorError> {
    error!(error = chain(error), role = role.as_str(), "cannot start");
    again(role, failures, Instant::now())
}

/// What becomes of a role that failed once more.
fn again(role: RoleName, failures: &mut Failures, now: Instant) -> Result<Slot, MonitorError> {
    match failures.count(now) {
        Verdict::StartAt(at) => Ok(Slot::Due(at)),
        Verdict::GiveUp => Err(MonitorError::GaveUp {
            role: role.as_str(),
        }),
    }
}
