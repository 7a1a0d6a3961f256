// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What must hold of a sandbox, held against what was read of it.

use hearth_protocol::{
    isolation::{IsolationReport, LimitReading, MountReading, ProcessReading, WallReading},
    spawner::{Root, SandboxLimits},
};

use super::parse;
use crate::{cgroup, ground::Ground, host, idmap::Ids, namespace, rlimit};

/// What a sandbox was made to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) ground: Ground,
    pub(crate) ids: Ids,
    pub(crate) root: Root,
    pub(crate) limits: &'a SandboxLimits,
    /// How a security module labels every process, where that is demanded.
    pub(crate) label: Option<&'a str>,
    /// The name of the seccomp profile.
    pub(crate) profile: &'a str,
}

/// Each wall with what it rests on.
pub(super) fn walls(report: &IsolationReport, expected: &Expected<'_>) -> Vec<WallReading> {
    let ids = expected.ids;
    let processes = &report.processes;
    let every = |holds: &dyn Fn(&ProcessReading) -> bool| processes.iter().all(holds);
    let apart = report
        .namespaces
        .values()
        .filter(|pair| pair.sandbox != pair.host)
        .count();
    let own_ids = [ids.user; 4];
    let mapped = report.uid_map == ids.map() && report.gid_map == ids.map();
    let (sealed, writable) = file_system(&report.mounts, expected.root);
    let limited = cgroup::holds(&report.limits, expected.limits);
    let capabilities = every(&|process| parse::has_no_capability(process) && process.no_new_privs);
    let rlimits = every(&parse::has_limits);
    let filtered = |process: &ProcessReading| {
        process.seccomp_mode == SECCOMP_FILTER && 0 < process.seccomp_filters
    };
    let (named, filter) = filter(report, expected.profile);
    let all = namespace::NAMES.len();
    let abi = report.landlock_abi;
    let label = report.lsm.label.as_deref();
    let labelled = expected.label.is_none() || label == expected.label;
    let label = label.unwrap_or("none");
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
            "five empty sets and no_new_privs, every process; securebits locked".to_owned(),
        ),
        ("file_system", sealed, writable),
        ("cgroup", limited, limits_in_words(&report.limits)),
        ("rlimits", rlimits, rlimits_in_words()),
        // The kernel shows no process's rules: they were pushed on when they went up.
        (
            "landlock",
            0 < abi && labelled,
            format!("ABI {abi}, pushed on when it went up; label: {label}"),
        ),
        (
            "seccomp",
            every(&filtered) && named,
            format!("filter mode, every process; {filter}"),
        ),
    ];
    let reading = |(wall, holds, reading): (&str, bool, String)| WallReading {
        wall: wall.to_owned(),
        holds,
        reading,
    };
    readings.into_iter().map(reading).collect()
}

/// Whether every mount is guarded and only scratch, and the root where that was asked for, can be written; and which
/// can.
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

fn rlimits_in_words() -> String {
    let count = format!("{} hard limits, every process", rlimit::LIMITS.len());
    if host::has_core_handler() {
        format!(
            "{count}; no limit keeps a crash from kernel.core_pattern's program: see hearth doctor"
        )
    } else {
        count
    }
}

fn limits_in_words(limits: &[LimitReading]) -> String {
    let words = limits.iter().map(|LimitReading { name, limit, .. }| {
        let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        format!("{name} {limit}")
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Whether one of the filters is the profile's; true where the kernel does not show them.
fn filter(report: &IsolationReport, profile: &str) -> (bool, String) {
    let Some(filters) = &report.filters else {
        return (true, "which one, the kernel does not say".to_owned());
    };
    let named = |name: &Option<String>| name.as_deref() == Some(profile);
    if filters.iter().any(|filter| named(&filter.profile)) {
        (true, format!("profile {profile}"))
    } else {
        (false, format!("none is that of profile {profile}"))
    }
}
