// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests that attack what is around them: the files of the host, the instance that comes after them in their slot, the
//! thread that they share, and the one who reads why they trapped.

use std::time::{Duration, Instant};

use hearth_protocol::worker::{Ending, INFLIGHT_MAX, Module, Request};

use crate::gateway::{Finished, Worker, compile, roomy, run};
use crate::guests;

/// A time limit that no test reaches.
const AMPLE: Duration = Duration::from_secs(60);

/// A time limit that the test waits for.
const SHORT: Duration = Duration::from_millis(100);

/// How late an end may be noticed on a loaded machine by a worker that is not optimised; its own part is one tick.
const LATE: Duration = Duration::from_secs(1);

/// Paths as they have led out of other runtimes' sandboxes.
const PATHS: [&str; 16] = [
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../../../../etc/passwd",
    "./../etc/passwd",
    "a/../../etc/passwd",
    "etc/passwd/",
    "../",
    "/../",
    "//etc/passwd",
    "/proc/self/exe",
    "/proc/self/fd/3",
    "/dev/null",
    "x/",
    "",
];

/// What takes paths, and in which order its arguments come: `d` the directory, `p` a path's address and length, `i` and
/// `l` a zero of 32 and 64 bits, `r` where a result may be written and `n` how much of it.
const PATH_CALLS: [(&str, &str); 12] = [
    ("path_open", "dipillir"),
    ("path_create_directory", "dp"),
    ("path_filestat_get", "dipr"),
    ("path_filestat_set_times", "diplli"),
    ("path_link", "dipdp"),
    ("path_readlink", "dprnr"),
    ("path_remove_directory", "dp"),
    ("path_rename", "dpdp"),
    ("path_symlink", "pdp"),
    ("path_unlink_file", "dp"),
    ("fd_readdir", "drnlr"),
    ("fd_prestat_dir_name", "drn"),
];

