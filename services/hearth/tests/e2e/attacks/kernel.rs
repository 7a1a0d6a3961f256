// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's surface as a native function can reach it: files, devices, calls, sockets, other processes.

use super::{all_refused, members};
use crate::canaries::{cached, uncached};
use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::turn;
use crate::victim::{NARROW, Victim};

/// With a shell and a C library to search.
const ON_MINIMAL: &str = "base = \"minimal\"\n[limits]\nmemory = \"64MiB\"\ntimeout = \"10s\"\n[scaling]\nmax_instances = 1";

#[test]
fn nothing_outside_scratch_can_be_written_anywhere_in_the_tree() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("scan", Kind::Native, ON_MINIMAL, |victim| {
        let found = victim.attack("write-scan").expect(200).json();
        assert!(200 < found["looked at"].as_u64().unwrap(), "{found}");
        let writable = found["writable"].as_array().unwrap();
        let mut scratch = 0;
        for path in writable.iter().filter_map(|path| path.as_str()) {
            if path == "/scratch/tmp" || path.starts_with("/scratch/tmp/") {
                scratch += 1;
                continue;
            }
            // Its own three pipes and memory, seen through its own directory, and devices that hold nothing.
            let own = path
                .strip_prefix("/proc/")
                .and_then(|path| path.split_once('/'));
            let own = own.is_some_and(|(pid, _)| pid.parse::<u32>().is_ok());
            let harmless = [
                "/dev/null",
                "/dev/zero",
                "/dev/full",
                "/dev/random",
                "/dev/urandom",
            ];
            assert!(own || harmless.contains(&path), "{path} can be written");
        }
        assert!(0 < scratch, "{found}");
    });
}

/// Files of its own directory in /proc with which a process could change more than itself.
const OWN_SETTINGS: [&str; 8] = [
    "/proc/self/uid_map",
    "/proc/self/gid_map",
    "/proc/self/setgroups",
    "/proc/self/projid_map",
    "/proc/self/attr/current",
    "/proc/self/attr/exec",
    "/proc/self/sessionid",
    "/proc/self/timens_offsets",
];

#[test]
fn identity_and_label_cannot_be_written_through_its_own_directory_in_proc() {
    let _turn = turn::take!(alone);
    let victim = Victim::new("own-proc", Kind::Native, ON_MINIMAL);
    // The last line, because a refused redirection would be the script's own end.
    let script =
        OWN_SETTINGS.map(|path| format!("{{ echo '0 0 1' >{path}; }} 2>/dev/null && echo {path}"));
    let script = format!("{}\nexit 0", script.join("\n"));
    let name = "own-proc-script";
    victim.instance.deploy(&Package::script(name, &script, ""));
    let answer = victim.instance.invoke(name, b"");
    let receipt = victim.instance.receipt(answer.invocation());
    assert_eq!(answer.text(), "", "{receipt}");
    victim.instance.remove(name);
    victim.attack("print done").expect(200);
}

#[test]
fn what_tells_of_the_host_is_not_there() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("telling", Kind::Native, ON_MINIMAL, |victim| {
        let paths = [
            "/proc/interrupts",
            "/proc/timer_list",
            "/proc/sched_debug",
            "/proc/kcore",
            "/proc/kallsyms",
            "/proc/kmsg",
            "/proc/keys",
            "/proc/key-users",
            "/proc/cmdline",
            "/proc/config.gz",
            "/proc/modules",
            "/proc/mounts/../sys",
            "/proc/sys/kernel/core_pattern",
            "/proc/sysrq-trigger",
            "/proc/latency_stats",
            "/proc/1/environ",
            "/proc/1/cmdline",
            "/proc/1/mountinfo",
            "/proc/acpi",
            "/proc/scsi",
            "/sys",
            "/sys/firmware",
            "/sys/class/powercap",
            "/sys/devices/system/cpu/cpu0/thermal_throttle",
            "/sys/fs/cgroup",
            "/sys/kernel/security",
            "/dev/mem",
            "/dev/kmsg",
            "/run",
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/var/lib/hearth",
            "/root",
            "/home",
        ];
        let answers = victim
            .attack(&format!("look {}", paths.join(" ")))
            .expect(200)
            .json();
        all_refused(&answers, &["ENOENT", "EACCES", "ENOTDIR"]);
    });
}

