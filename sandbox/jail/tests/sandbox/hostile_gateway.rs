// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The spawner believes nothing: what a gateway must not ask is refused, and what no gateway sends ends the connection.

use std::os::fd::AsFd;

use hearth_protocol::{
    TreeId, frame,
    spawner::{
        Event, Handover, Profile, Request, RequestId, SandboxId, SandboxLimits, SkeletonSpec,
        UploadId, Worker,
    },
};

use crate::world::{World, is_root, limits, per_call};

fn step_of(event: &Event) -> &str {
    match event {
        Event::Failed { step, .. } => step,
        other => panic!("{other:?} instead of Failed"),
    }
}

#[test]
fn a_sandbox_is_bound_once_and_never_to_something_else() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.create();
    let (one, other) = (world.store("f", b"one"), world.store("f", b"other"));
    assert!(matches!(
        world.try_bind(sandbox.id, one.clone(), limits()),
        Event::Bound { .. }
    ));
    for tree in [one, other] {
        let answer = world.try_bind(sandbox.id, tree, limits());
        assert_eq!(step_of(&answer), "bind a sandbox that is not a skeleton");
    }
    world.close();
}

#[test]
fn limits_outside_their_bounds_are_refused_and_the_skeleton_stays_one() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.create();
    let tree = world.store("f", b"x");
    for wrong in [
        SandboxLimits {
            memory_bytes: u64::MAX,
            ..limits()
        },
        SandboxLimits {
            memory_bytes: 0,
            ..limits()
        },
        SandboxLimits {
            pids: 0,
            ..limits()
        },
        SandboxLimits {
            cpu_millis: 0,
            ..limits()
        },
        SandboxLimits {
            scratch_bytes: u64::MAX,
            ..limits()
        },
        SandboxLimits {
            scratch_inodes: 0,
            ..limits()
        },
    ] {
        let answer = world.try_bind(sandbox.id, tree.clone(), wrong);
        assert_eq!(step_of(&answer), "set limits outside their bounds");
    }
    assert!(matches!(
        world.try_bind(sandbox.id, tree, limits()),
        Event::Bound { .. }
    ));
    world.close();
}

#[test]
fn what_does_not_exist_is_refused() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let tree = world.store("f", b"x");
    let answer = world.try_bind(SandboxId(999), tree, limits());
    assert_eq!(step_of(&answer), "find the sandbox");
    let sandbox = world.create();
    let unknown = TreeId::new("0".repeat(64)).unwrap();
    let answer = world.try_bind(sandbox.id, unknown, limits());
    assert_eq!(step_of(&answer), "find the function's files");
    for request in [
        Request::Renew {
            request: RequestId(1),
            sandbox: SandboxId(999),
        },
        Request::Inspect {
            request: RequestId(1),
            sandbox: SandboxId(999),
        },
    ] {
        world.send(&request);
        assert_eq!(step_of(&world.answer().0), "find the sandbox");
    }
    world.send(&Request::Destroy {
        sandbox: SandboxId(999),
    });
    let pinned = SkeletonSpec {
        core: Some(9999),
        ..per_call("static")
    };
    let answer = world.try_create(pinned).err().unwrap();
    assert_eq!(step_of(&answer), "pin to this core");
    let mixed = SkeletonSpec {
        worker: Worker::PerCall,
        profile: Profile::Resident,
        ..per_call("static")
    };
    let answer = world.try_create(mixed).err().unwrap();
    assert_eq!(
        step_of(&answer),
        "combine this worker and this seccomp profile"
    );
    world.close();
}

#[test]
fn no_more_sandboxes_are_made_than_were_agreed_and_a_destroyed_one_makes_room() {
    if !is_root() {
        return;
    }
    let mut world = World::with_sandboxes_max(2);
    let (first, _second) = (world.create(), world.create());
    let refused = world.try_create(per_call("static")).err().unwrap();
    assert_eq!(step_of(&refused), "make one more sandbox");
    world.destroy(first.id);
    world.create();
    world.close();
}

#[test]
fn bytes_that_are_no_request_end_the_connection_and_every_sandbox() {
    if !is_root() {
        return;
    }
    for garbage in [vec![0], vec![255; 100], vec![0; 60_000]] {
        let mut world = World::new();
        let _sandbox = world.create();
        world.send_bytes(&garbage);
        assert!(world.spawner.wait().unwrap().success());
        world.close();
    }
}

#[test]
fn a_tree_in_use_cannot_be_removed() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.create();
    let tree = world.store("f", b"x");
    assert!(matches!(
        world.try_bind(sandbox.id, tree.clone(), limits()),
        Event::Bound { .. }
    ));
    let remove = Request::TreeRemove {
        request: RequestId(1),
        tree,
    };
    world.send(&remove);
    assert_eq!(
        step_of(&world.answer().0),
        "remove files that a sandbox uses"
    );
    world.destroy(sandbox.id);
    world.send(&remove);
    let (answer, _) = world.answer();
    assert!(matches!(answer, Event::TreeRemoved { .. }), "{answer:?}");
    world.close();
}

/// Every kind of request, with a sandbox and a tree that exist where one is named.
pub(crate) fn every_request(sandbox: SandboxId, tree: &TreeId) -> Vec<Request> {
    let request = RequestId(7);
    let upload = UploadId(1);
    let limits = limits();
    vec![
        Request::Create {
            request,
            spec: per_call("static"),
            limits,
        },
        Request::Bind {
            request,
            sandbox,
            tree: tree.clone(),
            handover: Handover::Mount,
            limits,
        },
        Request::Bind {
            request,
            sandbox,
            tree: tree.clone(),
            handover: Handover::OpenFile("f".to_owned()),
            limits,
        },
        Request::Renew { request, sandbox },
        Request::Inspect { request, sandbox },
        Request::Destroy { sandbox },
        Request::TreeBegin { request },
        Request::TreeChunk {
            upload,
            path: "a/b".to_owned(),
            executable: true,
            offset: 0,
            bytes: 16,
        },
        Request::TreeCommit { request, upload },
        Request::TreeAbort { upload },
        Request::TreeRemove {
            request,
            tree: tree.clone(),
        },
    ]
}

#[test]
fn mutated_requests_with_foreign_descriptors_are_answered_or_ignored_and_the_spawner_lives_on() {
    if !is_root() {
        return;
    }
    let mut world = World::with_sandboxes_max(4);
    let tree = world.store("f", b"x");
    let sandbox = world.create();
    // A pipe that never gives a byte, a directory, the device that gives bytes for ever.
    let (silent, _writer) = nix::unistd::pipe().unwrap();
    let directory = std::fs::File::open("/etc").unwrap();
    let endless = std::fs::File::open("/dev/zero").unwrap();
    let foreign = [silent.as_fd(), directory.as_fd(), endless.as_fd()];
    // A fixed seed (Knuth's MMIX generator): a failure comes again.
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut sent = 0;
    for request in every_request(sandbox.id, &tree) {
        let mut valid = Vec::new();
        frame::encode(&request, b"", &mut valid).unwrap();
        for _ in 0..200 {
            let mut packet = valid.clone();
            for _ in 0..=random(2) {
                let at = 2 + random(packet.len() - 2);
                packet[at] ^= 1 << random(8);
            }
            // What does not decode ends the connection: the test above.
            if frame::decode_bare::<Request>(&packet).is_err() {
                continue;
            }
            sent += 1;
            world.send_with(&packet, &foreign[..random(foreign.len() + 1)]);
            world.synchronise();
        }
    }
    assert!(200 < sent, "only {sent} mutations decoded");
    world.close();
}
