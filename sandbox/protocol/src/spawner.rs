// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Gateway ⇄ spawner. The spawner believes nothing: each request is checked as if the gateway were hostile, and one
//! that does not decode closes the socket.
//!
//! ```text
//! ◀─ Hello                                                       once per connection
//! Create ─▶ ◀─ Created + fds | Failed      a skeleton: walls up, no function
//! Bind   ─▶ ◀─ Bound (+ fd)  | Failed      files mounted or handed over, limits set
//! Renew  ─▶ ◀─ Renewed       | Failed      a fresh scratch mount
//! Inspect─▶ ◀─ Inspected + fd| Failed      the isolation report, JSON in a memfd
//! Destroy─▶                  ◀─ Gone       also unasked, when a sandbox dies by itself
//!                            ◀─ Breached   unasked, when a wall of a living sandbox is not as it was made
//! Tree…  ─▶ ◀─ Tree…         | Failed      content-addressed storage
//! Observe, ReadProfile… ─▶ ◀─ Observing, ProfileRead… | Failed    what a function needs of its profile
//! ```
//!
//! Every request has its own id, and its answer carries it. Answers come in the order of the requests, with three
//! exceptions: `Created` (or its `Failed`) comes when the skeleton is up and `TreeStored` (or its `Failed`) when the
//! tree is on disk, after answers to later requests if need be, and `Gone` comes when it comes.

use serde::{Deserialize, Serialize};

use crate::{
    SmallName, TreeId,
    init::ScratchUse,
    profile::{Observation, ObservationId, ProfileReading, Tier},
};

pub use crate::profile::{Profile, Violation, ViolationClass};

/// Names one sandbox for the life of one spawner; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxId(pub u64);

/// Chosen by the gateway; given back in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// Names one upload in progress for the life of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UploadId(pub u64);

/// The most file bytes that one [`Request::TreeChunk`] copies: about 2 ms of the spawner's time, so that an upload
/// never holds up a bind for longer.
pub const TREE_CHUNK_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The longest path inside a tree, in bytes.
pub const TREE_PATH_BYTES_MAX: usize = 1024;

/// The most files in one tree.
pub const TREE_FILES_MAX: u32 = 20_000;

/// The most bytes in one tree.
pub const TREE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The most inodes of a scratch mount. An inode costs about 1 KiB of kernel memory, charged to the sandbox.
pub const SCRATCH_INODES_MAX: u64 = 1024 * 1024;

/// Gateway → spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a skeleton.
    Create {
        /// For the answer.
        request: RequestId,
        /// What kind.
        spec: SkeletonSpec,
        /// What holds until it is bound; a bind with the same limits has the less to do.
        limits: SandboxLimits,
    },
    /// Give a skeleton to one revision of one function.
    Bind {
        /// For the answer.
        request: RequestId,
        /// Which skeleton; one that was never bound.
        sandbox: SandboxId,
        /// The function's files.
        tree: TreeId,
        /// What to do with them.
        handover: Handover,
        /// Cgroup and scratch limits.
        limits: SandboxLimits,
    },
    /// Replace the scratch mount by an empty one.
    Renew {
        /// For the answer.
        request: RequestId,
        /// Of which sandbox.
        sandbox: SandboxId,
    },
    /// Read the isolation report from the kernel.
    Inspect {
        /// For the answer.
        request: RequestId,
        /// Of which sandbox.
        sandbox: SandboxId,
    },
    /// Kill and remove a sandbox, in whatever state. Unknown ids are ignored: it may just have died.
    Destroy {
        /// Which.
        sandbox: SandboxId,
    },
    /// Begin to store a tree.
    TreeBegin {
        /// For the answer.
        request: RequestId,
    },
    /// Append to a file of the tree; carries one fd, from whose start `offset` on `bytes` are read. Not answered
    /// unless it fails; the failure is the answer to the commit.
    TreeChunk {
        /// Which upload.
        upload: UploadId,
        /// Relative, `/`-separated, no empty, `.` or `..` component.
        path: String,
        /// Mode 0555 instead of 0444.
        executable: bool,
        /// Must equal what the file holds already; 0 makes it, and it must not exist.
        offset: u64,
        /// At most [`TREE_CHUNK_BYTES_MAX`].
        bytes: u64,
    },
    /// Make the tree permanent under its content hash.
    TreeCommit {
        /// For the answer.
        request: RequestId,
        /// Which upload.
        upload: UploadId,
    },
    /// Forget an upload.
    TreeAbort {
        /// Which upload.
        upload: UploadId,
    },
    /// Remove a stored tree; refused while a sandbox is bound to it.
    TreeRemove {
        /// For the answer.
        request: RequestId,
        /// Which.
        tree: TreeId,
    },
    /// Open a file of a stored tree for reading.
    TreeOpen {
        /// For the answer.
        request: RequestId,
        /// Of which tree.
        tree: TreeId,
        /// Relative, as in [`Request::TreeChunk`].
        path: String,
    },
    /// Begin to count calls, of sandboxes that are made with [`Profile::Observed`]. At most [`OBSERVATIONS_MAX`] at once.
    Observe {
        /// For the answer.
        request: RequestId,
    },
    /// Say what was counted, and forget it. Its sandboxes live on, uncounted.
    EndObservation {
        /// For the answer.
        request: RequestId,
        /// Which.
        observation: ObservationId,
    },
    /// Make a learned profile of names.
    ReadProfile {
        /// For the answer.
        request: RequestId,
        /// Of which tier.
        of: Tier,
        /// At most [`crate::profile::CALLS_MAX`] names of system calls.
        calls: Vec<String>,
    },
}

