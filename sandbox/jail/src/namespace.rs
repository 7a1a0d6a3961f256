// SPDX-License-Identifier: Apache-2.0 OR MIT
//! namespaces(7): which are made when. Time is in `clock`, the user namespace's maps are in `idmap`.

use std::{
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};

use crate::{
    failure::{Failure, at, io_at},
    sys,
    walls::{Raise, Wall, Walls},
};

/// Made by the clone, as real root: owned by the host's user namespace, so that no process inside has power over any of
/// them, whatever it does to its own user namespace. Not the network namespace, where one was made ahead.
pub(crate) fn with_clone<W: Walls>(network: Option<BorrowedFd<'_>>) -> libc::c_int {
    let chosen = WITH_CLONE.iter().filter(|(wall, _)| W::stands(*wall));
    let missing = chosen.filter(|(_, flag)| network.is_none() || *flag != libc::CLONE_NEWNET);
    missing.fold(libc::CLONE_NEWNS, |flags, (_, flag)| flags | flag)
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

/// `lo` is up, as it already is in a `network` that was made ahead, and the host's name is not to be read.
pub(crate) fn furnish<W: Walls>(network: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    if network.is_none() {
        W::raise(Wall::NetworkNamespace, sys::network::loopback_up).map_err(at("bring lo up"))?;
    }
    // Without a namespace it would be the host that is renamed.
    W::raise(Wall::UtsNamespace, || sethostname(HOST_NAME)).map_err(at("set the host name"))
}

/// Moves the calling process into a network namespace that [`HostNetwork::make_another`] made.
pub(crate) fn enter_network(network: BorrowedFd<'_>) -> Result<(), Failure> {
    setns(network, CloneFlags::CLONE_NEWNET).map_err(at("enter the network namespace"))
}

/// The spawner's own network namespace: the way back.
#[derive(Debug)]
pub(crate) struct HostNetwork(File);

impl HostNetwork {
    /// Opens it; none where there is no way back, because another user namespace owns it than the spawner's.
    pub(crate) fn open() -> Result<Option<Self>, Failure> {
        let own = own_network()?;
        match setns(&own, CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(Some(Self(own))),
            Err(Errno::EPERM) => Ok(None),
            Err(errno) => Err(at("stay in the network namespace")(errno)),
        }
    }

    /// Makes a network namespace for a sandbox to come, with `lo` up, owned by the host's user namespace as one made by
    /// the clone would be. Only this descriptor keeps it.
    pub(crate) fn make_another(&self) -> Result<OwnedFd, Failure> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(at("make a network namespace"))?;
        let made = sys::network::loopback_up()
            .map_err(at("bring lo up"))
            .and_then(|()| own_network());
        if let Err(errno) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            // A spawner that stays in it would share it with its next sandbox.
            crate::spawner::die("cannot leave a sandbox's network namespace", errno);
        }
        made.map(OwnedFd::from)
    }
}

fn own_network() -> Result<File, Failure> {
    File::open("/proc/self/ns/net").map_err(io_at("open the network namespace"))
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
