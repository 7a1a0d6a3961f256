// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The seccomp(2) questions that seccompiler does not ask.

/// Whether the kernel knows the action (`SECCOMP_RET_*`); EOPNOTSUPP where it does not.
pub(crate) fn is_available(action: u32) -> nix::Result<()> {
    let flags: libc::c_uint = 0;
    // SAFETY: seccomp(2) with SECCOMP_GET_ACTION_AVAIL reads the one integer behind its third argument, which outlives
    // the call, and changes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            flags,
            std::ptr::from_ref(&action),
        )
    };
    super::checked(result).map(drop)
}
