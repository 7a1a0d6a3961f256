// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Many invocations at once, of every function, and what is left when they are over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::bundled::{Example, deployed};
use crate::http::Connection;
use crate::instance::Instance;
use crate::{turn, world};

/// Set to `1`: as many invocations as the promise is about. Without it, a tenth of them.
const LONG_RUN_VARIABLE: &str = "HEARTH_E2E_LONG";

const CONNECTIONS: usize = 64;

/// 5 %: an allocator keeps some pages however little is in use; a leak of any object per invocation is far above it.
const GROWTH_DIVISOR: u64 = 20;

/// Times that the load is run before it counts: the gateway holds the newest 4,096 receipts, some 4 MB, and until they have
/// filled that room every invocation adds one.
const WARM_UPS: usize = 5;

/// What the allocator's free lists differ by: over twelve loads of 1,000 invocations in a row the gateway held between
/// 34.8 and 40.2 MB, without a trend. Of the long run's 10,000 invocations none may leave 420 bytes.
const GROWTH_BYTES_MIN: u64 = 4 << 20;

/// Whether tests that have a long form take it.
pub(crate) fn is_long_run() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "the length of a test is no configuration of Hearth"
    )]
    std::env::var(LONG_RUN_VARIABLE).is_ok_and(|value| value == "1")
}

/// How many invocations this run makes.
fn invocations() -> usize {
    if is_long_run() { 10_000 } else { 1_000 }
}

/// Calls every example in turn, from as many kept connections, and counts what came back byte for byte.
fn storm(instance: &Instance, examples: &[Example], count: usize) {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(instance.address).unwrap();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if count <= index {
                            return;
                        }
                        let example = &examples[index % examples.len()];
                        let headers = [("content-type", "text/plain")];
                        let answer =
                            connection.call("POST", &example.path, &headers, &example.input);
                        let answer =
                            answer.unwrap_or_else(|error| panic!("{}: {error}", example.name));
                        assert_eq!(answer.status, 200, "{}: {}", example.name, answer.text());
                        assert!(
                            answer.body == example.expected,
                            "{}: other bytes",
                            example.name
                        );
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });
    let took = began.elapsed();
    println!(
        "{count} invocations at {CONNECTIONS} connections took {took:?}: {:.0} per second",
        count as f64 / took.as_secs_f64()
    );
}

#[test]
fn mixed_invocations_at_64_connections_all_succeed_and_leave_the_host_as_it_was() {
    let _turn = turn::take!(alone);
    let instance = deployed();
    let examples = Example::all();
    let count = invocations();
    let (gateway, spawner) = (instance.gateway(), instance.spawner());
    let resident = || [gateway, spawner].map(world::resident_bytes);
    // The pool grows to what this load needs, and the allocators with it. How full their free lists are afterwards
    // varies by some percent from one time to the next, so the fullest of several times is what to compare with.
    let mut before = [0; 2];
    for _ in 0..WARM_UPS {
        storm(instance, &examples, count);
        instance.assert_clean();
        for (most, now) in before.iter_mut().zip(resident()) {
            *most = now.max(*most);
        }
    }
    let not_ok = || {
        let all = instance.metric("hearth_invocations_total", &[]);
        all - instance.metric("hearth_invocations_total", &[("outcome", "ok")])
    };
    let not_ok_before = not_ok();
    let ok_before = instance.metric("hearth_invocations_total", &[("outcome", "ok")]);

    storm(instance, &examples, count);
    // Fds, threads, processes, cgroups and mounts.
    instance.assert_clean();
    assert_eq!(not_ok(), not_ok_before, "errors that nobody asked for");
    let ok = instance.metric("hearth_invocations_total", &[("outcome", "ok")]);
    assert_eq!(ok - ok_before, count as f64);
    assert_eq!(
        (instance.gateway(), instance.spawner()),
        (gateway, spawner),
        "nobody was replaced"
    );
    crate::wait::until("memory is as before", Duration::from_secs(10), || {
        let after = resident();
        for (before, after) in before.iter().zip(after) {
            let allowed = (before / GROWTH_DIVISOR).max(GROWTH_BYTES_MIN);
            if before + allowed < after {
                return Err(format!("from {before} to {after} bytes"));
            }
        }
        println!("resident memory of gateway and spawner: {before:?}, then {after:?}");
        Ok(())
    });
}
