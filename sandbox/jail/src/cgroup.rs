// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Control groups (cgroups(7)) on v2, hybrid and v1 hosts, chosen at run time.
//!
//! ```text
//! v2       /sys/fs/cgroup/hearth-INSTANCE/ID                       limits, statistics, kill
//! rootless /sys/fs/cgroup/…/hearth-INSTANCE/ID                     the same, below a delegated cgroup
//! hybrid   …/memory|cpu|cpuacct|pids/hearth-INSTANCE/ID            limits, statistics
//!          …/unified/hearth-INSTANCE/ID                            kill (the tree has no controllers)
//! v1       as hybrid, without the last; a sandbox is killed through its PID 1
//! ```
//!
//! A process enters its cgroups by CLONE_INTO_CGROUP (v2 tree) and by writing `0` to the `tasks` files that it inherits
//! (v1). Nobody ever writes another process's id: that waits for an RCU grace period, 5 to 12 ms.

mod delegation;
mod files;
mod hosts;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use cgroups_rs::{
    MaxValue, cpu::CpuController, error::Error as ControllerError, memory::MemController,
    pid::PidController,
};
use hearth_protocol::{
    isolation::LimitReading,
    spawner::{CgroupLayout, SandboxLimits, Totals},
};
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::failure::{Failure, at, io_at};

pub(crate) use delegation::settle;
pub(crate) use hosts::{CgroupError, Cgroups, delegated, find, roots};

/// Enforcement period of the CPU limit in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The cgroups of one sandbox.
#[derive(Debug)]
pub(crate) struct SandboxCgroup {
    layout: CgroupLayout,
    memory: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
    pids: PathBuf,
    /// The directory in the v2 tree, where there is one, and an open descriptor of it for the clone.
    unified: Option<(PathBuf, File)>,
}

impl SandboxCgroup {
    /// Every directory, each once (v1 hierarchies may be mounted together).
    fn directories(&self) -> Vec<&Path> {
        let mut all = vec![self.memory.as_path(), &self.cpu, &self.cpuacct, &self.pids];
        all.extend(self.unified.iter().map(|(path, _)| path.as_path()));
        all.sort_unstable();
        all.dedup();
        all
    }

    fn make(&self) -> Result<(), Failure> {
        for directory in self.directories() {
            fs::create_dir(directory).map_err(io_at("make a cgroup"))?;
        }
        Ok(())
    }

