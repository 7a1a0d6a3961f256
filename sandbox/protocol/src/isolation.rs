// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel says of a live sandbox: read by the spawner from the kernel's own files, never from configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One sandbox as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationReport {
    /// Where every wall below is as it must be, `full`, or `rootless` on the ground of an ordinary user; else `broken`: the
    /// sandbox is then being destroyed.
    pub level: String,
    /// What this level lacks beside `full`, in sentences; empty where it is that.
    #[serde(default)]
    pub lacking: Vec<String>,
    /// Every wall by name, with what was read and whether it holds.
    pub walls: Vec<WallReading>,
    /// By name (`user`, `pid`, …): this sandbox's inode and the host's (namespaces(7)).
    pub namespaces: BTreeMap<String, NamespacePair>,
    /// Lines of `/proc/PID/uid_map` and `gid_map` (user_namespaces(7)).
    pub uid_map: Vec<IdMapLine>,
    /// As `uid_map`.
    pub gid_map: Vec<IdMapLine>,
    /// The processes of the sandbox, init first.
    pub processes: Vec<ProcessReading>,
    /// The securebits that every process has (capabilities(7)). The kernel tells them to a process itself only: the
    /// first one read them back once they were locked, and no sandbox is handed out in which they were others.
    pub securebits: u32,
    /// Init's system call filters, the newest first, which every process inherits (a resident worker adds one). None
    /// where the kernel does not give them out: it takes CONFIG_CHECKPOINT_RESTORE, and a spawner without a filter of
    /// its own.
    pub filters: Option<Vec<FilterReading>>,
    /// What is limited, and how much of it is used.
    pub limits: Vec<LimitReading>,
    /// Cgroup files by `controller/file`, with their content.
    pub cgroup: BTreeMap<String, String>,
    /// The mounts as seen inside (`/proc/PID/mountinfo`).
    pub mounts: Vec<MountReading>,
    /// The kernel's Landlock ABI version.
    pub landlock_abi: u32,
    /// Other security modules.
    pub lsm: LsmReading,
}

/// One system call filter, read from the kernel by ptrace(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterReading {
    /// The profile whose filter it is; None where it is none of this build's.
    pub profile: Option<String>,
    /// How many BPF instructions it has.
    pub instructions: u32,
    /// SHA-256 of its instructions as the kernel keeps them, in hexadecimal.
    pub sha256: String,
}

/// A limit as the kernel enforces it, and its use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReading {
    /// `memory_bytes`, `pids`, `cpu_millis`.
    pub name: String,
    /// None where nothing is limited.
    pub limit: Option<u64>,
    /// The use: bytes and processes now; of CPU what was used since the sandbox was made, in milliseconds.
    pub used: Option<u64>,
}

/// Security modules beside Landlock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LsmReading {
    /// Those that the kernel runs (`/sys/kernel/security/lsm`); empty where that cannot be read.
    pub modules: Vec<String>,
    /// Init's label (`/proc/PID/attr/current`), an AppArmor profile or an SELinux context; None where no module labels
    /// processes.
    pub label: Option<String>,
}

/// One wall: what must hold and what was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallReading {
    /// `namespaces`, `credentials`, `capabilities`, `file_system`, `cgroup`, `rlimits`, `landlock`, `seccomp`.
    pub wall: String,
    /// Whether the reading is as it must be.
    pub holds: bool,
    /// The reading in words.
    pub reading: String,
}

/// A namespace inode beside the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePair {
    /// This sandbox's.
    pub sandbox: u64,
    /// The host's: those of the process that started the spawner.
    pub host: u64,
}

/// One line of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapLine {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// What `/proc/PID/status` and its neighbours say of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReading {
    /// Its id inside the sandbox (the last of `NSpid`).
    pub pid_inside: u32,
    /// `Name`.
    pub name: String,
    /// Real, effective, saved, file-system uid, as the host sees them.
    pub uids: [u32; 4],
    /// As `uids`.
    pub gids: [u32; 4],
    /// `CapInh`, `CapPrm`, `CapEff`, `CapBnd`, `CapAmb`, in this order, in hexadecimal as the kernel prints them.
    pub capabilities: BTreeMap<String, String>,
    /// `NoNewPrivs`.
    pub no_new_privs: bool,
    /// `Seccomp`: 0 off, 1 strict, 2 filter.
    pub seccomp_mode: u8,
    /// `Seccomp_filters`.
    pub seccomp_filters: u32,
    /// Resource limits by name, soft and hard, as `/proc/PID/limits` prints them.
    pub rlimits: BTreeMap<String, (String, String)>,
    /// Open file descriptors, by number.
    pub fds: Vec<u32>,
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReading {
    /// Where, inside.
    pub at: String,
    /// File-system type.
    pub fs_type: String,
    /// Per-mount options.
    pub options: String,
}
