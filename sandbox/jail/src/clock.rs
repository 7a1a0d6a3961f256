// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The time namespace (time_namespaces(7)): inside, the monotonic and the boot clock begin near zero when the sandbox
//! is made, so that the host's uptime is not to be read.

use std::fs;

use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};

use crate::failure::{Failure, at, io_at};

/// Gives the caller's next children a time namespace of their own. The offsets must be written between the unshare and
/// the clone: with CLONE_NEWTIME in the clone itself they would be frozen at once.
pub(crate) fn unshare_for_children() -> Result<(), Failure> {
    unshare(CLONE_NEWTIME).map_err(at("unshare the time namespace"))?;
    let now = |clock| clock_gettime(clock).map_err(at("read the clock"));
    let monotonic = now(ClockId::CLOCK_MONOTONIC)?.tv_sec();
    let boottime = now(ClockId::CLOCK_BOOTTIME)?.tv_sec();
    // Whole seconds: the kernel wants the nanoseconds of an offset to be positive, and refuses a clock below zero.
    let offsets = format!("monotonic -{monotonic} 0\nboottime -{boottime} 0\n");
    fs::write("/proc/self/timens_offsets", offsets).map_err(io_at("write the clock offsets"))
}

/// nix has no name for it.
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);
