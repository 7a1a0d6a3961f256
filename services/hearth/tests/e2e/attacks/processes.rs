// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Processes that are hard to end, and what can be done to the pipes that a function is given.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::all_refused;
use crate::package::Kind;
use crate::victim::{NARROW, Victim, limits_hit};
use crate::wait::{SOON, until_true};
use crate::{turn, world};

/// Time limit of [`NARROW`].
const TIMEOUT: Duration = Duration::from_secs(1);

/// What the platform may add to a time limit before the caller has the answer, on a machine whose cores are busy.
const LATE_MAX: Duration = Duration::from_millis(500);

/// The storm's processes, and room for init and the main one.
const STORM: &str =
    "[limits]\npids = 303\ntimeout = \"1s\"\nmemory = \"256MiB\"\n[scaling]\nmax_instances = 1";

/// Until a sandbox of 300 processes is gone from the host after the answer. The benchmark `neighbours` says how long it takes
/// on a quiet machine; this is what even a busy one must keep to.
const EMPTIED_MAX: Duration = Duration::from_secs(2);

#[test]
fn vfork_chains_and_zombies_meet_the_process_limit_and_are_reaped() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("vfork", Kind::Native, NARROW, |victim| {
        let (_, receipt) = victim.fails("vfork-chain", 504, "function_timed_out");
        assert!(limits_hit(&receipt).contains(&"pids"), "{receipt}");
        for _ in 0..3 {
            let (text, receipt) = victim.succeeds("zombies 100");
            // Sixteen less init and the main process: those of the last call are not counted any more.
            assert_eq!(text, "left 14\n");
            assert_eq!(receipt["residue"]["none"], true, "{receipt}");
            assert_eq!(receipt["residue"]["processes_left"], 1, "{receipt}");
        }
    });
}

#[test]
fn three_hundred_processes_deaf_stopped_and_in_sessions_of_their_own_are_gone_after_the_deadline() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("storm", Kind::Native, STORM, |victim| {
        let instance = victim.instance.home.instance();
        std::thread::scope(|scope| {
            let began = Instant::now();
            let attack = scope.spawn(|| victim.fails("storm 300", 504, "function_timed_out"));
            until_true("the storm is there", SOON, || {
                300 < world::in_cgroups_of(&instance).len()
            });
            attack.join().unwrap();
            assert!(
                began.elapsed() < TIMEOUT + LATE_MAX,
                "{:?}",
                began.elapsed()
            );
            let answered = Instant::now();
            until_true("the storm is over", EMPTIED_MAX, || {
                world::in_cgroups_of(&instance).len() < 100
            });
            println!(
                "gone {:?} after the answer and its receipt",
                answered.elapsed()
            );
        });
    });
}

#[test]
fn a_main_process_that_ends_while_its_thread_cannot_be_interrupted_is_ended_whole() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("stuck", Kind::Native, NARROW, |victim| {
        for _ in 0..3 {
            let began = Instant::now();
            let (text, receipt) = victim.succeeds("vfork-stuck");
            assert_eq!(text, "stuck\n");
            assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
            assert_eq!(receipt["residue"]["none"], true, "{receipt}");
        }
    });
}

#[test]
fn a_chain_of_ten_thousand_execs_is_one_process_and_ends_at_its_time_limit() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("chain", Kind::Native, NARROW, |victim| {
        let began = Instant::now();
        victim.fails("exec-chain 10000", 504, "function_timed_out");
        assert!(
            began.elapsed() < TIMEOUT + LATE_MAX,
            "{:?}",
            began.elapsed()
        );
    });
}

/// The largest body that a function takes where its manifest says nothing, in bytes.
const BODY_BYTES: usize = 6 << 20;

#[test]
fn a_body_that_is_never_read_ends_with_the_time_limit_and_is_let_go() {
    let _turn = turn::take!(alone);
    for kind in Kind::BOTH {
        Victim::fresh_and_reused("unread", kind, NARROW, |victim| {
            let mut body = b"read-nothing stay\n".to_vec();
            body.resize(BODY_BYTES, b'x');
            let began = Instant::now();
            let path = format!("/invoke/{}", victim.name);
            // What runs is the mode in the first line; the attack itself is the rest that nobody takes.
            victim.attack("print first").expect(200);
            let answer = victim.instance.call("POST", &path, &[], &body);
            answer.problem(504, "function_timed_out");
            let took = began.elapsed();
            assert!(took < TIMEOUT + 2 * LATE_MAX, "{took:?}");
        });
    }
}

#[test]
fn the_only_ways_to_speak_are_three_pipes_that_take_no_descriptor_and_know_no_sender() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("channel", Kind::Native, NARROW, |victim| {
        for _ in 0..10 {
            let attempts = victim.attack("result-channel").expect(200).json();
            all_refused(&attempts, &["ENOTSOCK"]);
        }
    });
}

#[test]
fn terminal_control_and_bytes_that_are_no_text_are_kept_escaped() {
    let _turn = turn::take!(alone);
    for kind in Kind::BOTH {
        Victim::fresh_and_reused("nasty", kind, NARROW, |victim| {
            let (_, receipt) = victim.succeeds("nasty-log");
            let lines: Vec<&str> = receipt["log"]
                .as_array()
                .unwrap()
                .iter()
                .map(|line| line["text"].as_str().unwrap())
                .collect();
            assert!(3 < lines.len(), "{receipt}");
            for line in lines {
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
            let output = victim.instance.cli(&["logs", &victim.name]);
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(shown.contains("quoted"), "{shown}");
            let raw = shown.chars().any(|one| one.is_control() && one != '\n');
            assert!(!raw, "{shown:?}");
        });
    }
}

#[test]
fn every_fatal_signal_is_told_apart() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("fatal", Kind::Native, NARROW, |victim| {
        // All whose default is to end the process, but for SIGPIPE, which the program's start-up code ignores, and SIGBUS
        // and SIGSEGV, for which it has a handler: `segfault` is the real one. From 32 on they are the real-time signals, the
        // first two of which belong to the C library.
        for signal in [
            1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 32, 34, 50, 64,
        ] {
            let (problem, _) = victim.fails(&format!("signal {signal}"), 502, "function_killed");
            let cause = &problem["evidence"]["cause"];
            // SIGSYS is what a filter's killing looks like, sent by itself or not.
            let told = cause["signal"] == signal || signal == 31 && cause["cause"] == "seccomp";
            assert!(told, "{signal}: {problem}");
        }
        assert_eq!(victim.attack("signal 17").expect(200).text(), "survived\n");
        let (_, receipt) = victim.succeeds("no-output");
        assert_eq!(receipt["residue"]["none"], Value::Bool(true));
    });
}
