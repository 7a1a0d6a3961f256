// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Making processes: clone3(2) for a sandbox's first process.

use std::{
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::unistd::Pid;

use super::checked;

/// Which side of the clone this is.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The calling process.
    Parent {
        /// The child, for as long as it is not reaped.
        pid: Pid,
        /// The same, free of reuse.
        pidfd: OwnedFd,
    },
}

/// Forks with new namespaces and, where `cgroup` names a v2 cgroup directory, into that cgroup.
///
/// The caller must be single-threaded: `spawner::run` checks that once, before the first clone, and starts no thread.
pub(crate) fn fork_into(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> nix::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut flags =
        u64::from(namespaces.cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    // SAFETY: clone_args is plain integers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    if let Some(directory) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(directory.as_raw_fd().cast_unsigned());
    }
    args.flags = flags;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    // SAFETY: clone3(2) reads `args`, whose size is passed, and writes a descriptor to `pidfd`; both outlive the call.
    // Without CLONE_VM the child has its own copy of all memory; with one thread no lock can be held by another.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&args),
            size_of::<libc::clone_args>(),
        )
    };
    match checked(result)? {
        0 => Ok(Cloned::Child),
        child => Ok(Cloned::Parent {
            pid: Pid::from_raw(i32::try_from(child).unwrap_or(-1)),
            // SAFETY: the kernel has just made this descriptor for CLONE_PIDFD and nothing else owns it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Not in `libc` as an integer that fits: bit 33 exists in clone3 only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends a forked child at once: no destructor or exit handler that belongs to the parent runs.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(code) }
}

/// Sends a signal through a pidfd (pidfd_send_signal(2)).
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> nix::Result<()> {
    // SAFETY: the call takes integers and a null siginfo, which means the same as kill(2)'s.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    checked(result).map(drop)
}