#[test]
fn the_cgroup_file_systems_are_not_there_and_its_own_group_is_the_root() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("groups", Kind::Native, ON_MINIMAL, |victim| {
        let seen = victim.attack("whoami").expect(200).json();
        for line in seen["cgroup"].as_array().unwrap() {
            let line = line.as_str().unwrap();
            // Hierarchies without a group of this sandbox's own have the root of whatever the host gave.
            assert!(line.ends_with(":/"), "{line}");
        }
        let mounts = seen["mounts"].to_string();
        assert!(!mounts.contains("cgroup"), "{mounts}");
        let files = "look /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/release_agent /sys/fs/cgroup/memory/release_agent";
        all_refused(
            &victim.attack(files).expect(200).json(),
            &["ENOENT", "EACCES"],
        );
    });
}

#[test]
fn there_are_five_devices_and_no_other_can_be_made_or_opened() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("devices", Kind::Native, ON_MINIMAL, |victim| {
        let found = victim.attack("device-scan").expect(200).json();
        let devices = [
            ("/dev/full", "1:7 ok"),
            ("/dev/null", "1:3 ok"),
            ("/dev/random", "1:8 ok"),
            ("/dev/urandom", "1:9 ok"),
            ("/dev/zero", "1:5 ok"),
        ];
        assert_eq!(members(&found), devices, "{found}");
        let seen = victim.attack("whoami").expect(200).json();
        for mount in seen["mounts"].as_array().unwrap() {
            let mount = mount.as_str().unwrap();
            let place = mount.split(' ').nth(4);
            // The devices themselves lie on a file system of their own, which the function cannot write; where the level is
            // rootless each of the five is the host's, and mounted alone.
            let device = devices
                .iter()
                .any(|(name, _)| place == Some(*name) && victim.instance.level() == "rootless");
            let nodev = mount.contains("nodev");
            assert!(place == Some("/dev") || device || nodev, "{mount}");
            assert!(mount.contains("nosuid"), "{mount}");
        }
    });
}

#[test]
fn no_file_of_a_base_or_a_package_gives_a_privilege() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    Victim::fresh_and_reused("setuid", Kind::Native, ON_MINIMAL, |victim| {
        let found = victim.attack("setuid-scan").expect(200).json();
        assert!(100 < found["files"].as_u64().unwrap(), "{found}");
        assert_eq!(found["privileged"], serde_json::json!([]), "{found}");
        assert_eq!(found["effective"], 1000, "{found}");
    });
    // The program itself is uploaded with the bits set.
    let package = Package::hostile("setuid-upload", Kind::Native, NARROW);
    let package = package.with_mode(0o6755);
    instance.deploy(&package);
    let seen = instance
        .invoke("setuid-upload", b"setuid-scan\n")
        .expect(200)
        .json();
    assert_eq!(seen["privileged"], serde_json::json!([]), "{seen}");
    assert_eq!(seen["effective"], 1000, "{seen}");
}

#[test]
fn calls_that_do_not_exist_yet_are_unknown_and_not_forbidden() {
    let _turn = turn::take!(alone);
    /// Of the newer ones the profile has these: cachestat, fchmodat2, the futex calls, mseal, and shadow stacks.
    const ALLOWED: [&str; 7] = ["451", "452", "453", "454", "455", "456", "462"];
    Victim::fresh_and_reused("unknown", Kind::Native, NARROW, |victim| {
        // 335 and 336 are the kernel's own way back from a probe, which no filter sees.
        for range in ["calls 450 600", "calls 1000 1010", "calls 337 423"] {
            let answers = victim.attack(range).expect(200).json();
            for (number, answer) in members(&answers) {
                let expected = answer == "ENOSYS" || ALLOWED.contains(&number);
                assert!(expected, "{number}: {answer}");
            }
        }
    });
}

