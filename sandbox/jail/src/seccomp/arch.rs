// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The architectures that profiles are made for: numbers of system calls, both ways, and the word by which a filter
//! knows them. A build has its own; the tests have both, and run each one's filters through an interpreter.

/// An architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    #[cfg(any(test, target_arch = "x86_64"))]
    X86_64,
    #[cfg(any(test, target_arch = "aarch64"))]
    Aarch64,
}

impl Arch {
    /// That of this build.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NATIVE: Self = Self::X86_64;
    /// That of this build.
    #[cfg(target_arch = "aarch64")]
    pub(super) const NATIVE: Self = Self::Aarch64;

    /// As profiles name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => "x86_64",
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => "aarch64",
        }
    }

    /// AUDIT_ARCH_*: uapi/linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => 0xc000_003e,
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The number of a call; none where this architecture does not have it.
    pub(super) fn number(self, call: &str) -> Option<u32> {
        let number = match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => call.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => {
                // One call has two names in the kernel's own tables: the architectures born later say `fstatat`.
                let call = if call == "newfstatat" {
                    "fstatat"
                } else {
                    call
                };
                call.parse::<syscalls::aarch64::Sysno>().ok()?.id()
            }
        };
        u32::try_from(number).ok()
    }

    /// The name of a call.
    pub(super) fn call_name(self, number: u32) -> Option<&'static str> {
        let number = usize::try_from(number).ok()?;
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => syscalls::aarch64::Sysno::new(number).map(|call| call.name()),
        }
    }
}
