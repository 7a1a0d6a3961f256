// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Security modules beside Landlock: which ones the kernel runs, how they label a process, and AppArmor's profiles
//! for sandboxes (`packaging/apparmor/hearth-sandbox`), which the operator loads.
//!
//! Where they are loaded, every sandbox is confined by one, and none is handed out that is not. The change is made by
//! the first process itself, through its own file under /proc, which it opens while it still sees the host's. SELinux
//! labels are shown and not changed: which type a sandbox should have is the policy's choice, and the host's rules of
//! transition make it when init is executed.

use std::{
    fs::{self, File},
    io::Write as _,
};

use hearth_protocol::spawner::Root;
use nix::{errno::Errno, unistd::Pid};

use crate::failure::{Failure, io_at};

/// The modules that the kernel runs, in its order; none where securityfs is not mounted.
pub(crate) fn modules() -> Vec<String> {
    let text = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let names = text.trim().split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// The label of a process (`/proc/PID/attr/current`): an AppArmor profile with its mode, or an SELinux context. None
/// where no module gives labels: the file cannot be read then.
pub(crate) fn label_of(process: Pid) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{process}/attr/current")).ok()?;
    let label = text.trim_end_matches(['\0', '\n']);
    (!label.is_empty()).then(|| label.to_owned())
}

/// The AppArmor profile for a sandbox with such a root.
fn profile_of(root: Root) -> &'static str {
    match root {
        Root::ReadOnly => "hearth-sandbox",
        Root::Writable => "hearth-sandbox-writable",
    }
}

/// Where AppArmor lists the profiles that are loaded, as `NAME (MODE)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Whether AppArmor runs, and what Hearth's profiles are to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppArmor {
    /// It does not run here, or does not say.
    Absent,
    /// It runs, and the profiles are not loaded, or do not enforce.
    NotLoaded,
    /// Every sandbox is confined.
    Loaded,
}

impl AppArmor {
    pub(crate) fn find() -> Self {
        fs::read_to_string(LOADED).map_or(Self::Absent, |text| Self::of(&text))
    }

    fn of(loaded: &str) -> Self {
        let enforced = |root| {
            let wanted = format!("{} (enforce)", profile_of(root));
            loaded.lines().any(|line| line == wanted)
        };
        if enforced(Root::ReadOnly) && enforced(Root::Writable) {
            Self::Loaded
        } else {
            Self::NotLoaded
        }
    }

    /// What the label of a sandbox's processes must be; None where nothing is demanded.
    pub(crate) fn label(self, root: Root) -> Option<String> {
        (self == Self::Loaded).then(|| format!("{} (enforce)", profile_of(root)))
    }
}

/// The way to a profile: the caller's own file. To be opened before the host's /proc is out of sight.
pub(crate) fn open_own_label() -> Result<File, Failure> {
    File::options()
        .write(true)
        .open("/proc/self/attr/current")
        .map_err(io_at("open the process's label"))
}

/// Confines the calling process, for ever: no profile of Hearth's lets it change to another.
pub(crate) fn confine(mut own_label: &File, root: Root) -> Result<(), Failure> {
    // In one write, as the kernel wants it.
    let command = format!("changeprofile {}", profile_of(root));
    own_label
        .write_all(command.as_bytes())
        .map_err(io_at("enter the AppArmor profile"))
}

/// Whether a process is labelled so.
pub(crate) fn verify(process: Pid, label: Option<&str>) -> Result<(), Failure> {
    match label {
        Some(label) if label_of(process).as_deref() != Some(label) => Err(Failure {
            step: format!("keep the label {label}").into(),
            errno: Errno::UnknownErrno,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_profiles_that_enforce_are_loaded() {
        let both = "docker-default (enforce)\nhearth-sandbox (enforce)\nhearth-sandbox-writable (enforce)\n";
        assert_eq!(AppArmor::of(both), AppArmor::Loaded);
        let label = AppArmor::Loaded.label(Root::Writable);
        assert_eq!(label.as_deref(), Some("hearth-sandbox-writable (enforce)"));
        for text in [
            "",
            "hearth-sandbox (enforce)\n",
            "hearth-sandbox (enforce)\nhearth-sandbox-writable (complain)\n",
        ] {
            assert_eq!(AppArmor::of(text), AppArmor::NotLoaded, "{text}");
        }
        assert_eq!(AppArmor::NotLoaded.label(Root::ReadOnly), None);
    }
}