    /// For CLONE_INTO_CGROUP.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified
            .as_ref()
            .map(|(_, directory)| directory.as_fd())
    }

    /// The v1 `tasks` files, for the first process to enter by itself.
    pub(crate) fn tasks(&self) -> Result<Vec<File>, Failure> {
        if self.layout == CgroupLayout::V2 {
            return Ok(Vec::new());
        }
        let mut hierarchies = vec![&self.memory, &self.cpu, &self.cpuacct, &self.pids];
        hierarchies.sort_unstable();
        hierarchies.dedup();
        let open =
            |directory: &PathBuf| OpenOptions::new().write(true).open(directory.join("tasks"));
        hierarchies
            .into_iter()
            .map(open)
            .collect::<io::Result<_>>()
            .map_err(io_at("open a cgroup's tasks file"))
    }

    /// Memory (swap none), processes, CPU; what is as it was `before` is not written again.
    pub(crate) fn limit(
        &self,
        limits: &SandboxLimits,
        before: Option<&SandboxLimits>,
    ) -> Result<(), Failure> {
        let v2 = self.layout == CgroupLayout::V2;
        if before.is_none_or(|before| before.memory_bytes != limits.memory_bytes) {
            let bytes = |limits: &SandboxLimits| i64::try_from(limits.memory_bytes);
            let before = before.map(|before| bytes(before).unwrap_or(i64::MAX));
            self.limit_memory(bytes(limits).unwrap_or(i64::MAX), before)?;
        }
        if before.is_none_or(|before| before.pids != limits.pids) {
            let pids = PidController::new(self.pids.clone(), v2);
            pids.set_pid_max(MaxValue::Value(limits.pids.into()))
                .map_err(|error| controller_failure("set the process limit", &error))?;
        }
        if before.is_some_and(|before| before.cpu_millis == limits.cpu_millis) {
            return Ok(());
        }
        let cpu = CpuController::new(self.cpu.clone(), v2);
        // period / 1000 microseconds for each thousandth of a core.
        let quota =
            i64::from(limits.cpu_millis) * i64::try_from(CPU_PERIOD_US / 1000).unwrap_or(i64::MAX);
        cpu.set_cfs_quota_and_period(Some(quota), Some(CPU_PERIOD_US))
            .map_err(|error| controller_failure("set the CPU limit", &error))
    }

    fn limit_memory(&self, bytes: i64, before: Option<i64>) -> Result<(), Failure> {
        let v2 = self.layout == CgroupLayout::V2;
        let memory = MemController::new(self.memory.clone(), v2);
        let set = || {
            memory
                .set_limit(bytes)
                .map_err(|error| controller_failure("set the memory limit", &error))
        };
        // v1 refuses a sum of memory and swap that is below the memory: each is moved first in the direction in which
        // it is free.
        if before.is_some_and(|before| before < bytes) {
            self.limit_swap(&memory, bytes)?;
            set()
        } else {
            set()?;
            self.limit_swap(&memory, bytes)
        }
    }

    fn limit_swap(&self, memory: &MemController, memory_bytes: i64) -> Result<(), Failure> {
        if self.layout == CgroupLayout::V2 {
            // The whole sandbox dies with its first victim: half a function is of no use to anyone.
            fs::write(self.memory.join("memory.oom.group"), "1")
                .map_err(io_at("set memory.oom.group"))?;
            return match self.memory.join("memory.swap.max").exists() {
                true => memory
                    .set_memswap_limit(0)
                    .map_err(|error| controller_failure("set the swap limit", &error)),
                false => Ok(()),
            };
        }
        // v1 limits the sum of memory and swap. Where the kernel does not account swap, there is none to be had for a
        // cgroup whose swappiness is 0.
        if self.memory.join("memory.memsw.limit_in_bytes").exists() {
            return memory
                .set_memswap_limit(memory_bytes)
                .map_err(|error| controller_failure("set the swap limit", &error));
        }
        memory
            .set_swappiness(0)
            .map_err(|error| controller_failure("set the swappiness", &error))
    }

    /// v1 only: becomes readable when the memory limit is hit and nothing could be reclaimed. v2 has
    /// `memory.oom.group` instead.
    pub(crate) fn watch_oom(&self) -> Result<Option<EventFd>, Failure> {
        if self.layout == CgroupLayout::V2 {
            return Ok(None);
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags).map_err(at("make an eventfd"))?;
        let control = File::open(self.memory.join("memory.oom_control"))
            .map_err(io_at("open memory.oom_control"))?;
        let line = files::event_registration(&event, &control);
        fs::write(self.memory.join("cgroup.event_control"), line)
            .map_err(io_at("watch for OOM kills"))?;
        Ok(Some(event))
    }

    /// Kills every process at once, where the host has the v2 tree. For destruction only: what is later cloned into a
    /// cgroup that was once killed dies at once.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match &self.unified {
            Some((path, _)) => fs::write(path.join("cgroup.kill"), "1"),
            None => Ok(()),
        }
    }

    /// What was counted so far; 0 where it cannot be read.
    pub(crate) fn totals(&self) -> Totals {
        let text = |directory: &Path, file: &str| {
            fs::read_to_string(directory.join(file)).unwrap_or_default()
        };
        let number = |directory, file| text(directory, file).trim().parse().unwrap_or(0);
        let counter =
            |directory, file, name| files::counter(&text(directory, file), name).unwrap_or(0);
        match self.layout {
            CgroupLayout::V2 => Totals {
                oom_kills: counter(&self.memory, "memory.events", "oom_kill"),
                cpu_us: counter(&self.cpu, "cpu.stat", "usage_usec"),
                memory_peak_bytes: number(&self.memory, "memory.peak"),
            },
            CgroupLayout::Hybrid | CgroupLayout::V1 => Totals {
                oom_kills: counter(&self.memory, "memory.oom_control", "oom_kill"),
                cpu_us: number(&self.cpuacct, "cpuacct.usage") / 1000,
                memory_peak_bytes: number(&self.memory, "memory.max_usage_in_bytes"),
            },
        }
    }

    /// Removes what is left of the directories. EBUSY while a dying process is still counted: to be tried again.
    pub(crate) fn remove(&self) -> Result<(), Errno> {
        for directory in self.directories() {
            match fs::remove_dir(directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
            }
        }
        Ok(())
    }
}

