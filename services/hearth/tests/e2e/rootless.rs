// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hearth of an ordinary user: what it reaches where a cgroup (v2) and ids were given to the user, and what it is told where
//! not. The attacks on it are those of the other modules, with every instance a user's (`tenant`), and here the ones that
//! only it can meet.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use hearth_protocol::isolation::IsolationReport;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::attacks::strangers::carrying;
use crate::home::Home;
use crate::http::Connection;
use crate::instance::{Instance, assert_nothing_left};
use crate::isolation::nothing_got_out;
use crate::launch::serve_command;
use crate::package::{Kind, Package};
use crate::tenant::Tenant;
use crate::turn;
use crate::wait::{SOON, until, until_true};
use crate::world;

/// Of an ordinary user; none, loudly, where the host lets none have one.
fn home_of_a_user() -> Option<Home> {
    match Tenant::new() {
        Ok(tenant) => Some(Home::of(tenant)),
        Err(why) => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("rootless").to_owned();
            // Not by `println!`, which the harness swallows for a test that passes; on a line of its own.
            let line = format!("\nSKIPPED: {test}: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

fn start(home: &Home) -> Instance {
    Instance::start_in(home, &["--shards", "1", "--max-sandboxes", "16"])
}

/// The monitor's own cgroup may stay: it belongs to the user.
fn assert_only_the_monitor_s_cgroup_is_left(home: &Home) {
    let left = |name: &fs::DirEntry| name.file_name().to_string_lossy().starts_with("hearth-");
    until_true("nothing but the monitor's cgroup", SOON, || {
        let cgroup = home.tenant().unwrap().cgroup();
        let entries = fs::read_dir(cgroup).unwrap().filter_map(Result::ok);
        entries.filter(left).count() <= 1
    });
}

#[test]
fn with_a_cgroup_and_ids_of_its_own_a_user_s_functions_run_behind_every_wall_and_what_they_lack_is_named()
 {
    let _turn = turn::take!(alone);
    let Some(home) = home_of_a_user() else { return };
    let instance = start(&home);
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
    assert_only_the_monitor_s_cgroup_is_left(&home);
}

/// What a process could get another identity with: its maps, and the helpers that write maps for users, brought along with
/// their set-user-id bits, on itself and on init.
const IDENTITIES: &str = r#"
before=$(cat /proc/self/uid_map /proc/self/gid_map)
for file in uid_map gid_map setgroups projid_map; do
    for process in self 1; do
        { echo '0 0 1' >/proc/$process/$file; } 2>/dev/null && echo "wrote $process/$file"
        { echo allow >/proc/$process/$file; } 2>/dev/null && echo "wrote $process/$file"
    done
done
ld=$(echo /function/lib/ld-linux*)
for process in $$ 1; do
    for arguments in '0 1000 1' '0 0 1' '0 100000 1'; do
        # shellcheck disable=SC2086
        said=$("$ld" --library-path /function/lib /function/program $process $arguments 2>&1) && echo "mapped $process $arguments"
        case $said in program:*) ran=yes ;; esac
        # shellcheck disable=SC2086
        /function/program $process $arguments 2>/dev/null && echo "mapped $process $arguments by its bits"
    done
done
[ "$ran" = yes ] || echo "the helper did not run: $said"
command -v newuidmap newgidmap su sudo
[ "$(cat /proc/self/uid_map /proc/self/gid_map)" = "$before" ] || echo "the maps have changed"
[ "$(id -u) $(id -g)" = '1000 1000' ] || id
exit 0
"#;

#[test]
fn no_function_of_a_user_s_hearth_gets_another_identity_or_out() {
    let _turn = turn::take!(alone);
    let Some(home) = home_of_a_user() else { return };
    let instance = start(&home);
    instance.deploy(&Package::hostile("rootless-escape", Kind::Native, ""));
    for _warm in 0..2 {
        let answer = instance.invoke("rootless-escape", b"escape\n");
        nothing_got_out(&answer.expect(200).json());
    }
    for helper in ["newuidmap", "newgidmap"] {
        let script = Package::script(helper, IDENTITIES, "[scaling]\nmax_instances = 1");
        let package = carrying(script, &format!("/usr/bin/{helper}"));
        instance.deploy(&package.unwrap_or_else(|| panic!("{helper} is installed")));
        for _warm in 0..2 {
            let answer = instance.invoke(helper, b"");
            assert_eq!(answer.expect(200).text(), "", "{helper}");
        }
    }
    // As the host sees them: a root and a user of its own for each, out of the user's range, and neither is the user.
    let ids = instance.ids();
    for process in instance.sandboxed() {
        // One that ends meanwhile has no map.
        let map = fs::read_to_string(format!("/proc/{}/uid_map", process.pid));
        for line in map.unwrap_or_default().lines() {
            let fields = line.split_whitespace().map(str::parse::<u32>);
            let fields: Vec<u32> = fields.map(Result::unwrap).collect();
            let own = matches!(fields.as_slice(), [_, outside, 1] if ids.contains(outside));
            assert!(own, "{line}");
        }
    }
    instance.assert_clean();
    instance.stop();
    assert_only_the_monitor_s_cgroup_is_left(&home);
}

#[test]
fn a_user_s_doctor_says_rootless_and_a_start_that_wants_more_is_refused() {
    let _turn = turn::take!(alone);
    let Some(home) = home_of_a_user() else { return };
    let output = home.hearth().args(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["level"], "rootless", "{report}");
    let mut serve = serve_command(&home, &["--min-isolation", "full"]);
    let output = serve.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("sudo"), "{said}");
}

/// A folder of the user's with a function that says `word`, then what it was called with.
fn write_function(folder: &Path, word: &str) {
    let script = format!("#!/bin/sh\nprintf '{word} '; cat\n");
    fs::write(folder.join("run.sh"), script).unwrap();
    let manifest = "name = \"saying\"\nentry = \"run.sh\"\n";
    fs::write(folder.join("function.toml"), manifest).unwrap();
}

#[test]
fn run_is_one_shot_for_a_user_too() {
    let _turn = turn::take!(alone);
    let Some(home) = home_of_a_user() else { return };
    let folder = home.path().join("saying");
    home.give(&folder);
    write_function(&folder, "once");
    let data = folder.join("data");
    fs::write(&data, "called").unwrap();
    let mut run = home.hearth();
    run.arg("run").arg(&folder).arg("--data").arg(&data);
    let output = run.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"once called", "{output:?}");
    let left = world::files_naming("hearth-run-");
    assert_eq!(left, Vec::<PathBuf>::new(), "{output:?}");
    assert_only_the_monitor_s_cgroup_is_left(&home);
}

