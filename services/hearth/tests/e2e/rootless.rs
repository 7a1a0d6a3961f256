// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hearth of an ordinary user: what it reaches where a cgroup (v2) and ids were given to the user, and what it is told where
//! not.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_protocol::isolation::IsolationReport;
use nix::unistd::User;
use serde_json::Value;

use crate::doctor::reachable;
use crate::instance::{Home, Instance};
use crate::launch::serve_command;
use crate::package::{Kind, Package};
use crate::turn;
use crate::wait::{SOON, until_true};

const CGROUPS: &str = "/sys/fs/cgroup";

/// What a cgroup's new owner has to own (cgroup-v2.rst, "Delegation").
const DELEGATED_FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// An ordinary user with a range of ids, and a cgroup of its own for the time of a test.
struct Tenant {
    user: User,
    cgroup: PathBuf,
}

impl Tenant {
    /// None, loudly, where the host is not v2 or gives no user a range of ids.
    fn new() -> Option<Self> {
        if !Path::new(CGROUPS).join("cgroup.controllers").exists() {
            println!("SKIPPED: no pure v2 hierarchy; .ci/guest has one");
            return None;
        }
        let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let names = ranges.lines().filter_map(|line| line.split(':').next());
        let mut users = names.filter_map(|name| User::from_name(name).ok()?);
        let Some(user) = users.rfind(|user| !user.uid.is_root()) else {
            println!("SKIPPED: no user has a line in /etc/subuid; .ci/guest has one");
            return None;
        };
        let root = Path::new(CGROUPS);
        fs::write(root.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
        let cgroup = root.join(format!("hearth-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
        chown(&cgroup, owner.0, owner.1).unwrap();
        for file in DELEGATED_FILES {
            chown(cgroup.join(file), owner.0, owner.1).unwrap();
        }
        Some(Self { user, cgroup })
    }

    /// A place whose data directory is the user's, with an executable that the user can reach.
    fn home(&self) -> (Home, PathBuf) {
        let home = Home::new();
        let program = reachable(home.path());
        fs::create_dir(home.data()).unwrap();
        let owner = (Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw()));
        chown(home.data(), owner.0, owner.1).unwrap();
        (home, program)
    }

    /// `program` with the arguments of `command`, by this user in this cgroup.
    fn runs(&self, program: &Path, command: &Command) -> Command {
        let script = r#"echo 0 >"$1" && shift && exec "$@""#;
        let mut by_user = Command::new("sh");
        by_user
            .args(["-c", script, "sh"])
            .arg(self.cgroup.join("cgroup.procs"))
            .args(["setpriv", "--clear-groups"])
            .arg(format!("--reuid={}", self.user.uid))
            .arg(format!("--regid={}", self.user.gid))
            .arg(program)
            .args(command.get_args());
        by_user
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // What a failed test left is in the way of its own next run only.
        for path in [self.cgroup.join("hearth-monitor"), self.cgroup.clone()] {
            fs::remove_dir(path).ok();
        }
    }
}

#[test]
fn with_a_cgroup_and_ids_of_its_own_a_user_s_functions_run_behind_every_wall_and_what_they_lack_is_named()
 {
    let _turn = turn::take!(alone);
    let Some(tenant) = Tenant::new() else { return };
    let (home, program) = tenant.home();
    let serve = serve_command(&home, &["--shards", "1", "--max-sandboxes", "16"]);
    let instance = Instance::start_by(&home, tenant.runs(&program, &serve));
    for kind in Kind::BOTH {
        let name = format!("rootless-{}", kind.as_str());
        instance.deploy(&Package::hostile(&name, kind, ""));
        for _warm in 0..2 {
            instance.invoke(&name, b"whoami\n").expect(200);
        }
        let path = format!("/v1/functions/{name}/isolation");
        let answer = instance.manage("GET", &path, b"").expect(200);
        let report: IsolationReport = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(report.level, "rootless");
        assert!(report.walls.iter().all(|wall| wall.holds), "{report:?}");
        assert!(report.lacking.iter().any(|text| text.contains("devices")));
        for (namespace, pair) in &report.namespaces {
            assert_ne!(pair.sandbox, pair.host, "{namespace}");
        }
        let of_root =
            |process: &hearth_protocol::isolation::ProcessReading| process.uids.contains(&0);
        assert!(!report.processes.iter().any(of_root), "{report:?}");
    }
    // The one thing that a user cannot have is refused, not left out.
    instance.deploy(&Package::script(
        "rootless-root",
        "id",
        "[sandbox]\nwritable_root = true",
    ));
    let answer = instance.invoke("rootless-root", b"").expect(500).json();
    assert_eq!(answer["code"], "cannot_start", "{answer}");
    let metrics = instance.get("/metrics").expect(200).text();
    let level = "hearth_isolation_level{level=\"rootless\"} 1";
    assert!(metrics.contains(level), "{metrics}");
    instance.stop();
    let left = |name: &fs::DirEntry| name.file_name().to_string_lossy().starts_with("hearth-");
    until_true("nothing but the monitor's cgroup", SOON, || {
        let entries = fs::read_dir(&tenant.cgroup).unwrap().filter_map(Result::ok);
        entries.filter(left).count() == 1
    });
}

#[test]
fn a_user_s_doctor_says_rootless_and_a_start_that_wants_more_is_refused() {
    let _turn = turn::take!(alone);
    let Some(tenant) = Tenant::new() else { return };
    let (home, program) = tenant.home();
    let mut doctor = Command::new("hearth");
    doctor.args(["doctor", "--json"]);
    let output = tenant.runs(&program, &doctor).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["level"], "rootless", "{report}");
    let serve = serve_command(&home, &["--min-isolation", "full"]);
    let output = tenant.runs(&program, &serve).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("sudo"), "{said}");
}