#[test]
fn calls_by_the_door_of_32_bit_programs_end_the_process() {
    let _turn = turn::take!(alone);
    if cfg!(target_arch = "x86_64") {
        Victim::fresh_and_reused("door", Kind::Native, NARROW, |victim| {
            let (problem, _) = victim.fails("int80", 502, "function_killed");
            let cause = &problem["evidence"]["cause"];
            // A kernel without that door has no such call at all: SIGSEGV.
            let ended = cause["cause"] == "seccomp" || cause["signal"] == 11;
            assert!(ended, "{problem}");
        });
    }
}

#[test]
fn no_family_of_sockets_exists_but_the_local_one() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("families", Kind::Native, NARROW, |victim| {
        let answers = victim.attack("sockets").expect(200).json();
        let families: Vec<&str> = members(&answers)
            .into_iter()
            .map(|(family, _)| family)
            .collect();
        assert_eq!(families, ["1"], "{answers}");
    });
}

#[test]
fn no_call_reaches_into_another_process_not_even_its_own_child() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("others", Kind::Native, NARROW, |victim| {
        let attempts = victim.attack("others").expect(200).json();
        all_refused(&attempts, &["EPERM", "EACCES", "ENOENT"]);
    });
}

#[test]
fn above_the_root_is_the_root_and_the_working_directory_is_inside() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("up", Kind::Native, ON_MINIMAL, |victim| {
        for (place, answer) in members(&victim.attack("way-up").expect(200).json()) {
            let open = ["ok", "ENOENT", "EACCES", "ENOTDIR"];
            assert!(open.contains(&answer), "{place}: {answer}");
        }
        let seen = victim.attack("whoami").expect(200).json();
        assert_eq!(seen["cwd"], "/function");
    });
    // Nobody can ask for another directory, nor for a program outside the package.
    let instance = Instance::of_all();
    for manifest in ["cwd = \"/proc/self/fd/7\"", "working_directory = \"/\""] {
        let answer = instance.try_deploy(&Package::hostile("elsewhere", Kind::Native, manifest));
        answer.problem(400, "bad_manifest");
    }
    for entry in ["/proc/self/exe", "../hostile", "/bin/sh"] {
        let manifest = format!("name = \"elsewhere\"\nentry = \"{entry}\"\n");
        let files = [("function.toml".to_owned(), 0o644, manifest.into_bytes())];
        let archive = crate::package::tar(&files);
        let answer = instance.manage("PUT", "/v1/functions/elsewhere", &archive);
        answer.problem(400, "bad_manifest");
    }
}

#[test]
fn a_shared_base_file_reads_the_same_after_every_known_way_to_poison_its_pages() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    let base = instance.home.data().join("bases/minimal");
    let libc = [
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/aarch64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib64/libc.so.6",
    ];
    let libc = libc.into_iter().find(|path| base.join(path).is_file());
    let libc = libc.unwrap_or_else(|| panic!("no C library in {}", base.display()));
    let host_path = base.join(libc);
    let hearth = std::path::Path::new(crate::instance::HEARTH);
    let before = [cached(&host_path), uncached(&host_path)];
    assert_eq!(before[0], before[1], "the same bytes");
    let executable = [cached(hearth), uncached(hearth)];
    Victim::fresh_and_reused("poison", Kind::Native, ON_MINIMAL, |victim| {
        let attempts = victim.attack(&format!("poison /{libc}")).expect(200).json();
        for (attempt, answer) in members(&attempts) {
            let allowed = attempt.starts_with("sendfile");
            assert!(allowed || answer != "ok", "{attempt}: {answer}");
        }
        let now = [cached(&host_path), uncached(&host_path)];
        assert_eq!(now, before, "through the cache, and past it");
        let now = [cached(hearth), uncached(hearth)];
        assert_eq!(now, executable, "the host's own executable");
    });
}
