// SPDX-License-Identifier: Apache-2.0 OR MIT
//! For the tests: system calls made by number behind filters, in a forked child, without any of them happening; and
//! programs started there.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};
use seccompiler::sock_filter;

use super::{
    program::{Launch, Launcher},
    seccomp::install,
};

/// How long a program may take, in milliseconds: most need a tenth of a second, and some hang without a rule.
const PROGRAM_MS_MAX: u16 = 20_000;

/// Whether a program ends well that init would start so, behind `filter`. In a pid namespace of its own, so that nothing
/// of it is left; by a process of its own, because where even the end of a thread is refused, that thread never ends.
pub(crate) fn runs(filter: &[sock_filter], launcher: &mut Launcher, launch: &Launch<'_>) -> bool {
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: clone(2) as fork(2), in a process with threads: the child makes system calls only, from memory that
    // exists already.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    assert!(0 <= child, "{}", Errno::last());
    if child == 0 {
        let started = install(filter).is_ok().then(|| launcher.start(launch));
        if let Some(Ok(pid)) = started {
            let mut status = -1;
            // SAFETY: wait4(2) writes one integer.
            unsafe { libc::syscall(libc::SYS_wait4, pid.as_raw(), &raw mut status, 0, 0) };
            if status == 0 {
                // SAFETY: exit_group(2) takes an integer.
                unsafe { libc::syscall(libc::SYS_exit_group, 0) };
            }
        }
        // SAFETY: abort(3) has no precondition. Where no signal can be sent, it ends by a forbidden instruction.
        unsafe { libc::abort() }
    }
    let child = Pid::from_raw(i32::try_from(child).unwrap());
    // SAFETY: pidfd_open(2) takes integers and gives a new descriptor; the child is not reaped yet.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    // SAFETY: as said, nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(pidfd).unwrap()) };
    let ended = poll(
        &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
        PROGRAM_MS_MAX,
    );
    if ended != Ok(1) {
        super::clone::signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
    }
    waitpid(child, None) == Ok(WaitStatus::Exited(child, 0))
}

/// The sixth argument of every call that is made here: no rule looks at it, so that a filter can tell them.
pub(crate) const MARK: u64 = 0x4845_4152_5448;

/// One call: its number and the arguments before [`MARK`].
pub(crate) type Call = (u32, [u64; 5]);

/// Puts up `filters`, the first one first, in a child, and makes `calls` there. Gives how the child ended and each call's
/// errno, 0 where it succeeded; those after the child's end are missing.
pub(crate) fn errnos(filters: &[&[sock_filter]], calls: &[Call]) -> (WaitStatus, Vec<i32>) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    // SAFETY: fork(2) in a process with threads: the child makes system calls only, from memory that exists already.
    let child = unsafe { libc::fork() };
    assert!(0 <= child);
    if child == 0 {
        let installed = filters.iter().all(|filter| install(filter).is_ok());
        for call in calls {
            let errno = if installed { make(call) } else { -1 };
            write(&writer, errno);
        }
        exit();
    }
    drop(writer);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(reader), &mut bytes).unwrap();
    let errnos = bytes.chunks_exact(4);
    let errnos = errnos.map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()));
    (
        waitpid(Pid::from_raw(child), None).unwrap(),
        errnos.collect(),
    )
}

fn make(&(number, [a, b, c, d, e]): &Call) -> i32 {
    // SAFETY: the caller's filters answer every call that carries MARK, so the kernel does nothing for it.
    let result = unsafe { libc::syscall(i64::from(number), a, b, c, d, e, MARK) };
    if result == -1 { Errno::last_raw() } else { 0 }
}

fn write(writer: &OwnedFd, errno: i32) {
    let bytes = errno.to_le_bytes();
    // All six arguments, so that none is left over from a call with MARK.
    // SAFETY: write(2) reads `bytes`, which are alive.
    unsafe {
        libc::syscall(
            libc::SYS_write,
            writer.as_raw_fd(),
            bytes.as_ptr(),
            4,
            0,
            0,
            0,
        )
    };
}

fn exit() -> ! {
    loop {
        // SAFETY: exit_group(2) takes an integer and does not return where it is allowed.
        unsafe { libc::syscall(libc::SYS_exit_group, 0, 0, 0, 0, 0, 0) };
    }
}
