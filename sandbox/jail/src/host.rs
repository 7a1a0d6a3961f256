// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What this host gives: every wall asked for before anything is built, each by trying where trying leaves nothing behind.
//! `hearth doctor` prints it, and a start is refused with the part that is missing.

mod kernel;
mod ordinary;
mod settings;
mod trials;

pub(crate) use settings::has_core_handler;

use std::{fs, io, path::Path};

use nix::{errno::Errno, sched::CpuSet, unistd::geteuid};
use serde::{Deserialize, Serialize};

use crate::{ground::Ground, sys};

/// What one look at the host found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// What was looked at: `user namespaces`, `memory controller`.
    pub subject: String,
    /// What there is, in a few words.
    pub found: String,
    /// What that means for Hearth.
    pub verdict: Verdict,
    /// What to type or to change; with every verdict but [`Verdict::Given`].
    pub fix: Option<String>,
}

/// What a [`Finding`] is about, in the order of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// The kernel itself.
    Kernel,
    /// The user and its capabilities.
    Privilege,
    /// namespaces(7).
    Namespaces,
    /// cgroups(7).
    Cgroups,
    /// Mounts.
    Files,
    /// Landlock and other security modules.
    Lsm,
    /// seccomp(2).
    Seccomp,
    /// Settings of the host that make an attack easier or harder.
    Settings,
}

impl Area {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Privilege => "privilege",
            Self::Namespaces => "namespaces",
            Self::Cgroups => "cgroups",
            Self::Files => "files",
            Self::Lsm => "lsm",
            Self::Seccomp => "seccomp",
            Self::Settings => "settings",
        }
    }
}

/// What a [`Finding`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Given,
    /// It works without, and something is weaker for it.
    Advice,
    /// Without it no sandbox is made.
    Missing,
}

/// Which promise can be kept here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Not every wall, and therefore no sandbox.
    Refused,
    /// The walls that an ordinary user can build, out of one user namespace.
    Rootless,
    /// Every wall.
    Full,
}

impl Level {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Rootless => "rootless",
            Self::Refused => "refused",
        }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Which promise can be kept here.
    pub level: Level,
    /// The kernel's release, as uname(2) has it.
    pub kernel: String,
    /// Whether this is inside a container.
    pub container: bool,
    /// What the level lacks beside `full`.
    pub lacking: Vec<String>,
    /// Ordered by area.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// What keeps Hearth from making any sandbox.
    pub fn missing(&self) -> impl Iterator<Item = &Finding> {
        let missing = |finding: &&Finding| finding.verdict == Verdict::Missing;
        self.findings.iter().filter(missing)
    }
}

/// What is missing; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot build every wall here: {}", list(missing))]
pub struct Refusal {
    /// At least one.
    pub missing: Vec<Finding>,
}

fn list(missing: &[Finding]) -> String {
    let texts: Vec<_> = missing
        .iter()
        .map(|finding| {
            let fix = finding.fix.as_deref().unwrap_or("no remedy is known");
            format!("{}: {} ({fix})", finding.subject, finding.found)
        })
        .collect();
    texts.join("; ")
}

/// Looks at everything. The calling process must have one thread: what can only be tried is tried in its children, which end
/// at once.
#[must_use]
pub fn survey() -> Survey {
    let user = User::current();
    let mut findings = vec![kernel::version(), who(user)];
    findings.extend(trials::restrictions(user));
    match user {
        User::Root => {
            findings.extend(as_root());
            findings.extend(kernel::cgroups());
        }
        User::Ordinary => {
            findings.extend(ordinary::within(as_root));
            findings.push(ordinary::cgroup());
        }
    }
    findings.extend(kernel::security_modules());
    findings.extend(kernel::seccomp());
    findings.extend(settings::risky());
    findings.sort_by_key(|finding| finding.area);
    let ground = match user {
        // Where that cannot be read, the better is not assumed.
        User::Root => Ground::current().unwrap_or(Ground::UserNamespace),
        User::Ordinary => Ground::UserNamespace,
    };
    let missing = |finding: &Finding| finding.verdict == Verdict::Missing;
    let level = match ground {
        _ if findings.iter().any(missing) => Level::Refused,
        Ground::Host => Level::Full,
        Ground::UserNamespace => Level::Rootless,
    };
    Survey {
        level,
        kernel: kernel::release(),
        container: in_container(),
        lacking: ground.lacking().iter().map(|&text| text.into()).collect(),
        findings,
    }
}

/// What takes the capabilities of a user namespace's root.
fn as_root() -> Vec<Finding> {
    let mut findings = capabilities();
    findings.extend(trials::namespaces());
    findings.extend(trials::file_systems());
    findings
}

