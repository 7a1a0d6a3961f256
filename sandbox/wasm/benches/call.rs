// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How long one call takes over the control socket, from `Run` sent to `Done` read, and what a worker costs while idle.
//! `taskset -c 1 cargo bench -p hearth-wasm` puts both ends on one core, as the gateway does.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    dead_code,
    reason = "a measurement that prints its result, on the tests' own gateway"
)]

#[path = "../tests/it/gateway.rs"]
mod gateway;
#[path = "../tests/it/guests.rs"]
mod guests;

use std::fs;
use std::time::{Duration, Instant};

use gateway::{Worker, compile, roomy};
use hearth_protocol::worker::Ending;

const CALLS: usize = 20_000;

/// Enough for the allocator, the pool's slots and the branch predictors.
const WARM_UP_CALLS: usize = 1_000;

fn main() {
    let booted = Instant::now();
    let worker = Worker::boot();
    println!("boot: {} µs", booted.elapsed().as_micros());
    resident("booted", &worker);
    drop(worker);
    for (name, module, body_bytes) in [
        ("empty", guests::empty(), 0),
        // What Rust's linker gives a small program.
        (
            "17 pages",
            guests::guest(17, r#"(func (export "_start"))"#),
            0,
        ),
        ("echo 1 KiB", guests::echo(), 1024),
        ("echo 60 KiB", guests::echo(), 60 * 1024),
    ] {
        let artifact_bytes = compile(&module).stdout.len();
        let worker = Worker::bound(&module, roomy());
        measure(name, &worker, &vec![b'x'; body_bytes]);
        println!(
            "  module {} bytes, artifact {artifact_bytes} bytes",
            module.len()
        );
        resident("after the calls", &worker);
    }
}

fn measure(name: &str, worker: &Worker, body: &[u8]) {
    let timeout = Duration::from_secs(10);
    let mut took: Vec<Duration> = (0..WARM_UP_CALLS + CALLS)
        .map(|_| {
            let began = Instant::now();
            let finished = worker.invoke(body, timeout);
            let took = began.elapsed();
            assert_eq!(finished.ending, Ending::Exited(0));
            took
        })
        .skip(WARM_UP_CALLS)
        .collect();
    took.sort_unstable();
    let at = |percent: usize| took[CALLS * percent / 100].as_nanos() as f64 / 1000.0;
    println!("{name}: p50 {:.1} µs, p99 {:.1} µs", at(50), at(99));
}

/// What a worker adds to the host's memory: pages that no other process shares.
fn resident(when: &str, worker: &Worker) {
    let path = format!("/proc/{}/smaps_rollup", worker.process.id());
    let rollup = fs::read_to_string(path).unwrap();
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let private = field("Private_Clean:") + field("Private_Dirty:");
    println!(
        "  {when}: {private} kB private, of {} kB resident; {} kB anonymous",
        field("Rss:"),
        field("Anonymous:")
    );
}
