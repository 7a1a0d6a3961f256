// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an earlier run of the same instance left when it was killed: cgroups with processes in them, and half-made
//! directories. Found by the instance's id in their names and by nothing else, so another Hearth's are never touched.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{InstanceError, at};

/// How long killed processes get to disappear. SIGKILL is prompt; what takes longer hangs in the kernel.
const DEATH_MS_MAX: u64 = 5_000;

/// Between two looks at a cgroup that is not empty yet, in milliseconds.
const LOOK_MS: u8 = 5;

/// What was found and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Processes that were still alive, as counted in the first hierarchy that showed them.
    pub processes: usize,
    /// Cgroup directories.
    pub cgroups: usize,
    /// Half-made or half-removed directories in the data directory.
    pub directories: usize,
}

/// Kills and removes what an earlier run of `instance` left; the caller holds the lock of `data_dir`.
///
/// # Errors
/// [`InstanceError::Path`] for the first thing that could not be removed.
pub fn sweep(data_dir: &Path, instance: &str) -> Result<Swept, InstanceError> {
    let mut swept = sweep_processes(instance)?;
    for parent in ["trees", "bases"] {
        swept.directories += remove_unfinished(&data_dir.join(parent))?;
    }
    Ok(swept)
}

/// The part of [`sweep`] that is quick whatever was left: processes and cgroups. Files wait for the next spawner, which
/// deletes them in idle moments, or for the next start.
///
/// # Errors
/// As [`sweep`].
pub(super) fn sweep_processes(instance: &str) -> Result<Swept, InstanceError> {
    let mut swept = Swept::default();
    let name = format!("hearth-{instance}");
    for cgroup in cgroups_named(&name)? {
        let directories = with_children(&cgroup)?;
        swept.processes += kill_all(&cgroup, &directories)?;
        for directory in directories.iter().rev() {
            remove_cgroup(directory)?;
            swept.cgroups += 1;
        }
    }
    Ok(swept)
}

/// The cgroup of this name in every mounted hierarchy, v2 first: there one write kills everything at once.
fn cgroups_named(name: &str) -> Result<Vec<PathBuf>, InstanceError> {
    let (mounts, own) = (
        Path::new("/proc/self/mountinfo"),
        Path::new("/proc/self/cgroup"),
    );
    let mountinfo = fs::read_to_string(mounts).map_err(at("read", mounts))?;
    let own_paths = fs::read_to_string(own).map_err(at("read", own))?;
    let mut roots: Vec<(bool, PathBuf)> = mountinfo.lines().filter_map(hierarchy_of).collect();
    roots.sort_by_key(|(is_v2, _)| !is_v2);
    // Hearth may have been started in a cgroup of its own (a systemd unit, a container): then it makes its own below, or,
    // without root, below one of those above it.
    let below: BTreeSet<&Path> = own_paths
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| Path::new(path.trim_start_matches('/')).ancestors())
        .collect();
    let mut found = Vec::new();
    // One hierarchy may be mounted in several places: a cgroup is known by device and inode, not by its path.
    let mut known = BTreeSet::new();
    for (_, root) in roots {
        for parent in std::iter::once(&Path::new("")).chain(&below) {
            let cgroup = root.join(parent).join(name);
            match fs::metadata(&cgroup) {
                Ok(metadata) if known.insert((metadata.dev(), metadata.ino())) => {
                    found.push(cgroup);
                }
                // Known already, or none here. A hierarchy that cannot be read at all is one that nothing of ours is in.
                Ok(_) | Err(_) => {}
            }
        }
    }
    Ok(found)
}

/// Whether a line of mountinfo (proc_pid_mountinfo(5)) is a cgroup hierarchy: v2 or not, and where.
fn hierarchy_of(line: &str) -> Option<(bool, PathBuf)> {
    let (mount, source) = line.split_once(" - ")?;
    let at = PathBuf::from(mount.split(' ').nth(4)?);
    match source.split(' ').next()? {
        "cgroup2" => Some((true, at)),
        "cgroup" => Some((false, at)),
        _ => None,
    }
}

/// The cgroup and everything below, parents first.
fn with_children(cgroup: &Path) -> Result<Vec<PathBuf>, InstanceError> {
    let mut all = vec![cgroup.to_owned()];
    let mut next = 0;
    while next < all.len() {
        let parent = all[next].clone();
        next += 1;
        let Some(entries) = unless_gone(fs::read_dir(&parent)).map_err(at("list", &parent))? else {
            continue;
        };
        for entry in entries {
            let Some(entry) = unless_gone(entry).map_err(at("list", &parent))? else {
                break;
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.push(entry.path());
            }
        }
    }
    Ok(all)
}

