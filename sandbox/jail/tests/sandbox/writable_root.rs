// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A root that can be written: what is written there counts, reaches nobody else, and does not outlive the sandbox.

use std::{fs, os::unix::fs::MetadataExt};

use hearth_protocol::{
    init::ExitStatus,
    spawner::{Event, Request, Root, SandboxLimits, SkeletonSpec, Worker},
};

use crate::world::{Sandbox, World, is_root, limits, per_call, programs};

fn spec(base: &str) -> SkeletonSpec {
    SkeletonSpec {
        root: Root::Writable,
        ..per_call(base)
    }
}

impl World {
    fn writable(&mut self, base: &str, arguments: &[&str], limits: SandboxLimits) -> Sandbox {
        let sandbox = self.try_create(spec(base)).expect("a skeleton");
        let tree = self.store("probe", &programs().probe);
        let bound = self.try_bind(sandbox.id, tree, limits);
        assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
        sandbox.bind_init("/function/probe", arguments);
        sandbox
    }

    /// What a shell in the base `minimal` says to a script.
    fn shell(&mut self, script: &str) -> String {
        let sandbox = self.try_create(spec("minimal")).expect("a skeleton");
        let tree = self.store("script", format!("#!/bin/sh\n{script}").as_bytes());
        let bound = self.try_bind(sandbox.id, tree, limits());
        assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
        sandbox.bind_init("/function/script", &[]);
        let outcome = sandbox.run(1, b"");
        assert_eq!(outcome.status, ExitStatus::Exited(0), "{outcome:?}");
        self.destroy(sandbox.id);
        outcome.stdout
    }
}

#[test]
fn what_is_written_to_the_root_is_there_for_this_sandbox_alone() {
    if !is_root() {
        return;
    }
    let mut world = World::with_bases(&["static", "minimal"]);
    let base = world.data_dir.bases().join("minimal");
    let before = fs::read(base.join("etc/passwd")).unwrap();
    // New files, changed files, removed files, renamed directories, in places that the base has and in one that it
    // lacks.
    let script = "set -e; PATH=/usr/bin; mkdir /data; echo new > /data/x; echo new > /etc/x; echo changed >> /etc/passwd\n\
        rm /usr/bin/awk; mv /etc/ssl /etc/moved; echo t > /tmp/t\n\
        cat /data/x /etc/x /tmp/t; tail -n 1 /etc/passwd; ls -d /etc/moved; ls /usr/bin/awk 2>&1 | wc -l";
    assert_eq!(world.shell(script), "new\nnew\nt\nchanged\n/etc/moved\n1\n");
    let script = "PATH=/usr/bin; ls -d /data /etc/x /etc/moved /tmp/t 2>/dev/null | wc -l; tail -n 1 /etc/passwd; ls /usr/bin/awk";
    let text = world.shell(script);
    assert!(
        text.starts_with("0\n") && text.ends_with("/usr/bin/awk\n"),
        "{text}"
    );
    assert!(!text.contains("changed"), "{text}");
    assert_eq!(fs::read(base.join("etc/passwd")).unwrap(), before);
    assert!(!base.join("etc/x").exists() && !base.join("data").exists());
    assert_eq!(fs::metadata(base).unwrap().uid(), 0);
    world.close();
}

#[test]
fn the_limits_of_the_scratch_hold_for_the_root_too() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.writable("static", &["flood", "/var/flood"], limits());
    let text = sandbox.run(1, b"").stdout;
    // 8 MiB in blocks of 4 KiB, of which directories may take a few.
    let blocks: u64 = text.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (2000..=2048).contains(&blocks) && text.contains("ENOSPC"),
        "{text}"
    );
    world.destroy(sandbox.id);
    let sandbox = world.writable("static", &["many", "/var"], limits());
    let text = sandbox.run(1, b"").stdout;
    let files: u64 = text.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (200..=256).contains(&files) && text.contains("ENOSPC"),
        "{text}"
    );
    world.destroy(sandbox.id);
    // Limits that are told at bind only hold as well.
    let small = SandboxLimits {
        scratch_bytes: 1 << 20,
        ..limits()
    };
    let sandbox = world.writable("static", &["flood", "/flood"], small);
    let text = sandbox.run(1, b"").stdout;
    let blocks: u64 = text.split(' ').next().unwrap().parse().unwrap();
    assert!((200..=256).contains(&blocks), "{text}");
    world.close();
}

#[test]
fn the_walls_stand_around_a_root_that_can_be_written() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.writable("static", &["walls"], limits());
    let text = sandbox.run(1, b"").stdout;
    let answers = crate::walls::pairs(&text);
    for (push, refusals) in crate::walls::REFUSALS {
        let answer = answers.get(push).copied().unwrap_or("nothing");
        let refused = refusals.contains(&answer);
        // The one thing that was asked for.
        assert_eq!(refused, push != "/intruder", "{push}: {answer}");
    }
    let report = world.inspect(sandbox.id);
    assert_eq!(report.level, "full", "{:?}", report.walls);
    for mount in &report.mounts {
        assert!(mount.options.contains("nosuid"), "{mount:?}");
    }
    world.destroy(sandbox.id);
    // The spawner mounts at paths that lead through these.
    for place in ["/function", "/scratch", "/scratch/tmp", "/proc", "/dev"] {
        let sandbox = world.writable("static", &["take", place], limits());
        let text = sandbox.run(1, b"").stdout;
        let allowed = text.lines().filter(|line| line.contains("ALLOWED"));
        // The mode of the scratch itself is the function's own.
        let own = usize::from(place == "/scratch/tmp");
        assert_eq!(allowed.count(), own, "{place}: {text}");
        assert_eq!(text.lines().count(), 4, "{text}");
        world.destroy(sandbox.id);
    }
    world.close();
}

#[test]
fn a_program_made_set_user_id_in_a_writable_root_stays_its_caller_s() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.writable("static", &["setuid", "/var/copy"], limits());
    let text = sandbox.run(1, b"").stdout;
    assert!(
        text.starts_with("chmod: ALLOWED\nuid: 1000 1000\n"),
        "{text}"
    );
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    world.close();
}

#[test]
fn a_writable_root_is_not_renewed_and_no_resident_program_has_one() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.writable("static", &["exit", "0"], limits());
    sandbox.run(1, b"");
    let request = world.next_request();
    world.send(&Request::Renew {
        request,
        sandbox: sandbox.id,
    });
    let (answer, _) = world.answer();
    assert!(matches!(answer, Event::Failed { .. }), "{answer:?}");
    let resident = SkeletonSpec {
        worker: Worker::Resident,
        profile: hearth_protocol::spawner::Profile::Resident,
        ..spec("static")
    };
    assert!(world.try_create(resident).is_err());
    world.close();
}
