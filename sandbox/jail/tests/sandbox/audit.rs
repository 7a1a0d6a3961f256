// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A sandbox that somebody changes from outside, with root's own hands, is noticed and ended.

use std::{fs, path::PathBuf};

use hearth_protocol::spawner::{Event, Request};

use crate::groundwork::{READY, wait_for_groundwork};
use crate::world::{World, cgroups_named, is_root, limits, read_report};

impl World {
    /// Takes a limit away from every sandbox of this instance: the file where it is, in whichever hierarchy.
    fn loosen(&self, file: &str, value: &str) {
        let of_instance = cgroups_named(&format!("hearth-{}", self.data_dir.instance()));
        let inside = |directory: PathBuf| fs::read_dir(directory).unwrap();
        let files = of_instance
            .into_iter()
            .flat_map(inside)
            .map(|entry| entry.unwrap().path().join(file));
        let mut written = 0;
        for path in files.filter(|path| path.exists()) {
            fs::write(path, value).unwrap();
            written += 1;
        }
        assert!(0 < written, "no sandbox has {file}");
    }
}

#[test]
fn a_limit_that_is_taken_away_from_outside_ends_the_sandbox_and_is_told() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["exit", "0"], limits());
    // Changed by who may: a limit in its place is no breach.
    world.loosen("pids.max", "20");
    assert_eq!(world.inspect(sandbox.id).level, "full");
    world.loosen("pids.max", "max");
    // Unasked, in its turn.
    let (event, _) = world.answer();
    let Event::Breached {
        sandbox: id, wall, ..
    } = event
    else {
        panic!("{event:?} instead of Breached")
    };
    assert_eq!((id, wall.as_str()), (sandbox.id, "cgroup"));
    world.gone(sandbox.id);
    world.close();
}

#[test]
fn who_asks_for_the_report_of_a_changed_sandbox_is_told_and_gets_it_never_again() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["exit", "0"], limits());
    world.loosen("pids.max", "max");
    let request = world.next_request();
    world.send(&Request::Inspect {
        request,
        sandbox: sandbox.id,
    });
    let (breached, _) = world.answer();
    let Event::Breached { reading, .. } = breached else {
        panic!("{breached:?} instead of Breached")
    };
    assert!(reading.contains("pids unlimited"), "{reading}");
    match world.answer() {
        (Event::Inspected { .. }, mut fds) => {
            let report = read_report(fds.remove(0));
            assert_eq!(report.level, "broken");
            let broken = report.walls.iter().filter(|wall| !wall.holds);
            let broken: Vec<_> = broken.map(|wall| wall.wall.as_str()).collect();
            assert_eq!(broken, ["cgroup"]);
        }
        // It was looked at in its turn, just before.
        (Event::Failed { .. }, _) => {}
        (other, _) => panic!("{other:?}"),
    }
    world.gone(sandbox.id);
    assert!(matches!(
        world.try_inspect(sandbox.id),
        Event::Failed { .. }
    ));
    world.close();
}

/// The cgroups that are made ahead of need are nobody's sandbox, which no audit looks at.
#[test]
fn a_limit_that_is_taken_away_before_there_is_a_sandbox_is_back_when_there_is_one() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let first = world.create();
    world.destroy(first.id);
    wait_for_groundwork(&mut world, 0);
    world.loosen("pids.max", "max");
    // More than were loosened.
    for _ in 0..=READY {
        let sandbox = world.create();
        let report = world.inspect(sandbox.id);
        assert_eq!(report.level, "full", "{:?}", report.walls);
    }
    world.close();
}

#[test]
fn sandboxes_are_looked_at_in_turn_and_live_on() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandboxes = [world.create(), world.create()];
    // Longer than two turns: the socket stays silent, and both still answer.
    assert!(world.is_silent_for(2500));
    for sandbox in &sandboxes {
        assert_eq!(world.inspect(sandbox.id).level, "full");
    }
    world.close();
}
