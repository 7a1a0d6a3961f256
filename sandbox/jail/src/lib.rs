// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The walls around a sandbox, the privileged process that builds them, and the init that lives inside.
//!
//! What other crates call (all of it synchronous, all of it before or instead of any thread):
//!
//! * [`host`]: what this host and this user can give, and what is missing;
//! * [`instance`]: the data directory's lock, the instance's id and uid block, the sweep of what an earlier run left;
//! * [`spawner::run`] with [`spawner::SpawnerConfig`]: the spawner's whole life, serving one gateway socket;
//! * [`spawner::run_without`] with [`walls::Walls`]: the same with walls left out, for test-only executables;
//! * [`gateway_jail::enter`]: the gateway's own walls, before it reads a byte;
//! * [`bases`] and [`trees`]: file trees, content-addressed and root-owned;
//! * [`init::run`]: PID 1 of a sandbox, called by the binary `hearth-init` only.
//!
//! ```text
//! spawner ── enter (after clone3, before exec) ──▶ init ──▶ function process, per call
//!    │           one file per kernel mechanism        └───▶ resident program, once
//!    └─ mounts, cgroup, isolation: from outside, for the sandbox's whole life
//! ```
//!
//! Nothing here knows async code, HTTP or wasm.

pub mod gateway_jail;
pub mod host;
pub mod init;
pub mod instance;
pub mod rootless;
pub mod spawner;
pub mod walls;

pub mod bases;
pub mod trees;

mod enter;
mod isolation;
mod verify;

mod cgroup;
mod clock;
mod failure;
mod ground;
mod idmap;
pub mod landlock;
mod layers;
mod lsm;
mod mounts;
mod namespace;
mod privilege;
mod rlimit;
mod rootfs;
pub mod seccomp;
mod socket;

#[expect(
    unsafe_code,
    reason = "clone3, execveat, the mount and the privilege calls have no safe wrapper; they live here and nowhere else"
)]
mod sys;
