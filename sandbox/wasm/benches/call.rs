// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How long one call takes over the control socket, from `Run` sent to `Done` read; what CPU time and page faults it
//! costs the worker, alone and among 64; and what a worker costs while idle.
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

use gateway::{Worker, compile, roomy, run};
use hearth_protocol::frame::PACKET_BYTES_MAX;
use hearth_protocol::worker::{Ending, INFLIGHT_MAX};

const CALLS: usize = 20_000;

/// Of [`INFLIGHT_MAX`] calls at once.
const ROUNDS: u32 = 200;

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
        let body = vec![b'x'; body_bytes];
        measure(name, &worker, &body);
        // Larger ones fill the socket both ways, and this caller does not read while it writes.
        if body_bytes <= 1024 {
            together(&worker, &body);
        }
        println!(
            "  module {} bytes, artifact {artifact_bytes} bytes",
            module.len()
        );
        resident("after the calls", &worker);
    }
}

fn measure(name: &str, worker: &Worker, body: &[u8]) {
    let timeout = Duration::from_secs(10);
    let (cpu, faults) = used(worker);
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
    let (cpu, faults) = (used(worker).0 - cpu, used(worker).1 - faults);
    let cpu_us = cpu.as_secs_f64() * 1e6 / (WARM_UP_CALLS + CALLS) as f64;
    println!(
        "{name}: p50 {:.1} µs, p99 {:.1} µs, {cpu_us:.1} µs of the worker's CPU; {faults} page faults",
        at(50),
        at(99)
    );
}

/// As many calls at once as a worker takes, sent as the gateway does: what is there to send goes in as few packets as
/// it fits into.
fn together(worker: &Worker, body: &[u8]) {
    let timeout = Duration::from_secs(10);
    let (cpu, faults) = used(worker);
    let began = Instant::now();
    for _ in 0..ROUNDS {
        let mut rest: Vec<_> = (1..=u32::from(INFLIGHT_MAX))
            .map(|seq| (run(seq, body.len(), timeout), body))
            .collect();
        while !rest.is_empty() {
            let fit = rest.len().min(PACKET_BYTES_MAX / (body.len() + 64));
            worker.send_all(&rest.drain(..fit).collect::<Vec<_>>());
        }
        for _ in 0..INFLIGHT_MAX {
            assert_eq!(worker.finish().ending, Ending::Exited(0));
        }
    }
    let took = began.elapsed();
    let calls = ROUNDS * u32::from(INFLIGHT_MAX);
    let (cpu, faults) = (used(worker).0 - cpu, used(worker).1 - faults);
    println!(
        "  {INFLIGHT_MAX} at once: {:.1} µs each, {:.1} µs of the worker's CPU; {faults} page faults in {calls} calls",
        took.as_secs_f64() * 1e6 / f64::from(calls),
        cpu.as_secs_f64() * 1e6 / f64::from(calls),
    );
}

/// CPU time and page faults of the worker so far.
fn used(worker: &Worker) -> (Duration, u64) {
    let pid = nix::unistd::Pid::from_raw(worker.process.id().cast_signed());
    let clock = nix::time::clock_getcpuclockid(pid).unwrap();
    let cpu = Duration::from(nix::time::clock_gettime(clock).unwrap());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which may hold anything: state is field 3, minflt field 10 (proc(5)).
    let fields = stat.rsplit_once(") ").unwrap().1;
    let faults = fields.split(' ').nth(7).unwrap().parse().unwrap();
    (cpu, faults)
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
