// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the walls look like: from outside, as the kernel reports them, and from inside, as a hostile function sees them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hearth_protocol::isolation::IsolationReport;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::victim::{Sandbox, Victim, made};
use crate::{turn, wait, world};

const NAMESPACES: [&str; 8] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];

/// One sandbox is looked at each second, and an instance of this size has about a dozen.
const AUDIT_MAX: Duration = Duration::from_secs(60);

const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Attempts that are harmless where they succeed: what they change or show is the function's own.
const ALLOWED: [&str; 1] = [
    // Always gives the former id and changes nothing for an id that is not one's own.
    "setfsuid",
];

/// One sandbox, so that a call meets what the last one left.
const ONE: &str = "[limits]\ntimeout = \"10s\"\n[scaling]\nmax_instances = 1\nmax_inflight = 1";

/// Calls, at most, until a sandbox was seen fresh and reused: others may take its place.
const CALLS_MAX: usize = 20;

/// What a program sees in a sandbox that nothing has run in, and in one that has served calls.
fn seen_fresh_and_reused(package: &Package, kind: Kind, mode: &str, check: impl Fn(&Value)) {
    let instance = Instance::of_all();
    instance.deploy(package);
    let mut sandboxes = Vec::new();
    for _ in 0..CALLS_MAX {
        let answer = instance.invoke(&package.name, format!("{mode}\n").as_bytes());
        let answer = answer.expect(200);
        sandboxes.push(made(kind, answer.header("hearth-start"), mode));
        check(&answer.json());
        if [Sandbox::Fresh, Sandbox::Reused]
            .iter()
            .all(|sandbox| sandboxes.contains(sandbox))
        {
            return;
        }
    }
    panic!("{mode}: only {sandboxes:?}");
}

fn report(instance: &Instance, name: &str) -> IsolationReport {
    let answer = instance
        .manage("GET", &format!("/v1/functions/{name}/isolation"), b"")
        .expect(200);
    fits_its_schema(&answer.json());
    serde_json::from_slice(&answer.body)
        .unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

fn fits_its_schema(report: &Value) {
    let schema = include_str!("../../../../docs/isolation.schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let faults: Vec<String> = schema
        .iter_errors(report)
        .map(|fault| format!("{}: {fault}", fault.instance_path()))
        .collect();
    assert_eq!(faults, Vec::<String>::new(), "{report:#}");
    // Which is not because it takes anything.
    for field in report.as_object().unwrap().keys() {
        let mut damaged = report.clone();
        damaged[field] = serde_json::json!("nonsense");
        assert!(!schema.is_valid(&damaged), "{field}");
    }
}

/// The example of `docs/isolation.md` for a kind.
fn example(kind: Kind) -> &'static str {
    let page = include_str!("../../../../docs/isolation.md");
    let command = match kind {
        Kind::Native => "$ hearth isolation upper\n",
        Kind::Wasm => "$ hearth isolation sha256-wasm\n",
    };
    let (_, rest) = page.split_once(command).unwrap();
    rest.split("```").next().unwrap()
}

/// What the tables have a line for, but for processes and what the kernel may not give out.
fn subjects(tables: &str) -> Vec<&str> {
    let parts = tables.trim().split("\n\n");
    let of_kernel = |part: &&str| !part.starts_with("PID") && !part.starts_with("FILTER");
    let lines = parts.filter(of_kernel).flat_map(str::lines);
    lines
        .map(|line| line.split("  ").next().unwrap_or(line))
        .collect()
}

/// Whole: nothing that did not fit was cut off.
#[test]
fn the_isolation_tables_are_at_most_100_columns_wide() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for kind in Kind::BOTH {
        let name = format!("table-{}", kind.as_str());
        instance.deploy(&Package::hostile(&name, kind, ""));
        let output = instance.cli(&["isolation", &name]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= 100 && !line.contains('…'), "{line}");
        }
        for word in [
            "level: full",
            "WALL",
            "seccomp",
            "memory_bytes",
            "/scratch/tmp",
            "0xef",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
        assert_eq!(
            subjects(example(kind)),
            subjects(&text),
            "docs/isolation.md"
        );
    }
}