/// None where the cgroup is not there any more: the spawner of the killed run may be removing its own at this moment.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // What a file of a removed cgroup answers that was opened before.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns once no process is left; how many there were at first.
fn kill_all(cgroup: &Path, directories: &[PathBuf]) -> Result<usize, InstanceError> {
    let deadline = Instant::now() + Duration::from_millis(DEATH_MS_MAX);
    let found = processes(directories)?.len();
    if found == 0 {
        return Ok(0);
    }
    let kill_file = cgroup.join("cgroup.kill");
    let at_once = kill_file.exists();
    if at_once {
        unless_gone(fs::write(&kill_file, "1")).map_err(at("write", &kill_file))?;
    }
    for directory in directories {
        // A fork bomb could outrun one kill after another; without pids it cannot fork. Only one hierarchy has it.
        let limit = directory.join("pids.max");
        if limit.exists() {
            unless_gone(fs::write(&limit, "0")).map_err(at("write", &limit))?;
        }
    }
    loop {
        let left = processes(directories)?;
        if left.is_empty() {
            return Ok(found);
        }
        if deadline < Instant::now() {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            return Err(at("empty", cgroup)(source));
        }
        if !at_once {
            for pid in left {
                // ESRCH: it went by itself. A number given to somebody new between the two lines above and this one
                // would have to go once around all pids.
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(at("kill the processes of", cgroup)(errno.into())),
                }
            }
        }
        pause(cgroup)?;
    }
}

fn processes(directories: &[PathBuf]) -> Result<Vec<Pid>, InstanceError> {
    let mut all = Vec::new();
    for directory in directories {
        let file = directory.join("cgroup.procs");
        let text = unless_gone(fs::read_to_string(&file)).map_err(at("read", &file))?;
        let text = text.unwrap_or_default();
        // 0 stands for a process of another pid namespace, which cannot be killed by number.
        let pids = text.lines().filter_map(|line| line.parse::<i32>().ok());
        all.extend(pids.filter(|pid| 0 < *pid).map(Pid::from_raw));
    }
    Ok(all)
}

/// Waits LOOK_MS: this runs before any event loop exists, and a v1 cgroup has no file to wait on.
fn pause(cgroup: &Path) -> Result<(), InstanceError> {
    match poll(&mut [], PollTimeout::from(LOOK_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(at("wait for", cgroup)(errno.into())),
    }
}

/// The kernel counts a dying process as present for a moment longer than `cgroup.procs` shows it.
fn remove_cgroup(directory: &Path) -> Result<(), InstanceError> {
    let deadline = Instant::now() + Duration::from_millis(DEATH_MS_MAX);
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                pause(directory)?;
            }
            Err(error) => return Err(at("remove cgroup", directory)(error)),
        }
    }
}

/// Names with a dot in front are made by Hearth while it makes or removes something; finished ones have none.
fn remove_unfinished(parent: &Path) -> Result<usize, InstanceError> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(at("list", parent)(error)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(at("list", parent))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            crate::trees::delete_whole(&entry.path()).map_err(at("remove", &entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn roots() -> Vec<PathBuf> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut roots: Vec<PathBuf> = mountinfo
            .lines()
            .filter_map(hierarchy_of)
            .map(|(_, root)| root)
            .collect();
        let mut known = BTreeSet::new();
        roots.retain(|root| fs::metadata(root).is_ok_and(|metadata| known.insert(metadata.dev())));
        roots
    }

    /// An instance's cgroups as a killed run leaves them: two sandboxes, the second with processes.
    struct LeftBehind {
        name: String,
        process: Child,
    }

    fn leave_behind(instance: &str) -> LeftBehind {
        let name = format!("hearth-{instance}");
        let process = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; read x"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        for root in roots() {
            for sandbox in ["1", "2"] {
                let cgroup = root.join(&name).join(sandbox);
                fs::create_dir_all(&cgroup).unwrap();
            }
            let procs = root.join(&name).join("2/cgroup.procs");
            // cpuset takes no process before it has cores; the others suffice.
            if fs::write(procs, process.id().to_string()).is_err() {
                println!("not entered: {}", root.display());
            }
        }
        LeftBehind { name, process }
    }

    #[test]
    fn what_a_killed_run_left_is_killed_and_removed_and_nothing_of_another_instance() {
        if !nix::unistd::geteuid().is_root() || roots().is_empty() {
            println!("SKIPPED: making cgroups needs root and a mounted hierarchy");
            return;
        }
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(data.path().join("trees/.upload-1-1/a/b")).unwrap();
        fs::create_dir_all(data.path().join("trees/kept")).unwrap();
        let own = format!("f{:07x}", std::process::id());
        let others = format!("e{:07x}", std::process::id());
        let mut ours = leave_behind(&own);
        let mut theirs = leave_behind(&others);

        let swept = sweep(data.path(), &own).unwrap();

        assert!(1 <= swept.processes && swept.directories == 1, "{swept:?}");
        assert_eq!(swept.cgroups, roots().len() * 3);
        assert!(!ours.process.wait().unwrap().success());
        assert!(theirs.process.try_wait().unwrap().is_none());
        assert!(data.path().join("trees/kept").is_dir());
        for root in roots() {
            assert!(!root.join(&ours.name).exists(), "{}", root.display());
            assert!(root.join(&theirs.name).exists(), "{}", root.display());
        }
        sweep(data.path(), &others).unwrap();
        theirs.process.wait().unwrap();
        assert_eq!(sweep(data.path(), &own).unwrap(), Swept::default());
    }
}
