// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sandboxes as a gateway sees them: a real spawner, real walls, and functions that push on them.

#[path = "sandbox/world.rs"]
mod world;

use hearth_protocol::{
    init::ExitStatus,
    spawner::{Cause, Event},
};
use world::{World, is_root, limits};

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