/// With an instance of its own, whose readiness does not come back.
#[test]
fn a_report_is_given_though_the_idle_sandbox_has_just_died() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&["--skeletons", "0"]);
    for kind in Kind::BOTH {
        let name = format!("dies-{}", kind.as_str());
        instance.deploy(&Package::hostile(&name, kind, ONE));
        for _ in 0..10 {
            instance.invoke(&name, b"print ready\n").expect(200);
            for process in instance.sandboxed() {
                // A worker may have gone with its init.
                kill(Pid::from_raw(process.pid), Signal::SIGKILL).ok();
            }
            assert_eq!(report(&instance, &name).level, instance.level());
        }
    }
    instance.stop();
}

#[test]
fn a_sandbox_that_is_changed_from_outside_is_destroyed_and_readiness_is_off() {
    let _turn = turn::take!(alone);
    let instance = Instance::start(&[]);
    instance.deploy(&Package::hostile(
        "changed",
        Kind::Native,
        "[scaling]\nmin_warm = 1",
    ));
    instance.invoke("changed", b"whoami\n").expect(200);
    instance.get("/readyz").expect(200);
    let inhabited = |cgroup: &&PathBuf| world::holds_processes(cgroup);
    let mut loosened = 0;
    // Those, too, that are ready for sandboxes to come. One that nobody needs may just be going.
    for cgroup in &world::limited_cgroups_of(&instance.home.instance()) {
        let written = std::fs::write(cgroup.join("pids.max"), "max").is_ok();
        loosened += u32::from(written && inhabited(&cgroup));
    }
    assert!(0 < loosened);
    let ready = || instance.get("/readyz").status == 503;
    wait::until_true("readiness is off", AUDIT_MAX, ready);
    let problem = instance.get("/readyz").problem(503, "isolation_broken");
    assert_eq!(problem["evidence"]["wall"], "cgroup", "{problem}");
    // The others follow in their turn, and what comes after them is whole.
    wait::until_true("all of them are gone", AUDIT_MAX, || {
        let limit = |one: &PathBuf| std::fs::read_to_string(one.join("pids.max"));
        let is_loose = |one: &PathBuf| limit(one).is_ok_and(|text| text.trim() == "max");
        let cgroups = world::limited_cgroups_of(&instance.home.instance());
        !cgroups.iter().filter(inhabited).any(is_loose)
    });
    assert_eq!(report(&instance, "changed").level, instance.level());
    instance.stop();
}

#[test]
fn the_isolation_report_of_either_kind_shows_every_wall_as_the_kernel_has_it() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for kind in Kind::BOTH {
        let name = format!("walled-{}", kind.as_str());
        instance.deploy(&Package::hostile(
            &name,
            kind,
            "[limits]\nmemory = \"48MiB\"\npids = 7",
        ));
        let report = report(instance, &name);
        assert_eq!(report.level, "full");
        for wall in &report.walls {
            assert!(wall.holds, "{kind:?}: {wall:?}");
        }
        for wall in [
            "namespaces",
            "credentials",
            "capabilities",
            "file_system",
            "cgroup",
            "rlimits",
            "landlock",
            "seccomp",
        ] {
            assert!(
                report.walls.iter().any(|own| own.wall == wall),
                "{wall} in {:?}",
                report.walls
            );
        }
        check_namespaces(&report);
        check_processes(&report, kind);
        check_mounts(&report, instance);
        if kind == Kind::Native {
            let limit = report.cgroup.iter().find(|(file, _)| {
                file.contains("memory") && file.contains("limit_in_bytes")
                    || file.ends_with("memory.max")
            });
            let limit = limit.unwrap_or_else(|| panic!("{:?}", report.cgroup));
            assert_eq!(limit.1.trim(), (48_u64 << 20).to_string(), "{limit:?}");
            let pids = report
                .cgroup
                .iter()
                .find(|(file, _)| file.ends_with("pids.max"));
            assert!(pids.is_some(), "{:?}", report.cgroup);
        }
    }
}

fn check_namespaces(report: &IsolationReport) {
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(
        report.namespaces.len(),
        NAMESPACES.len(),
        "{:?}",
        report.namespaces
    );
    let known: BTreeMap<&str, _> = report
        .namespaces
        .iter()
        .map(|(name, pair)| (name.as_str(), pair))
        .collect();
    for name in NAMESPACES {
        let pair = known
            .get(name)
            .or_else(|| known.get("mount").filter(|_| name == "mnt"));
        let pair = pair.unwrap_or_else(|| panic!("{name} in {:?}", report.namespaces));
        assert_ne!(pair.sandbox, pair.host, "{name}");
        // Of the host's it is known what it must be; the spawner has a mount namespace of its own, and time for
        // children.
        if !["mnt", "time"].contains(&name) {
            assert_eq!(
                world::namespace(own, name),
                format!("{name}:[{}]", pair.host)
            );
        }
    }
}

