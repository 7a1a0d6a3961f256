// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the caller runs. A server with a thread per core takes a connection on the core that a hash of its port picks; whether
//! the caller shares it decides a bare echo between 19 and 48 µs on the reference machine, so that is not left to chance. The
//! kernel says which core it was: answers over loopback arrive on the core that sent them.

use std::net::TcpStream;

use anyhow::Result;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rustix::net::sockopt::socket_incoming_cpu;

/// On which core the caller waits for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// On the one that answers.
    SameCore,
    /// On any but that.
    OtherCore,
}

/// Keeps this thread where it was put until dropped.
#[derive(Debug)]
pub(crate) struct Placed {
    before: CpuSet,
}

impl Placed {
    /// Puts this thread in relation to the core that the last answer on this connection came from. Nothing where there
    /// is no other core.
    pub(crate) fn put(stream: &TcpStream, placement: Placement) -> Result<Option<Self>> {
        let this_thread = Pid::from_raw(0);
        let before = sched_getaffinity(this_thread)?;
        let answering = usize::try_from(socket_incoming_cpu(stream)?)?;
        let mut cores = CpuSet::new();
        let mut is_empty = true;
        for core in 0..CpuSet::count() {
            let is_wanted = match placement {
                Placement::SameCore => core == answering,
                Placement::OtherCore => core != answering && before.is_set(core)?,
            };
            if is_wanted {
                cores.set(core)?;
                is_empty = false;
            }
        }
        if is_empty {
            return Ok(None);
        }
        sched_setaffinity(this_thread, &cores)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // It was allowed before; where it is no more, the thread stays on a core that is.
        let _stays = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}
