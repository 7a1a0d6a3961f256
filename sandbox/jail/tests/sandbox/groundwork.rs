// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Parts of sandboxes made ahead of need, as they show outside: each is in one sandbox at most, and goes with the spawner.

use std::{collections::BTreeSet, fs, path::PathBuf};

use hearth_protocol::spawner::{Event, SandboxId, SandboxLimits};

use crate::world::{World, cgroups_named, eventually, is_root, limits, per_call};

/// As the spawner keeps them, of each kind.
pub(crate) const READY: usize = 4;

/// The cgroup directories of sandboxes, those to come included, in every hierarchy.
fn places(world: &World) -> Vec<Vec<PathBuf>> {
    let below = |directory: PathBuf| {
        let entries = fs::read_dir(directory).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_dir()).collect()
    };
    let name = format!("hearth-{}", world.data_dir.instance());
    cgroups_named(&name).into_iter().map(below).collect()
}

/// Waits until all is made that is made ahead, beside so many sandboxes. Of the two kinds, cgroups are finished last.
pub(crate) fn wait_for_groundwork(world: &mut World, sandboxes: usize) {
    eventually("everything that is made ahead", || {
        let places = places(world);
        places.iter().all(|below| below.len() == sandboxes + READY)
    });
    // The last directory may have no limits and open files yet; who makes it answers afterwards.
    assert!(matches!(
        world.try_inspect(SandboxId(u64::MAX)),
        Event::Failed { .. }
    ));
}

#[test]
fn no_part_made_ahead_is_in_two_sandboxes_and_its_network_has_nothing_but_lo() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let first = world.create();
    wait_for_groundwork(&mut world, 1);
    // More than are ready: the last ones are made on the spot.
    let mut sandboxes: Vec<_> = (0..READY + 2).map(|_| world.create()).collect();
    sandboxes.push(first);
    let mut networks = BTreeSet::new();
    for sandbox in &sandboxes {
        let report = world.inspect(sandbox.id);
        assert_eq!(report.level, "full", "{:?}", report.walls);
        let network = report.namespaces["net"];
        assert_ne!(network.sandbox, network.host);
        assert!(networks.insert(network.sandbox), "one network in two");
    }
    // What init's network looks like to the kernel; its processes are the ones that the cgroups count.
    for directory in places(&world).concat() {
        let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        for pid in processes.lines() {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap();
            let interfaces = read("dev");
            let names = interfaces.lines().skip(2);
            let names: Vec<_> = names.filter_map(|line| line.split(':').next()).collect();
            assert_eq!(
                names.iter().map(|name| name.trim()).collect::<Vec<_>>(),
                ["lo"]
            );
            assert!(read("fib_trie").contains("127.0.0.1"), "lo is not up");
        }
    }
    world.close();
}

#[test]
fn a_sandbox_in_cgroups_made_ahead_has_the_limits_that_it_was_asked_for_with() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let first = world.create();
    world.destroy(first.id);
    wait_for_groundwork(&mut world, 0);
    let other = SandboxLimits {
        memory_bytes: limits().memory_bytes / 2,
        pids: limits().pids - 1,
        cpu_millis: limits().cpu_millis / 2,
        ..limits()
    };
    let sandbox = world.try_create_with(per_call("static"), other).unwrap();
    let report = world.inspect(sandbox.id);
    let value = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| report.cgroup.get(*name));
        found.unwrap().as_str()
    };
    let memory = value(["memory/memory.limit_in_bytes", "memory/memory.max"]);
    assert_eq!(memory, other.memory_bytes.to_string());
    assert_eq!(value(["pids/pids.max"; 2]), other.pids.to_string());
    let quota = value(["cpu/cpu.cfs_quota_us", "cpu/cpu.max"]);
    let quota = quota.split(' ').next().unwrap();
    assert_eq!(quota, (u64::from(other.cpu_millis) * 100).to_string());
    world.close();
}
