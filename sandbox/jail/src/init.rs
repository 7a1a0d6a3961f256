// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PID 1 of a sandbox. It runs behind every wall, without a capability, from an image that the host never executes,
//! and does one of two things:
//!
//! * one process per call (`per_call`): it speaks [`hearth_protocol::init`] with the gateway and starts the function
//!   anew for each `Run`;
//! * a resident program (`resident`): it starts the one program that the spawner was configured with, and ends when
//!   that ends.
//!
//! A function's process has the same uid as init. What protects init from it: it is not dumpable (no ptrace, no
//! `/proc/1/mem`), signals from inside its pid namespace do not reach it, and the seccomp profile allows the calls that
//! change another process's limits or scheduling on oneself only.

mod per_call;
mod program;
mod resident;

use std::{
    ffi::OsString,
    os::fd::{AsFd, OwnedFd},
    os::unix::ffi::OsStringExt,
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity},
    sys::stat::{Mode, umask},
    unistd::Pid,
};

use crate::{
    enter::{numbers, says},
    seccomp, sys,
};

/// Init's first argument where it is to start the resident program; the rest are that program's arguments.
pub(crate) const RESIDENT_MODE: &str = "resident";

/// Init's first argument where each function process gets a filter of its own over the sandbox's; the second one is the
/// filter, as [`crate::seccomp::Program::to_text`] writes it.
pub(crate) const OVERLAY_MODE: &str = "overlay";

/// Why init ended other than because its gateway went away or its resident program did.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It was not started by the spawner.
    #[error("cannot run as init: descriptor {number} is not open")]
    NotStarted {
        /// Which.
        number: i32,
    },
    /// A system call failed that cannot fail while the sandbox is intact.
    #[error("cannot {step}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// Why not.
        source: Errno,
    },
    /// The filter for each function process is not one.
    #[error("cannot read the overlay")]
    Overlay,
    /// The gateway sent something that is no request.
    #[error("cannot understand the gateway")]
    Protocol(#[from] hearth_protocol::frame::FrameError),
}

fn at(step: &'static str) -> impl Fn(Errno) -> InitError {
    move |source| InitError::Step { step, source }
}

/// Init's whole life; the value is its exit status. `arguments` are those after the program's name.
///
/// # Errors
/// [`InitError`]; the sandbox is of no further use then, and the spawner removes it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<u8, InitError> {
    let control = inherited(numbers::CONTROL)?;
    let setup = inherited(numbers::SETUP)?;
    let mut arguments = arguments.into_iter();
    // Exec has set the dumpable flag from the image's mode (0111: off); this holds for an image that can be read, too.
    nix::sys::prctl::set_dumpable(false).map_err(at("clear the dumpable flag"))?;
    // Handed on to every process of the sandbox. Unlike limits and scheduling these can be changed by oneself only, so
    // once is enough.
    sys::program::default_signals().map_err(at("reset signals"))?;
    sys::program::unblock_signals().map_err(at("unblock signals"))?;
    umask(Mode::from_bits_truncate(0o022));
    let cores = sched_getaffinity(Pid::from_raw(0)).map_err(at("read the affinity"))?;
    match arguments.next() {
        Some(mode) if mode == RESIDENT_MODE => {
            let image = inherited(numbers::RESIDENT)?;
            let arguments = arguments.map(OsString::into_vec).collect();
            resident::run(&control, setup, &image, arguments, &cores)
        }
        mode => {
            let overlay = match mode {
                Some(mode) if mode == OVERLAY_MODE => Some(overlay(arguments.next())?),
                _ => None,
            };
            say_up(setup)?;
            per_call::run(&control, cores, overlay)
        }
    }
}

/// Fails closed: without its overlay a sandbox must not come up.
fn overlay(argument: Option<OsString>) -> Result<seccomp::Program, InitError> {
    let text = argument.and_then(|text| text.into_string().ok());
    text.and_then(|text| seccomp::Program::from_text(&text))
        .ok_or(InitError::Overlay)
}

fn inherited(number: i32) -> Result<OwnedFd, InitError> {
    sys::fds::inherited(number).ok_or(InitError::NotStarted { number })
}

/// Tells the spawner that the sandbox is ready, and hands over the filter's listener: nobody in here may answer for the
/// spawner. Test-only executables can leave the filter out, and with it the listener.
fn say_up(setup: OwnedFd) -> Result<(), InitError> {
    let listener: Vec<OwnedFd> = sys::fds::inherited(numbers::LISTENER).into_iter().collect();
    crate::socket::send_waiting_with(setup.as_fd(), &[says::UP], &listener)
        .map_err(at("tell the spawner"))
}

/// What a function's process is given, whoever asks: the sandbox's limits and a set of cores.
fn affinity(wanted: &[u16], own: CpuSet) -> nix::Result<CpuSet> {
    if wanted.is_empty() {
        return Ok(own);
    }
    let mut set = CpuSet::new();
    for &core in wanted {
        set.set(core.into())?;
    }
    Ok(set)
}