/// Ended with its test, whatever becomes of that.
struct Up(Child);

impl Up {
    fn interrupt(&self) {
        let pid = i32::try_from(self.0.id()).unwrap();
        // Where it ended just now it is not reaped yet, so the pid is its own.
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
}

#[test]
fn up_serves_a_user_s_folder_deploys_what_changes_and_ends_without_a_trace() {
    let _turn = turn::take!(alone);
    let Some(home) = home_of_a_user() else { return };
    let parent = home.path().join("functions");
    home.give(&parent);
    let folder = parent.join("saying");
    home.give(&folder);
    write_function(&folder, "first");
    let mut command = home.hearth();
    command
        .arg("up")
        .arg(&parent)
        .arg("--data-dir")
        .arg(home.data());
    command.args(["--listen", "127.0.0.1:0", "--max-sandboxes", "16"]);
    let log = fs::File::create(home.path().join("log")).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut up = Up(command.spawn().unwrap());
    let mut lines = BufReader::new(up.0.stdout.take().unwrap()).lines();
    let curl = lines.find_map(|line| line.ok().filter(|line| line.contains("curl ")));
    let log = || fs::read_to_string(home.path().join("log")).unwrap();
    let curl = curl.unwrap_or_else(|| panic!("no curl line: {}", log()));
    let url = curl.split("http://").nth(1).unwrap();
    let (address, path) = url.split_once('/').unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let path = format!("/{}", path.trim_end_matches('\''));
    let call = || {
        let answer = Connection::open(address)?.call("POST", &path, &[], b"called");
        answer.map(|answer| answer.text())
    };
    assert_eq!(call().unwrap(), "first called");
    write_function(&folder, "second");
    until("what was changed is deployed", SOON, || match call() {
        Ok(text) if text == "second called" => Ok(()),
        other => Err(other),
    });
    up.interrupt();
    let status = until("up has ended", SOON * 3, || {
        up.0.try_wait().unwrap().ok_or("it runs")
    });
    assert!(status.success(), "{status}: {}", log());
    assert_nothing_left(&home);
    assert_only_the_monitor_s_cgroup_is_left(&home);
}
