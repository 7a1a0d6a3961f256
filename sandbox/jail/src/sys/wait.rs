// SPDX-License-Identifier: Apache-2.0 OR MIT
//! wait4(2) for any child. Not nix's: it has no name for real-time signals, and gives EINVAL for a child that one of them
//! has ended, after it was reaped.

use std::{os::raw::c_int, ptr};

use nix::{errno::Errno, unistd::Pid};

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// It ended with this code.
    Exited(Pid, u8),
    /// This signal ended it.
    Signaled(Pid, u8),
}

/// Waits for any child to end, of whatever kind, those without an exit signal among them, and reaps it. ECHILD where
/// there is none.
pub(crate) fn for_any() -> nix::Result<Waited> {
    loop {
        // Without WNOHANG there is always one.
        if let Some(waited) = wait4(libc::__WALL)? {
            return Ok(waited);
        }
    }
}

/// As [`for_any`]; none where children are there and none has ended.
pub(crate) fn look_for_any() -> nix::Result<Option<Waited>> {
    wait4(libc::__WALL | libc::WNOHANG)
}

fn wait4(flags: c_int) -> nix::Result<Option<Waited>> {
    let mut status: c_int = 0;
    // SAFETY: wait4(2) writes one int to where `status` is, and nothing to a null pointer.
    let pid = unsafe { libc::wait4(-1, &raw mut status, flags, ptr::null_mut()) };
    let pid = Errno::result(pid)?;
    Ok((pid != 0).then(|| read(Pid::from_raw(pid), status)))
}

/// Stops and continuations are not asked for: the child has ended one way or the other (wait(2)).
fn read(pid: Pid, status: c_int) -> Waited {
    // Codes have eight bits and signal numbers seven.
    let byte = |value: c_int| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    if libc::WIFSIGNALED(status) {
        Waited::Signaled(pid, byte(libc::WTERMSIG(status)))
    } else {
        Waited::Exited(pid, byte(libc::WEXITSTATUS(status)))
    }
}
