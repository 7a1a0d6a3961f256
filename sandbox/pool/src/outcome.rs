// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What became of an invocation, with the evidence. Independent of any protocol: the edge maps it to a status.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::RefusedCall;

/// A caller that is refused may come again after this many seconds: long enough for a queue of ordinary calls to clear.
pub(crate) const RETRY_AFTER_S: u32 = 1;

/// What became of an invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The function ended well.
    Ok,
    /// The function ended by itself, and not well.
    FunctionFailed {
        /// How.
        cause: FailureCause,
        /// The last lines of its log, oldest first.
        stderr_tail: Vec<String>,
    },
    /// The function was ended by the kernel.
    FunctionKilled {
        /// By what.
        cause: KillCause,
        /// The last lines of its log, oldest first.
        stderr_tail: Vec<String>,
    },
    /// The time limit passed.
    FunctionTimedOut {
        /// The limit in milliseconds.
        limit_ms: u64,
        /// Bytes of output seen until then.
        output_bytes: u64,
    },
    /// The output passed its limit.
    ResponseTooLarge {
        /// The limit in bytes.
        limit_bytes: u64,
        /// Seen until it was stopped.
        seen_bytes: u64,
    },
    /// The platform lost the sandbox; not the function's fault.
    SandboxLost,
    /// No sandbox could be had for this function.
    CannotStart {
        /// The wall or step that failed.
        step: String,
        /// errno(3), 0 where none applies.
        errno: i32,
        /// One sentence.
        message: String,
    },
    /// Refused before it began: too many are waiting.
    Throttled {
        /// Which limit.
        limit: ThrottleLimit,
        /// When to try again, in seconds.
        retry_after_s: u32,
    },
    /// The platform is full or going down.
    Overloaded {
        /// When to try again, in seconds.
        retry_after_s: u32,
    },
    /// The caller went away; the sandbox was destroyed.
    Cancelled,
}

/// How a function failed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum FailureCause {
    /// It exited with this code.
    ExitCode {
        /// 1 to 255; for wasm any 32-bit code but 0.
        code: u32,
    },
    /// A wasm trap.
    Trap {
        /// What and where, with the wasm backtrace.
        text: String,
    },
    /// Its output is not what the contract asks for.
    BadOutput {
        /// One sentence.
        problem: String,
    },
    /// The kernel would not execute it.
    CannotExecute {
        /// Which step: `exec`, `chdir`, …
        step: String,
        /// errno(3).
        errno: i32,
    },
}

/// What the kernel killed a function for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum KillCause {
    /// A signal that was not Hearth's.
    Signal {
        /// Its number (signal(7)).
        signal: u8,
    },
    /// A system call of the profile's kill class.
    Seccomp {
        /// The profile's name.
        profile: String,
        /// The call; none where it was not one of this architecture, which the kernel ends by SIGSYS without a word.
        #[serde(default)]
        call: Option<RefusedCall>,
    },
    /// It ran out of memory.
    Oom {
        /// The most it held, in bytes.
        peak_bytes: u64,
        /// The limit, in bytes.
        limit_bytes: u64,
    },
}

/// Which limit refused an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleLimit {
    /// The function's queue is full.
    QueueLength,
    /// It waited longer than the queue's limit.
    QueueWait,
}

/// The closed set of outcomes: metric labels and error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// See [`Outcome::Ok`].
    Ok,
    /// See [`Outcome::FunctionFailed`].
    FunctionFailed,
    /// See [`Outcome::FunctionKilled`].
    FunctionKilled,
    /// See [`Outcome::FunctionTimedOut`].
    FunctionTimedOut,
    /// See [`Outcome::ResponseTooLarge`].
    ResponseTooLarge,
    /// See [`Outcome::SandboxLost`].
    SandboxLost,
    /// See [`Outcome::CannotStart`].
    CannotStart,
    /// See [`Outcome::Throttled`].
    Throttled,
    /// See [`Outcome::Overloaded`].
    Overloaded,
    /// See [`Outcome::Cancelled`].
    Cancelled,
}

impl OutcomeKind {
    /// Every kind, for registering metric children.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::FunctionFailed,
        Self::FunctionKilled,
        Self::FunctionTimedOut,
        Self::ResponseTooLarge,
        Self::SandboxLost,
        Self::CannotStart,
        Self::Throttled,
        Self::Overloaded,
        Self::Cancelled,
    ];

    /// The stable name, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::FunctionFailed => "function_failed",
            Self::FunctionKilled => "function_killed",
            Self::FunctionTimedOut => "function_timed_out",
            Self::ResponseTooLarge => "response_too_large",
            Self::SandboxLost => "sandbox_lost",
            Self::CannotStart => "cannot_start",
            Self::Throttled => "throttled",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Outcome {
    /// Without the evidence.
    #[must_use]
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Self::Ok => OutcomeKind::Ok,
            Self::FunctionFailed { .. } => OutcomeKind::FunctionFailed,
            Self::FunctionKilled { .. } => OutcomeKind::FunctionKilled,
            Self::FunctionTimedOut { .. } => OutcomeKind::FunctionTimedOut,
            Self::ResponseTooLarge { .. } => OutcomeKind::ResponseTooLarge,
            Self::SandboxLost => OutcomeKind::SandboxLost,
            Self::CannotStart { .. } => OutcomeKind::CannotStart,
            Self::Throttled { .. } => OutcomeKind::Throttled,
            Self::Overloaded { .. } => OutcomeKind::Overloaded,
            Self::Cancelled => OutcomeKind::Cancelled,
        }
    }

    /// The time-out of `limit`, with what was seen until then.
    pub(crate) fn timed_out(limit: Duration, output_bytes: u64) -> Self {
        Self::FunctionTimedOut {
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            output_bytes,
        }
    }
}
