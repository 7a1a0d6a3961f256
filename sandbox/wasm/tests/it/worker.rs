// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the worker does for the gateway.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use hearth_protocol::frame::{PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX};
use hearth_protocol::worker::{Ending, Event, Module, Request};

use crate::gateway::{Worker, artifact, compile, file_with, roomy, run};
use crate::guests;

/// A time limit that no test reaches.
const AMPLE: Duration = Duration::from_secs(60);

#[test]
fn a_small_answer_is_one_packet() {
    let worker = Worker::bound(&guests::echo(), roomy());
    let finished = worker.invoke(b"hello", AMPLE);
    assert_eq!(finished.ending, Ending::Exited(0));
    assert_eq!(finished.stdout, b"hello");
    assert_eq!(finished.packets, 1);
    assert_eq!(worker.close().code(), Some(0));
}

#[test]
fn bodies_of_every_size_come_back_as_they_went() {
    let worker = Worker::bound(&guests::echo(), roomy());
    for size in [
        0,
        1,
        PAYLOAD_BYTES_MAX - 1,
        PAYLOAD_BYTES_MAX,
        PAYLOAD_BYTES_MAX + 1,
        6 << 20,
    ] {
        let body: Vec<u8> = (0..=250).cycle().take(size).collect();
        let finished = worker.invoke(&body, AMPLE);
        assert_eq!(finished.ending, Ending::Exited(0));
        assert!(finished.stdout == body, "{size} bytes");
    }
}

#[test]
fn every_invocation_has_an_instance_of_its_own() {
    let worker = Worker::bound(&guests::counter(), roomy());
    for _ in 0..20 {
        assert_eq!(worker.invoke(b"", AMPLE).stdout, b"111");
    }
}

#[test]
fn exit_codes_arrive_as_they_were_given() {
    let worker = Worker::bound(&guests::exit(), roomy());
    for code in [0_u32, 1, 125, 126, 255, u32::MAX] {
        let finished = worker.invoke(&code.to_le_bytes(), AMPLE);
        assert_eq!(finished.ending, Ending::Exited(code));
    }
}

#[test]
fn a_trap_tells_what_and_where() {
    let worker = Worker::bound(&guests::trap(), roomy());
    let Ending::Trap { text } = worker.invoke(b"", AMPLE).ending else {
        panic!("no trap");
    };
    assert!(
        text.contains("unreachable") && text.contains("the_culprit"),
        "{text}"
    );
}

#[test]
fn arguments_and_variables_arrive_and_nothing_else_does() {
    let limits = Module {
        env: vec![
            ("KEPT".to_owned(), "1".to_owned()),
            ("BOTH".to_owned(), "of the module".to_owned()),
        ],
        ..roomy()
    };
    let worker = Worker::bound(&guests::world(), limits);
    let request = Request::Run {
        seq: 1,
        args: vec!["name".to_owned(), "argument".to_owned()],
        env: vec![("BOTH".to_owned(), "of the call".to_owned())],
        body_bytes: 0,
        timeout_ms: 60_000,
    };
    worker.send(&request, &[]);
    let finished = worker.finish();
    assert_eq!(
        finished.stdout,
        b"name\0argument\0KEPT=1\0BOTH=of the call\0"
    );
    // EBADF: there is no preopened directory.
    assert_eq!(finished.ending, Ending::Exited(8));
}

#[test]
fn sixty_four_run_at_once() {
    let worker = Worker::bound(&guests::echo(), roomy());
    for seq in 1..=64 {
        worker.send(&run(seq, 1, AMPLE), &[]);
    }
    // All wait for their body: none can have ended yet.
    for seq in 1..=64 {
        worker.send(&Request::Body { seq }, &[u8::try_from(seq).unwrap()]);
    }
    let mut done: Vec<u32> = (1..=64)
        .map(|_| {
            let finished = worker.finish();
            assert_eq!(finished.stdout, [u8::try_from(finished.seq).unwrap()]);
            finished.seq
        })
        .collect();
    done.sort_unstable();
    assert_eq!(done, (1..=64).collect::<Vec<_>>());
}

