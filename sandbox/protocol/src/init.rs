// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Gateway ⇄ init (PID 1 of a sandbox whose function is one process per call).
//!
//! ```text
//! Bind ─▶ ◀─ Bound | Failed        once, after the spawner has mounted the function's files
//! Run  ─▶ ◀─ Exited [◀─ Clean]     per invocation; or ◀─ Failed when exec did not happen
//! ```
//!
//! `Run` carries three fds: the function's stdin, stdout and stderr. On the main process's exit init sends `Exited` at
//! once. Where nobody else is alive, which is the rule, that says all; else init kills and reaps everything else, and
//! sends `Clean`. There is no message that stops a running function: an invocation that must end early ends with its
//! sandbox, destroyed by the spawner. Init does one thing at a time: what is sent while a function runs waits for its end.

use serde::{Deserialize, Serialize};

/// How many fds a [`Request::Run`] carries: stdin, stdout, stderr, in this order.
pub const RUN_FDS: usize = 3;

/// Gateway → init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Fix what every invocation of this revision has in common.
    Bind(Program),
    /// Run the program once.
    Run {
        /// Chosen by the gateway, given back in every answer, never 0.
        seq: u32,
        /// Variables beside those of [`Program::env`] (CGI/1.1); they win where both name one.
        env: Vec<(String, String)>,
    },
}

/// What init executes for each invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The file, as seen inside the sandbox, and its arguments; at least one.
    pub argv: Vec<String>,
    /// The whole environment but for the variables of one call.
    pub env: Vec<(String, String)>,
    /// Working directory inside the sandbox, entered at bind.
    pub cwd: String,
    /// Cores that every process of the function begins on (sched_setaffinity(2)); empty: as init itself.
    pub cores: Vec<u16>,
}

/// Init → gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Answer to [`Request::Bind`].
    Bound,
    /// The main process ended.
    Exited {
        /// From the request.
        seq: u32,
        /// How it ended.
        status: ExitStatus,
        /// Scratch in use where no other process was left: no `Clean` follows. None where others are being killed:
        /// `Clean` follows.
        clean: Option<ScratchUse>,
    },
    /// Nothing of the invocation is left in the sandbox but what `scratch` counts.
    Clean {
        /// From the request.
        seq: u32,
        /// Processes other than the main one that had to be killed and reaped.
        killed: u32,
        /// Scratch space in use, from statfs(2) of its mount: blocks and inodes beyond those of an empty one.
        scratch: ScratchUse,
    },
    /// The step did not happen; the sandbox is as before.
    Failed {
        /// From the request; 0 for a bind.
        seq: u32,
        /// Which step: `exec`, `clone`, `chdir`, …
        step: String,
        /// errno(3).
        errno: i32,
    },
}

/// How a process ended (wait(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// By itself, with this code, 0 to 255.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

/// What a scratch mount holds beyond its empty state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScratchUse {
    /// File-system blocks.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
}

impl ScratchUse {
    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}
