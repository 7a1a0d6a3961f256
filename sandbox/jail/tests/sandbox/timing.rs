// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the steps cost, printed. Asserted is only what load on the machine cannot change: that some of the calls were
//! faster than the 5 to 12 ms for which moving another process between cgroups stalls every time.

use std::time::{Duration, Instant};

use hearth_protocol::spawner::Event;
use nix::poll::{PollTimeout, poll};

use crate::world::{World, is_root, limits, programs};

const STALL: Duration = Duration::from_millis(5);

const ROUNDS: usize = 40;

#[test]
fn no_step_of_a_sandbox_s_life_stalls_at_any_spacing() {
    if !is_root() {
        return;
    }
    for spacing_ms in [0_u64, 20] {
        let mut world = World::new();
        let tree = world.store("probe", &programs().probe);
        let mut steps: [(&str, Vec<Duration>); 5] =
            ["create", "bind", "run", "renew", "destroy"].map(|name| (name, Vec::new()));
        for _ in 0..ROUNDS {
            let mut at = 0;
            let mut measure = |begun: Instant| {
                steps[at].1.push(begun.elapsed());
                at += 1;
                let pause = PollTimeout::try_from(Duration::from_millis(spacing_ms)).unwrap();
                poll(&mut [], pause).unwrap();
            };
            let begun = Instant::now();
            let sandbox = world.create();
            measure(begun);
            let begun = Instant::now();
            let bound = world.try_bind(sandbox.id, tree.clone(), limits());
            assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
            sandbox.bind_init("/function/probe", &["exit", "0"]);
            measure(begun);
            let begun = Instant::now();
            sandbox.run(1, b"");
            measure(begun);
            let begun = Instant::now();
            world.renew(sandbox.id);
            measure(begun);
            let begun = Instant::now();
            world.destroy(sandbox.id);
            measure(begun);
        }
        for (name, mut times) in steps {
            times.sort();
            let (p50, p90) = (times[ROUNDS / 2], times[ROUNDS * 9 / 10]);
            let fastest = times[0];
            assert!(fastest < STALL, "{name} stalls: {fastest:?} at the least");
            println!("spacing {spacing_ms:>2} ms: {name:<8} p50 {p50:>10.1?} p90 {p90:>10.1?}");
        }
        world.close();
    }
}
