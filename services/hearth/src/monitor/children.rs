// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Starts the gateway and the spawner: this same executable in another role, in a process group of its own (a Ctrl-C on the
//! terminal is the monitor's to handle), with nothing but its link.

use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use hearth_jail::instance::DataDir;
use serde::Serialize;

use super::MonitorError;
use super::slot::Running;
use crate::args::RoleName;
use crate::link::{self, LinkError};
use crate::roles::{GatewayStart, SpawnerStart};

/// This executable, whatever has become of the path it was started by.
const SELF: &str = "/proc/self/exe";

/// Why a child was not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// No process.
    #[error("cannot execute {SELF}")]
    Execute(#[source] std::io::Error),
    /// No way to tell it what to do.
    #[error("cannot send it what it needs")]
    Link(#[from] LinkError),
}

/// All that starting a child needs.
#[derive(Debug)]
pub(super) struct Children {
    pub(super) listeners: Vec<TcpListener>,
    pub(super) gateway: GatewayStart,
    pub(super) spawner: SpawnerStart,
    /// Locked for as long as children may be started.
    pub(super) data_dir: DataDir,
}

impl Children {
    /// How long the gateway drains.
    pub(super) fn drain_max(&self) -> Duration {
        self.gateway.drain_max
    }

    /// A spawner, and the gateway's end of its socket.
    pub(super) fn start_spawner(&self) -> Result<(Running, OwnedFd), StartError> {
        let (gateways_end, spawners_end) = link::pair()?;
        let fds = [spawners_end.as_fd()];
        let running = start(RoleName::Spawner, &self.spawner, &fds)?;
        Ok((running, gateways_end))
    }

    /// A gateway with this socket to the spawner.
    pub(super) fn start_gateway(&self, spawner: &OwnedFd) -> Result<Running, StartError> {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        let fds: Vec<BorrowedFd<'_>> = [spawner.as_fd()].into_iter().chain(listeners).collect();
        start(RoleName::Gateway, &self.gateway, &fds)
    }

    /// Makes everything in the data directory the user's own.
    pub(super) fn take_back(&self) -> Result<(), MonitorError> {
        Ok(self.data_dir.take_back()?)
    }

    /// Removes what a spawner that did not end by itself has left.
    pub(super) fn sweep(&self) -> Result<(), MonitorError> {
        // Files are not looked at: deleting them can take long, and nothing is served meanwhile.
        self.data_dir.sweep_processes()?;
        Ok(())
    }
}

/// glibc raises these thresholds by itself with the largest buffer that was ever freed, and then keeps what a burst of
/// bodies took. Fixed, a buffer of 128 KiB or more goes back to the kernel when it is freed (mallopt(3)).
const MALLOC: &str = "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=1048576";

fn start(
    role: RoleName,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<Running, StartError> {
    let (here, there) = link::pair()?;
    // Sent before there is anybody to read it: a packet of this size fits into an empty socket.
    link::send(&here, message, fds)?;
    let child = Command::new(SELF)
        .arg0("hearth")
        .args(["role", role.as_str()])
        .env_clear()
        .env("GLIBC_TUNABLES", MALLOC)
        .stdin(Stdio::from(there))
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(StartError::Execute)?;
    Ok(Running::new(child, here))
}
