// SPDX-License-Identifier: Apache-2.0 OR MIT
//! capabilities(7) and the prctl(2) calls around them that nix lacks.

use super::checked;

/// The three sets of a process that capget(2) shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapabilitySets {
    /// Effective.
    pub(crate) effective: u64,
    /// Permitted.
    pub(crate) permitted: u64,
    /// Inheritable.
    pub(crate) inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3: two words per set.
const VERSION: u32 = 0x2008_0522;

/// Empties the effective, permitted and inheritable sets; with them the ambient one (capabilities(7): an ambient
/// capability is dropped as soon as it is not permitted and inheritable).
pub(crate) fn clear_capabilities() -> nix::Result<()> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let words = [Word::default(); 2];
    // SAFETY: capset(2) version 3 reads one header and two words, which is what is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_capset,
            std::ptr::from_mut(&mut header),
            words.as_ptr(),
        )
    };
    checked(result).map(drop)
}

/// The calling process's sets.
pub(crate) fn capabilities() -> nix::Result<CapabilitySets> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut words = [Word::default(); 2];
    // SAFETY: capget(2) version 3 reads one header and writes two words, which is what is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_capget,
            std::ptr::from_mut(&mut header),
            words.as_mut_ptr(),
        )
    };
    checked(result)?;
    let [low, high] = words;
    let join = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
    Ok(CapabilitySets {
        effective: join(low.effective, high.effective),
        permitted: join(low.permitted, high.permitted),
        inheritable: join(low.inheritable, high.inheritable),
    })
}

/// Whether the bounding set holds this capability; EINVAL beyond the kernel's last one.
pub(crate) fn is_in_bounding_set(capability: u32) -> nix::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, capability.into()).map(|held| held == 1)
}

/// Removes a capability from the bounding set.
pub(crate) fn drop_from_bounding_set(capability: u32) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into()).map(drop)
}

/// Sets the securebits (capabilities(7)).
pub(crate) fn set_securebits(bits: u32) -> nix::Result<()> {
    prctl(libc::PR_SET_SECUREBITS, bits.into()).map(drop)
}

/// PR_GET_SECUREBITS: of the calling thread.
pub(crate) fn securebits() -> nix::Result<u32> {
    prctl(libc::PR_GET_SECUREBITS, 0).map(libc::c_int::cast_unsigned)
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> nix::Result<libc::c_int> {
    let none: libc::c_ulong = 0;
    // SAFETY: every option passed by this module takes one integer and no pointer.
    let result = unsafe { libc::prctl(option, argument, none, none, none) };
    nix::errno::Errno::result(result)
}

/// setresuid(2) as the bare system call, for pushing on the wall: a success is a failed wall.
pub(crate) fn try_become_root() -> nix::Result<()> {
    // SAFETY: setresuid(2) takes integers; the caller is single-threaded, so the libc's thread broadcast is not needed.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map(drop)
}