#[test]
fn a_guest_that_computes_without_end_does_not_stop_the_others() {
    // The module spins where its body is empty, and echoes otherwise.
    let module = guests::guest(
        2,
        r#"(func (export "_start")
             (i32.store (i32.const 0) (i32.const 1024))
             (i32.store (i32.const 4) (i32.const 64))
             (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
             (if (i32.eqz (i32.load (i32.const 8))) (then (call $spin)))
             (call $write (i32.const 1) (i32.const 1024) (i32.load (i32.const 8))))"#,
    );
    let worker = Worker::bound(&module, roomy());
    worker.begin(1, b"", AMPLE);
    for seq in 2..100 {
        worker.begin(seq, b"quick", AMPLE);
        let finished = worker.finish();
        assert_eq!(
            (finished.seq, finished.stdout.as_slice()),
            (seq, b"quick".as_slice())
        );
    }
    worker.send(&Request::Cancel { seq: 1 }, &[]);
    assert_eq!(worker.finish().ending, Ending::Cancelled);
}

#[test]
fn what_was_written_before_a_wait_is_sent_before_its_end() {
    let worker = Worker::bound(&guests::sleep(), roomy());
    worker.begin(1, b"", AMPLE);
    let (event, payload) = worker.event();
    assert!(matches!(event, Event::Output { seq: 1, .. }), "{event:?}");
    assert_eq!(payload, b"up");
    worker.send(&Request::Cancel { seq: 1 }, &[]);
    assert_eq!(worker.finish().ending, Ending::Cancelled);
}

#[test]
fn messages_for_an_invocation_that_has_ended_are_ignored() {
    let worker = Worker::bound(&guests::empty(), roomy());
    // The guest never reads its body, so it may end before the rest of it comes.
    worker.send(&run(1, 10, AMPLE), b"12345");
    assert_eq!(worker.finish().ending, Ending::Exited(0));
    worker.send(&Request::Body { seq: 1 }, b"67890");
    worker.send(&Request::Cancel { seq: 1 }, &[]);
    assert_eq!(worker.invoke(b"", AMPLE).ending, Ending::Exited(0));
}

#[test]
fn a_truncated_or_foreign_artifact_is_refused() {
    let whole = compile(&guests::echo()).stdout;
    let mut inputs: Vec<Vec<u8>> = (0..whole.len())
        .step_by(whole.len() / 16)
        .map(|length| whole[..length].to_vec())
        .collect();
    inputs.push(guests::echo());
    inputs.push(std::fs::read("/proc/self/exe").unwrap());
    for input in inputs {
        let worker = Worker::boot();
        worker.bind(roomy(), &file_with(&input));
        let event = worker.lone_event();
        assert!(
            matches!(event, Event::Failed { .. }),
            "{} bytes: {event:?}",
            input.len()
        );
        assert_eq!(worker.ended().code(), Some(1));
    }
}

#[test]
fn a_module_that_could_never_start_within_its_limit_is_refused_when_it_is_bound() {
    let worker = Worker::boot();
    let limits = Module {
        memory_bytes_max: 1 << 20,
        ..roomy()
    };
    worker.bind(
        limits,
        &artifact(&guests::guest(17, "(func (export \"_start\"))")),
    );
    let event = worker.lone_event();
    assert!(matches!(event, Event::Failed { message } if message.contains("1114112")));
}

