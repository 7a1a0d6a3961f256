// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One revision of one function, as the pool runs it.

use std::time::Duration;

use hearth_protocol::{
    SmallName, TreeId,
    spawner::{Profile, Root},
};

use crate::Kind;

/// One revision of one function. Sandboxes belong to exactly one target for as long as they live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whose.
    pub function: SmallName,
    /// The content hash of the deployed revision: what callers see.
    pub revision: TreeId,
    /// The stored tree: the function's files, or for wasm the tree that holds the compiled artifact.
    pub tree: TreeId,
    /// What is executed.
    pub program: Program,
    /// The environment of every invocation, secrets included.
    pub env: Vec<(String, String)>,
    /// Limits of one invocation and of its sandbox.
    pub limits: Limits,
    /// How many sandboxes and for how long.
    pub scaling: Scaling,
}

impl Target {
    /// What its system calls are filtered by.
    #[must_use]
    pub fn profile(&self) -> Profile {
        match self.program {
            Program::Native { profile, .. } => profile,
            Program::Wasm => Profile::Resident,
        }
    }

    /// Native or wasm.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.program {
            Program::Native { .. } => Kind::Native,
            Program::Wasm => Kind::Wasm,
        }
    }

    /// What its sandboxes may do with their root.
    #[must_use]
    pub fn root(&self) -> Root {
        match self.program {
            Program::Native { root, .. } => root,
            Program::Wasm => Root::ReadOnly,
        }
    }
}

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A process per call.
    Native {
        /// The root tree.
        base: SmallName,
        /// Whether it can be written; such a sandbox serves one invocation.
        root: Root,
        /// What its system calls are filtered by; never the resident's.
        profile: Profile,
        /// The executable, relative to the function's folder.
        entry: String,
    },
    /// An instance per call, in a worker of this revision.
    Wasm,
}

/// The name of the compiled artifact inside a wasm target's tree.
pub const ARTIFACT_FILE: &str = "module.cwasm";

/// Limits of one invocation and of its sandbox (the manifest's `[limits]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Native: the whole sandbox. Wasm: the linear memories of one instance. In bytes.
    pub memory_bytes: u64,
    /// CPU share in thousandths of a core.
    pub cpu_millis: u32,
    /// Processes and threads of a native function at once.
    pub pids: u32,
    /// From the start in the sandbox to the function's last byte.
    pub timeout: Duration,
    /// Writable space of a native function in bytes.
    pub scratch_bytes: u64,
    /// Body, in bytes. Enforced where bodies are read, before the pool.
    pub request_bytes: u64,
    /// Output, in bytes.
    pub response_bytes: u64,
    /// Kept log per invocation, in bytes; the rest is counted and dropped.
    pub log_bytes: u64,
}

/// How many sandboxes a function may have and how long an idle one stays (the manifest's `[scaling]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scaling {
    /// Sandboxes at once.
    pub instances_max: u32,
    /// Invocations at once in one sandbox; 1 for a process per call.
    pub inflight_max: u16,
    /// Bound sandboxes kept ready even when idle.
    pub warm_min: u32,
    /// How long an idle sandbox beyond `warm_min` stays.
    pub idle_timeout: Duration,
}
