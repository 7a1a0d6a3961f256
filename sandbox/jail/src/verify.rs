// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pushing on the walls once they are up. From inside, between the last wall and exec: each push must be refused. From
//! outside: the kernel's own account of the process. A wall that gives way ends the sandbox before it has run a byte
//! that is not ours.

use std::{ffi::CStr, fs::rename, io};

use hearth_protocol::spawner::Root;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
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
    walls::{Raise, Wall, Walls},
};

/// The walls that seccomp would hide, pushed on before it is installed; `user` is who the process has become. Each push
/// with the wall that it is made on: without that wall it could succeed, and must not be tried.
pub(crate) fn before_seccomp<W: Walls>(base: &CStr, root: Root, user: Uid) -> Result<(), Failure> {
    push::<W>(Wall::Capabilities, "keep capabilities away", || {
        privilege::has_no_capability()
    })?;
    push::<W>(
        Wall::Capabilities,
        "keep the securebits locked",
        privilege::is_locked,
    )?;
    push::<W>(Wall::Capabilities, "keep root away", || {
        Ok(sys::privilege::try_become_root() == Err(Errno::EPERM))
    })?;
    push::<W>(Wall::Capabilities, "keep no_new_privs", || {
        prctl::get_no_new_privs().map_err(at("read no_new_privs"))
    })?;
    if prctl::get_dumpable() != Ok(false) {
        return Err(broken("keep core dumps and tracers away"));
    }
    push::<W>(Wall::Credentials, "keep the sandbox's uid", || {
        Ok(Uid::current() == user)
    })?;
    push::<W>(Wall::Rlimits, "keep resource limits", rlimit::hold)?;
    push::<W>(Wall::Capabilities, "keep mounts away", || {
        let (proc, none) = (Some("proc"), MsFlags::empty());
        Ok(mount(proc, "/scratch/tmp", proc, none, None::<&str>) == Err(Errno::EPERM))
    })?;
    push::<W>(Wall::Capabilities, "keep namespaces away", || {
        Ok(unshare(CloneFlags::CLONE_NEWNS) == Err(Errno::EPERM))
    })?;
    push::<W>(Wall::Root, "keep the host's files away", || {
        rootfs::is_closed(base)
    })?;
    match root {
        Root::ReadOnly => push::<W>(Wall::MountFlags, "keep the root read-only", || {
            let write = OFlag::O_CREAT | OFlag::O_WRONLY;
            let file = open("/intruder", write, Mode::S_IRUSR);
            Ok(matches!(file, Err(Errno::EROFS | Errno::EACCES)))
        }),
        // What leads to a mount point must stay where the spawner will look for it.
        Root::Writable => push::<W>(Wall::Credentials, "keep mount points in place", || {
            let moved = ["/function", "/scratch"].map(|path| rename(path, "/moved"));
            Ok(moved.iter().all(|error| {
                let kind = error.as_ref().map_err(io::Error::kind);
                matches!(kind, Err(io::ErrorKind::PermissionDenied))
            }))
        }),
    }
}

fn push<W: Walls>(
    wall: Wall,
    name: &'static str,
    holds: impl FnOnce() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    W::raise(wall, || if holds()? { Ok(()) } else { Err(broken(name)) })
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

/// clone3(2) is what every process may call, were it not for the filter; its answer is one that the filter gives by
/// itself. A call that is refused by name would wait for the spawner, which does not listen yet.
pub(crate) fn seccomp() -> Result<(), Failure> {
    match sys::seccomp::try_empty_clone3() {
        Err(Errno::ENOSYS) => Ok(()),
        _ => Err(broken("keep the system call filter up")),
    }
}

/// What `/proc/PID/status` must say of init, read by the spawner.
pub(crate) fn from_outside<W: Walls>(init: Pid, ids: Ids) -> Result<(), Failure> {
    let status = std::fs::read_to_string(format!("/proc/{init}/status"))
        .map_err(io_at("read init's status"))?;
    let user = ids.user.to_string();
    for (wall, field, expected) in [
        (Wall::Capabilities, "NoNewPrivs", "1"),
        (Wall::Seccomp, "Seccomp", "2"),
        (Wall::Capabilities, "CapInh", NO_CAPABILITY),
        (Wall::Capabilities, "CapPrm", NO_CAPABILITY),
        (Wall::Capabilities, "CapEff", NO_CAPABILITY),
        (Wall::Capabilities, "CapBnd", NO_CAPABILITY),
        (Wall::Capabilities, "CapAmb", NO_CAPABILITY),
        (Wall::Credentials, "Uid", &user),
        (Wall::Credentials, "Gid", &user),
        (Wall::Credentials, "Groups", ""),
    ] {
        if !W::stands(wall) {
            continue;
        }
        let mut values = field_of(&status, field)
            .ok_or_else(|| broken("read init's status"))?
            .split_whitespace();
        // Uid and Gid have four values, all of which must be the sandbox's own; Groups must have none.
        if !values.all(|value| value == expected) {
            return Err(Failure {
                step: format!("keep {field} at {expected}").into(),
                errno: Errno::UnknownErrno,
            });
        }
    }
    Ok(())
}

const NO_CAPABILITY: &str = "0000000000000000";

/// The text after `name:` in a status file.
pub(crate) fn field_of<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