/// The most observations at once.
pub const OBSERVATIONS_MAX: usize = 16;

/// What a skeleton is keyed by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SkeletonSpec {
    /// Who speaks on the control socket.
    pub worker: Worker,
    /// The file tree that becomes the root.
    pub base: SmallName,
    /// Whether the root can be written.
    pub root: Root,
    /// Which seccomp profile everything in the sandbox inherits.
    pub profile: Profile,
    /// What the network namespace offers.
    pub network: Network,
    /// The core that the sandbox's first process is pinned to (sched_setaffinity(2)); None: all.
    pub core: Option<u16>,
}

/// Who speaks on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Worker {
    /// Init: one process per call ([`crate::init`]).
    PerCall,
    /// The resident program that the spawner was configured with, started by init before the skeleton is ready
    /// ([`crate::worker`]).
    Resident,
}

/// What a sandbox may do with its root.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub enum Root {
    /// Read and execute.
    #[default]
    ReadOnly,
    /// Write, too: what is written goes to the scratch, counts against its limits, and is gone with the sandbox,
    /// which serves one invocation. Only for [`Worker::PerCall`].
    Writable,
}

/// What the network namespace offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Network {
    /// `lo`, and no profile that lets a function make an internet socket.
    None,
}

/// What binding does with a function's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handover {
    /// Mount the tree read-only at `/function`.
    Mount,
    /// Open this file of the tree and send its fd with the answer; nothing is mounted.
    OpenFile(String),
}

/// Limits that the spawner sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLimits {
    /// Of the sandbox's cgroup, in bytes; swap is always 0.
    pub memory_bytes: u64,
    /// Processes and threads, init included.
    pub pids: u32,
    /// CPU share in thousandths of a core.
    pub cpu_millis: u32,
    /// Size of the scratch tmpfs in bytes.
    pub scratch_bytes: u64,
    /// Inodes of the scratch tmpfs.
    pub scratch_inodes: u64,
}

/// Spawner → gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The first packet of a connection.
    Hello {
        /// What this host gives.
        host: Host,
    },
    /// A skeleton is ready. Carries [`CREATED_FDS`] fds in the order of [`CreatedFd`].
    Created {
        /// From the request.
        request: RequestId,
        /// The new sandbox.
        sandbox: SandboxId,
    },
    /// The sandbox is bound. Carries the opened file for [`Handover::OpenFile`].
    Bound {
        /// From the request.
        request: RequestId,
    },
    /// The scratch mount is empty again.
    Renewed {
        /// From the request.
        request: RequestId,
        /// What the old one held.
        discarded: ScratchUse,
    },
    /// Carries one memfd with the JSON of [`crate::isolation::IsolationReport`], at offset 0.
    Inspected {
        /// From the request.
        request: RequestId,
    },
    /// A living sandbox is not as it was made: somebody changed it from outside, or a wall gave way. It is being
    /// destroyed; `Gone` follows.
    Breached {
        /// Which.
        sandbox: SandboxId,
        /// The wall, as [`crate::isolation::WallReading`] names it.
        wall: String,
        /// What was read.
        reading: String,
    },
    /// Nothing of the sandbox is left: processes reaped, mounts gone, cgroups removed.
    Gone {
        /// Which.
        sandbox: SandboxId,
        /// Why it ended.
        cause: Cause,
        /// What its cgroup counted over its whole life, read before it was removed.
        totals: Totals,
    },
    /// The function made a system call that its profile refuses by name. Comes unasked, for the first
    /// [`VIOLATIONS_TOLD_MAX`] since [`CreatedFd::Violations`] was read last, and for one that ends the sandbox; the others
    /// are only counted there. Sent before the call fails, and before `Gone` where it ends the sandbox.
    Violation {
        /// In which sandbox.
        sandbox: SandboxId,
        /// The call.
        violation: Violation,
    },
    /// Answer to [`Request::TreeBegin`].
    TreeBegun {
        /// From the request.
        request: RequestId,
        /// For the chunks.
        upload: UploadId,
    },
    /// Answer to [`Request::TreeCommit`].
    TreeStored {
        /// From the request.
        request: RequestId,
        /// Its content hash; the same content stored before has the same one.
        tree: TreeId,
    },
    /// Answer to [`Request::TreeRemove`].
    TreeRemoved {
        /// From the request.
        request: RequestId,
    },
    /// The request was refused or a step of it failed; a sandbox that it made half is being destroyed.
    Failed {
        /// From the request.
        request: RequestId,
        /// Which wall or step.
        step: String,
        /// errno(3), 0 where none applies.
        errno: i32,
        /// One sentence.
        message: String,
    },
    /// Answer to [`Request::TreeOpen`]. Carries the file, opened for reading.
    TreeOpened {
        /// From the request.
        request: RequestId,
    },
    /// Answer to [`Request::Observe`].
    Observing {
        /// From the request.
        request: RequestId,
        /// For the profile of its sandboxes.
        observation: ObservationId,
    },
    /// Answer to [`Request::EndObservation`].
    Observed {
        /// From the request.
        request: RequestId,
        /// What was counted.
        observation: Observation,
    },
    /// Answer to [`Request::ReadProfile`].
    ProfileRead {
        /// From the request.
        request: RequestId,
        /// What became of the names.
        reading: Box<ProfileReading>,
    },
}