/// Every call with every path on every descriptor that a guest may hope for. It exits with 1 where one succeeds.
fn reach_for_files() -> Vec<u8> {
    let params = |kinds: &str| {
        let types = kinds.chars().map(|kind| match kind {
            'p' => "i32 i32 ",
            'l' => "i64 ",
            _ => "i32 ",
        });
        types.collect::<String>()
    };
    let imports: String = PATH_CALLS
        .iter()
        .map(|(name, kinds)| {
            let params = params(kinds);
            format!(r#"(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) (result i32)))"#)
        })
        .collect();
    let mut attempts = String::new();
    for (index, path) in PATHS.iter().enumerate() {
        let (address, length) = (1024 + 64 * index, path.len());
        for fd in [-1, 0, 1, 2, 3, 4, 5, 100, i32::MAX] {
            for (name, kinds) in PATH_CALLS {
                let args = kinds.chars().map(|kind| match kind {
                    'd' => format!("(i32.const {fd})"),
                    'p' => format!("(i32.const {address})(i32.const {length})"),
                    'l' => "(i64.const 0)".to_owned(),
                    'r' => "(i32.const 4096)".to_owned(),
                    'n' => "(i32.const 64)".to_owned(),
                    _ => "(i32.const 0)".to_owned(),
                });
                let args: String = args.collect();
                attempts += &format!("(call $judge (call ${name} {args}))");
            }
        }
    }
    let data: String = PATHS
        .iter()
        .enumerate()
        .map(|(index, path)| format!(r#"(data (i32.const {}) "{path}")"#, 1024 + 64 * index))
        .collect();
    let text = format!(
        r#"(module {imports}
             (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
             (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
             (memory (export "memory") 1) {data}
             (func $judge (param i32)
               (if (i32.eqz (local.get 0)) (then (call $proc_exit (i32.const 1)))))
             (func $reach {attempts})
             (func (export "_start")
               (call $reach)
               ;; Onto where a preopened directory would be, and from there.
               (call $judge (call $renumber (i32.const 0) (i32.const 3)))
               (call $judge (call $renumber (i32.const 3) (i32.const 0)))
               (drop (call $renumber (i32.const 0) (i32.const 1)))
               (call $reach)))"#
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn no_path_on_any_descriptor_leads_to_a_file() {
    let worker = Worker::bound(&reach_for_files(), roomy());
    let files = |worker: &Worker| {
        std::fs::read_dir(format!("/proc/{}/fd", worker.process.id()))
            .unwrap()
            .count()
    };
    let before = files(&worker);
    for _ in 0..3 {
        assert_eq!(worker.invoke(b"", AMPLE).ending, Ending::Exited(0));
    }
    assert_eq!(files(&worker), before);
}

/// Looks for anything that is not as in a fresh instance, and exits with what it found; then leaves marks everywhere, and
/// ends as the first byte of its body says.
fn haunted() -> Vec<u8> {
    guests::guest(
        2,
        r#"(global $mark (mut i64) (i64.const 0))
           (table $table 10 2000 funcref)
           (elem declare func $mark)
           (data (i32.const 2048) "fresh...")
           (func $mark)
           (func $zero (param $from i32) (param $to i32)
             (loop $again
               (if (i64.ne (i64.load (local.get $from)) (i64.const 0)) (then (call $proc_exit (i32.const 11))))
               (local.set $from (i32.add (local.get $from) (i32.const 8)))
               (br_if $again (i32.lt_u (local.get $from) (local.get $to)))))
           (func $null (param $from i32) (param $to i32)
             (loop $again
               (if (i32.eqz (ref.is_null (table.get $table (local.get $from)))) (then (call $proc_exit (i32.const 12))))
               (local.set $from (i32.add (local.get $from) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $from) (local.get $to)))))
           (func (export "_start")
             (local $how i32)
             ;; Before anything of its own is in memory.
             (call $zero (i32.const 0) (i32.const 2048))
             (call $zero (i32.const 2056) (i32.const 131072))
             (if (i64.ne (i64.load (i32.const 2048)) (i64.const 0x2e2e2e6873657266))
               (then (call $proc_exit (i32.const 13))))
             (if (i64.ne (global.get $mark) (i64.const 0)) (then (call $proc_exit (i32.const 14))))
             (if (i32.ne (memory.size) (i32.const 2)) (then (call $proc_exit (i32.const 15))))
             (if (i32.ne (memory.grow (i32.const 62)) (i32.const 2)) (then (call $proc_exit (i32.const 16))))
             (call $zero (i32.const 131072) (i32.const 4194304))
             (if (i32.ne (table.size $table) (i32.const 10)) (then (call $proc_exit (i32.const 17))))
             (call $null (i32.const 0) (i32.const 10))
             (drop (table.grow $table (ref.null func) (i32.const 1990)))
             (call $null (i32.const 10) (i32.const 2000))
             ;; How to end.
             (i32.store (i32.const 0) (i32.const 1024))
             (i32.store (i32.const 4) (i32.const 1))
             (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
             (local.set $how (i32.load8_u (i32.const 1024)))
             ;; Marks.
             (global.set $mark (i64.const -1))
             (table.fill $table (i32.const 0) (ref.func $mark) (i32.const 2000))
             (memory.fill (i32.const 0) (i32.const 0xAA) (i32.const 4194304))
             (if (i32.eq (local.get $how) (i32.const 1)) (then unreachable))
             (if (i32.eq (local.get $how) (i32.const 2)) (then (call $spin)))
             (if (i32.eq (local.get $how) (i32.const 3)) (then
               (loop $again (br_if $again (i32.ne (memory.grow (i32.const 64)) (i32.const -1))))
               unreachable))
             (if (i32.eq (local.get $how) (i32.const 4)) (then (call $sleep (i64.const 3600000000000)))))"#,
    )
}

#[test]
fn an_instance_begins_with_zeros_however_the_one_before_it_in_its_slot_ended() {
    let limits = Module {
        memory_bytes_max: 16 << 20,
        ..roomy()
    };
    let worker = Worker::bound(&haunted(), limits);
    for round in 0..4_u8 {
        // All slots at once, in another order of endings each time.
        for seq in 1..=u32::from(INFLIGHT_MAX) {
            let how = (u8::try_from(seq).unwrap() + round) % 5;
            worker.begin(seq, &[how], AMPLE);
        }
        for seq in 1..=u32::from(INFLIGHT_MAX) {
            worker.send(&Request::Cancel { seq }, &[]);
        }
        for _ in 0..INFLIGHT_MAX {
            let finished = worker.finish();
            let fresh = matches!(
                finished.ending,
                Ending::Exited(0) | Ending::Trap { .. } | Ending::Cancelled
            );
            assert!(fresh, "round {round}: {:?}", finished.ending);
        }
        for how in [0, 1, 3, 0] {
            let ending = worker.invoke(&[how], AMPLE).ending;
            match how {
                0 => assert_eq!(ending, Ending::Exited(0), "round {round}"),
                _ => assert!(matches!(ending, Ending::Trap { .. }), "{ending:?}"),
            }
        }
    }
}

/// Reads its body to the end, writing what it reads; then does what the last byte says.
fn moody() -> Vec<u8> {
    guests::guest(
        2,
        r#"(func (export "_start") (local $last i32) (local $length i32)
             (loop $again
               (i32.store (i32.const 0) (i32.const 1024))
               (i32.store (i32.const 4) (i32.const 65536))
               (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
               (local.set $length (i32.load (i32.const 8)))
               (if (local.get $length) (then
                 (local.set $last (i32.load8_u (i32.add (i32.const 1023) (local.get $length))))
                 (call $write (i32.const 1) (i32.const 1024) (local.get $length))
                 (br $again))))
             (if (i32.eq (local.get $last) (i32.const 1)) (then (call $spin)))
             (if (i32.eq (local.get $last) (i32.const 2)) (then (call $sleep (i64.const 3600000000000))))
             (if (i32.eq (local.get $last) (i32.const 3)) (then unreachable))
             (if (i32.eq (local.get $last) (i32.const 4)) (then
               (loop $flood (call $write (i32.const 2) (i32.const 1024) (i32.const 65536)) (br $flood)))))"#,
    )
}

/// Knuth's MMIX generator, from a fixed seed: a failure comes again.
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

#[test]
fn ten_thousand_invocations_dropped_wherever_they_are_leave_nothing_behind() {
    const ROUNDS: usize = 160;
    let worker = Worker::bound(&moody(), roomy());
    let mut state = 1;
    let mut round = |worker: &Worker| {
        // In any order, but for each its beginning first: begin, one or two pieces of the body, cancel.
        let mut steps: Vec<(u64, u32, u8)> = (1..=u32::from(INFLIGHT_MAX))
            .flat_map(|seq| [(seq, 0), (seq, 1), (seq, 2)])
            .map(|(seq, step)| (random(&mut state, 1000), seq, step))
            .collect();
        for seq in 1..=u32::from(INFLIGHT_MAX) {
            let mut own: Vec<u64> = steps
                .iter()
                .filter(|(_, whose, _)| *whose == seq)
                .map(|(when, _, _)| *when)
                .collect();
            own.sort_unstable();
            let mut own = own.into_iter();
            for (when, whose, _) in &mut steps {
                if *whose == seq {
                    *when = own.next().unwrap();
                }
            }
        }
        steps.sort_unstable();
        for (when, seq, step) in steps {
            let mood = u8::try_from(when % 5).unwrap();
            match step {
                0 => worker.send(&run(seq, 2, AMPLE), &[0]),
                1 => worker.send(&Request::Body { seq }, &[mood]),
                _ => worker.send(&Request::Cancel { seq }, &[]),
            }
        }
        let mut cancelled = 0;
        for _ in 0..INFLIGHT_MAX {
            let Finished { ending, .. } = worker.finish();
            match ending {
                Ending::Cancelled => cancelled += 1,
                Ending::Exited(0) | Ending::Trap { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        cancelled
    };
    // Once to fill the pool and every allocation that lasts.
    for _ in 0..5 {
        round(&worker);
    }
    let before = worker.status_field(None, "VmRSS:");
    let cancelled: usize = (0..ROUNDS).map(|_| round(&worker)).sum();
    assert!(ROUNDS * 16 < cancelled, "only {cancelled} were cancelled");
    let after = worker.status_field(None, "VmRSS:");
    assert!(after < before + 4096, "{before} kB, then {after} kB");
    assert_eq!(worker.invoke(&[0], AMPLE).stdout, [0]);
    assert_eq!(worker.close().code(), Some(0));
}

#[test]
fn recursion_through_tables_with_host_calls_at_every_depth_is_a_trap() {
    let module = guests::guest(
        1,
        r#"(type $step (func (param i32)))
           (table 2 2 funcref)
           (elem (i32.const 0) $one $two)
           (func $one (type $step)
             (drop (call $random_get (i32.const 1024) (i32.const 64)))
             (call_indirect (type $step) (i32.const 0) (i32.const 1)))
           (func $two (type $step)
             (drop (call $environ_sizes_get (i32.const 1024) (i32.const 1028)))
             (call $sleep (i64.const 0))
             (call_indirect (type $step) (i32.const 0) (i32.const 0)))
           (func (export "_start") (call $one (i32.const 0)))"#,
    );
    let worker = Worker::bound(&module, roomy());
    for _ in 0..3 {
        let ending = worker.invoke(b"", AMPLE).ending;
        let Ending::Trap { text } = &ending else {
            panic!("{ending:?}");
        };
        assert!(text.contains("stack exhausted"), "{text}");
    }
}

#[test]
fn a_host_call_over_all_of_a_large_memory_does_not_outlast_the_deadline() {
    let limits = Module {
        memory_bytes_max: 4 << 30,
        ..roomy()
    };
    // 4 GiB but for a page hold half a billion empty buffers.
    for call in ["$fd_write (i32.const 1)", "$fd_read (i32.const 0)"] {
        let body = format!(
            r#"(func (export "_start")
                 (loop $again
                   (drop (call {call} (i32.const 65536) (i32.const 0x1fffdfff) (i32.const 8)))
                   (br $again)))"#
        );
        let worker = Worker::bound(&guests::guest(65_535, &body), limits.clone());
        let began = Instant::now();
        assert_eq!(worker.invoke(b"", SHORT).ending, Ending::TimedOut);
        let took = began.elapsed();
        assert!(took < SHORT + LATE, "{call}: {took:?}");
    }
}

#[test]
fn what_a_guest_held_in_memory_and_in_variables_is_not_in_what_its_trap_says() {
    let module = guests::guest(
        1,
        r#"(data (i32.const 2048) "hunter2-in-memory")
           (global $secret (mut i64) (i64.const 0x68756e7465723221))
           (func $use (param $secret i64) (param $more f64)
             (i64.store (i32.const 1024) (local.get $secret))
             (i32.store (i32.const 4294901760) (i32.const 1)))
           (func (export "_start") (call $use (global.get $secret) (f64.const 31337.25)))"#,
    );
    let Ending::Trap { text } = Worker::bound(&module, roomy()).invoke(b"", AMPLE).ending else {
        panic!("no trap");
    };
    for secret in ["hunter2", "68756e7465723221", "7526764", "31337"] {
        assert!(!text.contains(secret), "{text}");
    }
    // And nothing of the worker: an address of its own is 12 digits long.
    let addresses = text.split("0x").skip(1);
    for address in addresses {
        let digits = address.chars().take_while(char::is_ascii_hexdigit).count();
        assert!(digits < 12, "{text}");
    }
}

#[test]
fn waiting_for_ever_on_memory_and_results_that_differ_by_host_are_not_offered() {
    for body in [
        "(func (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1))))",
        "(func (drop (i32.atomic.load (i32.const 0))))",
        "(func (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i64x2 0 0))))",
    ] {
        let text =
            format!(r#"(module (memory (export "memory") 1) (func (export "_start")) {body})"#);
        let output = compile(&wat::parse_str(text).unwrap());
        assert_eq!(output.status.code(), Some(65), "{body}");
    }
}
