// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can only be known by trying: each trial in a child of its own that makes the thing and ends, whereby it is gone.

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
};

use super::{Area, Finding, User};
use crate::{
    namespace,
    sys::{self, clone::Cloned},
};

/// Each of the eight namespaces, by making one.
pub(super) fn namespaces(user: User) -> Vec<Finding> {
    let flags = [
        CloneFlags::CLONE_NEWUSER,
        CloneFlags::CLONE_NEWPID,
        CloneFlags::CLONE_NEWNS,
        CloneFlags::CLONE_NEWNET,
        CloneFlags::CLONE_NEWIPC,
        CloneFlags::CLONE_NEWUTS,
        CloneFlags::CLONE_NEWCGROUP,
        CLONE_NEWTIME,
    ];
    let tried = namespace::NAMES.iter().zip(flags);
    // Of an ordinary user only the user namespace says something about the host: the others take root.
    tried
        .filter(|(_, flag)| user == User::Root || *flag == CloneFlags::CLONE_NEWUSER)
        .map(|(name, flag)| {
            let finding = Finding::new(Area::Namespaces, format!("{name} namespace"));
            match in_child(|| unshare(flag)) {
                Ok(()) => finding.given("can be made"),
                Err(errno) => finding
                    .missing(format!("cannot be made: {}", errno.desc()))
                    .fix(remedy(flag, errno)),
            }
        })
        .collect()
}

/// nix has no name for it: it shares its bit with the exit signal of the older clone(2), and is for unshare(2) and clone3(2).
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

fn remedy(flag: CloneFlags, errno: Errno) -> String {
    match errno {
        Errno::EINVAL | Errno::ENOSYS => {
            "use a distribution's kernel, Linux 5.15 or later".to_owned()
        }
        // user_namespaces(7), and the sysctls by which distributions restrict them.
        Errno::ENOSPC => "sysctl user.max_user_namespaces=16384".to_owned(),
        _ if flag == CloneFlags::CLONE_NEWUSER => {
            "sysctl user.max_user_namespaces=16384 kernel.unprivileged_userns_clone=1 \
             kernel.apparmor_restrict_unprivileged_userns=0; in a container: --security-opt seccomp=unconfined"
                .to_owned()
        }
        _ => "run it as full root; in a container: --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
            .to_owned(),
    }
}

/// The new mount API, and the file systems that a sandbox is made of or may ask for.
pub(super) fn file_systems(user: User) -> Vec<Finding> {
    if user == User::Ordinary {
        return Vec::new();
    }
    let tmpfs = Finding::new(Area::Files, "tmpfs by fsopen(2)");
    let tmpfs = match try_mount(c"tmpfs") {
        Ok(()) => tmpfs.given("can be made"),
        Err(errno) => tmpfs
            .missing(format!("cannot be made: {}", errno.desc()))
            .fix("Linux 5.15 or later; in a container: --cap-add SYS_ADMIN --security-opt seccomp=unconfined"),
    };
    let proc = Finding::new(Area::Files, "a new proc");
    let proc = match in_child(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
        sys::mount::new_filesystem(c"proc", &[], 0).map(drop)
    }) {
        Ok(()) => proc.given("can be made"),
        Err(errno) => proc
            .missing(format!("cannot be made: {}", errno.desc()))
            .fix("in a container: --security-opt apparmor=unconfined --cap-add SYS_ADMIN"),
    };
    vec![tmpfs, proc]
}

fn try_mount(fs_type: &'static std::ffi::CStr) -> nix::Result<()> {
    in_child(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        sys::mount::new_filesystem(fs_type, &[], 0).map(drop)
    })
}

/// Runs `trial` in a child process and gives its errno. The exit status has eight bits, and errnos fit (errno(3)).
fn in_child(trial: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
    match sys::clone::fork_into(0, None)? {
        Cloned::Child => {
            let code = trial().map_or_else(|errno| errno as i32, |()| 0);
            sys::clone::exit_now(code)
        }
        Cloned::Parent { pid, .. } => match waitpid(pid, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
            // A filter that kills, for one.
            _ => Err(Errno::EPERM),
        },
    }
}
