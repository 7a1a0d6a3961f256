// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The functions that the worker answers itself do what wasmtime-wasi's do. Each probe runs twice: as it is, and after a
//! call of a function that the worker leaves to wasmtime-wasi, which from then on answers all of them.

use std::time::Duration;

use hearth_protocol::worker::{Ending, Module, Request};

use crate::gateway::{Finished, Worker, roomy};

const AMPLE: Duration = Duration::from_secs(60);

/// What the guest finds on stdin.
const BODY: &[u8] = b"0123456789";

/// The probe's memory.
const MEMORY_BYTES: i64 = 2 << 16;

/// Arrays of buffers at 256, with those in brackets empty or not in memory: 3 bytes, (0), 4 bytes, (beyond the end).
const BUFFERS: &str = r#"(data (i32.const 256)
    "\00\08\00\00\03\00\00\00" "\00\08\00\00\00\00\00\00" "\03\08\00\00\04\00\00\00" "\fe\ff\01\00\64\00\00\00")
    (data (i32.const 2048) "abcdefg")"#;

/// What may be called, and with how many arguments. `sched_yield` is wasmtime-wasi's, and changes nothing.
const CALLS: [(&str, usize); 9] = [
    ("fd_read", 4),
    ("fd_write", 4),
    ("fd_close", 1),
    ("fd_prestat_get", 2),
    ("args_sizes_get", 2),
    ("args_get", 2),
    ("environ_sizes_get", 2),
    ("environ_get", 2),
    ("sched_yield", 0),
];

type Step<'s> = (&'s str, &'s [i64]);

/// Who answers the calls.
#[derive(Debug, Clone, Copy)]
enum Answers {
    Worker,
    WasmtimeWasi,
}

