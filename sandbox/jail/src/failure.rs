// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Why a step around one sandbox did not happen. Every wall and every mount reports through this one type, because
//! the gateway is told the same two facts whichever it was: which step, and errno(3).

use std::borrow::Cow;

use nix::errno::Errno;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step}: {}", errno.desc())]
pub(crate) struct Failure {
    /// What was to be done, as a phrase that follows "cannot".
    pub(crate) step: Cow<'static, str>,
    /// The kernel's answer; [`Errno::UnknownErrno`] (0) where it gave none.
    pub(crate) errno: Errno,
}

/// For `map_err`: the failure of `step` with the error's number.
pub(crate) fn at(step: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure {
        step: Cow::Borrowed(step),
        errno,
    }
}

/// As [`at`], for errors of the standard library.
pub(crate) fn io_at(step: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure {
        step: Cow::Borrowed(step),
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    }
}

/// A wall that let a push through.
pub(crate) fn broken(wall: &'static str) -> Failure {
    Failure {
        step: Cow::Borrowed(wall),
        errno: Errno::UnknownErrno,
    }
}