/// Writes the calling process into the cgroups of these `tasks` files. `0` means oneself, and a single-threaded process
/// that moves itself waits for nobody.
pub(crate) fn enter(tasks: &[File]) -> Result<(), Failure> {
    for mut file in tasks {
        file.write_all(b"0").map_err(io_at("enter a cgroup"))?;
    }
    Ok(())
}

/// The errno at the bottom of a cgroups-rs error.
fn controller_failure(step: &'static str, error: &ControllerError) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io_error) = error.downcast_ref::<io::Error>() {
            return Failure {
                step: step.into(),
                errno: Errno::from_raw(io_error.raw_os_error().unwrap_or(0)),
            };
        }
        cause = error.source();
    }
    Failure {
        step: step.into(),
        errno: Errno::UnknownErrno,
    }
}

/// The files that the gateway reads by itself, in the order of [`hearth_protocol::spawner::CreatedFd`] from
/// `MemoryUsage` on.
pub(crate) fn report_files(cgroup: &SandboxCgroup) -> Result<Vec<OwnedFd>, Failure> {
    let read =
        |directory: &Path, file: &str| OpenOptions::new().read(true).open(directory.join(file));
    // Writing resets the peak: on v1 always, on v2 for the open file since Linux 6.12, before that it cannot be opened
    // for writing.
    let peak = |directory: &Path, file: &str| {
        let path = directory.join(file);
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .or_else(|_| File::open(&path))
    };
    let files = match cgroup.layout {
        CgroupLayout::V2 => [
            read(&cgroup.memory, "memory.current"),
            peak(&cgroup.memory, "memory.peak"),
            read(&cgroup.memory, "memory.events"),
            read(&cgroup.cpu, "cpu.stat"),
            read(&cgroup.cpu, "cpu.stat"),
            read(&cgroup.pids, "pids.current"),
            read(&cgroup.pids, "pids.events"),
        ],
        CgroupLayout::Hybrid | CgroupLayout::V1 => [
            read(&cgroup.memory, "memory.usage_in_bytes"),
            peak(&cgroup.memory, "memory.max_usage_in_bytes"),
            read(&cgroup.memory, "memory.oom_control"),
            read(&cgroup.cpuacct, "cpuacct.usage"),
            read(&cgroup.cpu, "cpu.stat"),
            read(&cgroup.pids, "pids.current"),
            read(&cgroup.pids, "pids.events"),
        ],
    };
    let open = |file: io::Result<File>| file.map(OwnedFd::from);
    files
        .into_iter()
        .map(open)
        .collect::<io::Result<_>>()
        .map_err(io_at("open a cgroup's statistics"))
}

/// The files that say what limits hold, by `controller/file`, with their content; those that exist.
const READINGS: [(Controller, &[&str]); 4] = [
    (
        Controller::Memory,
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.usage_in_bytes",
            "memory.max",
            "memory.swap.max",
            "memory.current",
            "memory.peak",
            "memory.max_usage_in_bytes",
            "memory.events",
            "memory.oom.group",
        ],
    ),
    (
        Controller::Cpu,
        &[
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.max",
            "cpu.stat",
        ],
    ),
    (Controller::Cpuacct, &["cpuacct.usage"]),
    (
        Controller::Pids,
        &["pids.max", "pids.current", "pids.events"],
    ),
];

#[derive(Clone, Copy)]
enum Controller {
    Memory,
    Cpu,
    Cpuacct,
    Pids,
}

