// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The crate's only unsafe code: two operations that the compiler cannot check.
#![expect(
    unsafe_code,
    reason = "taking over an inherited fd, and mapping code that our own compiler made"
)]

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use wasmtime::{Engine, Module};

/// Where init leaves the control socket.
const CONTROL_FD: RawFd = 3;

/// The control socket. To be called once, first thing in `main`.
pub(crate) fn take_control_socket() -> OwnedFd {
    // SAFETY: from_raw_fd needs an open fd that nothing else owns. Init hands this program exactly 0, 1, 2 and 3, no
    // code of ours runs before `main`, whose first line this is, and nothing else here names fd 3. Where 3 is not
    // open (the program started by hand), the first use fails with EBADF and the program ends.
    unsafe { OwnedFd::from_raw_fd(CONTROL_FD) }
}

/// Maps a compiled module.
///
/// # Errors
/// Where the file is not an artifact of this very engine version and configuration, or is truncated.
pub(crate) fn map_artifact(engine: &Engine, artifact: File) -> wasmtime::Result<Module> {
    // SAFETY: deserialize_open_file runs what the file holds as machine code, so the file must have been made by
    // `Module::serialize` and must never change. The fd comes from the gateway, in the one Bind of this worker's life,
    // and was opened by the spawner in its tree store: trees are written by the spawner alone, root-owned, read-only
    // and content-addressed, and the gateway stores as `module.cwasm` only what the jailed compiler answered; users
    // cannot supply one (the compiler refuses input that is compiled already, and no route takes an artifact). Were
    // it forged all the same, it would run with this worker's rights: inside its walls, for its own tenant.
    unsafe { Module::deserialize_open_file(engine, artifact) }
}
