// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The names that profiles may use for argument values and errnos. A closed table: a misspelt name is an error at
//! start, and in a test.

use crate::enter::numbers;

/// Answer to calls that no rule names: C libraries take it for an older kernel and fall back.
pub(super) const ENOSYS: u16 = 38;

/// Answer to calls that are refused by name, and told of.
pub(super) const EPERM: u16 = 1;

/// PAGEMAP_SCAN (ioctl_pagemap_scan(2)), `_IOWR('f', 16, struct pm_scan_arg)`; libc does not have it.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// PR_GET_AUXV (uapi/linux/prctl.h): the caller's own auxiliary vector; libc does not have it.
const PR_GET_AUXV: u64 = 0x4155_5856;

/// uapi/linux/seccomp.h; the type of libc's differs by C library.
const SECCOMP_FILTER_FLAG_TSYNC: u64 = 1;

/// uapi/asm-generic/ioctls.h, which x86-64 and aarch64 share; the type of libc's differs by C library.
const TCGETS: u64 = 0x5401;
const TIOCGPGRP: u64 = 0x540f;
const TIOCGWINSZ: u64 = 0x5413;
const FIONREAD: u64 = 0x541b;
const FIONBIO: u64 = 0x5421;
const FIONCLEX: u64 = 0x5450;
const FIOCLEX: u64 = 0x5451;

/// Every namespace flag that clone(2) takes. CLONE_NEWTIME (0x80) is not among them: in clone's first argument that bit
/// belongs to the exit signal, only clone3 and unshare know it.
const CLONE_NEW_ANY: u64 = 0x7e02_0000;

/// What makes a clone a thread of the caller's process.
const CLONE_THREAD_VM_SIGHAND: u64 = 0x0001_0900;

/// The bits of socket(2)'s second argument that are not flags (SOCK_TYPE_MASK, linux/net.h).
const SOCK_TYPE_MASK: u64 = 0xf;

/// The family that IPPROTO_* and NETLINK_* belong to is told by the first argument; these are uapi/linux/in.h's and
/// uapi/linux/netlink.h's.
const NETLINK_ROUTE: u64 = 0;

/// The value of an argument's name.
pub(super) fn value(name: &str) -> Option<u64> {
    let value = match name {
        "AF_INET" => libc::AF_INET,
        "AF_INET6" => libc::AF_INET6,
        "AF_NETLINK" => libc::AF_NETLINK,
        "AF_UNIX" => libc::AF_UNIX,
        "CLONE_LAUNCH" => crate::sys::program::LAUNCH_FLAGS,
        "F_ADD_SEALS" => libc::F_ADD_SEALS,
        "F_DUPFD" => libc::F_DUPFD,
        "F_DUPFD_CLOEXEC" => libc::F_DUPFD_CLOEXEC,
        "F_GETFD" => libc::F_GETFD,
        "F_GETFL" => libc::F_GETFL,
        "F_GETLK" => libc::F_GETLK,
        "F_GETOWN" => libc::F_GETOWN,
        "F_GETPIPE_SZ" => libc::F_GETPIPE_SZ,
        "F_GET_SEALS" => libc::F_GET_SEALS,
        "F_OFD_GETLK" => libc::F_OFD_GETLK,
        "F_OFD_SETLK" => libc::F_OFD_SETLK,
        "F_OFD_SETLKW" => libc::F_OFD_SETLKW,
        "F_SETFD" => libc::F_SETFD,
        "F_SETFL" => libc::F_SETFL,
        "F_SETLK" => libc::F_SETLK,
        "F_SETLKW" => libc::F_SETLKW,
        "F_SETOWN" => libc::F_SETOWN,
        "F_SETPIPE_SZ" => libc::F_SETPIPE_SZ,
        "INIT_CONTROL" => numbers::CONTROL,
        "INIT_IMAGE" => numbers::IMAGE,
        "INIT_SETUP" => numbers::SETUP,
        "IOPRIO_WHO_PROCESS" => 1,
        "IPPROTO_TCP" => libc::IPPROTO_TCP,
        "IPPROTO_UDP" => libc::IPPROTO_UDP,
        "PRIO_PROCESS" => 0,
        "PR_CAPBSET_READ" => libc::PR_CAPBSET_READ,
        "PR_GET_CHILD_SUBREAPER" => libc::PR_GET_CHILD_SUBREAPER,
        "PR_GET_DUMPABLE" => libc::PR_GET_DUMPABLE,
        "PR_GET_NAME" => libc::PR_GET_NAME,
        "PR_GET_NO_NEW_PRIVS" => libc::PR_GET_NO_NEW_PRIVS,
        "PR_GET_PDEATHSIG" => libc::PR_GET_PDEATHSIG,
        "PR_GET_SECCOMP" => libc::PR_GET_SECCOMP,
        "PR_GET_SECUREBITS" => libc::PR_GET_SECUREBITS,
        "PR_GET_TIMERSLACK" => libc::PR_GET_TIMERSLACK,
        "PR_SET_CHILD_SUBREAPER" => libc::PR_SET_CHILD_SUBREAPER,
        "PR_SET_DUMPABLE" => libc::PR_SET_DUMPABLE,
        "PR_SET_NAME" => libc::PR_SET_NAME,
        "PR_SET_NO_NEW_PRIVS" => libc::PR_SET_NO_NEW_PRIVS,
        "PR_SET_PDEATHSIG" => libc::PR_SET_PDEATHSIG,
        "PR_SET_TIMERSLACK" => libc::PR_SET_TIMERSLACK,
        "PR_SET_VMA" => libc::PR_SET_VMA,
        "SCHED_BATCH" => libc::SCHED_BATCH,
        "SCHED_IDLE" => libc::SCHED_IDLE,
        "SCHED_OTHER" => libc::SCHED_OTHER,
        "SIGKILL" => libc::SIGKILL,
        "SOCK_DGRAM" => libc::SOCK_DGRAM,
        "SOCK_STREAM" => libc::SOCK_STREAM,
        _ => return unsigned(name),
    };
    u64::try_from(value).ok()
}

