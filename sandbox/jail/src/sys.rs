// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every unsafe operation of the crate, one file per group of system calls. Each function here is a thin wrapper with
//! a safe signature; what to call when is decided elsewhere.

pub(crate) mod clone;
pub(crate) mod fds;
pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod privilege;
#[cfg(test)]
pub(crate) mod probe;
pub(crate) mod program;
pub(crate) mod seccomp;
pub(crate) mod wait;

use nix::errno::Errno;

/// The result of a raw system call as `nix` gives it.
fn checked(result: libc::c_long) -> nix::Result<libc::c_long> {
    Errno::result(result)
}
