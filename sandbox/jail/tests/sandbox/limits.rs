// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Each limit, hit on purpose.

use hearth_protocol::{
    init::ExitStatus,
    spawner::{Cause, Event, Request, SandboxLimits},
};

use crate::world::{World, eventually, is_root, limits, per_call};

#[test]
fn memory_beyond_the_limit_ends_the_whole_sandbox_and_is_reported_as_an_oom_kill() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["eat", "200"], limits());
    let _ends = sandbox.start(1);
    let (cause, oom_kills) = world.gone(sandbox.id);
    assert_eq!(cause, Cause::Signaled(libc_sigkill()));
    assert!(0 < oom_kills);
    // Its neighbour's limit is its own.
    let sandbox = world.probe(&["eat", "40"], limits());
    assert_eq!(sandbox.run(1, b"").status, ExitStatus::Exited(0));
    world.close();
}

fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}

#[test]
fn memory_is_given_back_after_a_call_and_its_peak_is_counted() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["eat", "40"], limits());
    let number = |text: String| text.trim().parse::<u64>().unwrap();
    for seq in 1..=5 {
        assert_eq!(sandbox.run(seq, b"").status, ExitStatus::Exited(0));
        assert!(40 << 20 < number(sandbox.cgroup_file(2)), "the peak");
        eventually("giving memory back", || {
            number(sandbox.cgroup_file(1)) < 8 << 20
        });
    }
    world.close();
}

#[test]
fn processes_beyond_the_limit_are_refused_and_the_rest_is_killed() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(
        &["forks"],
        SandboxLimits {
            pids: 10,
            ..limits()
        },
    );
    for seq in 1..=3 {
        let outcome = sandbox.run(seq, b"");
        // Ten less init and the main process.
        assert_eq!(outcome.stdout, "8 EAGAIN\n");
        assert_eq!(outcome.killed, 8);
    }
    world.close();
}

#[test]
fn scratch_is_full_at_its_limit_and_empty_after_renewal() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(&["fill"], limits());
    for seq in 1..=3 {
        // 8 MiB in blocks of 4 KiB.
        let outcome = sandbox.run(seq, b"");
        assert_eq!(outcome.stdout, "2048 ENOSPC\n");
        assert_eq!(outcome.scratch.blocks, 2048);
        assert_eq!(world.renew(sandbox.id).blocks, 2048);
    }
    world.close();
}

#[test]
fn a_spinning_function_gets_its_share_of_the_cpu_and_the_throttling_is_counted() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.probe(
        &["spin"],
        SandboxLimits {
            cpu_millis: 100,
            ..limits()
        },
    );
    let _ends = sandbox.start(1);
    let throttled = |text: String| {
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled ")?.parse().ok());
        count.unwrap_or(0_u64)
    };
    eventually("throttling", || 2 < throttled(sandbox.cgroup_file(5)));
    world.destroy(sandbox.id);
    world.close();
}

#[test]
fn a_skeleton_comes_up_within_the_least_memory_that_a_function_may_have() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let request = world.next_request();
    world.send(&Request::Create {
        request,
        spec: per_call("static"),
        limits: SandboxLimits {
            memory_bytes: 4 << 20,
            pids: 2,
            ..limits()
        },
    });
    let (answer, _) = world.answer();
    assert!(matches!(answer, Event::Created { .. }), "{answer:?}");
    world.close();
}
