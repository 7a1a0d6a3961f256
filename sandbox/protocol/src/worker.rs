// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Gateway ⇄ wasm worker. One worker serves one revision of one function, up to `inflight_max` invocations at once.
//!
//! ```text
//! Bind + fd ─▶ ◀─ Bound | Failed
//! Run + payload ─▶ (Body + payload ─▶)*      ◀─ (Output + payload)* ◀─ Done + payload
//! Cancel ─▶                                  ◀─ Done
//! ```
//!
//! The payload of `Done` is the rest of stdout, so that a small answer costs one message each way.
//!
//! Until `Bound` a packet is one message ([`crate::frame::encode`]). From then on it is one or several, in both
//! directions ([`crate::frame::append`]): a busy gateway and a busy worker share the price of a system call and of
//! waking the other among all that they have to say. Each takes the messages of a packet in order.

use serde::{Deserialize, Serialize};

/// Gateway → worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Load the compiled module; carries one fd, the artifact, readable.
    Bind(Module),
    /// Begin an invocation. The payload is the body, or its beginning.
    Run {
        /// Chosen by the gateway, unique among those running, never 0.
        seq: u32,
        /// WASI arguments; the first is the program's name.
        args: Vec<String>,
        /// Variables beside those of [`Module::env`]; they win where both name one.
        env: Vec<(String, String)>,
        /// The whole body's length in bytes; what the payload lacks follows in [`Request::Body`].
        body_bytes: u64,
        /// Time from here to the guest's last byte, in milliseconds.
        timeout_ms: u64,
    },
    /// The next piece of a body.
    Body {
        /// Whose.
        seq: u32,
    },
    /// Stop this invocation; answered by its `Done`.
    Cancel {
        /// Which.
        seq: u32,
    },
}

/// What every invocation of this revision has in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Limit of all linear memories of one instance, in bytes.
    pub memory_bytes_max: u64,
    /// Invocations at once; at most [`INFLIGHT_MAX`].
    pub inflight_max: u16,
    /// Limit of stdout per invocation, in bytes; output beyond it ends the invocation with `OutputLimit`.
    pub output_bytes_max: u64,
    /// Environment of every instance.
    pub env: Vec<(String, String)>,
}

/// The most invocations that one worker runs at once: the size of its instance pool.
pub const INFLIGHT_MAX: u16 = 64;

/// The longest backtrace or message text in a [`Ending::Trap`], in bytes.
pub const TRAP_TEXT_BYTES_MAX: usize = 4096;

/// Worker → gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The engine is up and the tight seccomp filter is on; the worker waits for [`Request::Bind`].
    Booted,
    /// Answer to [`Request::Bind`].
    Bound,
    /// The module could not be loaded; the worker is of no further use.
    Failed {
        /// Why, for the operator's log.
        message: String,
    },
    /// A piece of output in the payload.
    Output {
        /// Whose.
        seq: u32,
        /// Which stream.
        stream: Stream,
    },
    /// The invocation is over, its instance dropped. The payload is the rest of stdout.
    Done {
        /// Which.
        seq: u32,
        /// How it ended.
        ending: Ending,
        /// What it used.
        usage: Usage,
    },
}

/// Where output was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// The result.
    Stdout,
    /// The log.
    Stderr,
}

/// How a wasm invocation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// `proc_exit`, or a return from `_start` (0).
    Exited(u32),
    /// A trap; the text has at most [`TRAP_TEXT_BYTES_MAX`] bytes.
    Trap {
        /// What and where, with the wasm backtrace.
        text: String,
    },
    /// The time limit passed.
    TimedOut,
    /// stdout passed [`Module::output_bytes_max`].
    OutputLimit,
    /// [`Request::Cancel`] was obeyed.
    Cancelled,
    /// The worker could not make an instance (its own limits); not the guest's fault.
    NoInstance {
        /// Why, for the operator's log.
        message: String,
    },
}

/// What one wasm invocation used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of the worker's thread from one invocation's last step to the next one's, for every step of this
    /// invocation, in microseconds (CLOCK_THREAD_CPUTIME_ID): the guest's, and the worker's own work for it.
    pub cpu_us: u64,
    /// The most that the instance's linear memories held at once, in bytes.
    pub memory_peak_bytes: u64,
    /// Times that `memory.grow` was refused for [`Module::memory_bytes_max`].
    pub memory_refusals: u32,
}
