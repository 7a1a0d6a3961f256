// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every limit, hit on purpose.

use std::time::{Duration, Instant};

use hearth_protocol::frame::PAYLOAD_BYTES_MAX;
use hearth_protocol::worker::{Ending, Module, Request, TRAP_TEXT_BYTES_MAX, Usage};

use crate::gateway::{Worker, roomy};
use crate::guests;

/// A time limit that no test reaches.
const AMPLE: Duration = Duration::from_secs(60);

/// A time limit that the test waits for.
const SHORT: Duration = Duration::from_millis(100);

/// How late an end may be noticed on a loaded machine; the worker's own part is one tick.
const LATE: Duration = Duration::from_secs(2);

fn times_out(module: &[u8]) -> Usage {
    let worker = Worker::bound(module, roomy());
    let began = Instant::now();
    let finished = worker.invoke(b"", SHORT);
    let took = began.elapsed();
    assert_eq!(finished.ending, Ending::TimedOut);
    assert!(SHORT <= took && took < SHORT + LATE, "{took:?}");
    // The worker is as good as before.
    assert_eq!(worker.invoke(b"", SHORT).ending, Ending::TimedOut);
    finished.usage
}

#[test]
fn a_guest_that_computes_without_end_is_stopped_at_its_deadline() {
    let usage = times_out(&guests::spin());
    assert!(20_000 < usage.cpu_us, "{usage:?}");
}

#[test]
fn a_guest_that_never_finishes_starting_is_stopped_at_its_deadline() {
    times_out(&guests::spin_in_start());
}

#[test]
fn a_guest_that_sleeps_is_stopped_at_its_deadline_and_costs_nothing_meanwhile() {
    let usage = times_out(&guests::sleep());
    assert!(usage.cpu_us < 50_000, "{usage:?}");
}

#[test]
fn a_guest_whose_body_never_comes_is_stopped_at_its_deadline() {
    let worker = Worker::bound(&guests::echo(), roomy());
    worker.send(&crate::gateway::run(1, 10, SHORT), b"half");
    let finished = worker.finish();
    assert_eq!(finished.ending, Ending::TimedOut);
    assert_eq!(finished.stdout, b"half");
}

#[test]
fn a_guest_whose_output_nobody_reads_is_stopped_at_its_deadline() {
    let worker = Worker::bound(&guests::flood(1), roomy());
    // Nothing is read until the limit has passed: a second worker tells when.
    worker.begin(1, b"", SHORT);
    times_out(&guests::sleep());
    let finished = worker.finish();
    assert_eq!(finished.ending, Ending::TimedOut);
    assert!(finished.stdout.len() < 64 * PAYLOAD_BYTES_MAX);
}

#[test]
fn a_cancelled_invocation_ends_at_once() {
    for module in [guests::spin(), guests::sleep(), guests::spin_in_start()] {
        let worker = Worker::bound(&module, roomy());
        worker.begin(1, b"", AMPLE);
        worker.send(&Request::Cancel { seq: 1 }, &[]);
        let began = Instant::now();
        assert_eq!(worker.finish().ending, Ending::Cancelled);
        assert!(began.elapsed() < LATE);
    }
}

#[test]
fn memory_beyond_the_limit_is_refused_and_counted() {
    let limits = Module {
        memory_bytes_max: 32 << 20,
        ..roomy()
    };
    let worker = Worker::bound(&guests::grow(), limits);
    let finished = worker.invoke(b"", AMPLE);
    assert_eq!(finished.ending, Ending::Exited(0));
    assert_eq!(finished.usage.memory_refusals, 1);
    let peak = finished.usage.memory_peak_bytes;
    assert!((31 << 20..=32 << 20).contains(&peak), "{peak}");
}

#[test]
fn a_table_that_grows_without_end_is_refused() {
    let worker = Worker::bound(&guests::grow_table(), roomy());
    assert_eq!(worker.invoke(b"", AMPLE).ending, Ending::Exited(0));
}

#[test]
fn recursion_without_end_is_a_trap() {
    let worker = Worker::bound(&guests::recurse(), roomy());
    for _ in 0..3 {
        let Ending::Trap { text } = worker.invoke(b"", AMPLE).ending else {
            panic!("no trap");
        };
        assert!(text.contains("stack exhausted"), "{text}");
    }
}

#[test]
fn a_trap_text_is_cut_and_fits_beside_any_rest_of_output() {
    for length in [0, PAYLOAD_BYTES_MAX - 1, PAYLOAD_BYTES_MAX] {
        let module = guests::trap_at_length(u32::try_from(length).unwrap());
        let worker = Worker::bound(&module, roomy());
        let finished = worker.invoke(b"", AMPLE);
        let Ending::Trap { text } = finished.ending else {
            panic!("no trap");
        };
        assert_eq!(text.len(), TRAP_TEXT_BYTES_MAX);
        assert_eq!(finished.stdout.len(), length);
    }
}

#[test]
fn output_beyond_the_limit_ends_the_invocation() {
    let limits = Module {
        output_bytes_max: 100_000,
        ..roomy()
    };
    let worker = Worker::bound(&guests::flood(1), limits.clone());
    let finished = worker.invoke(b"", AMPLE);
    assert_eq!(finished.ending, Ending::OutputLimit);
    assert!(finished.stdout.len() <= 100_000);

    let worker = Worker::bound(&guests::echo(), limits);
    let exactly = vec![b'x'; 100_000];
    assert_eq!(worker.invoke(&exactly, AMPLE).stdout, exactly);
    assert_eq!(
        worker.invoke(&vec![b'x'; 100_001], AMPLE).ending,
        Ending::OutputLimit
    );
}

#[test]
fn a_log_beyond_the_cap_is_cut_and_the_guest_goes_on() {
    let worker = Worker::bound(&guests::log(300), roomy());
    let finished = worker.invoke(b"", AMPLE);
    assert_eq!(finished.ending, Ending::Exited(0));
    assert_eq!(finished.stderr.len(), 8 << 20);
}

#[test]
fn host_calls_that_ask_for_much_cost_the_host_little() {
    for module in [guests::subscribe_to_much(), guests::draw_much()] {
        let worker = Worker::bound(&module, roomy());
        let before = worker.status_field(None, "VmRSS:");
        for _ in 0..10 {
            let ending = worker.invoke(b"", AMPLE).ending;
            let refused = matches!(ending, Ending::Trap { .. } | Ending::Exited(1..));
            assert!(refused, "{ending:?}");
        }
        let after = worker.status_field(None, "VmRSS:");
        assert!(after < before + (32 << 10), "{before} kB, then {after} kB");
    }
}

#[test]
fn invocations_dropped_half_way_leave_nothing_behind() {
    let worker = Worker::bound(&guests::sleep(), roomy());
    let round = |worker: &Worker| {
        for seq in 1..=64 {
            worker.begin(seq, b"", Duration::from_millis(1 + u64::from(seq % 3)));
        }
        for _ in 0..64 {
            assert_eq!(worker.finish().ending, Ending::TimedOut);
        }
    };
    // Once to fill the pool and every allocation that lasts.
    round(&worker);
    let before = worker.status_field(None, "VmRSS:");
    for _ in 0..50 {
        round(&worker);
    }
    let after = worker.status_field(None, "VmRSS:");
    assert!(after < before + 2048, "{before} kB, then {after} kB");
}
