// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An ordinary user with a range of ids, and with a cgroup of its own for the time of a test.
//!
//! With `HEARTH_E2E_ORDINARY=1` every instance of the tests is such a user's: the same attacks meet the level `rootless`.
//! `.ci/guest` runs them so. Who looks at the host is root in either case.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::User;

const CGROUPS: &str = "/sys/fs/cgroup";

/// What a cgroup's new owner has to own (cgroup-v2.rst, "Delegation").
const DELEGATED_FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

const EVERYWHERE_VARIABLE: &str = "HEARTH_E2E_ORDINARY";

/// Whether no instance is to be root's.
pub(crate) fn owns_all_instances() -> bool {
    std::env::var_os(EVERYWHERE_VARIABLE).is_some()
}

/// The user, while the cgroup is there.
#[derive(Debug)]
pub(crate) struct Tenant {
    user: User,
    /// What `/etc/subuid` gives to it.
    range: Range<u32>,
    cgroup: PathBuf,
}

impl Tenant {
    /// None where the host is not v2 or gives no user a range of ids, with the reason.
    pub(crate) fn new() -> Result<Self, &'static str> {
        if !Path::new(CGROUPS).join("cgroup.controllers").exists() {
            return Err("no pure v2 hierarchy; .ci/guest has one");
        }
        let text = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let mut owners = text.lines().filter_map(owner);
        let owner = owners.rfind(|(user, _)| !user.uid.is_root());
        let (user, range) = owner.ok_or("no user has a line in /etc/subuid; .ci/guest has one")?;
        let tenant = Self {
            user,
            range,
            cgroup: unused_cgroup(),
        };
        tenant.delegate();
        Ok(tenant)
    }

    /// As root of the host gives a part of it away.
    fn delegate(&self) {
        let controllers = Path::new(CGROUPS).join("cgroup.subtree_control");
        fs::write(controllers, "+cpu +memory +pids").expect("the controllers are there");
        fs::create_dir(&self.cgroup).expect("a cgroup");
        let (uid, gid) = self.ids();
        let files = DELEGATED_FILES.iter().map(|file| self.cgroup.join(file));
        for path in files.chain([self.cgroup.clone()]) {
            chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// Of the user, and of its group.
    pub(crate) fn ids(&self) -> (u32, u32) {
        (self.user.uid.as_raw(), self.user.gid.as_raw())
    }

    /// The ids that it has to give, as the host sees them.
    pub(crate) fn range(&self) -> &Range<u32> {
        &self.range
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// `program` by this user in this cgroup; arguments may follow.
    pub(crate) fn starts(&self, program: &Path) -> Command {
        let script = r#"echo 0 >"$1" && shift && exec "$@""#;
        let (uid, gid) = self.ids();
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(self.cgroup.join("cgroup.procs"))
            .args(["setpriv", "--clear-groups"])
            .args([format!("--reuid={uid}"), format!("--regid={gid}")])
            .arg(program);
        command
    }
}

/// A line of subuid(5) whose user is known.
fn owner(line: &str) -> Option<(User, Range<u32>)> {
    let mut fields = line.split(':');
    let user = User::from_name(fields.next()?).ok()??;
    let first: u32 = fields.next()?.parse().ok()?;
    let count: u32 = fields.next()?.parse().ok()?;
    Some((user, first..first.checked_add(count)?))
}

fn unused_cgroup() -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    Path::new(CGROUPS).join(format!("hearth-test-{process}-{number}"))
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // What a failed test left is in nobody's way.
        for path in [self.cgroup.join("hearth-monitor"), self.cgroup.clone()] {
            fs::remove_dir(path).ok();
        }
    }
}
