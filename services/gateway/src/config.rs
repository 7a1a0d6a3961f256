// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the gateway is told once, at start. The caller parses flags, files and variables; here it is just data.

use std::{fmt, net::TcpListener, os::fd::OwnedFd, path::PathBuf, time::Duration};

use hearth_protocol::TreeId;

/// What the gateway is told once, at start.
pub struct GatewayConfig {
    /// One per shard, all of the same address (SO_REUSEPORT); at least one.
    pub listeners: Vec<TcpListener>,
    /// The core that each shard's thread is pinned to; as long as `listeners`. None: not pinned.
    pub cores: Vec<Option<u16>>,
    /// SEQPACKET socket to the monitor ([`hearth_protocol::monitor`]).
    pub monitor: OwnedFd,
    /// SEQPACKET socket to the spawner ([`hearth_protocol::spawner`]).
    pub spawner: OwnedFd,
    /// Where the database lies; exists and belongs to this process's uid.
    pub state_dir: PathBuf,
    /// What `Authorization: Bearer` must carry for changes and for reading management data.
    pub management_key: String,
    /// The stored tree that holds the jailed compiler as the file `hearth-wasm-compiler`.
    pub compiler_tree: TreeId,
    /// Host names, beside `localhost` and IP addresses, under which a browser or client may address this server. A
    /// name that is not listed is refused, because a hostile web page can make any name resolve to this machine.
    pub allowed_hosts: Vec<String>,
    /// Limits of the process.
    pub limits: GatewayLimits,
    /// Time limits of a connection.
    pub timeouts: EdgeTimeouts,
}

impl fmt::Debug for GatewayConfig {
    /// Without the management key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("listeners", &self.listeners)
            .field("cores", &self.cores)
            .field("state_dir", &self.state_dir)
            .field("compiler_tree", &self.compiler_tree)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("limits", &self.limits)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Limits of the whole process. `Default` gives the values that the documentation names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Connections at once; at the limit the accept loops pause and the kernel's backlog holds the rest.
    pub connections_max: u32,
    /// Invocations at once, waiting ones included; beyond it 503 `overloaded`.
    pub inflight_max: u32,
    /// Bytes of request bodies and archives held in memory at once; beyond it 503 `overloaded`.
    pub body_bytes_max: u32,
    /// Bytes of streamed answers that functions have written and clients have not taken yet; an invocation that would
    /// pass it is ended.
    pub stream_bytes_max: u32,
    /// The largest archive that can be deployed.
    pub archive_bytes_max: u32,
    /// Deploys at once; others wait.
    pub deploys_max: u32,
    /// Sandboxes of all functions at once, skeletons included.
    pub sandboxes_max: u32,
    /// Ready skeletons per key and shard.
    pub skeletons_per_shard: u32,
    /// Invocations of one function that wait at once; beyond it 429 `throttled`.
    pub queue_len_max: u32,
    /// How long one waits at most; then 429 `throttled`.
    pub queue_wait_max: Duration,
    /// How long running invocations may take to finish once the gateway drains.
    pub drain_max: Duration,
    /// Receipts kept, the newest.
    pub receipts_max: u64,
    /// Bytes of receipts kept, logs included.
    pub receipts_bytes_max: u64,
    /// Age of the oldest receipt kept.
    pub receipts_age_max: Duration,
    /// Functions with their own metric label; the rest share `other`.
    pub functions_labelled_max: u32,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            // An idle connection costs about 10 KiB here: 40 MiB at the limit.
            connections_max: 4096,
            inflight_max: 1024,
            // Forty bodies of the default request limit (6 MiB) at once.
            body_bytes_max: 256 * 1024 * 1024,
            // As for bodies: forty answers of the default response limit that nobody reads.
            stream_bytes_max: 256 * 1024 * 1024,
            // A Python component with its runtime has 18 MiB.
            archive_bytes_max: 64 * 1024 * 1024,
            deploys_max: 2,
            // 378 KiB of kernel and user memory each when idle: 97 MiB.
            sandboxes_max: 256,
            skeletons_per_shard: 4,
            queue_len_max: 256,
            queue_wait_max: Duration::from_secs(5),
            drain_max: Duration::from_secs(30),
            receipts_max: 50_000,
            receipts_bytes_max: 256 * 1024 * 1024,
            receipts_age_max: Duration::from_secs(7 * 24 * 3600),
            functions_labelled_max: 200,
        }
    }
}

/// Time limits of a connection. Each closes it, or answers 408 where an answer still makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeTimeouts {
    /// From accept to the first byte.
    pub first_byte: Duration,
    /// From the first byte of a request to the end of its headers.
    pub header_read: Duration,
    /// Between two requests of a kept connection.
    pub keep_alive_idle: Duration,
    /// Between two pieces of a body.
    pub body_progress: Duration,
    /// From the end of the headers to the end of the body.
    pub body_whole: Duration,
    /// How long the client may take no byte of an answer.
    pub write_progress: Duration,
}

impl Default for EdgeTimeouts {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            header_read: Duration::from_secs(10),
            // Longer than the 60 s that common proxies and clients keep theirs, so that they close first and
            // never send into a connection that is just being closed.
            keep_alive_idle: Duration::from_secs(75),
            body_progress: Duration::from_secs(10),
            // 6 MiB in two minutes is 50 KiB per second: a slow mobile uplink.
            body_whole: Duration::from_secs(120),
            write_progress: Duration::from_secs(30),
        }
    }
}
