// SPDX-License-Identifier: Apache-2.0 OR MIT
//! However it ends, nothing is left.

use std::{fs, path::Path};

use hearth_protocol::spawner::Cause;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    groundwork::wait_for_groundwork,
    world::{World, cgroups_named, eventually, is_root, limits},
};

/// Processes of this instance's sandboxes, by their host uids.
fn processes(world_ids: std::ops::Range<u32>) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry
            .unwrap()
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let uid = status.lines().find_map(|line| {
            line.strip_prefix("Uid:\t")?
                .split('\t')
                .next()?
                .parse()
                .ok()
        });
        if uid.is_some_and(|uid| world_ids.contains(&uid)) {
            found.push(pid);
        }
    }
    found
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

#[test]
fn two_hundred_sandboxes_later_the_spawner_is_as_it_was() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let spawner = Path::new("/proc").join(world.spawner.id().to_string());
    let state = |world: &World| {
        let mounts = fs::read_to_string(spawner.join("mountinfo"))
            .unwrap()
            .lines()
            .count();
        let cgroups = cgroups_named(&format!("hearth-{}", world.data_dir.instance()));
        let directories: usize = cgroups.iter().map(|path| count(path)).sum();
        (
            count(&spawner.join("fd")),
            mounts,
            directories,
            processes(world.ids()),
        )
    };
    let sandbox = world.create();
    world.destroy(sandbox.id);
    wait_for_groundwork(&mut world, 0);
    let before = state(&world);
    for round in 0..50 {
        let sandboxes: Vec<_> = (0..4).map(|_| world.create()).collect();
        for sandbox in sandboxes {
            if round % 2 == 0 {
                world.destroy(sandbox.id);
            } else {
                // The gateway forgets it: init sees the end of its socket.
                drop(sandbox.control);
                assert_eq!(world.gone(sandbox.id), (Cause::Exited(0), 0));
            }
        }
    }
    wait_for_groundwork(&mut world, 0);
    assert_eq!(state(&world), before);
    world.close();
}

#[test]
fn the_gateway_s_end_removes_every_sandbox_whatever_it_was_doing() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let ids = world.ids();
    let _skeleton = world.create();
    let running = world.probe(&["pause"], limits());
    let _ends = running.start(1);
    world.close();
    assert_eq!(processes(ids), Vec::<i32>::new());
}

#[test]
fn a_stop_signal_removes_every_sandbox() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let ids = world.ids();
    let _skeleton = world.create();
    let spawner = Pid::from_raw(world.spawner.id().try_into().unwrap());
    // Ctrl-C reaches the whole process group: only the monitor may take it for the end.
    kill(spawner, Signal::SIGINT).unwrap();
    let survivor = world.create();
    assert_eq!(survivor.id.0, 2);
    kill(spawner, Signal::SIGTERM).unwrap();
    assert!(world.spawner.wait().unwrap().success());
    assert_eq!(processes(ids), Vec::<i32>::new());
    assert!(cgroups_named(&format!("hearth-{}", world.data_dir.instance())).is_empty());
}

#[test]
fn a_killed_spawner_takes_every_sandbox_along_and_the_next_start_sweeps_the_cgroups() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let ids = world.ids();
    let _skeleton = world.create();
    let running = world.probe(&["pause"], limits());
    let _ends = running.start(1);
    eventually("the function's start", || processes(ids.clone()).len() == 3);
    world.spawner.kill().unwrap();
    world.spawner.wait().unwrap();
    eventually("the sandboxes' death", || processes(ids.clone()).is_empty());
    let name = format!("hearth-{}", world.data_dir.instance());
    assert!(
        !cgroups_named(&name).is_empty(),
        "there is something to sweep"
    );
    world.data_dir.sweep().unwrap();
    assert!(cgroups_named(&name).is_empty());
}

#[test]
fn a_killed_init_is_noticed_and_its_cause_told() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.create();
    let [init] = processes(world.ids())[..] else {
        panic!("one sandbox has one process")
    };
    kill(Pid::from_raw(init), Signal::SIGKILL).unwrap();
    assert_eq!(world.gone(sandbox.id), (Cause::Signaled(9), 0));
    world.close();
}
