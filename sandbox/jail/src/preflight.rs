// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether every wall can be built here, asked before anything is built: each problem with what to do about it.

use std::{fs, io, path::Path};

use nix::{errno::Errno, sched::CpuSet, unistd::geteuid};

use crate::{cgroup, landlock, sys, verify};

/// Something that is missing, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is missing, one sentence without full stop.
    pub reason: String,
    /// What to type or to change.
    pub fix: String,
}

/// Everything that is missing; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot build every wall here: {}", list(problems))]
pub struct Refusal {
    /// At least one.
    pub problems: Vec<Problem>,
}

fn list(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems
        .iter()
        .map(|Problem { reason, fix }| format!("{reason} ({fix})"))
        .collect();
    texts.join("; ")
}

/// Capabilities that building a sandbox takes, by number and name, with what each one is for.
pub const CAPABILITIES: [(u32, &str, &str); 12] = [
    (21, "SYS_ADMIN", "namespaces and mounts"),
    (
        19,
        "SYS_PTRACE",
        "entering a sandbox's mount namespace, and reading its /proc files",
    ),
    (
        12,
        "NET_ADMIN",
        "the loopback interface of a new network namespace",
    ),
    (7, "SETUID", "id maps, and leaving root"),
    (6, "SETGID", "id maps, and leaving root's groups"),
    (8, "SETPCAP", "emptying the capability bounding set"),
    (5, "KILL", "ending processes of other users"),
    (0, "CHOWN", "giving the gateway its state directory"),
    (
        1,
        "DAC_OVERRIDE",
        "the files under /proc of processes of other users",
    ),
    (27, "MKNOD", "the five devices of a sandbox"),
    (18, "SYS_CHROOT", "entering a sandbox's mount namespace"),
    (
        25,
        "SYS_TIME",
        "the clock offsets of a sandbox's time namespace",
    ),
];

/// # Errors
/// [`Refusal`] with every problem that was found, not only the first.
pub fn check() -> Result<(), Refusal> {
    let mut problems = Vec::new();
    if geteuid().is_root() {
        problems.extend(missing_capabilities());
        problems.extend(missing_namespaces());
        problems.extend(missing_cgroups());
    } else {
        // What else is missing is not to be seen without the right to try.
        problems.push(Problem {
            reason: "it takes root to build the walls around a function".to_owned(),
            fix: "type `sudo` before the command".to_owned(),
        });
    }
    problems.extend(missing_kernel_features());
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Refusal { problems })
    }
}

fn missing_capabilities() -> Option<Problem> {
    let held = sys::privilege::capabilities().map_or(0, |sets| sets.effective);
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(number, _, _)| held & (1 << number) == 0)
        .collect();
    if missing.is_empty() {
        return None;
    }
    let names: Vec<_> = missing
        .iter()
        .map(|(_, name, use_)| format!("CAP_{name} for {use_}"))
        .collect();
    let flags: Vec<_> = missing
        .iter()
        .map(|(_, name, _)| format!("--cap-add {name}"))
        .collect();
    Some(Problem {
        reason: format!("capabilities are missing: {}", names.join(", ")),
        fix: format!(
            "in a container: {}; elsewhere run it as full root",
            flags.join(" ")
        ),
    })
}

fn missing_namespaces() -> Vec<Problem> {
    let mut problems = Vec::new();
    for name in crate::namespace::NAMES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            problems.push(Problem {
                reason: format!("the kernel has no {name} namespaces"),
                fix: "use a distribution's kernel, Linux 5.14 or later".to_owned(),
            });
        }
    }
    let allowed = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if allowed.trim() == "0" {
        problems.push(Problem {
            reason: "user namespaces are switched off".to_owned(),
            fix: "sysctl user.max_user_namespaces=16384".to_owned(),
        });
    }
    problems
}

fn missing_cgroups() -> Option<Problem> {
    cgroup::find().err().map(|error| Problem {
        reason: error.to_string(),
        fix: "mount it; in a container: -v /sys/fs/cgroup:/sys/fs/cgroup:rw".to_owned(),
    })
}

fn missing_kernel_features() -> Vec<Problem> {
    let mut problems = Vec::new();
    if landlock::abi() == 0 {
        problems.push(Problem {
            reason: "the kernel does not offer Landlock".to_owned(),
            fix: "boot with lsm=landlock,… (Linux 5.13 or later); in a container: --security-opt seccomp=unconfined".to_owned(),
        });
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if verify::field_of(&status, "Seccomp").is_none() {
        problems.push(Problem {
            reason: "the kernel does not offer seccomp filters".to_owned(),
            fix: "use a kernel with CONFIG_SECCOMP_FILTER".to_owned(),
        });
    }
    problems
}

/// The cores that this process may run on: what skeletons can be pinned to.
///
/// # Errors
/// Where sched_getaffinity(2) fails.
pub fn cores() -> io::Result<Vec<u16>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let is_in = |core: &u16| matches!(set.is_set((*core).into()), Ok(true));
    let count = u16::try_from(CpuSet::count()).map_err(|_too_many| Errno::EOVERFLOW)?;
    Ok((0..count).filter(is_in).collect())
}
