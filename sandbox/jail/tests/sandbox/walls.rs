// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A function pushes on each wall; each must hold.

use std::collections::BTreeMap;

use crate::world::{World, is_root, level, limits};

/// What the probe must be told, by what it tries.
pub(crate) const REFUSALS: [(&str, &[&str]); 30] = [
    ("setuid", &["EPERM"]),
    ("mount", &["EPERM"]),
    ("umount", &["EPERM"]),
    ("chroot", &["EPERM"]),
    ("unshare-user", &["EPERM"]),
    ("unshare-net", &["EPERM"]),
    ("clone-user", &["EPERM"]),
    ("clone3", &["ENOSYS"]),
    ("ptrace", &["EPERM"]),
    ("bpf", &["EPERM"]),
    ("keyctl", &["EPERM"]),
    ("io_uring", &["ENOSYS"]),
    ("inet", &["EAFNOSUPPORT"]),
    ("alg", &["EAFNOSUPPORT"]),
    ("mknod", &["EPERM", "EACCES"]),
    ("rlimit-init", &["EPERM"]),
    ("affinity-init", &["EPERM"]),
    ("nice-init", &["EPERM"]),
    ("realtime", &["EPERM"]),
    ("raise-rlimit", &["EPERM"]),
    ("unknown", &["ENOSYS"]),
    ("/intruder", &["EROFS", "EACCES"]),
    ("/function/intruder", &["EROFS", "EACCES"]),
    ("/dev/intruder", &["EROFS", "EACCES"]),
    ("/proc/self/oom_score_adj", &["EROFS", "EACCES"]),
    ("/proc/self/uid_map", &["EROFS", "EACCES"]),
    ("/proc/sys/kernel/core_pattern", &["ENOENT"]),
    ("/scratch/intruder", &["EROFS", "EACCES"]),
    ("init-mem", &["ENOENT", "EACCES"]),
    ("init-exe", &["ENOENT", "EACCES"]),
];

pub(crate) fn pairs(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(": ").or_else(|| line.split_once(":\t")))
        .collect()
}

#[test]
fn every_push_from_inside_is_refused_and_init_survives_it() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["walls"], limits());
    for seq in 1..=2 {
        let outcome = sandbox.run(seq, b"");
        let answers = pairs(&outcome.stdout);
        for (push, refusals) in REFUSALS {
            let answer = answers.get(push).copied().unwrap_or("nothing");
            assert!(
                refusals.contains(&answer),
                "{push}: {answer}, not one of {refusals:?}"
            );
        }
        // A signal to PID 1 from inside its namespace is dropped by the kernel: sent, and without effect.
        assert!(answers.contains_key("signal-init"));
    }
    world.close();
}

#[test]
fn a_function_is_nobody_in_particular_and_sees_itself_alone() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["about"], limits());
    let about = sandbox.run(1, b"").stdout;
    let about = pairs(&about);
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("uid", "1000"),
        ("fds", "0 1 2"),
        ("cwd", "/function"),
        ("host", "sandbox"),
        ("Groups", " "),
    ] {
        assert_eq!(about.get(name).copied(), Some(value), "{name}");
    }
    let uptime: u64 = about["uptime"].parse().unwrap();
    assert!(
        uptime < 60,
        "the clock began {uptime} s ago: the host's uptime shows"
    );
    world.close();
}

#[test]
fn the_tree_of_a_sandbox_holds_what_is_documented_and_nothing_of_the_host() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let mut list = |path: &str| {
        let sandbox = world.probe(&["list", path], limits());
        let mut names: Vec<_> = sandbox
            .run(1, b"")
            .stdout
            .lines()
            .map(str::to_owned)
            .collect();
        names.sort();
        world.destroy(sandbox.id);
        names
    };
    assert_eq!(
        list("/"),
        ["dev", "function", "proc", "scratch", "tmp", "var"]
    );
    assert_eq!(list("/function"), ["probe"]);
    assert_eq!(list("/tmp"), Vec::<String>::new());
    let devices = [
        "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
    ];
    assert_eq!(list("/dev"), devices);
    // Init is not listed: it is not dumpable, and hidepid hides what one may not trace.
    let processes = list("/proc");
    assert!(
        processes.iter().all(|name| name != "1" && name != "sys"),
        "{processes:?}"
    );
    world.close();
}

#[test]
fn the_kernel_s_own_account_of_a_bound_sandbox_is_that_every_wall_stands() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["pause"], limits());
    let (_to_function, mut from_function) = sandbox.start(1);
    let mut word = [0; 7];
    std::io::Read::read_exact(&mut from_function, &mut word).unwrap();
    let report = world.inspect(sandbox.id);
    assert_eq!(report.level, level(), "{:?}", report.walls);
    assert_eq!(report.lacking.is_empty(), report.level == "full");
    assert_eq!(report.walls.len(), 8);
    assert_eq!(report.namespaces.len(), 8);
    assert!(
        report
            .namespaces
            .values()
            .all(|pair| pair.sandbox != pair.host)
    );
    assert_eq!(report.processes.len(), 2);
    assert_eq!(report.processes[1].fds, [0, 1, 2]);
    // Init has its socket to the gateway, and nothing else.
    assert_eq!(report.processes[0].fds, [0, 1, 2, 3]);
    assert_eq!(report.securebits, 0xef);
    let wanted = limits();
    let limit = |name: &str| {
        let mut readings = report.limits.iter();
        readings.find(|reading| reading.name == name).unwrap()
    };
    for (name, value) in [
        ("memory_bytes", wanted.memory_bytes),
        ("pids", wanted.pids.into()),
        ("cpu_millis", wanted.cpu_millis.into()),
    ] {
        assert_eq!(limit(name).limit, Some(value), "{name}");
    }
    assert_eq!(limit("pids").used, Some(2));
    // Read from the kernel, instruction by instruction.
    match &report.filters {
        Some(filters) => {
            let names: Vec<_> = filters.iter().map(|filter| &filter.profile).collect();
            assert_eq!(names, [&Some("default".to_owned())]);
            assert_eq!(filters[0].sha256.len(), 64);
        }
        None => println!("SKIPPED: this kernel does not give filters out"),
    }
    let places: Vec<_> = report
        .mounts
        .iter()
        .map(|mount| mount.at.as_str())
        // Without root each of the five devices is a mount.
        .filter(|at| level() == "full" || !at.starts_with("/dev/"))
        .collect();
    assert_eq!(places, ["/", "/proc", "/dev", "/scratch/tmp", "/function"]);
    world.close();
}

#[test]
fn two_sandboxes_have_no_id_and_no_namespace_in_common() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let (first, second) = (world.create(), world.create());
    let (first, second) = (world.inspect(first.id), world.inspect(second.id));
    for (name, pair) in &first.namespaces {
        assert_ne!(pair.sandbox, second.namespaces[name].sandbox, "{name}");
    }
    let outside = |report: &hearth_protocol::isolation::IsolationReport| {
        report
            .uid_map
            .iter()
            .map(|line| line.outside)
            .collect::<Vec<_>>()
    };
    assert!(
        outside(&first)
            .iter()
            .all(|id| !outside(&second).contains(id))
    );
    world.close();
}
