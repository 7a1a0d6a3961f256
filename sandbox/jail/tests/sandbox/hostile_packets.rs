// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A hostile gateway's packets: cut off, with more descriptors than a message may carry, in any order, again and again.
//! The spawner answers or closes the connection, removes what it made, and ends in good order (threats N-30).

use std::os::fd::{AsFd as _, BorrowedFd};

use hearth_protocol::{frame, spawner::Request};

use crate::{
    hostile_gateway::every_request,
    world::{World, is_root},
};

/// The most descriptors that one message can carry (SCM_MAX_FD, unix(7)).
const SCM_MAX_FD: usize = 253;

fn packet_of(request: &Request) -> Vec<u8> {
    let mut packet = Vec::new();
    frame::encode(request, b"", &mut packet).unwrap();
    packet
}

fn open_files(world: &World) -> usize {
    let directory = format!("/proc/{}/fd", world.spawner.id());
    std::fs::read_dir(directory).unwrap().count()
}

/// Cgroups without a process that the spawner keeps ready for sandboxes to come (`READY_MAX` of its groundwork).
const MADE_AHEAD: usize = 4;

#[test]
fn a_request_cut_off_anywhere_ends_the_connection_and_every_sandbox() {
    if !is_root() {
        return;
    }
    let mut probe = World::new();
    let tree = probe.store("f", b"x");
    let requests = every_request(probe.create().id, &tree);
    probe.close();
    let cuts = requests.iter().flat_map(|request| {
        let packet = packet_of(request);
        let places = [1, 2, packet.len() / 2, packet.len() - 1];
        places.map(|length| packet[..length].to_vec())
    });
    for packet in cuts {
        let mut world = World::new();
        let _sandbox = world.create();
        world.send_bytes(&packet);
        assert!(world.spawner.wait().unwrap().success(), "{packet:?}");
        world.close();
    }
}

#[test]
fn a_request_with_bytes_behind_it_ends_the_connection() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let tree = world.store("f", b"x");
    let sandbox = world.create();
    let inspect = every_request(sandbox.id, &tree).remove(4);
    world.send_bytes(&[packet_of(&inspect), vec![0]].concat());
    assert!(world.spawner.wait().unwrap().success());
    world.close();
}

#[test]
fn descriptors_that_no_request_carries_are_closed_however_many() {
    if !is_root() {
        return;
    }
    let directory = std::fs::File::open("/").unwrap();
    let mut world = World::with_sandboxes_max(4);
    let tree = world.store("f", b"x");
    let sandbox = world.create();
    world.synchronise();
    let before = open_files(&world);
    let few: Vec<BorrowedFd<'_>> = vec![directory.as_fd(); 4];
    for request in every_request(sandbox.id, &tree) {
        // What makes or removes a sandbox or an upload changes the number by itself.
        if matches!(
            request,
            Request::Create { .. } | Request::Destroy { .. } | Request::TreeBegin { .. }
        ) {
            continue;
        }
        for count in 0..=few.len() {
            world.send_request_with(&request, &few[..count]);
            world.synchronise();
        }
    }
    // A bound sandbox holds some more for its files; 80 were sent.
    let after = open_files(&world);
    assert!(after <= before + 8, "{before} open files, then {after}");
    // More than there is room for: the kernel closes them, and the connection ends.
    let many: Vec<BorrowedFd<'_>> = vec![directory.as_fd(); SCM_MAX_FD];
    world.send_request_with(&every_request(sandbox.id, &tree)[4], &many);
    assert!(world.spawner.wait().unwrap().success());
    world.close();
}

#[test]
fn requests_in_any_order_and_again_and_again_are_answered_and_make_no_more_than_was_agreed() {
    if !is_root() {
        return;
    }
    const SANDBOXES_MAX: u32 = 3;
    let mut world = World::with_sandboxes_max(SANDBOXES_MAX);
    let tree = world.store("f", b"x");
    let (first, second) = (world.create(), world.create());
    let gone = world.create();
    world.destroy(gone.id);
    let requests: Vec<Request> = [first.id, second.id, gone.id]
        .iter()
        .flat_map(|id| every_request(*id, &tree))
        .collect();
    // A fixed seed (Knuth's MMIX generator): a failure comes again.
    let mut state = 1_u64;
    for _ in 0..600 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = usize::try_from(state >> 33).unwrap() % requests.len();
        world.send(&requests[index]);
        world.synchronise();
        let directory = format!("hearth-{}", world.instance());
        for cgroup in crate::world::cgroups_named(&directory) {
            let sandboxes = std::fs::read_dir(&cgroup)
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().path().is_dir())
                .count();
            assert!(
                sandboxes <= SANDBOXES_MAX as usize + MADE_AHEAD,
                "{}",
                cgroup.display()
            );
        }
    }
    world.close();
}
