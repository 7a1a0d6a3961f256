// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the gateway may ask for as limits.

use hearth_protocol::spawner::{SCRATCH_INODES_MAX, SandboxLimits};

use super::requests::refused;
use crate::failure::Failure;

/// Below this the kernel cannot start a process in the cgroup: init's own pages, page tables and stacks.
const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;
const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// Init and one process of the function.
const PIDS_MIN: u32 = 2;
const PIDS_MAX: u32 = 32 * 1024;

/// The kernel's shortest quota is 1 ms of the period of 100 ms.
const CPU_MILLIS_MIN: u32 = 10;
const CPU_MILLIS_MAX: u32 = 1024 * 1000;

/// One page.
const SCRATCH_BYTES_MIN: u64 = 4096;
const SCRATCH_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// The root directory and one file.
const SCRATCH_INODES_MIN: u64 = 2;

/// Whether they can be kept.
pub(super) fn check(limits: &SandboxLimits) -> Result<(), Failure> {
    let within = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&limits.memory_bytes)
        && (PIDS_MIN..=PIDS_MAX).contains(&limits.pids)
        && (CPU_MILLIS_MIN..=CPU_MILLIS_MAX).contains(&limits.cpu_millis)
        && (SCRATCH_BYTES_MIN..=SCRATCH_BYTES_MAX).contains(&limits.scratch_bytes)
        && (SCRATCH_INODES_MIN..=SCRATCH_INODES_MAX).contains(&limits.scratch_inodes);
    if within {
        Ok(())
    } else {
        Err(refused("set limits outside their bounds"))
    }
}