/// How many fds [`Event::Created`] carries.
pub const CREATED_FDS: usize = 9;

/// Between two reads of [`CreatedFd::Violations`], so many refused calls are told in full.
pub const VIOLATIONS_TOLD_MAX: u16 = 8;

/// The fds of [`Event::Created`], by position. All but the first and the last are the sandbox's cgroup files: read-only,
/// except that `MemoryPeak` is also writable where writing resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum CreatedFd {
    /// The SEQPACKET socket to init or to the resident worker.
    Control = 0,
    /// v1 `memory.usage_in_bytes`, v2 `memory.current`.
    MemoryUsage = 1,
    /// v1 `memory.max_usage_in_bytes`, v2 `memory.peak`.
    MemoryPeak = 2,
    /// v1 `memory.oom_control`, v2 `memory.events`: both hold a line `oom_kill N`.
    MemoryEvents = 3,
    /// v1 `cpuacct.usage` (nanoseconds), v2 `cpu.stat` (`usage_usec N`).
    CpuUsage = 4,
    /// `cpu.stat` of either version: `nr_throttled N`.
    CpuThrottle = 5,
    /// `pids.current`.
    PidsCurrent = 6,
    /// `pids.events`: `max N`.
    PidsEvents = 7,
    /// An eventfd(2), non-blocking: how many refused calls were told or counted since it was read last. Written before
    /// each of them fails, so that whoever reads it after the function's end misses none.
    Violations = 8,
}

/// What the host gives to sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// How complete the walls are.
    pub level: Level,
    /// How the cgroup files are laid out.
    pub cgroup: CgroupLayout,
    /// Whether writing to `MemoryPeak` resets it (v1 always; v2 from Linux 6.12, per open file).
    pub memory_peak_resets: bool,
    /// The kernel's Landlock ABI version.
    pub landlock_abi: u32,
    /// The most sandboxes that this spawner keeps at once: its uid ranges.
    pub sandboxes_max: u32,
    /// The bases that exist.
    pub bases: Vec<SmallName>,
}

/// How complete the walls are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Every wall of the design, as root.
    Full,
    /// The walls that an ordinary user can build; what they lack is named in the isolation report.
    Rootless,
}

/// How the cgroup files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupLayout {
    /// All controllers on the unified hierarchy.
    V2,
    /// Controllers on v1 hierarchies, with the empty v2 tree for kill and freeze.
    Hybrid,
    /// v1 only.
    V1,
}

/// What a sandbox's cgroup counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// `oom_kill`.
    pub oom_kills: u64,
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// The most memory held at once since the last reset, in bytes.
    pub memory_peak_bytes: u64,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// [`Request::Destroy`].
    Destroyed,
    /// PID 1 exited by itself with this code.
    Exited(i32),
    /// PID 1 was killed by this signal, not by the spawner.
    Signaled(i32),
    /// The function made a system call that nothing honest makes; an [`Event::Violation`] came before.
    Forbidden,
}
