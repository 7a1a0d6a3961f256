// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A sandbox with a resident program: started once, before the sandbox is handed out, and owning the control socket.

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
};

use nix::sched::CpuSet;

use super::{InitError, at, say_up};
use crate::{
    rlimit,
    sys::{
        program::{Executable, Launch, LaunchFailure, Launcher, Strings},
        wait::{self, Waited},
    },
};

/// Starts the program and waits for its end; its exit status becomes init's.
pub(super) fn run(
    control: &OwnedFd,
    setup: OwnedFd,
    image: &OwnedFd,
    arguments: Vec<Vec<u8>>,
    cores: &CpuSet,
) -> Result<u8, InitError> {
    let name = CString::from(c"hearth-resident");
    // Arguments come from execve, so they hold no NUL.
    let rest = arguments
        .into_iter()
        .map(|argument| CString::new(argument).unwrap_or_default());
    let argv = Strings::new(std::iter::once(name).chain(rest).collect());
    let rlimits = rlimit::settable().map_err(at("read a resource limit"))?;
    let launch = Launch {
        executable: Executable::Image(image.as_fd()),
        argv: &argv,
        env: &Strings::new(Vec::new()),
        // As they are: /dev/null three times.
        stdio: &[],
        keep: Some(control.as_fd()),
        cores,
        rlimits: &rlimits,
        overlay: None,
    };
    let program = Launcher::new()
        .start(&launch)
        .map_err(|LaunchFailure { step, errno }| at(step)(errno))?;
    say_up(setup)?;
    loop {
        // The program's own children, should it have orphaned any, come by as well.
        match wait::for_any().map_err(at("wait for the resident program"))? {
            Waited::Exited(pid, code) if pid == program => return Ok(code),
            // A shell's convention: 128 and the signal's number.
            Waited::Signaled(pid, signal) if pid == program => {
                return Ok(signal.saturating_add(128));
            }
            _ => {}
        }
    }
}