fn check_processes(report: &IsolationReport, kind: Kind) {
    let count = if kind == Kind::Native { 1 } else { 2 };
    assert_eq!(report.processes.len(), count, "{:?}", report.processes);
    for process in &report.processes {
        assert_eq!(
            process.capabilities.len(),
            CAPABILITIES.len(),
            "{process:?}"
        );
        for (set, value) in &process.capabilities {
            assert!(
                CAPABILITIES.contains(&set.as_str()) && value.bytes().all(|digit| digit == b'0'),
                "{process:?}"
            );
        }
        assert!(process.no_new_privs, "{process:?}");
        assert_eq!(process.seccomp_mode, 2, "{process:?}");
        assert!(0 < process.seccomp_filters, "{process:?}");
        for id in process.uids.iter().chain(&process.gids) {
            assert!(
                0x7000_0000 <= *id,
                "an id that somebody on the host may have: {process:?}"
            );
        }
    }
    for map in [&report.uid_map, &report.gid_map] {
        assert!(!map.is_empty());
        for line in map {
            assert!(0x7000_0000 <= line.outside && line.count == 1, "{line:?}");
        }
    }
}

fn check_mounts(report: &IsolationReport, instance: &Instance) {
    let root = report.mounts.iter().find(|mount| mount.at == "/").unwrap();
    let data = instance.home.data().to_string_lossy().into_owned();
    assert!(
        root.options.split(',').any(|option| option == "ro"),
        "{root:?}"
    );
    for mount in &report.mounts {
        assert!(!mount.at.contains(&data), "a host path: {mount:?}");
        assert!(
            mount.options.split(',').any(|option| option == "nosuid"),
            "{mount:?}"
        );
    }
}

#[test]
fn a_native_function_sees_no_privilege_no_host_and_only_its_own_three_fds() {
    let _turn = turn::take!(shared);
    let package = Package::hostile("whoami", Kind::Native, ONE);
    seen_fresh_and_reused(&package, Kind::Native, "whoami", is_nobody);
}

fn is_nobody(seen: &Value) {
    let own = i32::try_from(std::process::id()).unwrap();
    for set in CAPABILITIES {
        assert_eq!(seen["status"][set], "0000000000000000", "{set}");
    }
    assert_eq!(seen["status"]["NoNewPrivs"], "1");
    assert_eq!(seen["status"]["Seccomp"], "2");
    for (field, id) in [("uid", 1000), ("euid", 1000), ("gid", 1000), ("egid", 1000)] {
        assert_eq!(seen[field], id, "{field}");
    }
    assert!(
        ["", "1000"].contains(&seen["status"]["Groups"].as_str().unwrap()),
        "{}",
        seen["status"]
    );
    for name in NAMESPACES {
        assert_ne!(
            seen["namespaces"][name],
            world::namespace(own, name),
            "{name}"
        );
    }
    let fds: Vec<&String> = seen["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"], "{}", seen["fds"]);
    assert_eq!(seen["cwd"], "/function");
    // Itself; init may be hidden from it, and nobody else is there.
    for pid in seen["processes"].as_array().unwrap() {
        assert!(*pid == 1 || *pid == seen["pid"], "{}", seen["processes"]);
    }
    check_files(seen, Instance::of_all());
}