/// Those whose type in libc is unsigned, differs by target, or is missing.
fn unsigned(name: &str) -> Option<u64> {
    Some(match name {
        "CLONE_NEW_ANY" => CLONE_NEW_ANY,
        "CLONE_NEW_ANY_OR_THREAD" => CLONE_NEW_ANY | CLONE_THREAD_VM_SIGHAND,
        "CLONE_THREAD_VM_SIGHAND" => CLONE_THREAD_VM_SIGHAND,
        "FIOCLEX" => FIOCLEX,
        "FIONBIO" => FIONBIO,
        "FIONCLEX" => FIONCLEX,
        "FIONREAD" => FIONREAD,
        "NETLINK_ROUTE" => NETLINK_ROUTE,
        "PAGEMAP_SCAN" => PAGEMAP_SCAN,
        "PR_GET_AUXV" => PR_GET_AUXV,
        "SECCOMP_FILTER_FLAG_TSYNC" => SECCOMP_FILTER_FLAG_TSYNC,
        "SECCOMP_SET_MODE_FILTER" => u64::from(libc::SECCOMP_SET_MODE_FILTER),
        "S_IFIFO" => u64::from(libc::S_IFIFO),
        "S_IFMT" => u64::from(libc::S_IFMT),
        "S_IFREG" => u64::from(libc::S_IFREG),
        "S_IFSOCK" => u64::from(libc::S_IFSOCK),
        "SOCK_TYPE_MASK" => SOCK_TYPE_MASK,
        "TCGETS" => TCGETS,
        "TIOCGPGRP" => TIOCGPGRP,
        "TIOCGWINSZ" => TIOCGWINSZ,
        _ => return None,
    })
}

/// The number of an errno's name.
pub(super) fn errno(name: &str) -> Option<u16> {
    let errno = match name {
        "EPERM" => return Some(EPERM),
        "EACCES" => libc::EACCES,
        "EINVAL" => libc::EINVAL,
        "ENOTTY" => libc::ENOTTY,
        "ENOSYS" => return Some(ENOSYS),
        "EAFNOSUPPORT" => libc::EAFNOSUPPORT,
        "EOPNOTSUPP" => libc::EOPNOTSUPP,
        _ => return None,
    };
    u16::try_from(errno).ok()
}
