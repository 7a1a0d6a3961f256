// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel says of a live sandbox, from the files under `/proc/PID` and the sandbox's own cgroups. Nothing here
//! looks at what the sandbox was made from: where a wall is missing, its reading says so.

mod parse;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use hearth_protocol::{
    isolation::{IsolationReport, MountReading, NamespacePair, ProcessReading, WallReading},
    spawner::Root,
};
use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{Pid, getppid},
};

use crate::{
    cgroup::{self, SandboxCgroup},
    failure::{Failure, at, io_at},
    idmap::Ids,
    landlock, namespace,
};

/// Processes of one sandbox that a report shows; the rest are in `pids.current` among the cgroup files.
const PROCESSES_MAX: usize = 256;

/// Reads everything. `init` is not reaped while this runs, so the number is still its own.
pub(crate) fn report(
    init: Pid,
    ids: Ids,
    root: Root,
    cgroup: &SandboxCgroup,
) -> Result<IsolationReport, Failure> {
    let text = |file: &str| fs::read_to_string(format!("/proc/{init}/{file}"));
    let map = |file| {
        text(file)
            .map(|text| parse::id_map(&text))
            .map_err(io_at("read an id map"))
    };
    let mounts = text("mountinfo").map_err(io_at("read the mounts"))?;
    let mut report = IsolationReport {
        level: String::new(),
        walls: Vec::new(),
        namespaces: namespaces(init)?,
        uid_map: map("uid_map")?,
        gid_map: map("gid_map")?,
        processes: processes(init, cgroup)?,
        cgroup: cgroup::readings(cgroup),
        mounts: mounts.lines().filter_map(parse::mount).collect(),
        landlock_abi: landlock::abi(),
    };
    report.walls = walls(&report, ids, root);
    let whole = report.walls.iter().all(|wall| wall.holds);
    report.level = if whole { "full" } else { "broken" }.to_owned();
    Ok(report)
}

fn namespaces(init: Pid) -> Result<BTreeMap<String, NamespacePair>, Failure> {
    let inode = |process: &str, name: &str| {
        fs::metadata(format!("/proc/{process}/ns/{name}"))
            .map(|metadata| metadata.ino())
            .map_err(io_at("read a namespace's inode"))
    };
    // The monitor's, which are the host's: the spawner has a mount namespace of its own.
    let monitor = getppid().to_string();
    let mut all = BTreeMap::new();
    for name in namespace::NAMES {
        let pair = NamespacePair {
            sandbox: inode(&init.to_string(), name)?,
            host: inode(&monitor, name)?,
        };
        all.insert(name.to_owned(), pair);
    }
    Ok(all)
}

/// Init first. A process that ends while it is read is left out.
fn processes(init: Pid, cgroup: &SandboxCgroup) -> Result<Vec<ProcessReading>, Failure> {
    let first = process(init.as_raw()).map_err(io_at("read init's status"))?;
    let mut all = vec![first];
    let others = cgroup::processes(cgroup)
        .into_iter()
        .filter(|pid| *pid != init.as_raw());
    for pid in others.take(PROCESSES_MAX) {
        all.extend(process(pid));
    }
    Ok(all)
}

fn process(pid: i32) -> io::Result<ProcessReading> {
    let text = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let numbers = fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    Ok(parse::process(&text("status")?, &text("limits")?, numbers))
}

/// Each wall with what it rests on.
fn walls(report: &IsolationReport, ids: Ids, root: Root) -> Vec<WallReading> {
    let processes = &report.processes;
    let every = |holds: &dyn Fn(&ProcessReading) -> bool| processes.iter().all(holds);
    let apart = report
        .namespaces
        .values()
        .filter(|pair| pair.sandbox != pair.host)
        .count();
    let own_ids = [ids.user; 4];
    let mapped = report.uid_map == ids.map() && report.gid_map == ids.map();
    let (sealed, writable) = file_system(&report.mounts, root);
    let limited = cgroup::is_limited(&report.cgroup);
    let capabilities = every(&|process| parse::has_no_capability(process) && process.no_new_privs);
    let rlimits = every(&parse::has_limits);
    let filtered = |process: &ProcessReading| {
        process.seccomp_mode == SECCOMP_FILTER && 0 < process.seccomp_filters
    };
    let all = namespace::NAMES.len();
    let abi = report.landlock_abi;
    let readings = [
        (
            "namespaces",
            apart == all,
            format!("{apart} of {all} differ from the host's"),
        ),
        (
            "credentials",
            mapped && every(&|process| process.uids == own_ids && process.gids == own_ids),
            format!(
                "every process is {} outside, root inside is {}",
                ids.user, ids.root
            ),
        ),
        (
            "capabilities",
            capabilities,
            "five empty sets and no_new_privs, every process".to_owned(),
        ),
        ("file_system", sealed, writable),
        (
            "cgroup",
            limited,
            "memory and processes are limited".to_owned(),
        ),
        (
            "rlimits",
            rlimits,
            "core and real-time priority are 0, every process".to_owned(),
        ),
        // The kernel shows no process's rules: they were pushed on when they went up.
        (
            "landlock",
            0 < abi,
            format!("ABI {abi}, pushed on when it went up"),
        ),
        (
            "seccomp",
            every(&filtered),
            "filter mode, every process".to_owned(),
        ),
    ];
    let reading = |(wall, holds, reading): (&str, bool, String)| WallReading {
        wall: wall.to_owned(),
        holds,
        reading,
    };
    readings.into_iter().map(reading).collect()
}

/// Whether every mount is guarded and only scratch, and the root where that was asked for, can be written; and which can.
fn file_system(mounts: &[MountReading], root: Root) -> (bool, String) {
    let expected: &[&str] = match root {
        Root::ReadOnly => &["/scratch/tmp"],
        Root::Writable => &["/", "/scratch/tmp"],
    };
    let guarded = mounts.iter().all(parse::is_guarded);
    let writable: Vec<_> = mounts
        .iter()
        .filter(|mount| parse::is_writable(mount))
        .collect();
    (
        guarded
            && writable
                .iter()
                .map(|mount| mount.at.as_str())
                .eq(expected.iter().copied()),
        format!("writable: {}", parse::places(&writable)),
    )
}

/// SECCOMP_MODE_FILTER (seccomp(2)).
const SECCOMP_FILTER: u8 = 2;

/// The report as JSON in a memfd, at offset 0.
pub(crate) fn to_memfd(report: &IsolationReport) -> Result<OwnedFd, Failure> {
    let memfd = memfd_create(c"isolation", MFdFlags::MFD_CLOEXEC).map_err(at("make a memfd"))?;
    let mut file = File::from(memfd);
    let json =
        serde_json::to_vec(report).map_err(|error| io_at("encode the report")(error.into()))?;
    file.write_all(&json).map_err(io_at("write the report"))?;
    file.rewind().map_err(io_at("rewind the report"))?;
    Ok(file.into())
}
