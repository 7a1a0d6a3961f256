// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the pool is told once, at start.

use std::{fmt, sync::Arc, time::Duration};

use crate::Receipt;

/// Takes each [`Receipt`], once, when its invocation is settled. Called on a shard's thread: it must not block.
pub type Recorder = Arc<dyn Fn(Receipt) + Send + Sync>;

/// What the pool is told once, at start.
#[derive(Clone)]
pub struct PoolConfig {
    /// One per gateway shard.
    pub shards: Vec<ShardConfig>,
    /// Ready skeletons kept per key and shard.
    pub skeletons_per_shard: u32,
    /// Sandboxes of all functions at once, skeletons included.
    pub sandboxes_max: u32,
    /// Invocations of one function that wait at once.
    pub queue_len_max: u32,
    /// How long one waits at most.
    pub queue_wait_max: Duration,
    /// Streamed output of all invocations that its callers have not taken yet, in bytes. An invocation that would pass
    /// it is ended: callers that do not read must not fill the host's memory.
    pub stream_bytes_max: usize,
    /// Gets every receipt.
    pub recorder: Recorder,
}

impl fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolConfig")
            .field("shards", &self.shards)
            .field("skeletons_per_shard", &self.skeletons_per_shard)
            .field("sandboxes_max", &self.sandboxes_max)
            .field("queue_len_max", &self.queue_len_max)
            .field("queue_wait_max", &self.queue_wait_max)
            .field("stream_bytes_max", &self.stream_bytes_max)
            .finish_non_exhaustive()
    }
}

/// One shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardConfig {
    /// The core that its thread and its sandboxes run on; none where threads are not pinned.
    pub core: Option<u16>,
}
