// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel says of a live sandbox, from the files under `/proc/PID` and the sandbox's own cgroups. Nothing here
//! looks at what the sandbox was made from: where a wall is missing, its reading says so.

mod parse;
mod walls;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use hearth_protocol::isolation::{
    FilterReading, IsolationReport, LsmReading, NamespacePair, ProcessReading,
};
use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{Pid, getppid},
};
use sha2::{Digest, Sha256};

use crate::{
    cgroup::{self, SandboxCgroup},
    failure::{Failure, at, io_at},
    ground::Ground,
    landlock, lsm, namespace, privilege, seccomp, sys,
};

pub(crate) use walls::Expected;

/// Processes of one sandbox that a report shows; the rest are in `pids.current` among the cgroup files.
const PROCESSES_MAX: usize = 256;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Everything: for who asks.
    Whole,
    /// Of init alone, and without stopping it: for looking often.
    Glance,
}

/// Reads `depth` of a sandbox and holds it against what is expected of it. `init` is not reaped while this runs, so
/// the number is still its own.
///
/// A failure says that init is dying, or cannot be looked at: it must not be trusted then.
pub(crate) fn report(
    init: Pid,
    expected: &Expected<'_>,
    cgroup: &SandboxCgroup,
    known: &[(&str, &seccomp::Program)],
    depth: Depth,
) -> Result<IsolationReport, Failure> {
    let text = |file: &str| fs::read_to_string(format!("/proc/{init}/{file}"));
    let map = |file| {
        text(file)
            .map(|text| parse::id_map(&text))
            .map_err(io_at("read an id map"))
    };
    let mounts = text("mountinfo").map_err(io_at("read the mounts"))?;
    let readings = cgroup::readings(cgroup);
    let filters = match depth {
        Depth::Whole => filters(init, known)?,
        Depth::Glance => None,
    };
    let mut report = IsolationReport {
        level: String::new(),
        lacking: expected
            .ground
            .lacking()
            .iter()
            .map(|&text| text.into())
            .collect(),
        walls: Vec::new(),
        namespaces: namespaces(init)?,
        uid_map: map("uid_map")?,
        gid_map: map("gid_map")?,
        processes: processes(init, cgroup, depth)?,
        securebits: privilege::SECUREBITS,
        filters,
        limits: cgroup::limits(&readings),
        cgroup: readings,
        mounts: mounts.lines().filter_map(parse::mount).collect(),
        landlock_abi: landlock::abi(),
        lsm: LsmReading {
            modules: lsm::modules(),
            label: lsm::label_of(init),
        },
    };
    report.walls = walls::walls(&report, expected);
    let whole = report.walls.iter().all(|wall| wall.holds);
    report.level = match (whole, expected.ground) {
        (false, _) => "broken",
        (true, Ground::Host) => "full",
        (true, Ground::UserNamespace) => "rootless",
    }
    .to_owned();
    Ok(report)
}

/// None where the kernel does not give them out.
fn filters(
    init: Pid,
    known: &[(&str, &seccomp::Program)],
) -> Result<Option<Vec<FilterReading>>, Failure> {
    let filters = match sys::seccomp::filters_of(init) {
        Ok(filters) => filters,
        Err(Errno::EACCES | Errno::EINVAL | Errno::EIO) => return Ok(None),
        Err(errno) => return Err(at("read the filters")(errno)),
    };
    let reading = |filter: &Vec<sys::seccomp::Instruction>| {
        let bytes: Vec<u8> = filter.iter().flat_map(bytes_of).collect();
        let same = |(_, program): &&(&str, &seccomp::Program)| {
            let own = program.instructions().iter();
            own.flat_map(|one| encode(one.code, one.jt, one.jf, one.k))
                .eq(bytes.iter().copied())
        };
        FilterReading {
            profile: known.iter().find(same).map(|(name, _)| (*name).to_owned()),
            instructions: u32::try_from(filter.len()).unwrap_or(u32::MAX),
            sha256: hex(&Sha256::digest(&bytes)),
        }
    };
    Ok(Some(filters.iter().map(reading).collect()))
}

fn bytes_of(one: &sys::seccomp::Instruction) -> [u8; 8] {
    encode(one.code, one.jt, one.jf, one.k)
}

/// As in memory on a little-endian machine: what `sha256sum` says of a filter that was written to a file.
fn encode(code: u16, jt: u8, jf: u8, k: u32) -> [u8; 8] {
    let [c0, c1] = code.to_le_bytes();
    let [k0, k1, k2, k3] = k.to_le_bytes();
    [c0, c1, jt, jf, k0, k1, k2, k3]
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
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
fn processes(
    init: Pid,
    cgroup: &SandboxCgroup,
    depth: Depth,
) -> Result<Vec<ProcessReading>, Failure> {
    let first = process(init.as_raw()).map_err(io_at("read init's status"))?;
    let mut all = vec![first];
    if depth == Depth::Glance {
        return Ok(all);
    }
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
