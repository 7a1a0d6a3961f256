// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The gateway's own walls. It reads bytes from strangers, so before the first of them it becomes a user that owns its
//! state directory and nothing else, without a capability, under Landlock and a seccomp filter of its own. It has no
//! namespaces of its own: it needs the host's network, and everything else it could reach is behind these walls.

use std::path::Path;

use nix::{
    errno::Errno,
    sys::{prctl, signal::Signal},
    unistd::{Gid, Uid, getppid},
};

use crate::{
    landlock::{self, LandlockError},
    privilege,
    seccomp::{self, SeccompError},
    sys,
};

/// Why the gateway must not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayJailError {
    /// A filter would cover one thread only.
    #[error("cannot jail a gateway that has {count} threads already")]
    Threads {
        /// How many.
        count: usize,
    },
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: String,
        /// Why.
        source: Errno,
    },
    /// The monitor died before its death could be noticed.
    #[error("cannot run the gateway without its monitor")]
    Orphaned,
    /// A wall was pushed on and gave way.
    #[error("cannot trust the gateway's walls: {wall}")]
    GaveWay {
        /// What was possible.
        wall: &'static str,
    },
    /// Landlock.
    #[error("cannot restrict the gateway's files")]
    Landlock(#[from] LandlockError),
    /// Seccomp.
    #[error("cannot filter the gateway's system calls")]
    Seccomp(#[from] SeccompError),
}

/// Takes up every wall, for ever, and pushes on each. The process must have one thread; `monitor` is the process id of
/// its parent, whose death becomes its own.
///
/// # Errors
/// [`GatewayJailError`]; the process must end then, because some walls may be missing.
pub fn enter(uid: u32, gid: u32, state_dir: &Path, monitor: u32) -> Result<(), GatewayJailError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(GatewayJailError::Threads { count: threads });
    }
    // Before the uid changes, which would throw away what is needed to empty the bounding set.
    step(privilege::keep_capabilities())?;
    step(privilege::become_user(
        Uid::from_raw(uid),
        Gid::from_raw(gid),
    ))?;
    step(privilege::renounce())?;
    // After the last credential change, which clears it.
    step(privilege::die_with_parent(Signal::SIGKILL))?;
    // After it: a monitor that died before has sent nothing.
    if u32::try_from(getppid().as_raw()) != Ok(monitor) {
        return Err(GatewayJailError::Orphaned);
    }
    push(uid)?;
    // Before seccomp, whose profile lacks the calls that make a ruleset. It is pushed on in there.
    landlock::restrict(landlock::Rules::Gateway { state_dir })?;
    // Last: half of the calls above are forbidden by it.
    seccomp::install(&seccomp::compile(seccomp::Profile::Gateway)?)?;
    match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER) {
        Err(Errno::EPERM | Errno::ENOSYS) => Ok(()),
        _ => Err(GatewayJailError::GaveWay {
            wall: "the system call filter let a new namespace pass",
        }),
    }
}

fn push(uid: u32) -> Result<(), GatewayJailError> {
    let wall = |wall, holds| {
        if holds {
            Ok(())
        } else {
            Err(GatewayJailError::GaveWay { wall })
        }
    };
    wall(
        "a capability is left",
        step(privilege::has_no_capability())?,
    )?;
    wall(
        "it can become root again",
        sys::privilege::try_become_root() == Err(Errno::EPERM),
    )?;
    wall("it has another user", Uid::current().as_raw() == uid)?;
    wall(
        "no_new_privs is not set",
        prctl::get_no_new_privs() == Ok(true),
    )
}

fn step<T>(outcome: Result<T, crate::failure::Failure>) -> Result<T, GatewayJailError> {
    outcome.map_err(|failure| GatewayJailError::Step {
        step: failure.step.into_owned(),
        source: failure.errno,
    })
}
