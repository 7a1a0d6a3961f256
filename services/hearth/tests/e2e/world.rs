// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is on the host because of one instance: processes, cgroups, mounts, open files. Read from the kernel, never from
//! Hearth.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// How deep below the cgroup mount an instance's directory may be: hierarchy, then what a container or service adds.
const CGROUP_DEPTH_MAX: usize = 6;

/// Where programs put what they should not leave.
const SHARED_DIRECTORIES: [&str; 5] = ["/run", "/tmp", "/dev/shm", "/var/lib", "/var/tmp"];

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) name: String,
    pub(crate) state: char,
}

/// All processes of the host; one that ends meanwhile is left out.
pub(crate) fn processes() -> Vec<Process> {
    let names = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(process).collect()
}

/// One process by its id, if it is there.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so the fields after it are found from its last parenthesis.
    let (head, tail) = stat.rsplit_once(") ")?;
    let mut fields = tail.split(' ');
    Some(Process {
        pid,
        name: head.split_once('(')?.1.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

/// The processes below `ancestor`, without it.
pub(crate) fn descendants(ancestor: i32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|process| process.parent == parent);
        for child in children {
            parents.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

/// The words of a process's command line.
pub(crate) fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// The processes in any cgroup of this instance.
pub(crate) fn in_cgroups_of(instance: &str) -> Vec<Process> {
    let name = format!("hearth-{instance}");
    let inside = |process: &Process| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid));
        text.is_ok_and(|text| text.contains(&name))
    };
    processes().into_iter().filter(inside).collect()
}

/// Whether a process is in this cgroup.
pub(crate) fn holds_processes(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
}

/// The sandboxes' directories of this instance, by hierarchy, those made ahead of need included.
pub(crate) fn cgroups_of(instance: &str) -> BTreeMap<PathBuf, Vec<String>> {
    let mut found = BTreeMap::new();
    find_cgroups(
        Path::new("/sys/fs/cgroup"),
        &format!("hearth-{instance}"),
        CGROUP_DEPTH_MAX,
        &mut found,
    );
    found
}

/// The cgroups of sandboxes, and of those to come, in the hierarchy that limits processes.
pub(crate) fn limited_cgroups_of(instance: &str) -> Vec<PathBuf> {
    let all = cgroups_of(instance);
    let cgroups = all
        .iter()
        .flat_map(|(hierarchy, sandboxes)| sandboxes.iter().map(|name| hierarchy.join(name)));
    cgroups
        .filter(|one| one.join("pids.max").exists())
        .collect()
}

fn find_cgroups(
    directory: &Path,
    name: &str,
    depth_left: usize,
    found: &mut BTreeMap<PathBuf, Vec<String>>,
) {
    for child in directories(directory) {
        if child.file_name().is_some_and(|own| own == name) {
            let sandboxes = directories(&child).into_iter();
            let names = sandboxes.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
            found.insert(child.clone(), names.collect());
        } else if 0 < depth_left {
            find_cgroups(&child, name, depth_left - 1, found);
        }
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    // A cgroup may be removed between the listing and the look.
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let kinds = entries.filter_map(Result::ok);
    let directories = kinds.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// The lines of a process's mount table that name any of these.
pub(crate) fn mounts_naming(pid: i32, words: &[&str]) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let named = table
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word)));
    named.map(str::to_owned).collect()
}

/// How many mounts a process sees.
pub(crate) fn mount_count(pid: i32) -> usize {
    fs::read_to_string(format!("/proc/{pid}/mountinfo"))
        .unwrap_or_default()
        .lines()
        .count()
}

/// Files in shared places whose names hold this word.
pub(crate) fn files_naming(word: &str) -> Vec<PathBuf> {
    let entries = SHARED_DIRECTORIES
        .iter()
        .filter_map(|path| fs::read_dir(path).ok())
        .flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| path.to_string_lossy().contains(word))
        .collect()
}

/// The names of the trees of files that are stored in a data directory.
pub(crate) fn stored_trees(data: &Path) -> BTreeSet<OsString> {
    let stored = fs::read_dir(data.join("trees")).expect("a directory of trees");
    stored
        .map(|entry| entry.expect("its entry").file_name())
        .collect()
}

/// How many entries a directory of /proc has: `fd`, `task`.
pub(crate) fn count_in_proc(pid: i32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count)
}

/// What is open, for a message.
pub(crate) fn open_files(pid: i32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return kinds;
    };
    for target in entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()) {
        let text = target.to_string_lossy();
        let kind = match text.split_once(':') {
            Some((kind, _)) => kind.to_owned(),
            None => target
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}

/// How long the threads of a process have run on a core, in microseconds.
pub(crate) fn computed_us(pid: i32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let run_ns = tasks.filter_map(|task| {
        let statistics = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        statistics.split(' ').next()?.parse::<u64>().ok()
    });
    run_ns.sum::<u64>() / 1000
}

/// Resident memory that is a process's own, in bytes.
pub(crate) fn resident_bytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The inode in a link of /proc/PID/ns.
pub(crate) fn namespace(pid: i32, name: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{name}"));
    link.map_or_else(
        |error| error.to_string(),
        |target| target.to_string_lossy().into_owned(),
    )
}
