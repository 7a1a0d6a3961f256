// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The life of a sandbox: bound once, called many times, clean in between.

use std::io::Read;

use hearth_protocol::{
    SmallName,
    init::{self, ExitStatus},
    spawner::{Cause, Event, Handover, Profile, Request, SkeletonSpec, Worker},
};
use nix::errno::Errno;

use crate::world::{World, is_root, limits, per_call, programs};

#[test]
fn a_function_gets_its_stdin_and_its_answer_comes_back_from_the_same_sandbox_many_times() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["echo"], limits());
    for seq in 1..=50 {
        let body = format!("call {seq}");
        let outcome = sandbox.run(seq, body.as_bytes());
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (ExitStatus::Exited(0), body.as_str())
        );
        assert_eq!(outcome.killed, 0);
        assert!(outcome.scratch.is_empty());
    }
    assert_eq!(world.destroy(sandbox.id), (Cause::Destroyed, 0));
    world.close();
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    for (arguments, status) in [
        (["exit", "0"], ExitStatus::Exited(0)),
        (["exit", "255"], ExitStatus::Exited(255)),
        (["kill", "9"], ExitStatus::Signaled(9)),
        (["kill", "11"], ExitStatus::Signaled(11)),
        (["kill", "34"], ExitStatus::Signaled(34)),
        (["kill", "64"], ExitStatus::Signaled(64)),
    ] {
        let sandbox = world.probe(&arguments, limits());
        assert_eq!(sandbox.run(1, b"").status, status);
        assert_eq!(
            sandbox.run(2, b"").status,
            status,
            "and again in the same one"
        );
        world.destroy(sandbox.id);
    }
    world.close();
}

#[test]
fn what_a_call_leaves_behind_is_killed_and_counted_and_does_not_delay_the_answer() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["leave", "5"], limits());
    for seq in 1..=3 {
        let outcome = sandbox.run(seq, b"");
        assert_eq!(outcome.status, ExitStatus::Exited(0));
        assert_eq!(outcome.stdout, "left 5\n");
        assert_eq!(outcome.killed, 5);
        let pids: u32 = sandbox.cgroup_file(6).trim().parse().unwrap();
        assert_eq!(pids, 1, "init alone");
    }
    world.close();
}

#[test]
fn no_way_to_leave_a_process_behind_escapes_the_look_for_others() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    for how in ["sibling", "silent", "adopted", "stopped", "dead"] {
        let sandbox = world.probe(&["hide", how], limits());
        for seq in 1..=3 {
            let outcome = sandbox.run(seq, b"");
            assert_eq!(outcome.stdout, "hidden\n", "{how}");
            assert!(0 < outcome.killed, "{how}");
            let pids: u32 = sandbox.cgroup_file(6).trim().parse().unwrap();
            assert_eq!(pids, 1, "{how}: init alone");
        }
        world.destroy(sandbox.id);
    }
    world.close();
}

#[test]
fn a_program_that_cannot_be_executed_is_an_answer_and_the_sandbox_lives_on() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.create();
    let tree = world.store("data", b"no program");
    let bound = world.try_bind(sandbox.id, tree, limits());
    assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
    sandbox.bind_init("/function/data", &[]);
    for seq in 1..=2 {
        let _ends = sandbox.start(seq);
        let (event, _): (init::Event, _) = sandbox.control.receive();
        let step = "exec".to_owned();
        let errno = Errno::ENOEXEC as i32;
        assert_eq!(event, init::Event::Failed { seq, step, errno });
    }
    world.close();
}

#[test]
fn a_call_s_variables_win_and_nothing_of_the_host_s_environment_is_there() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["env"], limits());
    assert_eq!(sandbox.run(1, b"").stdout, "FIXED=1\nOVERRIDDEN=2\n");
    world.close();
}

#[test]
fn a_renewed_scratch_is_empty_and_can_be_written_again() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["write", "/tmp/file"], limits());
    for seq in 1..=3 {
        let outcome = sandbox.run(seq, b"");
        assert_eq!(outcome.stdout, "/tmp/file: ALLOWED\n", "call {seq}");
        assert_eq!(outcome.scratch.inodes, 1);
        assert_eq!(world.renew(sandbox.id).inodes, 1);
        assert_eq!(world.renew(sandbox.id).inodes, 0, "it was empty already");
    }
    world.close();
}

