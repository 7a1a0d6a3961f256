// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where a host has its cgroup hierarchies, and the one directory per hierarchy that holds an instance's sandboxes.
//! What an earlier run left there is swept by `instance`, before the spawner starts.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use cgroups_rs::{
    Controllers,
    hierarchies::{self, UNIFIED_MOUNTPOINT, V1},
};
use hearth_protocol::spawner::{CgroupLayout, SandboxId};

use super::{
    SandboxCgroup,
    delegation::{self, Delegated},
};
use crate::{
    failure::{Failure, io_at},
    ground::Ground,
};

/// Why an instance has no cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A controller is mounted nowhere.
    #[error("cannot find a mounted cgroup hierarchy with the {controller} controller")]
    NoController {
        /// Which.
        controller: &'static str,
    },
    /// An ordinary user has none of its own.
    #[error("cannot find a cgroup (v2) that was delegated to this user: {problem}")]
    NotDelegated {
        /// What is wrong with the nearest.
        problem: String,
    },
    /// An ordinary user on a host with v1 hierarchies.
    #[error("cannot divide this host's cgroups: only root can divide v1 hierarchies")]
    OnlyRoot,
    /// The instance's directory cannot be made.
    #[error("cannot make the cgroup {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The controllers cannot be passed on to sandboxes (v2).
    #[error("cannot enable the cpu, memory and pids controllers in {}", path.display())]
    Delegate {
        /// The `cgroup.subtree_control` file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The hierarchies of this host.
#[derive(Debug)]
struct Hierarchies {
    layout: CgroupLayout,
    memory: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
    pids: PathBuf,
    unified: Option<PathBuf>,
}

impl Hierarchies {
    fn find() -> Result<Self, CgroupError> {
        if hierarchies::is_cgroup2_unified_mode() {
            let ground = Ground::current().map_err(|failure| CgroupError::NotDelegated {
                problem: failure.to_string(),
            })?;
            let root = match ground {
                Ground::Host => PathBuf::from(UNIFIED_MOUNTPOINT),
                Ground::UserNamespace => delegation::find()?.into_path(),
            };
            return Ok(Self {
                layout: CgroupLayout::V2,
                memory: root.clone(),
                cpu: root.clone(),
                cpuacct: root.clone(),
                pids: root.clone(),
                unified: Some(root),
            });
        }
        if Ground::current().is_ok_and(|ground| ground == Ground::UserNamespace) {
            return Err(CgroupError::OnlyRoot);
        }
        let v1 = V1::new();
        let of = |controller: Controllers, name| {
            v1.get_mount_point(controller)
                .ok_or(CgroupError::NoController { controller: name })
        };
        let unified = unified_mount();
        Ok(Self {
            layout: if unified.is_some() {
                CgroupLayout::Hybrid
            } else {
                CgroupLayout::V1
            },
            memory: of(Controllers::Mem, "memory")?,
            cpu: of(Controllers::Cpu, "cpu")?,
            cpuacct: of(Controllers::CpuAcct, "cpuacct")?,
            pids: of(Controllers::Pids, "pids")?,
            unified,
        })
    }

    fn roots(&self) -> Vec<&Path> {
        let mut all = vec![self.memory.as_path(), &self.cpu, &self.cpuacct, &self.pids];
        all.extend(self.unified.as_deref());
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Where the v2 tree of a hybrid host is mounted (proc_pid_mountinfo(5)). `hierarchies::mountinfo_self` would not say: it
/// keeps the v1 mounts only.
fn unified_mount() -> Option<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        source.starts_with("cgroup2 ").then(|| PathBuf::from(at))
    })
}

/// Whether every hierarchy that is needed is mounted.
pub(crate) fn find() -> Result<CgroupLayout, CgroupError> {
    Hierarchies::find().map(|found| found.layout)
}

/// What an ordinary user's instance would divide.
pub(crate) fn delegated() -> Result<PathBuf, CgroupError> {
    if hierarchies::is_cgroup2_unified_mode() {
        delegation::find().map(Delegated::into_path)
    } else {
        Err(CgroupError::OnlyRoot)
    }
}

