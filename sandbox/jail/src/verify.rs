// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pushing on the walls once they are up. From inside, between the last wall and exec: each push must be refused. From
//! outside: the kernel's own account of the process. A wall that gives way ends the sandbox before it has run a byte
//! that is not ours.

use std::ffi::CStr;

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        stat::{Mode, SFlag, makedev, mknod},
    },
    unistd::{Pid, Uid},
};

use crate::{
    failure::{Failure, at, broken, io_at},
    idmap::Ids,
    privilege, rlimit, rootfs, sys,
};

/// The walls that seccomp would hide, pushed on before it is installed.
pub(crate) fn before_seccomp(base: &CStr) -> Result<(), Failure> {
    let wall = |name, holds| if holds { Ok(()) } else { Err(broken(name)) };
    wall("keep capabilities away", privilege::has_no_capability()?)?;
    wall(
        "keep root away",
        sys::privilege::try_become_root() == Err(Errno::EPERM),
    )?;
    let no_new_privs = prctl::get_no_new_privs().map_err(at("read no_new_privs"))?;
    wall("keep no_new_privs", no_new_privs)?;
    wall(
        "keep core dumps and tracers away",
        prctl::get_dumpable() == Ok(false),
    )?;
    wall(
        "keep the sandbox's uid",
        Uid::current() == Ids::inside_uid(),
    )?;
    wall("keep resource limits", rlimit::hold()?)?;
    let proc = mount(
        Some("proc"),
        "/scratch/tmp",
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    );
    wall("keep mounts away", proc == Err(Errno::EPERM))?;
    wall(
        "keep namespaces away",
        unshare(CloneFlags::CLONE_NEWNS) == Err(Errno::EPERM),
    )?;
    wall("keep the host's files away", rootfs::is_closed(base)?)?;
    let file = nix::fcntl::open(
        "/intruder",
        nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY,
        Mode::S_IRUSR,
    );
    wall(
        "keep the root read-only",
        matches!(file, Err(Errno::EROFS | Errno::EACCES)),
    )
}

/// Landlock refuses a device node with EACCES before the kernel looks at CAP_MKNOD, which would be EPERM.
pub(crate) fn landlock() -> Result<(), Failure> {
    match mknod(
        "/scratch/tmp/intruder",
        SFlag::S_IFCHR,
        Mode::S_IRUSR,
        makedev(1, 3),
    ) {
        Err(Errno::EACCES) => Ok(()),
        _ => Err(broken("keep Landlock up")),
    }
}

/// A user namespace is what any process may make, were it not for the filter.
pub(crate) fn seccomp() -> Result<(), Failure> {
    match unshare(CloneFlags::CLONE_NEWUSER) {
        Err(Errno::EPERM | Errno::ENOSYS) => Ok(()),
        _ => Err(broken("keep the system call filter up")),
    }
}

/// What `/proc/PID/status` must say of init, read by the spawner.
pub(crate) fn from_outside(init: Pid, ids: Ids) -> Result<(), Failure> {
    let status = std::fs::read_to_string(format!("/proc/{init}/status"))
        .map_err(io_at("read init's status"))?;
    let user = ids.user.to_string();
    for (field, expected) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapInh", NO_CAPABILITY),
        ("CapPrm", NO_CAPABILITY),
        ("CapEff", NO_CAPABILITY),
        ("CapBnd", NO_CAPABILITY),
        ("CapAmb", NO_CAPABILITY),
        ("Uid", &user),
        ("Gid", &user),
    ] {
        let mut values = field_of(&status, field)
            .ok_or_else(|| broken("read init's status"))?
            .split_whitespace();
        // Uid and Gid have four values, all of which must be the sandbox's own.
        if !values.all(|value| value == expected) {
            return Err(Failure {
                step: format!("keep {field} at {expected}").into(),
                errno: Errno::UnknownErrno,
            });
        }
    }
    match field_of(&status, "Groups").map(str::trim) {
        Some("") => Ok(()),
        _ => Err(broken("keep supplementary groups away")),
    }
}

const NO_CAPABILITY: &str = "0000000000000000";

/// The text after `name:` in a status file.
pub(crate) fn field_of<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
