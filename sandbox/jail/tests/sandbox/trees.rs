// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Storing trees does not hold up those who wait for a sandbox.

use std::{fs, os::fd::AsFd};

use hearth_protocol::{
    TreeId,
    spawner::{Event, Request, RequestId, SandboxId, TREE_CHUNK_BYTES_MAX},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::world::{World, is_root, limits, programs};

/// Large enough that the process that stores it is met while it does.
const LARGE_CHUNKS: u64 = 2;

/// On a file system that needs no flush it may end before it is met.
const TRIES_MAX: usize = 50;

#[test]
fn a_sandbox_is_made_and_bound_while_a_tree_is_on_its_way_to_the_disk() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let probe = world.store("probe", &programs().probe);
    let held = held_commit(&mut world);
    let sandbox = world.create();
    let bound = world.try_bind(sandbox.id, probe, limits());
    assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
    kill(held.process, Signal::SIGCONT).unwrap();
    let (stored, _) = world.answer();
    assert!(
        matches!(stored, Event::TreeStored { request, .. } if request == held.request),
        "{stored:?}"
    );
    world.close();
}

#[test]
fn a_process_that_dies_while_it_stores_a_tree_costs_that_tree_and_nothing_else() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let held = held_commit(&mut world);
    let before = trees_of(&world);
    kill(held.process, Signal::SIGKILL).unwrap();
    let (failed, _) = world.answer();
    assert!(
        matches!(&failed, Event::Failed { request, step, .. } if *request == held.request && step.contains("died")),
        "{failed:?}"
    );
    assert_eq!(trees_of(&world), before);
    begin_commit(&mut world, TRIES_MAX, 1);
    let (stored, _) = world.answer();
    let Event::TreeStored { tree, .. } = stored else {
        panic!("{stored:?} instead of TreeStored")
    };
    let sandbox = world.create();
    let bound = world.try_bind(sandbox.id, tree, limits());
    assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
    world.close();
}

#[test]
fn an_upload_counts_until_its_commit_is_done() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let _held = held_commit(&mut world);
    // The limit is 32, and one is being committed.
    for upload in 1..=32 {
        let request = world.next_request();
        world.send(&Request::TreeBegin { request });
        let (answer, _) = world.answer();
        let begun = matches!(answer, Event::TreeBegun { .. });
        assert_eq!(begun, upload < 32, "{upload}: {answer:?}");
    }
    world.close();
}

/// A commit whose process is stopped in the middle.
struct Held {
    request: RequestId,
    process: Pid,
}

fn held_commit(world: &mut World) -> Held {
    for number in 0..TRIES_MAX {
        let request = begin_commit(world, number, LARGE_CHUNKS);
        // Answered after the commit has begun.
        let asked = world.next_request();
        world.send(&Request::Renew {
            request: asked,
            sandbox: SandboxId(u64::MAX >> 2),
        });
        let (first, _) = world.answer();
        if matches!(first, Event::TreeStored { .. }) {
            world.answer();
            continue;
        }
        if let Some(process) = the_child_of(world)
            && kill(process, Signal::SIGSTOP).is_ok()
            && is_stopped(process)
        {
            return Held { request, process };
        }
        world.answer();
    }
    panic!("no commit was met in {TRIES_MAX} tries")
}

/// Whether a stop signal came before the end: waits until either has.
fn is_stopped(process: Pid) -> bool {
    loop {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        match state {
            Some('T') => return true,
            Some('Z' | 'X') | None => return false,
            Some(_) => std::thread::yield_now(),
        }
    }
}

/// Asks for a tree of one file of zeroes, whose name makes it another one each time.
fn begin_commit(world: &mut World, number: usize, chunks: u64) -> RequestId {
    let request = world.next_request();
    world.send(&Request::TreeBegin { request });
    let (begun, _) = world.answer();
    let Event::TreeBegun { upload, .. } = begun else {
        panic!("{begun:?} instead of TreeBegun")
    };
    let content = tempfile::tempfile().unwrap();
    content.set_len(chunks * TREE_CHUNK_BYTES_MAX).unwrap();
    for chunk in 0..chunks {
        let chunk = Request::TreeChunk {
            upload,
            path: format!("file-{number}"),
            executable: false,
            offset: chunk * TREE_CHUNK_BYTES_MAX,
            bytes: TREE_CHUNK_BYTES_MAX,
        };
        world.send_request_with(&chunk, &[content.as_fd()]);
    }
    let request = world.next_request();
    world.send(&Request::TreeCommit { request, upload });
    request
}

/// The spawner has no sandbox, so its one child is the process that stores the tree.
fn the_child_of(world: &World) -> Option<Pid> {
    let spawner = world.spawner.id();
    let children = format!("/proc/{spawner}/task/{spawner}/children");
    let text = fs::read_to_string(children).unwrap();
    text.trim().parse().ok().map(Pid::from_raw)
}

fn trees_of(world: &World) -> Vec<TreeId> {
    let mut trees: Vec<_> = fs::read_dir(world.trees())
        .unwrap()
        .filter_map(|entry| TreeId::new(entry.unwrap().file_name().to_str()?).ok())
        .collect();
    trees.sort();
    trees
}
