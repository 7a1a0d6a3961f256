// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel offers and says so itself: its version, control groups, security modules, seccomp.

use hearth_protocol::spawner::CgroupLayout;
use nix::sys::utsname::uname;

use super::{Area, Finding};
use crate::{
    cgroup, landlock,
    lsm::{self, AppArmor},
    sys,
};

/// The oldest kernel that is promised to do (SECURITY.md); what has no substitute, cgroup.kill, is of 5.14.
const VERSION_MIN: (u32, u32) = (5, 15);

/// The Landlock ABI from which abstract sockets and signals are scoped (landlock(7): ABI 6, Linux 6.12).
const LANDLOCK_SCOPES_ABI: u32 = 6;

/// As uname(2) has it.
pub(super) fn release() -> String {
    uname().map_or_else(
        |errno| errno.desc().to_owned(),
        |names| names.release().to_string_lossy().into_owned(),
    )
}

pub(super) fn version() -> Finding {
    let finding = Finding::new(Area::Kernel, "version");
    let release = release();
    let (major, minor) = VERSION_MIN;
    match numbers(&release) {
        Some(found) if found < VERSION_MIN => finding
            .missing(format!("{release}, older than {major}.{minor}"))
            .fix(format!("boot Linux {major}.{minor} or later")),
        Some(_) => finding.given(release),
        None => finding
            .advice(format!("{release}, which is no version that is known"))
            .fix(format!(
                "make sure that it is Linux {major}.{minor} or later"
            )),
    }
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The layout, and whether the hierarchies can be written.
pub(super) fn cgroups() -> Vec<Finding> {
    let finding = Finding::new(Area::Cgroups, "hierarchies");
    let mount = "mount it; in a container: -v /sys/fs/cgroup:/sys/fs/cgroup:rw";
    match cgroup::find() {
        Err(error) => vec![finding.missing(error.to_string()).fix(mount)],
        Ok(layout) => {
            let layout = match layout {
                CgroupLayout::V2 => "v2, with cpu, memory and pids",
                CgroupLayout::Hybrid => "hybrid: v1 controllers, v2 tree for cgroup.kill",
                CgroupLayout::V1 => "v1 without a v2 tree: a sandbox is killed through its PID 1",
            };
            let mut findings = vec![finding.given(layout)];
            findings.extend(read_only().map(|path| {
                Finding::new(Area::Cgroups, path)
                    .missing("mounted read-only")
                    .fix("in a container: -v /sys/fs/cgroup:/sys/fs/cgroup:rw")
            }));
            findings
        }
    }
}

/// The first hierarchy in use that is mounted read-only.
fn read_only() -> Option<String> {
    cgroup::roots().into_iter().find_map(|root| {
        let flags = nix::sys::statvfs::statvfs(&root).ok()?.flags();
        flags
            .contains(nix::sys::statvfs::FsFlags::ST_RDONLY)
            .then(|| root.display().to_string())
    })
}

/// Landlock, which is required, and what other modules are there.
pub(super) fn security_modules() -> Vec<Finding> {
    let finding = Finding::new(Area::Lsm, "Landlock");
    let landlock = match landlock::abi() {
        0 => finding.missing("absent").fix(
            "boot with lsm=landlock,… (Linux 5.13 or later); in a container: --security-opt seccomp=unconfined",
        ),
        abi if abi < LANDLOCK_SCOPES_ABI => finding
            .advice(format!("ABI {abi}: files, without scopes for abstract sockets and signals"))
            .fix("Linux 6.12 or later has them; namespaces separate both until then"),
        abi => finding.given(format!("ABI {abi}")),
    };
    let others = match lsm::modules().as_slice() {
        [] => "not to be read: securityfs is not mounted".to_owned(),
        names => names.join(" "),
    };
    vec![
        landlock,
        Finding::new(Area::Lsm, "modules").given(others),
        apparmor(),
    ]
}

fn apparmor() -> Finding {
    let finding = Finding::new(Area::Lsm, "AppArmor profiles");
    match AppArmor::find() {
        AppArmor::Absent => finding.given("no AppArmor here; sandboxes do without"),
        AppArmor::Loaded => finding.given("loaded: every sandbox is confined"),
        AppArmor::NotLoaded => finding
            .advice("AppArmor runs without Hearth's profiles: one wall less around each sandbox")
            .fix(
                "apparmor_parser --replace packaging/apparmor/hearth-sandbox, then restart Hearth",
            ),
    }
}

/// The actions that the profiles use (seccomp(2), SECCOMP_GET_ACTION_AVAIL).
pub(super) fn seccomp() -> Vec<Finding> {
    let actions = [
        ("kill process", libc::SECCOMP_RET_KILL_PROCESS),
        ("errno", libc::SECCOMP_RET_ERRNO),
        ("user notification", libc::SECCOMP_RET_USER_NOTIF),
    ];
    let finding_of = |(name, action): (&str, u32)| {
        let finding = Finding::new(Area::Seccomp, name);
        match sys::seccomp::is_available(action) {
            Ok(()) => finding.given("available"),
            Err(errno) => finding
                .missing(format!("not available: {}", errno.desc()))
                .fix("use a kernel with CONFIG_SECCOMP_FILTER, Linux 5.15 or later"),
        }
    };
    actions.into_iter().map(finding_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(numbers("6.18.0-rc1"), Some((6, 18)));
        assert_eq!(numbers("5.14+"), Some((5, 14)));
        assert!(numbers("5.9.1").unwrap() < VERSION_MIN);
        assert_eq!(numbers("rolling"), None);
    }
}