/// Those of [`READINGS`] that [`holds`] is about.
const LIMIT_FILES: [&str; 6] = [
    "memory.limit_in_bytes",
    "memory.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.max",
    "pids.max",
];

/// Reads [`READINGS`].
pub(crate) fn readings(cgroup: &SandboxCgroup) -> BTreeMap<String, String> {
    readings_of(cgroup, |_| true)
}

fn readings_of(cgroup: &SandboxCgroup, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (controller, files) in READINGS {
        let (name, directory) = match controller {
            Controller::Memory => ("memory", &cgroup.memory),
            Controller::Cpu => ("cpu", &cgroup.cpu),
            Controller::Cpuacct => ("cpuacct", &cgroup.cpuacct),
            Controller::Pids => ("pids", &cgroup.pids),
        };
        for file in files.iter().filter(|file| wanted(file)) {
            if let Ok(text) = fs::read_to_string(directory.join(file)) {
                all.insert(format!("{name}/{file}"), text.trim_end().to_owned());
            }
        }
    }
    all
}

/// v1 says "no limit" as the largest multiple of the page size below 2^63.
const UNLIMITED_FROM: u64 = 1 << 62;

/// What the files of [`readings`] limit, and the use of it.
pub(crate) fn limits(readings: &BTreeMap<String, String>) -> Vec<LimitReading> {
    let text = |names: [&str; 2]| names.iter().find_map(|name| readings.get(*name));
    let number = |names| text(names).and_then(|text| text.parse::<u64>().ok());
    let memory = number(["memory/memory.max", "memory/memory.limit_in_bytes"]);
    let cpu_ms = number(["cpuacct/cpuacct.usage", ""])
        .map(|ns| ns / 1_000_000)
        .or_else(|| {
            let stat = readings.get("cpu/cpu.stat")?;
            files::counter(stat, "usage_usec").map(|us| us / 1000)
        });
    let reading = |name: &str, limit, used| LimitReading {
        name: name.to_owned(),
        limit,
        used,
    };
    vec![
        reading(
            "memory_bytes",
            memory.filter(|bytes| *bytes < UNLIMITED_FROM),
            number(["memory/memory.current", "memory/memory.usage_in_bytes"]),
        ),
        reading(
            "pids",
            number(["pids/pids.max", ""]),
            number(["pids/pids.current", ""]),
        ),
        reading("cpu_millis", cpu_limit(readings), cpu_ms),
    ]
}

/// In thousandths of a core: v2 `QUOTA PERIOD`, v1 in two files, with `max` or -1 for no limit.
fn cpu_limit(readings: &BTreeMap<String, String>) -> Option<u64> {
    let v1 = || {
        let quota = readings.get("cpu/cpu.cfs_quota_us")?;
        Some((
            quota.as_str(),
            readings.get("cpu/cpu.cfs_period_us")?.as_str(),
        ))
    };
    let v2 = readings
        .get("cpu/cpu.max")
        .and_then(|text| text.split_once(' '));
    let (quota, period) = v2.or_else(v1)?;
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    (quota * 1000).checked_div(period)
}

/// Whether no limit is above what was set. The kernel rounds memory down to pages.
pub(crate) fn holds(limits: &[LimitReading], set: &SandboxLimits) -> bool {
    let wanted = [
        ("memory_bytes", set.memory_bytes),
        ("pids", set.pids.into()),
        ("cpu_millis", set.cpu_millis.into()),
    ];
    wanted.iter().all(|(name, most)| {
        let read = limits.iter().find(|reading| reading.name == *name);
        let limit = read.and_then(|reading| reading.limit);
        limit.is_some_and(|limit| limit <= *most)
    })
}

/// As [`holds`], of what the kernel says of these cgroups now.
pub(crate) fn still_holds(cgroup: &SandboxCgroup, set: &SandboxLimits) -> bool {
    let readings = readings_of(cgroup, |file| LIMIT_FILES.contains(&file));
    holds(&limits(&readings), set)
}

/// The host's pids of the sandbox's processes.
pub(crate) fn processes(cgroup: &SandboxCgroup) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.pids.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