#[test]
fn a_gateway_that_breaks_the_protocol_ends_the_worker() {
    let body = || Request::Body { seq: 1 };
    let waiting = || run(1, 4, AMPLE);
    type Messages = Vec<(Request, &'static [u8])>;
    let cases: [(&str, Messages); 5] = [
        ("second bind", vec![(Request::Bind(roomy()), b"")]),
        ("sequence number 0", vec![(run(0, 0, AMPLE), b"")]),
        (
            "same number twice",
            vec![(waiting(), b""), (waiting(), b"")],
        ),
        ("too much body", vec![(waiting(), b""), (body(), b"12345")]),
        ("too long a body", vec![(run(1, usize::MAX, AMPLE), b"")]),
    ];
    let artifact = artifact(&guests::echo());
    for (name, requests) in cases {
        let worker = Worker::boot();
        worker.bind(roomy(), &artifact);
        assert_eq!(worker.lone_event(), Event::Bound);
        for (request, payload) in requests {
            worker.send(&request, payload);
        }
        assert_eq!(worker.ended().code(), Some(1), "{name}");
    }
    for garbage in [
        b"\xff\xff".to_vec(),
        b"\x01\0\x09".to_vec(),
        vec![0; PACKET_BYTES_MAX + 100],
    ] {
        let worker = Worker::boot();
        worker.bind(roomy(), &artifact);
        assert_eq!(worker.lone_event(), Event::Bound);
        worker.send_raw(&garbage).unwrap();
        assert_eq!(worker.ended().code(), Some(1));
    }
}

#[test]
fn more_invocations_than_were_agreed_end_the_worker() {
    let limits = Module {
        inflight_max: 2,
        ..roomy()
    };
    let worker = Worker::bound(&guests::echo(), limits);
    for seq in 1..=3 {
        worker.send(&run(seq, 1, AMPLE), &[]);
    }
    assert_eq!(worker.ended().code(), Some(1));
}

#[test]
fn a_worker_ends_with_its_socket_also_while_a_guest_spins() {
    let worker = Worker::boot();
    assert_eq!(worker.close().code(), Some(0));
    let worker = Worker::bound(&guests::spin(), roomy());
    worker.begin(1, b"", AMPLE);
    assert_eq!(worker.close().code(), Some(0));
}

#[test]
fn every_thread_of_a_booted_worker_is_under_the_filter() {
    let worker = Worker::boot();
    let tasks: Vec<String> = std::fs::read_dir(format!("/proc/{}/task", worker.process.id()))
        .unwrap()
        .map(|task| task.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(tasks.len(), 2, "one serves, one ticks");
    for task in tasks {
        assert_eq!(worker.status_field(Some(&task), "Seccomp:"), 2);
        assert_eq!(worker.status_field(Some(&task), "NoNewPrivs:"), 1);
    }
}

#[test]
fn a_worker_without_work_does_not_wake_up() {
    let worker = Worker::bound(&guests::empty(), roomy());
    assert_eq!(worker.invoke(b"", AMPLE).ending, Ending::Exited(0));
    // The clock stops at the first tick without work; the time is spent on another worker's deadline.
    let elsewhere = Worker::bound(&guests::sleep(), roomy());
    let pause = |milliseconds| {
        let timeout = Duration::from_millis(milliseconds);
        assert_eq!(elsewhere.invoke(b"", timeout).ending, Ending::TimedOut);
    };
    pause(50);
    let before = wakeups(&worker);
    pause(300);
    assert_eq!(wakeups(&worker), before);
}

#[test]
fn a_booted_worker_is_not_dumpable() {
    // The files of a process that is not dumpable are root's, whoever runs it (proc(5)). To see that, root's own test
    // runs the worker as another user.
    let worker = if rustix::process::geteuid().is_root() {
        Worker::boot_as(65_534)
    } else {
        Worker::boot()
    };
    let environ = format!("/proc/{}/environ", worker.process.id());
    assert_eq!(std::fs::metadata(environ).unwrap().uid(), 0);
}

/// Voluntary context switches of all threads.
fn wakeups(worker: &Worker) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.process.id())).unwrap();
    tasks
        .map(|task| {
            let task = task.unwrap().file_name().into_string().unwrap();
            worker.status_field(Some(&task), "voluntary_ctxt_switches:")
        })
        .sum()
}

#[test]
fn the_compiler_takes_a_module_in_pieces() {
    // A pipe gives what is there: the compiler must not stop at the first short read.
    let module = guests::echo();
    let mut compiler = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-wasm-compiler"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = compiler.stdin.take().unwrap();
    for piece in module.chunks(module.len() / 3) {
        stdin.write_all(piece).unwrap();
    }
    drop(stdin);
    assert_eq!(
        compiler.wait_with_output().unwrap().stdout,
        compile(&module).stdout
    );
}