fn check_files(seen: &Value, instance: &Instance) {
    for place in [
        "/",
        "/function",
        "/proc",
        "/dev",
        "/scratch",
        "/etc",
        "/usr",
    ] {
        assert_ne!(seen["writes"][place], "ok", "{place}");
    }
    for place in ["/tmp", "/var/tmp", "/dev/shm"] {
        assert_eq!(seen["writes"][place], "ok", "{place}");
    }
    for (file, result) in seen["overwrites"].as_object().unwrap() {
        // A process may make itself the likelier victim, nothing else.
        if file != "/proc/self/oom_score_adj" {
            assert_ne!(result, "ok", "{file}");
        }
    }
    let root: Vec<&str> = seen["root"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for name in [
        "home", "root", "work", "boot", "sys", "lib", "srv", "mnt", "opt", "media",
    ] {
        assert!(!root.contains(&name), "/{name} in {root:?}");
    }
    assert_eq!(
        seen["function"],
        serde_json::json!(["function.toml", "hostile"])
    );
    // The mount table is a part of it: no mount comes from a place of the host that could be named.
    let text = seen.to_string();
    let home = instance.home.path().to_string_lossy().into_owned();
    for word in [
        home.as_str(),
        "hearth-e2e",
        &instance.home.instance(),
        "/trees/",
        "/bases/",
    ] {
        assert!(!text.contains(word), "{word} is visible: {text}");
    }
    let environment = &seen["environment"];
    assert_eq!(
        (&environment["HOME"], &environment["TMPDIR"]),
        (&"/tmp".into(), &"/tmp".into())
    );
    let interfaces = seen["interfaces"].as_array().map_or(0, |lines| {
        lines
            .iter()
            .filter(|line| {
                line.as_str()
                    .is_some_and(|line| line.contains(':') && !line.trim_start().starts_with("lo:"))
            })
            .count()
    });
    assert_eq!(interfaces, 0, "{}", seen["interfaces"]);
}

#[test]
fn no_attempt_to_get_out_succeeds() {
    let _turn = turn::take!(shared);
    let package = Package::hostile("escape", Kind::Native, ONE);
    seen_fresh_and_reused(&package, Kind::Native, "escape", nothing_got_out);
}

/// What the hostile program says of all its attempts.
pub(crate) fn nothing_got_out(attempts: &Value) {
    let attempts = attempts.as_object().unwrap();
    assert!(50 < attempts.len(), "{attempts:?}");
    let got: Vec<&String> = attempts
        .iter()
        .filter(|(name, result)| *result == "ok" && !ALLOWED.contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(got, Vec::<&String>::new(), "{attempts:?}");
}

#[test]
fn a_call_of_the_kill_class_ends_the_function_and_the_answer_names_the_profile() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("kill-class", Kind::Native, ONE, |victim| {
        for call in ["reboot", "kexec_load", "init_module", "open_by_handle_at"] {
            // Also where more calls were refused before it than are told in full.
            for refused in [0, 20] {
                let mode = format!("escape-kill {call} {refused}");
                let (problem, receipt) = victim.fails(&mode, 502, "function_killed");
                let cause = &problem["evidence"]["cause"];
                assert_eq!(cause["cause"], "seccomp", "{mode}: {problem}");
                assert_eq!(cause["profile"], "default", "{mode}: {problem}");
                assert_eq!(cause["call"]["name"], call, "{mode}: {problem}");
                assert_eq!(receipt["violations"]["count"], refused + 1, "{receipt}");
                victim.behaves();
            }
        }
    });
}

#[test]
fn a_wasm_function_has_no_files_and_an_environment_of_its_own() {
    let _turn = turn::take!(shared);
    let manifest = format!("[env]\nGREETING = \"hello\"\n{ONE}");
    let package = Package::hostile("wasm-whoami", Kind::Wasm, &manifest);
    seen_fresh_and_reused(&package, Kind::Wasm, "whoami", |seen| {
        assert_eq!(seen["fds"], serde_json::json!([0, 1, 2]), "{seen}");
        assert_eq!(seen["preopens"], serde_json::json!([]), "{seen}");
        for (path, result) in seen["opens"].as_object().unwrap() {
            assert_ne!(result, "ok", "{path}");
        }
        assert_eq!(seen["environment"]["GREETING"], "hello", "{seen}");
        for name in seen["environment"].as_object().unwrap().keys() {
            let own = name.contains("PATH") || name.starts_with("HEARTH_");
            assert!(!own, "{seen}");
        }
    });
}

#[test]
fn every_thread_of_the_gateway_is_nobody_in_particular_and_filtered() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.get("/healthz").expect(200);
    let gateway = instance.gateway();
    let tasks = std::fs::read_dir(format!("/proc/{gateway}/task")).unwrap();
    let statuses: Vec<String> = tasks
        // A thread may end meanwhile.
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
        .collect();
    assert!(1 < statuses.len(), "it has a thread for each core");
    let own_ids = instance.ids();
    for status in statuses {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
        };
        for set in CAPABILITIES {
            assert_eq!(field(&format!("{set}:")), "0000000000000000", "{status}");
        }
        assert_eq!(
            (field("NoNewPrivs:"), field("Seccomp:")),
            ("1", "2"),
            "{status}"
        );
        assert_eq!(field("Groups:"), "", "{status}");
        for ids in [field("Uid:"), field("Gid:")] {
            let ids: Vec<u32> = ids.split('\t').map(|id| id.parse().unwrap()).collect();
            assert!(
                ids.iter().all(|id| own_ids.contains(id) && *id == ids[0]),
                "{status}"
            );
        }
    }
}
