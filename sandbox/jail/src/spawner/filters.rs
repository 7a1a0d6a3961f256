// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The filters of sandboxes, each compiled once.

use std::{collections::VecDeque, rc::Rc};

use hearth_protocol::profile::Profile;
use nix::errno::Errno;

use super::{SpawnerError, at};
use crate::{
    seccomp::{Filter, SeccompError},
    sys,
};

/// Filters of single functions that are kept for the next sandbox of the same; compiling one takes about as long as
/// installing it. A filter lives on with its sandboxes when it is not kept any more.
const SINGLE_KEPT_MAX: usize = 64;

/// One filter per profile that a gateway may ask for.
pub(super) struct Filters {
    shared: [(Profile, Rc<Filter>); 3],
    /// The newest last.
    single: VecDeque<(Profile, Rc<Filter>)>,
}

impl Filters {
    /// Fails where the kernel has no user notification: refused calls would fail with ENOSYS then, and nobody would be
    /// told.
    pub(super) fn compile() -> Result<Self, SpawnerError> {
        sys::seccomp::is_available(libc::SECCOMP_RET_USER_NOTIF).map_err(|errno: Errno| {
            at("listen to system call filters (SECCOMP_RET_USER_NOTIF)")(errno)
        })?;
        let shared = |profile| Filter::of(profile).map(|filter| (profile, Rc::new(filter)));
        Ok(Self {
            shared: [
                shared(Profile::Default)?,
                shared(Profile::Strict)?,
                shared(Profile::Resident)?,
            ],
            single: VecDeque::new(),
        })
    }

    /// The filter of a sandbox of this profile.
    pub(super) fn of(&mut self, profile: Profile) -> Result<Rc<Filter>, SeccompError> {
        let known = self.shared.iter().chain(&self.single);
        if let Some((_, filter)) = known.into_iter().find(|(known, _)| *known == profile) {
            return Ok(Rc::clone(filter));
        }
        let filter = Rc::new(Filter::of(profile)?);
        if self.single.len() == SINGLE_KEPT_MAX {
            self.single.pop_front();
        }
        self.single.push_back((profile, Rc::clone(&filter)));
        Ok(filter)
    }
}
