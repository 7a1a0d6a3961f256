// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Signals as something to poll: blocked, and read from a signalfd(2).

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What the monitor is told by signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// SIGTERM, SIGINT, SIGHUP.
    Stop,
    /// SIGCHLD: one child or more ended.
    Child,
}

/// The signals that Hearth handles: the terminal's, the service manager's, and those of children.
const HANDLED: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGCHLD,
];

/// Blocks them for this thread, and what it starts from now on, and gives the fd to poll.
pub(crate) fn block() -> Result<SignalFd, nix::Error> {
    let mut set = SigSet::empty();
    for signal in HANDLED {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Undoes [`block`] in a child, which inherits the mask.
pub(crate) fn unblock_all() -> Result<(), nix::Error> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Starts a child that is to be stopped by a Ctrl-C as usual, from a process that called [`block`]. A signal that comes just
/// here ends this process at once, and with it everything that was to be ended in order: which is what was asked for.
pub(crate) fn unblocked<T>(start: impl FnOnce() -> T) -> Result<T, nix::Error> {
    let mut before = SigSet::empty();
    let nothing = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&nothing), Some(&mut before))?;
    let started = start();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    Ok(started)
}

/// Everything that is pending.
pub(crate) fn pending(signals: &SignalFd) -> Result<Vec<Notice>, nix::Error> {
    let mut notices = Vec::new();
    while let Some(info) = signals.read_signal()? {
        let child = i32::try_from(info.ssi_signo) == Ok(Signal::SIGCHLD as i32);
        notices.push(if child { Notice::Child } else { Notice::Stop });
    }
    Ok(notices)
}