/// Makes the calls, and prints the first 4 KiB of memory with every errno in it.
fn probe(answers: Answers, steps: &[Step<'_>]) -> Vec<u8> {
    let begin = match answers {
        Answers::Worker => "",
        Answers::WasmtimeWasi => "(drop (call $sched_yield))",
    };
    let imports = CALLS.map(|(name, params)| {
        let params = "i32 ".repeat(params);
        format!(r#"(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) (result i32)))"#)
    });
    let calls = steps.iter().enumerate().map(|(index, (name, args))| {
        let args: String = args
            .iter()
            .map(|arg| format!("(i32.const {arg})"))
            .collect();
        let log = 3072 + 4 * index;
        format!("(i32.store (i32.const {log}) (call ${name} {args}))")
    });
    let text = format!(
        r#"(module {} (memory (export "memory") 2) {BUFFERS}
            (func (export "_start") {begin} {}
              (i32.store (i32.const 128) (i32.const 0)) (i32.store (i32.const 132) (i32.const 4096))
              (drop (call $fd_write (i32.const 1) (i32.const 128) (i32.const 1) (i32.const 136)))))"#,
        imports.concat(),
        calls.collect::<String>(),
    );
    wat::parse_str(text).unwrap()
}

fn outcome(answers: Answers, steps: &[Step<'_>]) -> Finished {
    let limits = Module {
        env: vec![
            ("KEPT".to_owned(), "1".to_owned()),
            ("BOTH".to_owned(), "2".to_owned()),
        ],
        ..roomy()
    };
    let worker = Worker::bound(&probe(answers, steps), limits);
    let request = Request::Run {
        seq: 7,
        args: vec!["name".to_owned(), "argument".to_owned()],
        env: vec![("BOTH".to_owned(), "3".to_owned())],
        body_bytes: BODY.len() as u64,
        timeout_ms: u64::try_from(AMPLE.as_millis()).unwrap(),
    };
    worker.send(&request, BODY);
    worker.finish()
}

/// Runs the steps both ways, and gives what the worker's own functions did.
fn same(steps: &[Step<'_>]) -> Finished {
    let own = outcome(Answers::Worker, steps);
    let theirs = outcome(Answers::WasmtimeWasi, steps);
    let ended = |finished: &Finished| match &finished.ending {
        // The backtrace differs by where the code is.
        Ending::Trap { .. } => "trap".to_owned(),
        ending => format!("{ending:?}"),
    };
    assert_eq!(ended(&own), ended(&theirs), "{steps:?}");
    assert!(own.stdout == theirs.stdout, "{steps:?}");
    assert_eq!(own.stderr, theirs.stderr, "{steps:?}");
    own
}

#[test]
fn plain_calls_do_what_they_do_in_wasmtime_wasi() {
    let finished = same(&[
        ("args_sizes_get", &[64, 68]),
        ("args_get", &[512, 1024]),
        ("environ_sizes_get", &[72, 76]),
        ("environ_get", &[640, 1200]),
        ("fd_prestat_get", &[3, 80]),
        ("fd_prestat_get", &[0, 80]),
        ("fd_prestat_get", &[-1, 80]),
        ("fd_write", &[1, 256, 1, 84]),
        ("fd_write", &[1, 264, 2, 88]),
        ("fd_write", &[1, 264, 1, 92]),
        ("fd_write", &[1, 256, 0, 92]),
        ("fd_write", &[2, 272, 1, 92]),
        ("fd_write", &[0, 256, 1, 92]),
        ("fd_write", &[3, 256, 1, 92]),
        ("fd_read", &[0, 256, 1, 104]),
        ("fd_read", &[0, 264, 2, 108]),
        ("fd_read", &[1, 256, 1, 112]),
        ("fd_read", &[9, 256, 1, 112]),
        ("fd_read", &[0, 256, 2, 116]),
        ("fd_read", &[0, 256, 1, 120]),
    ]);
    assert_eq!(finished.ending, Ending::Exited(0));
    assert_eq!(&finished.stdout[..7], b"abcdefg");
    assert_eq!(finished.stderr, b"defg");
    // 10 bytes were read: 3, 4, 3 and none.
    assert_eq!(&finished.stdout[7 + 2048..][..7], b"7893456");
}

#[test]
fn a_closed_descriptor_is_closed_for_every_function() {
    let finished = same(&[
        ("fd_read", &[0, 256, 1, 64]),
        ("fd_close", &[0]),
        ("fd_read", &[0, 256, 1, 64]),
        ("fd_close", &[2]),
        ("fd_write", &[2, 256, 1, 64]),
        ("fd_close", &[2]),
    ]);
    let log: Vec<u8> = finished.stdout[3072..]
        .iter()
        .step_by(4)
        .take(6)
        .copied()
        .collect();
    assert_eq!(log, [0, 0, 8, 0, 8, 8]);
}

#[test]
fn hostile_pointers_get_what_wasmtime_wasi_gives_them() {
    let beyond = MEMORY_BYTES;
    let cases: [Step<'_>; 17] = [
        ("fd_read", &[0, 256, 1, 65]),
        ("fd_read", &[0, 256, 1, beyond]),
        ("fd_read", &[0, 258, 1, 64]),
        ("fd_read", &[0, 280, 1, 64]),
        ("fd_read", &[0, 256, -1, 64]),
        ("fd_read", &[0, -4, 1, 64]),
        ("fd_write", &[1, 256, 1, 66]),
        ("fd_write", &[1, 256, 1, beyond - 2]),
        ("fd_write", &[1, 280, 1, 64]),
        ("fd_write", &[1, 256, 0x2000_0000, 64]),
        ("fd_write", &[1, beyond - 4, 1, 64]),
        ("args_sizes_get", &[66, 64]),
        ("args_get", &[512, beyond - 6]),
        ("environ_sizes_get", &[64, -4]),
        ("environ_get", &[beyond - 4, 1024]),
        ("environ_get", &[512, beyond]),
        ("fd_prestat_get", &[3, beyond]),
    ];
    for case in cases {
        same(&[case]);
    }
}
