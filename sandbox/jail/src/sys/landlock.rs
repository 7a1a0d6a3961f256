// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one Landlock question that the `landlock` crate does not answer: which ABI the kernel speaks.

use std::ptr;

/// `LANDLOCK_CREATE_RULESET_VERSION` (uapi/linux/landlock.h): return the ABI version, make nothing.
const CREATE_RULESET_VERSION: libc::c_uint = 1;

/// landlock_create_ruleset(NULL, 0, VERSION): the ABI version; fails with ENOSYS or EOPNOTSUPP where there is none.
pub(crate) fn abi_version() -> nix::Result<libc::c_long> {
    let size: libc::size_t = 0;
    // SAFETY: landlock_create_ruleset(2) reads `size` bytes at its first argument; with the VERSION flag it requires
    // NULL and 0, as given here, and touches no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            size,
            CREATE_RULESET_VERSION,
        )
    };
    super::checked(version)
}
