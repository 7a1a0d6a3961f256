// SPDX-License-Identifier: Apache-2.0 OR MIT
//! When Hearth is the first process of a container: a parent for what loses its own.
//!
//! A sandbox whose spawner was killed becomes PID 1's child when it dies. Nobody would reap it, a zombie stays charged to
//! its cgroup, and that could never be removed. So the command runs in a child, and this process does nothing but reap
//! and pass signals on.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::exit::{Code, Failure};
use crate::monitor::signals::{self, Notice};

/// What a shell adds to the number of the signal that ended a program.
const SIGNALLED: i32 = 128;

/// Whether this process is the one that inherits orphans.
pub(crate) fn is_this() -> bool {
    std::process::id() == 1
}

/// Runs the same command line in a child, and ends as it ends.
pub(crate) fn play() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => Failure::new(Code::CannotStart, &error).report(),
    }
}

fn run() -> io::Result<ExitCode> {
    let signals = signals::block()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hearth").args(std::env::args_os().skip(1));
    let child = signals::unblocked(|| command.spawn())??;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for notice in signals::pending(&signals)? {
            match notice {
                // Fails only where it has ended, and then its end is the next notice.
                Notice::Stop => kill(child, Signal::SIGTERM).ok(),
                Notice::Child => None,
            };
        }
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
    }
}

/// Reaps everything that has ended; the exit code where the command is among it.
fn reap(command: Pid) -> io::Result<Option<ExitCode>> {
    let mut ended = None;
    loop {
        let code = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => SIGNALLED + signal as i32,
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(ended),
            // EINVAL: it was reaped, and a real-time signal had ended it, which nix has no name for. Hearth ends by none.
            Ok(_) | Err(nix::Error::EINTR | nix::Error::EINVAL) => continue,
            Err(error) => return Err(error.into()),
        };
        ended = Some(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
    }
}
