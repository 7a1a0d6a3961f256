// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sandboxes as a gateway sees them: a real spawner, real walls, and functions that push on them.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, too"
)]

#[path = "sandbox/apparmor.rs"]
mod apparmor;
#[path = "sandbox/audit.rs"]
mod audit;
#[path = "sandbox/calls.rs"]
mod calls;
#[path = "sandbox/ends.rs"]
mod ends;
#[path = "sandbox/files.rs"]
mod files;
#[path = "sandbox/gateway.rs"]
mod gateway;
#[path = "sandbox/groundwork.rs"]
mod groundwork;
#[path = "sandbox/hostile_gateway.rs"]
mod hostile_gateway;
#[path = "sandbox/hostile_packets.rs"]
mod hostile_packets;
#[path = "sandbox/learn.rs"]
mod learn;
#[path = "sandbox/left_out.rs"]
mod left_out;
#[path = "sandbox/limits.rs"]
mod limits;
#[path = "sandbox/timing.rs"]
mod timing;
#[path = "sandbox/trees.rs"]
mod trees;
#[path = "sandbox/violations.rs"]
mod violations;
#[path = "sandbox/walls.rs"]
mod walls;
#[path = "sandbox/world.rs"]
mod world;
#[path = "sandbox/writable_root.rs"]
mod writable_root;
