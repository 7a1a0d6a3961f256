// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ids of one sandbox (user_namespaces(7)). Inside there are two: 0, which no process ever has, and 1000, which
//! every process has. Outside each sandbox has a pair of its own, so that nothing counted per uid (pipe pages,
//! inotify instances, keys) is shared between tenants.

use std::{fs, os::fd::OwnedFd};

use hearth_protocol::isolation::IdMapLine;
use nix::{
    sys::wait::waitpid,
    unistd::{Gid, Pid, Uid, read},
};

use crate::{
    failure::{Failure, at, io_at},
    socket,
    sys::clone::{Cloned, exit_now, fork_into},
};

/// The uid and gid of every process inside, as seen inside.
pub(crate) const INSIDE: u32 = 1000;

/// The host's side of one sandbox's ids; uids and gids alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    /// What 0 inside is outside.
    pub(crate) root: u32,
    /// What [`INSIDE`] is outside.
    pub(crate) user: u32,
}

impl Ids {
    /// The pair that begins at `first`.
    pub(crate) fn from_first(first: u32) -> Self {
        Self {
            root: first,
            user: first + 1,
        }
    }

    /// [`INSIDE`] as a uid, for the calls made inside.
    pub(crate) fn inside_uid() -> Uid {
        Uid::from_raw(INSIDE)
    }

    /// As [`Ids::inside_uid`].
    pub(crate) fn inside_gid() -> Gid {
        Gid::from_raw(INSIDE)
    }

    /// The lines that `/proc/PID/uid_map` and `gid_map` must show.
    pub(crate) fn map(self) -> Vec<IdMapLine> {
        let line = |inside, outside| IdMapLine {
            inside,
            outside,
            count: 1,
        };
        vec![line(0, self.root), line(INSIDE, self.user)]
    }

    /// Writes both maps of a process that has just made its user namespace. Only from outside: the process itself may
    /// map nothing but its own id.
    pub(crate) fn write_maps(self, pid: Pid) -> Result<(), Failure> {
        let lines = format!("0 {} 1\n{INSIDE} {} 1\n", self.root, self.user);
        fs::write(format!("/proc/{pid}/uid_map"), &lines).map_err(io_at("write the uid map"))?;
        fs::write(format!("/proc/{pid}/gid_map"), &lines).map_err(io_at("write the gid map"))
    }

    /// A user namespace for an idmapped mount that shows what is root's as the sandbox's user's. No process is left
    /// in it.
    pub(crate) fn owner_of_all(self) -> Result<OwnedFd, Failure> {
        let (ours, theirs) = socket::pair().map_err(at("make a socket"))?;
        let step = "make the owners' user namespace";
        match fork_into(libc::CLONE_NEWUSER, None).map_err(at(step))? {
            Cloned::Child => {
                // Or it would wait for itself. The end comes when the spawner closes its own end, or dies.
                drop(ours);
                let _end = read(&theirs, &mut [0]);
                exit_now(0)
            }
            Cloned::Parent { pid, .. } => {
                let namespace = self.map_root_to_user(pid);
                drop(ours);
                waitpid(pid, None).map_err(at(step))?;
                namespace
            }
        }
    }

    fn map_root_to_user(self, pid: Pid) -> Result<OwnedFd, Failure> {
        let line = format!("0 {} 1\n", self.user);
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), &line)
                .map_err(io_at("write the owners' map"))?;
        }
        fs::File::open(format!("/proc/{pid}/ns/user"))
            .map(OwnedFd::from)
            .map_err(io_at("open the owners' user namespace"))
    }
}
