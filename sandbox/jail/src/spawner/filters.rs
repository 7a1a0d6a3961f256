// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The profiles of sandboxes, compiled once.

use nix::errno::Errno;

use super::{SpawnerError, at};
use crate::{
    seccomp::{Filter, Profile, Program},
    sys,
};

/// One filter per profile that a gateway may ask for.
pub(super) struct Filters {
    default: Filter,
    strict: Filter,
    resident: Filter,
}

impl Filters {
    /// Fails where the kernel has no user notification: refused calls would fail with ENOSYS then, and nobody would be
    /// told.
    pub(super) fn compile() -> Result<Self, SpawnerError> {
        sys::seccomp::is_available(libc::SECCOMP_RET_USER_NOTIF).map_err(|errno: Errno| {
            at("listen to system call filters (SECCOMP_RET_USER_NOTIF)")(errno)
        })?;
        Ok(Self {
            default: Filter::of(Profile::Default)?,
            strict: Filter::of(Profile::Strict)?,
            resident: Filter::of(Profile::Resident)?,
        })
    }

    /// The filter of a sandbox of this profile; of a profile that no sandbox has, the smallest.
    pub(super) fn of(&self, profile: Profile) -> &Filter {
        match profile {
            Profile::Default => &self.default,
            Profile::Resident => &self.resident,
            Profile::Strict
            | Profile::Alone
            | Profile::Network
            | Profile::Wasm
            | Profile::Gateway => &self.strict,
        }
    }

    /// Each with its profile's name.
    pub(super) fn by_name(&self) -> [(&'static str, &Program); 3] {
        [Profile::Default, Profile::Strict, Profile::Resident]
            .map(|profile| (profile.name(), self.of(profile).program()))
    }
}
