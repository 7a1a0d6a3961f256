// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What this host gives to an ordinary user: a delegated cgroup, ids, and a user namespace in which everything else is
//! tried, by a child that enters it and ends.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
};

use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
    unistd::pipe,
};

use super::{Area, Finding};
use crate::{
    cgroup::{self, CgroupError},
    rootless::{self, RootlessError},
    sys::{self, clone::Cloned},
};

/// The findings of a survey are some 4 KiB; more than this is not from our child.
const FINDINGS_BYTES_MAX: u64 = 256 * 1024;

/// A cgroup to divide.
pub(super) fn cgroup() -> Finding {
    let finding = Finding::new(Area::Cgroups, "delegation");
    match cgroup::delegated() {
        Ok(path) => finding.given(format!("{} can be divided", path.display())),
        Err(error @ CgroupError::OnlyRoot) => finding.missing(error.to_string()).fix(
            "boot with systemd.unified_cgroup_hierarchy=1, or type `sudo` before the command",
        ),
        Err(error) => finding.missing(error.to_string()).fix(
            "start it by: systemd-run --user --scope -p Delegate=yes hearth serve; where a controller is missing: \
             Delegate=cpu cpuset io memory pids in user@.service",
        ),
    }
}

/// What is found inside the user namespace that a start would make; where it cannot be made, why.
pub(super) fn within(look: impl FnOnce() -> Vec<Finding>) -> Vec<Finding> {
    let subject = "user namespace with own ids";
    let finding = || Finding::new(Area::Namespaces, subject);
    // Said before anything is tried: the child could not tell.
    if let Err(error) = rootless::look_up() {
        return vec![finding().missing(error.to_string()).fix(remedy(&error))];
    }
    match in_namespace(look) {
        Ok(mut findings) => {
            findings.push(finding().given("can be made"));
            findings
        }
        Err(errno) => vec![
            finding()
                .missing(format!("cannot be made: {}", errno.desc()))
                .fix(
                    "sysctl user.max_user_namespaces=16384 kernel.unprivileged_userns_clone=1 \
                     kernel.apparmor_restrict_unprivileged_userns=0",
                ),
        ],
    }
}

fn remedy(error: &RootlessError) -> String {
    match error {
        RootlessError::NoHelper { .. } => "apt-get install uidmap".to_owned(),
        RootlessError::NoIds { user, .. } => {
            format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")
        }
        _ => "type `sudo` before the command".to_owned(),
    }
}

fn in_namespace(look: impl FnOnce() -> Vec<Finding>) -> Result<Vec<Finding>, Errno> {
    let (reader, writer) = pipe()?;
    match sys::clone::fork_into(0, None)? {
        Cloned::Child => {
            drop(reader);
            let code = match rootless::enter_namespace() {
                Ok(()) => tell(writer, &look()),
                Err(RootlessError::Step { source, .. }) => source as i32,
                Err(_) => Errno::EPERM as i32,
            };
            sys::clone::exit_now(code)
        }
        Cloned::Parent { pid, .. } => {
            drop(writer);
            let mut text = Vec::new();
            let read = File::from(reader)
                .take(FINDINGS_BYTES_MAX)
                .read_to_end(&mut text);
            let status = waitpid(pid, None)?;
            match (status, read) {
                (WaitStatus::Exited(_, 0), Ok(_)) => {
                    serde_json::from_slice(&text).map_err(|_damaged| Errno::EBADMSG)
                }
                (WaitStatus::Exited(_, code), _) => Err(Errno::from_raw(code)),
                _ => Err(Errno::EPERM),
            }
        }
    }
}

fn tell(writer: OwnedFd, findings: &[Finding]) -> i32 {
    let told = serde_json::to_vec(findings)
        .map_err(std::io::Error::from)
        .and_then(|text| File::from(writer).write_all(&text));
    told.map_or(Errno::EIO as i32, |()| 0)
}