/// Where the hierarchies in use are mounted; none where one is missing.
pub(crate) fn roots() -> Vec<PathBuf> {
    Hierarchies::find().map_or_else(
        |_missing| Vec::new(),
        |found| found.roots().into_iter().map(Path::to_owned).collect(),
    )
}

/// The directory of an instance, by the same name in every hierarchy, directly below its mount: found again by any
/// later start, whichever cgroup that start is in.
fn directory_name(instance: &str) -> String {
    format!("hearth-{instance}")
}

/// The cgroups of one instance.
#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchies: Hierarchies,
    directory: String,
}

impl Cgroups {
    /// Makes the instance's directories, and on v2 lets the controllers through to the sandboxes'.
    pub(crate) fn prepare(instance: &str) -> Result<Self, CgroupError> {
        let hierarchies = Hierarchies::find()?;
        let directory = directory_name(instance);
        for root in hierarchies.roots() {
            let path = root.join(&directory);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(CgroupError::Make { path, source }),
            }
        }
        if hierarchies.layout == CgroupLayout::V2 {
            delegate(&hierarchies.memory)?;
            delegate(&hierarchies.memory.join(&directory))?;
        }
        Ok(Self {
            hierarchies,
            directory,
        })
    }

    /// How the files are laid out.
    pub(crate) fn layout(&self) -> CgroupLayout {
        self.hierarchies.layout
    }

    /// Whether writing to `memory.peak` resets it. Tried by writing, on the instance's own directory: before Linux 6.12
    /// root can open the file for writing, and only the write itself is refused.
    pub(crate) fn peak_resets(&self) -> bool {
        match self.hierarchies.layout {
            CgroupLayout::Hybrid | CgroupLayout::V1 => true,
            CgroupLayout::V2 => {
                let directory = self.hierarchies.memory.join(&self.directory);
                fs::write(directory.join("memory.peak"), "reset").is_ok()
            }
        }
    }

    /// Makes the cgroups of a sandbox.
    pub(crate) fn create(&self, sandbox: SandboxId) -> Result<SandboxCgroup, Failure> {
        let below = |root: &PathBuf| root.join(&self.directory).join(sandbox.0.to_string());
        let mut cgroup = SandboxCgroup {
            layout: self.hierarchies.layout,
            memory: below(&self.hierarchies.memory),
            cpu: below(&self.hierarchies.cpu),
            cpuacct: below(&self.hierarchies.cpuacct),
            pids: below(&self.hierarchies.pids),
            unified: None,
        };
        let made = self.make(&mut cgroup);
        if made.is_err() {
            // Best effort on the way out: what stays is swept by the instance's next start.
            let _left = cgroup.remove();
        }
        made.map(|()| cgroup)
    }

    fn make(&self, cgroup: &mut SandboxCgroup) -> Result<(), Failure> {
        cgroup.make()?;
        let Some(root) = &self.hierarchies.unified else {
            return Ok(());
        };
        let path = root
            .join(&self.directory)
            .join(cgroup.memory.file_name().unwrap_or_default());
        if self.hierarchies.layout == CgroupLayout::Hybrid {
            fs::create_dir(&path).map_err(io_at("make a cgroup"))?;
        }
        let directory = File::open(&path).map_err(io_at("open a cgroup"))?;
        cgroup.unified = Some((path, directory));
        Ok(())
    }

    /// Removes the instance's directories, once no sandbox is left.
    pub(crate) fn remove(&self) {
        for root in self.hierarchies.roots() {
            // Where something is left after all, the instance's next start sweeps it.
            let _left = fs::remove_dir(root.join(&self.directory));
        }
    }
}

fn delegate(directory: &Path) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.subtree_control");
    fs::write(&path, "+cpu +memory +pids").map_err(|source| CgroupError::Delegate { path, source })
}

#[cfg(test)]
mod tests {
    use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

    use super::*;

    #[test]
    fn the_v2_tree_of_a_hybrid_host_is_found() {
        let is_v2 = |path: &str| {
            statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
        };
        let (whole, beside) = (is_v2(UNIFIED_MOUNTPOINT), is_v2("/sys/fs/cgroup/unified"));
        if whole || !beside {
            println!("SKIPPED: this host is not hybrid");
            return;
        }
        assert_eq!(find().unwrap(), CgroupLayout::Hybrid);
    }
}
