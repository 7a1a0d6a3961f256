// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Refused system calls: each is refused, the first are told in full, all are counted, and who makes many of them holds up
//! itself.

use std::{fs::File, io::Read as _, time::Instant};

use hearth_protocol::{
    init::ExitStatus,
    spawner::{Cause, CreatedFd, Profile, VIOLATIONS_TOLD_MAX, ViolationClass},
};

use crate::world::{Sandbox, World, eventually, is_root, limits, per_call, programs};

/// Calls of a flood: more than a sandbox is allowed at once.
const FLOOD: u64 = 400;

/// What a sandbox may ask at once; each millisecond it may ask one more.
const ALLOWANCE_MAX: u64 = 256;

/// reboot(2), by its number here.
const REBOOT: u32 = if cfg!(target_arch = "x86_64") {
    169
} else {
    142
};

impl Sandbox {
    /// How many calls were refused since this was asked last.
    pub(crate) fn counted(&self) -> u64 {
        let counter = &self.cgroup[CreatedFd::Violations as usize - 1];
        let mut count = [0; 8];
        match File::from(counter.try_clone().unwrap()).read_exact(&mut count) {
            Ok(()) => u64::from_ne_bytes(count),
            Err(empty) => {
                assert_eq!(empty.kind(), std::io::ErrorKind::WouldBlock);
                0
            }
        }
    }
}

#[test]
fn every_refused_call_fails_the_first_are_told_in_full_and_all_are_counted() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let flood = FLOOD.to_string();
    let sandbox = world.probe(&["refused", &flood], limits());
    assert_eq!(sandbox.counted(), 0);
    for seq in 1..=2 {
        let outcome = sandbox.run(seq, b"");
        println!("{}", outcome.stdout.trim());
        assert_eq!(outcome.status, ExitStatus::Exited(0));
        assert!(outcome.stdout.ends_with("wrong 0\n"), "{}", outcome.stdout);
        assert_eq!(sandbox.counted(), FLOOD);
        world.synchronise();
        let told = std::mem::take(&mut world.violations);
        assert_eq!(told.len(), usize::from(VIOLATIONS_TOLD_MAX));
        for (index, (id, violation)) in (0..).zip(told) {
            assert_eq!((id, violation.name.as_str()), (sandbox.id, "bpf"));
            assert_eq!(violation.arguments, [index, 2, 3, 4, 5, 6]);
            assert_eq!(violation.class, ViolationClass::Eperm);
        }
    }
    world.destroy(sandbox.id);
    world.close();
}

#[test]
fn a_call_of_the_kill_class_ends_the_whole_sandbox_and_is_told_before_its_end() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["call", &REBOOT.to_string()], limits());
    let (_stdout, _stderr) = sandbox.start(1);
    assert_eq!(world.gone(sandbox.id), (Cause::Forbidden, 0));
    let [(id, violation)] = world.violations.as_slice() else {
        panic!("{:?}", world.violations);
    };
    assert_eq!((*id, violation.name.as_str()), (sandbox.id, "reboot"));
    assert_eq!(violation.arguments, [u64::MAX; 6]);
    assert_eq!(violation.class, ViolationClass::Kill);
    assert_eq!(sandbox.counted(), 1);
    world.close();
}

#[test]
fn whoever_floods_the_spawner_waits_for_it_and_the_others_do_not() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let flooding = world.probe(&["refuse"], limits());
    let begun = Instant::now();
    let (_stdout, _stderr) = flooding.start(1);
    let mut asked = 0;
    eventually("a refused call", || {
        asked += flooding.counted();
        0 < asked
    });
    for _ in 0..10 {
        let other = world.probe(&["exit", "7"], limits());
        assert_eq!(other.run(1, b"").status, ExitStatus::Exited(7));
        world.destroy(other.id);
    }
    asked += flooding.counted();
    let answered_max = ALLOWANCE_MAX + u64::try_from(begun.elapsed().as_millis()).unwrap();
    assert!(asked <= answered_max, "{asked} of {answered_max}");
    world.destroy(flooding.id);
    // Read twice since the first.
    let told = world.violations.len();
    assert!(
        (1..=3 * usize::from(VIOLATIONS_TOLD_MAX)).contains(&told),
        "{told}"
    );
    world.close();
}

#[test]
fn a_strict_sandbox_runs_one_program_and_tells_of_what_it_tries_beyond_that() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let spec = hearth_protocol::spawner::SkeletonSpec {
        profile: Profile::Strict,
        ..per_call("static")
    };
    let sandbox = world.try_create(spec).expect("a strict skeleton");
    let tree = world.store("probe", &programs().probe);
    world.try_bind(sandbox.id, tree, limits());
    sandbox.bind_init("/function/probe", &["alone"]);
    for seq in 1..=2 {
        let outcome = sandbox.run(seq, b"");
        let expected = "fork: EPERM\nclone: EPERM\nspawn: EPERM\nlaunch: ENOSYS\nmemfd: ENOSYS\n\
            mkdir: ENOSYS\nunix: ENOSYS\ncreate: ALLOWED\n";
        assert_eq!(outcome.stdout, expected);
        // The last way is closed by the overlay alone, which has no listener.
        assert_eq!(sandbox.counted(), 3);
        world.renew(sandbox.id);
    }
    let told: Vec<&str> = world
        .violations
        .iter()
        .map(|(_, told)| told.name.as_str())
        .collect();
    assert_eq!(told, ["fork", "clone", "clone", "fork", "clone", "clone"]);
    world.destroy(sandbox.id);
    world.close();
}
