// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Credentials and capabilities (credentials(7), capabilities(7)): how a process becomes nobody in particular, for
//! good.

use nix::{
    errno::Errno,
    sys::{prctl, signal::Signal},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

use crate::{
    failure::{Failure, at},
    sys,
};

/// Takes on a uid and gid, with no supplementary group. Needs CAP_SETUID and CAP_SETGID in the user namespace of the
/// moment, so it comes before [`renounce`]. Clears the dumpable flag and PDEATHSIG, so [`die_with_parent`] comes after.
pub(crate) fn become_user(uid: Uid, gid: Gid) -> Result<(), Failure> {
    setgroups(&[]).map_err(at("drop supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(at("set the gid"))?;
    setresuid(uid, uid, uid).map_err(at("set the uid"))
}

/// Gives up every capability, and every way to get one back.
pub(crate) fn renounce() -> Result<(), Failure> {
    // First the two that need CAP_SETPCAP themselves. After a uid change the effective set is empty, but the caller of
    // this function keeps the permitted one (see `keep_capabilities`).
    sys::privilege::set_securebits(SECUREBITS).map_err(at("lock the securebits"))?;
    clear_bounding_set().map_err(at("empty the bounding set"))?;
    sys::privilege::clear_capabilities().map_err(at("clear the capabilities"))?;
    // Last: what is set-user-id or has file capabilities gains nothing from here on, and the seccomp filter may be
    // installed without CAP_SYS_ADMIN.
    prctl::set_no_new_privs().map_err(at("set no_new_privs"))
}

/// Keeps the capability sets over the coming uid change, so that [`renounce`] can still drop them properly.
pub(crate) fn keep_capabilities() -> Result<(), Failure> {
    sys::privilege::set_securebits(KEEP_OVER_SETUID)
        .map_err(at("keep capabilities over the uid change"))
}

/// The parent's death kills this process. After the last credential change, which would clear it.
pub(crate) fn die_with_parent(signal: Signal) -> Result<(), Failure> {
    prctl::set_pdeathsig(signal).map_err(at("set the parent death signal"))
}

/// No tracer, no core, and `/proc/PID` belongs to the host's root. After the last file opened under `/proc/self`.
pub(crate) fn hide_memory() -> Result<(), Failure> {
    prctl::set_dumpable(false).map_err(at("clear the dumpable flag"))
}

/// SECBIT_NO_SETUID_FIXUP (capabilities(7)), not locked.
const KEEP_OVER_SETUID: u32 = 1 << 2;

/// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock; KEEP_CAPS off and locked (capabilities(7)).
pub(crate) const SECUREBITS: u32 = 0b1110_1111;

fn clear_bounding_set() -> nix::Result<()> {
    for capability in 0.. {
        match sys::privilege::is_in_bounding_set(capability) {
            Ok(true) => sys::privilege::drop_from_bounding_set(capability)?,
            Ok(false) => {}
            // Beyond the kernel's last capability.
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether the securebits of the calling process are those that [`renounce`] locks.
pub(crate) fn is_locked() -> Result<bool, Failure> {
    let bits = sys::privilege::securebits().map_err(at("read the securebits"))?;
    Ok(bits == SECUREBITS)
}

/// Whether every set of the calling process is empty, the bounding set included.
pub(crate) fn has_no_capability() -> Result<bool, Failure> {
    let sets = sys::privilege::capabilities().map_err(at("read the capabilities"))?;
    if sets != sys::privilege::CapabilitySets::default() {
        return Ok(false);
    }
    for capability in 0.. {
        match sys::privilege::is_in_bounding_set(capability) {
            Ok(true) => return Ok(false),
            Ok(false) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(at("read the bounding set")(errno)),
        }
    }
    Ok(true)
}