/// Refuses a host that reaches less than `least`.
///
/// # Errors
/// [`Refusal`] with everything that is missing, not only the first.
pub fn check(least: Level) -> Result<Level, Refusal> {
    let survey = survey();
    let mut missing: Vec<_> = survey.missing().cloned().collect();
    if missing.is_empty() && survey.level < least {
        let level = survey.level.as_str();
        missing.push(
            Finding::new(Area::Privilege, "isolation level")
                .missing(format!("{level}, and {} is asked for", least.as_str()))
                .fix(format!(
                    "start it as root of the host, or with --min-isolation {level}"
                )),
        );
    }
    if missing.is_empty() {
        Ok(survey.level)
    } else {
        Err(Refusal { missing })
    }
}

/// Capabilities that building a sandbox takes, by number and name, with what each one is for.
pub const CAPABILITIES: [(u32, &str, &str); 12] = [
    (21, "SYS_ADMIN", "namespaces and mounts"),
    (
        19,
        "SYS_PTRACE",
        "entering a sandbox's mount namespace, and reading its /proc files",
    ),
    (
        12,
        "NET_ADMIN",
        "the loopback interface of a new network namespace",
    ),
    (7, "SETUID", "id maps, and leaving root"),
    (6, "SETGID", "id maps, and leaving root's groups"),
    (8, "SETPCAP", "emptying the capability bounding set"),
    (5, "KILL", "ending processes of other users"),
    (0, "CHOWN", "giving the gateway its state directory"),
    (
        1,
        "DAC_OVERRIDE",
        "the files under /proc of processes of other users",
    ),
    (27, "MKNOD", "the five devices of a sandbox"),
    (18, "SYS_CHROOT", "entering a sandbox's mount namespace"),
    (
        25,
        "SYS_TIME",
        "the clock offsets of a sandbox's time namespace",
    ),
];

/// What a container needs beside the capabilities: the engine's own filter refuses unshare and mount, its AppArmor profile
/// mount, and each sandbox gets a cgroup of its own.
pub const CONTAINER_OPTIONS: [&str; 3] = [
    "--security-opt seccomp=unconfined",
    "--security-opt apparmor=unconfined",
    "-v /sys/fs/cgroup:/sys/fs/cgroup:rw",
];

/// Who asks: what an ordinary user cannot do says nothing about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Root,
    Ordinary,
}

impl User {
    fn current() -> Self {
        if geteuid().is_root() {
            Self::Root
        } else {
            Self::Ordinary
        }
    }
}

fn who(user: User) -> Finding {
    let finding = Finding::new(Area::Privilege, "user");
    if user == User::Root {
        return finding.given("root");
    }
    finding
        .advice("an ordinary user: rootless is the most that can be reached")
        .fix("type `sudo` before the command for every wall")
}

/// One finding per capability.
fn capabilities() -> Vec<Finding> {
    let held = sys::privilege::capabilities().map_or(0, |sets| sets.effective);
    let finding_of = |(number, name, purpose): &(u32, &str, &str)| {
        let finding = Finding::new(Area::Privilege, format!("CAP_{name}"));
        if held & (1 << number) != 0 {
            return finding.given("held");
        }
        finding
            .missing(format!("absent; for {purpose}"))
            .fix(format!(
                "in a container: --cap-add {name}; elsewhere run it as full root"
            ))
    };
    CAPABILITIES.iter().map(finding_of).collect()
}

/// Container engines leave one of these marks; systemd names the container it started (systemd.exec(5)).
fn in_container() -> bool {
    let marks = ["/.dockerenv", "/run/.containerenv"];
    marks.iter().any(|mark| Path::new(mark).exists())
        || fs::exists("/run/systemd/container").unwrap_or(false)
}

/// The cores that this process may run on: what skeletons can be pinned to.
///
/// # Errors
/// Where sched_getaffinity(2) fails.
pub fn cores() -> io::Result<Vec<u16>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let is_in = |core: &u16| matches!(set.is_set((*core).into()), Ok(true));
    let count = u16::try_from(CpuSet::count()).map_err(|_too_many| Errno::EOVERFLOW)?;
    Ok((0..count).filter(is_in).collect())
}

impl Finding {
    fn new(area: Area, subject: impl Into<String>) -> Self {
        Self {
            area,
            subject: subject.into(),
            found: String::new(),
            verdict: Verdict::Missing,
            fix: None,
        }
    }

    fn given(self, found: impl Into<String>) -> Self {
        self.with(Verdict::Given, found)
    }

    fn advice(self, found: impl Into<String>) -> Self {
        self.with(Verdict::Advice, found)
    }

    fn missing(self, found: impl Into<String>) -> Self {
        self.with(Verdict::Missing, found)
    }

    fn with(mut self, verdict: Verdict, found: impl Into<String>) -> Self {
        self.verdict = verdict;
        self.found = found.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}
