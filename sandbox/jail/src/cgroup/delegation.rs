// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The cgroup that an ordinary user was given to divide (Documentation/admin-guide/cgroup-v2.rst, "Delegation"): the own
//! one or the nearest above it that can be written, has the controllers, and holds no process itself, because the kernel
//! lets a cgroup have either processes or controllers for its children.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cgroups_rs::hierarchies::UNIFIED_MOUNTPOINT;
use nix::unistd::{AccessFlags, access, getpid};

use super::CgroupError;

/// What a sandbox's limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Where the starting process goes if the cgroup that it was started in is to be divided.
const AROUND: &str = "hearth-monitor";

/// A cgroup that sandboxes' can be made in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Delegated {
    /// It holds no process.
    Free(PathBuf),
    /// It holds the calling process and no other: free once that has left it.
    HoldsMe(PathBuf),
}

impl Delegated {
    pub(crate) fn into_path(self) -> PathBuf {
        match self {
            Self::Free(directory) | Self::HoldsMe(directory) => directory,
        }
    }
}

/// Looks for one, changing nothing.
pub(crate) fn find() -> Result<Delegated, CgroupError> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or(CgroupError::NoController {
        controller: "unified",
    })?;
    let mut problem = "none can be written".to_owned();
    let root = Path::new(UNIFIED_MOUNTPOINT);
    for directory in root.join(own).ancestors() {
        if !directory.starts_with(root) {
            break;
        }
        match usable(directory) {
            Ok(found) => return Ok(found),
            Err(Some(why)) => problem = format!("{} {why}", directory.display()),
            Err(None) => {}
        }
    }
    Err(CgroupError::NotDelegated { problem })
}

/// Why not, where there is more to say than that others own it.
fn usable(directory: &Path) -> Result<Delegated, Option<String>> {
    let can_write = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let files = ["cgroup.procs", "cgroup.subtree_control"];
    let writable =
        can_write(directory) && files.iter().all(|file| can_write(&directory.join(file)));
    if !writable || directory.file_name().is_some_and(|name| name == AROUND) {
        return Err(None);
    }
    let text = |file| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let controllers = text("cgroup.controllers");
    let has = |wanted: &&str| controllers.split_whitespace().any(|name| name == *wanted);
    if let Some(missing) = CONTROLLERS.iter().find(|wanted| !has(wanted)) {
        return Err(Some(format!("lacks the {missing} controller")));
    }
    let processes = text("cgroup.procs");
    if processes.is_empty() {
        Ok(Delegated::Free(directory.to_owned()))
    } else if processes.trim_end() == getpid().to_string() {
        Ok(Delegated::HoldsMe(directory.to_owned()))
    } else {
        Err(Some("holds other processes".to_owned()))
    }
}

/// Moves the calling process out of the way, where it is in it. To be called once, by a process that has one thread and
/// started nothing yet: what it starts later begins where it then is.
pub(crate) fn settle() -> Result<(), CgroupError> {
    let Delegated::HoldsMe(directory) = find()? else {
        return Ok(());
    };
    let path = directory.join(AROUND);
    let made = match fs::create_dir(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    made.and_then(|()| fs::write(path.join("cgroup.procs"), "0"))
        .map_err(|source| CgroupError::Make { path, source })
}
