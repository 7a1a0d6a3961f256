// SPDX-License-Identifier: Apache-2.0 OR MIT
//! namespaces(7): which are made when. Time is in `clock`, the user namespace's maps are in `idmap`.

use nix::{
    sched::{CloneFlags, unshare},
    unistd::sethostname,
};

use crate::{
    failure::{Failure, at},
    sys,
    walls::{Raise, Wall, Walls},
};

/// Made by the clone, as real root: owned by the host's user namespace, so that no process inside has power over any of
/// them, whatever it does to its own user namespace.
pub(crate) fn with_clone<W: Walls>() -> libc::c_int {
    let chosen = WITH_CLONE.iter().filter(|(wall, _)| W::stands(*wall));
    chosen.fold(libc::CLONE_NEWNS, |flags, (_, flag)| flags | flag)
}

const WITH_CLONE: [(Wall, libc::c_int); 4] = [
    (Wall::PidNamespace, libc::CLONE_NEWPID),
    (Wall::NetworkNamespace, libc::CLONE_NEWNET),
    (Wall::IpcNamespace, libc::CLONE_NEWIPC),
    (Wall::UtsNamespace, libc::CLONE_NEWUTS),
];

/// All eight, as `/proc/PID/ns` names them.
pub(crate) const NAMES: [&str; 8] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];

/// The name that a sandbox sees for its host.
const HOST_NAME: &str = "sandbox";

/// `lo` is up, and the host's name is not to be read.
pub(crate) fn furnish<W: Walls>() -> Result<(), Failure> {
    W::raise(Wall::NetworkNamespace, sys::network::loopback_up).map_err(at("bring lo up"))?;
    // Without a namespace it would be the host that is renamed.
    W::raise(Wall::UtsNamespace, || sethostname(HOST_NAME)).map_err(at("set the host name"))
}

/// Only after the process is in its cgroups: the namespace's root is the cgroup of this moment, and an earlier one
/// would show the host's paths.
pub(crate) fn unshare_cgroup() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(at("unshare the cgroup namespace"))
}

/// The last one: what is made after it would be owned by it.
pub(crate) fn unshare_user() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(at("unshare the user namespace"))
}
