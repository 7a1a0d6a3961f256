// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The facts about one invocation, complete only once its sandbox is clean again or destroyed.

use hearth_protocol::{SmallName, TreeId};
use serde::{Deserialize, Serialize};

use crate::{FailureCause, InvocationId, Outcome, Violations};

/// The facts about one invocation. Given to the recorder exactly once, whatever happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Which.
    pub invocation: InvocationId,
    /// Of which function.
    pub function: SmallName,
    /// Of which revision.
    pub revision: TreeId,
    /// Native or wasm.
    pub kind: Kind,
    /// When it was received, in milliseconds since the Unix epoch.
    pub received_ms: u64,
    /// Where its sandbox came from; none where it never got one.
    pub start: Option<Start>,
    /// Where the time went.
    pub phases: Phases,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What it used; none where it never ran or its sandbox was destroyed before it could be read.
    pub usage: Option<Usage>,
    /// Limits that were reached, whether or not they failed the invocation.
    pub limits_hit: Vec<LimitHit>,
    /// What was left in the sandbox when it was clean again; none where it was destroyed instead.
    pub residue: Option<Residue>,
    /// System calls that the function's profile refused by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub violations: Option<Violations>,
    /// Size of the body.
    pub request_bytes: u64,
    /// Size of the output.
    pub response_bytes: u64,
    /// Kept log lines, in the order written.
    pub log: Vec<LogLine>,
    /// Log bytes beyond the limit, counted and dropped.
    pub log_dropped_bytes: u64,
}

/// A receipt without its texts, and what the allocator adds. In bytes.
const BARE_BYTES: usize = 1024;

/// A line of the log, or one that an outcome quotes, without its text. In bytes.
const LINE_BYTES: usize = 64;

impl Receipt {
    /// About how much memory it takes: for whoever bounds how many are held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let log = self.log.iter().map(|line| LINE_BYTES + line.text.len());
        let violations = self.violations.as_ref().map_or(0, Violations::held_bytes);
        BARE_BYTES + log.sum::<usize>() + self.outcome.quoted_bytes() + violations
    }
}

impl Outcome {
    fn quoted_bytes(&self) -> usize {
        let (cause, tail) = match self {
            Self::FunctionFailed { cause, stderr_tail } => match cause {
                FailureCause::Trap { text } | FailureCause::BadOutput { problem: text } => {
                    (text.len(), stderr_tail)
                }
                FailureCause::ExitCode { .. } | FailureCause::CannotExecute { .. } => {
                    (0, stderr_tail)
                }
            },
            Self::FunctionKilled { stderr_tail, .. } => (0, stderr_tail),
            Self::CannotStart { message, .. } => return message.len(),
            _ => return 0,
        };
        let tail = tail.iter().map(|line| LINE_BYTES + line.len());
        cause + tail.sum::<usize>()
    }
}

/// Native or wasm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Processes.
    Native,
    /// Instances in a worker.
    Wasm,
}

impl Kind {
    /// The stable name, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Wasm => "wasm",
        }
    }
}

/// Where an invocation's sandbox came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It was idle, bound to this revision.
    Warm,
    /// A ready skeleton was bound.
    Bound,
    /// It was made on demand.
    Created,
}

impl Start {
    /// The stable name, as in JSON and in the answer's header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Bound => "bound",
            Self::Created => "created",
        }
    }
}

/// Where the time went, each in microseconds. An invocation takes `parse`, `queue`, `acquire`, `run` and `reply`, one after the
/// other; `bind` and `start` are parts of these, and `reset` is nobody's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)] // receipts on disk may be older than a phase
pub struct Phases {
    /// From the request's head, read and taken apart, to the whole request.
    pub parse_us: u64,
    /// Waiting for the function's turn.
    pub queue_us: u64,
    /// Getting a sandbox: none for a warm one, else bind, or create and bind.
    pub acquire_us: u64,
    /// Of `acquire`: giving a skeleton its function.
    pub bind_us: u64,
    /// From the start in the sandbox to the function's last byte.
    pub run_us: u64,
    /// Of `run`: until the sandbox had been told (a process), or the call lay ready for its worker (an instance).
    pub start_us: u64,
    /// From the outcome to the answer on its way to the caller.
    pub reply_us: u64,
    /// Cleaning the sandbox afterwards, after the answer.
    pub reset_us: u64,
}

impl Phases {
    /// With their names, in order, for whoever lists them all.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("parse", self.parse_us),
            ("queue", self.queue_us),
            ("acquire", self.acquire_us),
            ("bind", self.bind_us),
            ("run", self.run_us),
            ("start", self.start_us),
            ("reply", self.reply_us),
            ("reset", self.reset_us),
        ]
    }
}

/// What an invocation used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// The most memory held at once, in bytes.
    pub memory_peak_bytes: u64,
    /// Who counted.
    pub source: UsageSource,
}

/// Who counted what an invocation used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The sandbox's cgroup, its peak reset before the invocation.
    Cgroup,
    /// The sandbox's cgroup where the peak cannot be reset: it is that of the sandbox's whole life.
    CgroupLifetimePeak,
    /// The wasm worker: thread CPU time of this instance's polls, size of its linear memories.
    Worker,
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitHit {
    /// Memory.
    Memory,
    /// The CPU share: the kernel throttled.
    Cpu,
    /// Processes: a fork was refused.
    Pids,
    /// Time.
    Timeout,
    /// Writable space: full in bytes or inodes at the end.
    Scratch,
    /// Output.
    Response,
    /// Log.
    Log,
}

/// What the kernel counted in the sandbox after cleaning, and what cleaning had to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residue {
    /// Processes beside the main one that were killed and reaped.
    pub processes_killed: u32,
    /// Blocks that were written to scratch, discarded with its mount.
    pub scratch_blocks: u64,
    /// Inodes that were made in scratch, discarded with its mount.
    pub scratch_inodes: u64,
    /// Processes in the cgroup afterwards; 1 is init alone.
    pub processes_left: u64,
    /// Bytes charged to the cgroup afterwards beyond what they were before the first invocation.
    pub memory_left_bytes: u64,
    /// Whether nothing is left: one process, charged bytes within 1 MiB of the baseline.
    pub none: bool,
}

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Since the invocation's start, in milliseconds.
    pub at_ms: u64,
    /// Control characters are escaped (a log never drives a terminal); a longer line is cut.
    pub text: String,
    /// Whether it was cut.
    pub cut: bool,
}
