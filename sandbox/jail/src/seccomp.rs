// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Seccomp: the profiles of `profiles/*.json`, each compiled into one filter.
//!
//! ```text
//! profiles/NAME.json ─▶ profile::Policy ─▶ assembler: a search tree over the call's number ─▶ Program ─▶ install
//! ```
//!
//! A tree rather than seccompiler's list, and one filter rather than a stack of them: installing a linear filter of
//! 1,200 instructions costs 865 µs, a tree of 460 costs 172 µs, and the list is walked again at each call that has an
//! argument rule. What the tree answers is held against what seccompiler's own filters answer, in `reference`.
//!
//! Compile once, before the first sandbox; install in each child, as the last wall.

mod arch;
mod assembler;
mod constants;
#[cfg(test)]
mod docker;
mod filter;
#[cfg(test)]
mod interpreter;
#[cfg(test)]
mod live;
mod profile;
#[cfg(test)]
mod reference;

use std::fmt;

use seccompiler::{BpfProgram, sock_filter};

use arch::Arch;
use profile::Policy;

pub(crate) use filter::{Answer, Asks, Caller, Filter, Listener, read_profile};

/// Which profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// One native program with threads and no children, and the init that starts it.
    Strict,
    /// The overlay that init puts on the program of a strict sandbox.
    Alone,
    /// What init itself does, and what programs do by chance of timing: part of every learned profile.
    Always,
    /// Unknown native programs, and the init that starts them.
    Default,
    /// As `Default`, with internet sockets.
    Network,
    /// What init and the resident worker need to start.
    Resident,
    /// The resident wasm worker once it has booted; it installs this one itself.
    Wasm,
    /// The gateway.
    Gateway,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 8] = [
        Self::Strict,
        Self::Alone,
        Self::Always,
        Self::Default,
        Self::Network,
        Self::Resident,
        Self::Wasm,
        Self::Gateway,
    ];

    /// The name of its file, without the extension.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Alone => "alone",
            Self::Always => "always",
            Self::Default => "default",
            Self::Network => "network",
            Self::Resident => "resident",
            Self::Wasm => "wasm",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A filter, ready to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(BpfProgram);

impl Program {
    /// The instructions, as the kernel takes them.
    #[must_use]
    pub fn instructions(&self) -> &[sock_filter] {
        &self.0
    }

    /// As an argument for init, which knows no profile: two hexadecimal digits for each of an instruction's eight bytes.
    pub(crate) fn to_text(&self) -> String {
        use fmt::Write as _;
        let mut text = String::new();
        for sock_filter { code, jt, jf, k } in &self.0 {
            // Writing to a String cannot fail.
            let _written = write!(text, "{code:04x}{jt:02x}{jf:02x}{k:08x}");
        }
        text
    }

    /// The inverse of [`Program::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let instructions = text.as_bytes().chunks(16).map(|digits| {
            let digits = std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.len() == 16)?;
            Some(sock_filter {
                code: u16::from_str_radix(digits.get(..4)?, 16).ok()?,
                jt: u8::from_str_radix(digits.get(4..6)?, 16).ok()?,
                jf: u8::from_str_radix(digits.get(6..8)?, 16).ok()?,
                k: u32::from_str_radix(digits.get(8..)?, 16).ok()?,
            })
        });
        instructions.collect::<Option<BpfProgram>>().map(Self)
    }
}

/// Why a filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The profile's file is not what it must be.
    #[error("cannot read seccomp profile {file}")]
    Parse {
        /// Name of the file, without the extension.
        file: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A profile includes a file that does not exist.
    #[error("cannot find seccomp profile {file}")]
    UnknownFile {
        /// Name of the file.
        file: String,
    },
    /// A rule names a system call that this architecture does not have.
    #[error("cannot resolve system call {call} of seccomp profile {file}")]
    UnknownCall {
        /// Name of the file.
        file: String,
        /// The name.
        call: String,
    },
    /// A rule names a constant or an errno that `constants.rs` lacks.
    #[error("cannot resolve {name} of seccomp profile {file}")]
    UnknownConstant {
        /// Name of the file.
        file: String,
        /// The name.
        name: String,
    },
    /// A rule's argument number or value cannot be compared.
    #[error("cannot compare argument {argument} of {call} in seccomp profile {file}")]
    BadCondition {
        /// Name of the file.
        file: String,
        /// The system call.
        call: String,
        /// The argument's number, from 0.
        argument: u8,
    },
    /// The filter has more instructions than the kernel takes.
    #[error("cannot fit a seccomp filter of {instructions} instructions")]
    TooLong {
        /// How many.
        instructions: usize,
    },
    /// The kernel refused the filter.
    #[error("cannot install the seccomp filter")]
    Install(#[source] seccompiler::Error),
}

/// Makes a profile's filter.
///
/// # Errors
/// [`SeccompError`] where a rule cannot be expressed on this architecture; a test makes every profile.
pub fn compile(profile: Profile) -> Result<Program, SeccompError> {
    program(&policy(profile, Arch::NATIVE)?)
}

/// What a profile means where nobody listens.
fn policy(profile: Profile, arch: Arch) -> Result<Policy, SeccompError> {
    let policy = profile::load(profile.name(), arch)?;
    match profile {
        // Above the resident's, which has the listener: the kernel takes the graver answer, so a refusal here would
        // keep it from being asked.
        Profile::Wasm => Ok(policy.deferring_to(&profile::load(Profile::Resident.name(), arch)?)),
        _ => Ok(policy),
    }
}

fn program(policy: &Policy) -> Result<Program, SeccompError> {
    assembler::assemble(policy, Arch::NATIVE).map(Program)
}

/// Puts the calling thread, and all that it starts, behind the filter. Sets `no_new_privs`.
///
/// # Errors
/// [`SeccompError::Install`]; nothing is installed then.
pub fn install(program: &Program) -> Result<(), SeccompError> {
    seccompiler::apply_filter(&program.0).map_err(SeccompError::Install)
}

/// As [`install`], for every thread of the process at once.
///
/// # Errors
/// As [`install`].
pub fn install_on_all_threads(program: &Program) -> Result<(), SeccompError> {
    seccompiler::apply_filter_all_threads(&program.0).map_err(SeccompError::Install)
}

/// The name of a system call on this architecture, for reports.
#[must_use]
pub fn name_of(number: u32) -> Option<&'static str> {
    Arch::NATIVE.call_name(number)
}