#[test]
fn settings_that_one_call_changed_are_the_usual_ones_for_the_next() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["lower"], limits());
    assert_eq!(sandbox.run(1, b"").stdout, "lowered\n");
    world.destroy(sandbox.id);
    let sandbox = world.probe(&["about"], limits());
    let about = sandbox.run(1, b"").stdout;
    for line in [
        "nice: 0",
        "scheduler: 0",
        "sigpipe: default",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
    ] {
        assert!(
            about.lines().any(|found| found == line),
            "{line} is not in\n{about}"
        );
    }
    world.close();
}

#[test]
fn a_second_call_during_the_first_begins_when_the_first_has_ended() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["echo"], limits());
    let (to_function, mut from_function) = sandbox.start(1);
    // Its stdin is at its end, so it would be the first to end if it could begin.
    let (_, mut from_second) = sandbox.start(2);
    drop(to_function);
    for (due, output) in [(1, &mut from_function), (2, &mut from_second)] {
        let (event, _): (init::Event, _) = sandbox.control.receive();
        assert!(
            matches!(event, init::Event::Exited { seq, .. } if seq == due),
            "{event:?}"
        );
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
    world.close();
}

#[test]
fn a_file_can_be_handed_over_instead_of_mounted() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.create();
    let tree = world.store("module.cwasm", b"artifact");
    let request = world.next_request();
    for (name, found) in [
        ("module.cwasm", true),
        ("../module.cwasm", false),
        ("other", false),
    ] {
        let handover = Handover::OpenFile(name.to_owned());
        let sandbox = if found { sandbox.id } else { world.create().id };
        world.send(&Request::Bind {
            request,
            sandbox,
            tree: tree.clone(),
            handover,
            limits: limits(),
        });
        let (event, mut fds) = world.answer();
        assert_eq!(
            matches!(event, Event::Bound { .. }),
            found,
            "{name}: {event:?}"
        );
        if found {
            let mut text = String::new();
            std::fs::File::from(fds.remove(0))
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "artifact");
        }
    }
    world.close();
}

#[test]
fn a_resident_program_is_up_before_its_skeleton_is_handed_out_and_takes_it_along_when_it_ends() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let spec = SkeletonSpec {
        worker: Worker::Resident,
        profile: Profile::Resident,
        ..per_call("static")
    };
    let sandbox = world.try_create(spec).expect("a skeleton");
    let (word, _) = sandbox.control.receive_packet().unwrap();
    assert_eq!(word, b"booted");
    let report = world.inspect(sandbox.id);
    let names: Vec<_> = report
        .processes
        .iter()
        .map(|process| process.pid_inside)
        .collect();
    assert_eq!(names, [1, 2]);
    assert_eq!(report.processes[1].fds, [0, 1, 2, 3]);
    assert!(
        report
            .walls
            .iter()
            .all(|wall| wall.holds || wall.wall == "cgroup"),
        "{:?}",
        report.walls
    );
    drop(sandbox.control);
    assert_eq!(world.gone(sandbox.id), (Cause::Exited(0), 0));
    world.close();
}

#[test]
fn a_program_of_a_base_that_does_not_exist_is_refused_by_name() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    assert_eq!(world.host.bases, [SmallName::new("static").unwrap()]);
    let Err(Event::Failed { step, .. }) = world.try_create(per_call("other")) else {
        panic!("a skeleton of an unknown base")
    };
    assert_eq!(step, "find the base");
    assert!(programs().init.exists());
    world.close();
}

#[test]
fn a_shell_script_with_pipes_runs_on_the_minimal_base() {
    if !is_root() {
        return;
    }
    let mut world = World::with_bases(&["static", "minimal"]);
    let sandbox = world.try_create(per_call("minimal")).expect("a skeleton");
    let script = b"#!/bin/sh\nset -e\necho \"$(tr a-z A-Z | sort | head -n 1)\" > /tmp/x; cat /tmp/x /dev/null; ls /dev/fd >&2\n";
    let tree = world.store("script", script);
    let bound = world.try_bind(sandbox.id, tree, limits());
    assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
    sandbox.bind_init("/function/script", &[]);
    let outcome = sandbox.run(1, b"b\na\n");
    assert_eq!(outcome.status, ExitStatus::Exited(0), "{}", outcome.stdout);
    assert!(
        outcome.stdout.starts_with("A\n0\n1\n2\n"),
        "{}",
        outcome.stdout
    );
    world.close();
}
