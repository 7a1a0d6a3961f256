// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every limit, hit on purpose: the answer's code and evidence, the receipt, and that what comes after finds nothing of it.

use std::time::{Duration, Instant};

use crate::http::Connection;
use crate::instance::Instance;
use crate::package::Kind;
use crate::victim::{TIGHT, Victim, limits_hit};
use crate::{turn, world};

const MIB: u64 = 1 << 20;

/// Time limit of [`TIGHT`].
const TIMEOUT: Duration = Duration::from_secs(1);

/// What the platform may add to a time limit before the caller has the answer, on a machine whose cores are busy.
const LATE_MAX: Duration = Duration::from_millis(500);

#[test]
fn memory_beyond_the_limit_ends_the_function_with_oom_and_the_peak_as_evidence() {
    let _turn = turn::take!(alone);
    Victim::of_both_kinds("memory", TIGHT, |victim| {
        let (problem, receipt) = victim.fails("memory", 502, "function_killed");
        let cause = &problem["evidence"]["cause"];
        assert_eq!(cause["cause"], "oom", "{problem}");
        assert_eq!(cause["limit_bytes"], 64 * MIB, "{problem}");
        let peak = cause["peak_bytes"].as_u64().unwrap();
        assert!((48 * MIB..=64 * MIB).contains(&peak), "{problem}");
        assert_eq!(limits_hit(&receipt), ["memory"]);
    });
}

#[test]
fn a_function_that_exceeds_its_cpu_share_is_slowed_down_and_the_receipt_says_so() {
    let _turn = turn::take!(alone);
    for kind in Kind::BOTH {
        let victim = Victim::new("cpu", kind, "[limits]\ncpu = 0.2\ntimeout = \"10s\"");
        let (_, receipt) = victim.succeeds("burn 300");
        assert!(limits_hit(&receipt).contains(&"cpu"), "{receipt}");
        let run_us = receipt["phases"]["run_us"].as_u64().unwrap();
        let cpu_us = receipt["usage"]["cpu_us"].as_u64().unwrap();
        // A fifth of a core: at least three times as long as it computed, even with the first period's whole share.
        assert!(3 * cpu_us <= run_us, "{receipt}");
        victim.recovers();
    }
}

#[test]
fn a_fork_bomb_and_a_thread_bomb_meet_the_process_limit_and_are_gone_afterwards() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("pids", Kind::Native, TIGHT, |victim| {
        for mode in ["forkbomb 100", "threads 100"] {
            let (text, receipt) = victim.succeeds(mode);
            let made: u64 = text.split([' ', ',']).nth(1).unwrap().parse().unwrap();
            assert!((10..16).contains(&made), "{text}");
            assert!(!text.contains("none"), "{text}");
            assert_eq!(limits_hit(&receipt), ["pids"], "{receipt}");
            let killed = receipt["residue"]["processes_killed"].as_u64().unwrap();
            assert_eq!(
                killed,
                if mode.starts_with("fork") { made } else { 0 },
                "{receipt}"
            );
            assert_eq!(receipt["residue"]["none"], true, "{receipt}");
            victim.behaves();
        }
        let (_, receipt) = victim.fails("forkbomb 100 stay", 504, "function_timed_out");
        assert!(limits_hit(&receipt).contains(&"pids"), "{receipt}");
    });
}

#[test]
fn whatever_a_function_does_instead_of_ending_it_ends_at_its_time_limit() {
    let _turn = turn::take!(alone);
    let everywhere = [
        "spin",
        "sleep",
        "close-stdout-and-sleep",
        "drip 100",
        "read-nothing stay",
    ];
    let native = ["stop-self", "ignore-signals", "close-all-and-sleep"];
    Victim::of_both_kinds("timeout", TIGHT, |victim| {
        let kind = victim.kind();
        let modes = everywhere.iter().chain(if kind == Kind::Native {
            &native[..]
        } else {
            &[]
        });
        for mode in modes {
            let began = Instant::now();
            let (problem, receipt) = victim.fails(mode, 504, "function_timed_out");
            let took = began.elapsed();
            assert!(
                TIMEOUT <= took && took <= TIMEOUT + LATE_MAX,
                "{kind:?} {mode}: {took:?}"
            );
            assert_eq!(problem["evidence"]["limit_ms"], 1000, "{mode}: {problem}");
            assert!(
                limits_hit(&receipt).contains(&"timeout"),
                "{mode}: {receipt}"
            );
            victim.behaves();
        }
    });
}

#[test]
fn scratch_is_limited_in_bytes_and_in_files_and_the_next_invocation_finds_it_empty() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("scratch", Kind::Native, TIGHT, |victim| {
        for mode in ["scratch-fill", "scratch-inodes"] {
            let (text, receipt) = victim.succeeds(mode);
            assert!(text.contains("No space left on device"), "{text}");
            assert_eq!(limits_hit(&receipt), ["scratch"], "{mode}: {receipt}");
            // A second one gets as far as the first. Whether in the same sandbox the kernel decides: it may be slow to give
            // up a thousand inodes, and then the sandbox is not used again.
            let answer = victim.attack(mode).expect(200);
            assert_eq!(answer.text(), text, "{receipt}");
            victim.behaves();
        }
        let (text, _) = victim.succeeds("scratch-fill");
        let written: u64 = text.split([' ', ',']).nth(1).unwrap().parse().unwrap();
        assert_eq!(written, 4 * MIB, "{text}");
    });
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_anything_runs() {
    let _turn = turn::take!(alone);
    for kind in Kind::BOTH {
        let victim = Victim::new("request", kind, TIGHT);
        let fits = vec![b' '; 64 << 10];
        assert_eq!(
            victim.instance.invoke(&victim.name, &fits).status,
            502,
            "no mode, but read"
        );

        let problem = victim
            .instance
            .invoke(&victim.name, &vec![b' '; (64 << 10) + 1])
            .problem(413, "payload_too_large");
        assert_eq!(problem["evidence"]["limit_bytes"], 64 << 10, "{problem}");

        // Without a length it shows only while it is read.
        let mut connection = Connection::open(victim.instance.address).unwrap();
        let head = format!(
            "POST /invoke/{} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n",
            victim.name
        );
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(b"10001\r\n");
        bytes.extend_from_slice(&vec![b' '; 0x10001]);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        std::io::Write::write_all(connection.raw(), &bytes).unwrap();
        connection
            .answer()
            .unwrap()
            .problem(413, "payload_too_large");
        victim.recovers();
    }
}

/// Of answers that are held back whole.
const SMALL: &str =
    "[limits]\nresponse = \"32KiB\"\n[scaling]\nmax_instances = 1\nmax_inflight = 1";

#[test]
fn output_beyond_the_limit_is_an_error_and_breaks_an_answer_that_has_begun() {
    let _turn = turn::take!(alone);
    Victim::of_both_kinds("response-small", SMALL, |victim| {
        let (problem, receipt) = victim.fails("flood-stdout 100000", 502, "response_too_large");
        assert_eq!(problem["evidence"]["limit_bytes"], 32 << 10, "{problem}");
        let seen = problem["evidence"]["seen_bytes"].as_u64().unwrap();
        assert!((32 << 10) <= seen, "{problem}");
        assert_eq!(limits_hit(&receipt), ["response"]);
        let fits = victim.attack("flood-stdout 32768").expect(200);
        assert_eq!(fits.body.len(), 32 << 10);
    });
    // More than is held back: the status is out already.
    Victim::of_both_kinds("response-large", TIGHT, |victim| {
        for mode in ["flood-stdout", "flood-both", "flood-stdout 262145"] {
            is_broken_off(victim, mode);
            victim.behaves();
        }
        let fits = victim.attack("flood-stdout 262144").expect(200);
        assert_eq!(fits.body.len(), 256 << 10);
    });
}

/// Half an answer must not look like a whole one.
fn is_broken_off(victim: &Victim, mode: &str) {
    let mut connection = Connection::open(victim.instance.address).unwrap();
    let (path, input) = (format!("/invoke/{}", victim.name), format!("{mode}\n"));
    connection
        .send("POST", &path, &[], input.as_bytes())
        .unwrap();
    let (status, headers) = connection.head().unwrap();
    assert_eq!(status, 200, "{mode}");
    let header = |name: &str| {
        let found = headers.iter().find(|(own, _)| own == name);
        found
            .unwrap_or_else(|| panic!("{name}: {headers:?}"))
            .1
            .clone()
    };
    victim.made(Some(&header("hearth-start")), mode);
    let mut rest = Vec::new();
    drop(std::io::Read::read_to_end(connection.raw(), &mut rest));
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{mode}");
    let receipt = victim.instance.receipt(&header("hearth-invocation"));
    assert_eq!(
        receipt["outcome"], "response_too_large",
        "{mode}: {receipt}"
    );
}

#[test]
fn a_log_beyond_the_limit_is_cut_and_counted_and_what_follows_a_line_of_a_mebibyte_arrives() {
    let _turn = turn::take!(alone);
    Victim::of_both_kinds("log", TIGHT, |victim| {
        let kind = victim.kind();
        let (text, receipt) = victim.succeeds("long-log-line");
        assert_eq!(text, "logged\n");
        let lines: Vec<(&str, bool)> = receipt["log"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| {
                (
                    line["text"].as_str().unwrap(),
                    line["cut"].as_bool().unwrap(),
                )
            })
            .collect();
        assert_eq!(lines.len(), 5, "{kind:?}");
        assert_eq!(lines[0], ("before the long line", false));
        assert!(lines[1].0.starts_with("xxxx") && lines[1].1, "{kind:?}");
        assert_eq!(lines[4], ("after the long line 3", false));
        let (cut, kept) = (
            receipt["log_dropped_bytes"].as_u64().unwrap(),
            lines[1].0.len() as u64,
        );
        assert_eq!(cut + kept, MIB, "{kind:?}");
        assert_eq!(limits_hit(&receipt), ["log"], "{kind:?}");

        let (text, receipt) = victim.succeeds("flood-stderr 4000000");
        assert_eq!(text, "done\n");
        assert_eq!(limits_hit(&receipt), ["log"], "{kind:?}");
        let dropped = receipt["log_dropped_bytes"].as_u64().unwrap();
        assert!(
            (3_900_000..4_000_000).contains(&dropped),
            "{kind:?}: {dropped}"
        );
    });
}

#[test]
fn a_grandchild_that_holds_stdout_does_not_hold_up_the_answer_and_does_not_survive() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("daemon", Kind::Native, TIGHT, |victim| {
        for mode in ["daemon", "daemon-loud", "daemon-log"] {
            let mut slowest_us = 0;
            for _ in 0..5 {
                let (text, receipt) = victim.succeeds(mode);
                assert!(
                    text.starts_with("done\n")
                        || text.ends_with("done\n")
                        || text.contains("\ndone\n"),
                    "{text}"
                );
                // The grandchild, and perhaps the process between, whose parent had not seen its end.
                let killed = receipt["residue"]["processes_killed"].as_u64().unwrap();
                assert!((1..=2).contains(&killed), "{receipt}");
                assert_eq!(receipt["residue"]["none"], true, "{receipt}");
                slowest_us = slowest_us.max(receipt["phases"]["run_us"].as_u64().unwrap());
            }
            println!("{mode}: the slowest of five answers took {slowest_us} us");
            assert!(slowest_us < 150_000, "{mode}: {slowest_us} us");
        }
    });
}

#[test]
fn a_receipt_agrees_with_what_a_function_is_known_to_have_used() {
    let _turn = turn::take!(alone);
    for kind in Kind::BOTH {
        let victim = Victim::new(
            "usage",
            kind,
            "[limits]\nmemory = \"128MiB\"\ntimeout = \"5s\"",
        );
        for burnt_ms in [50, 400] {
            let before = computed_us(victim.instance);
            let (text, receipt) = victim.succeeds(&format!("burn {burnt_ms}"));
            // A wasm program has no clock of its CPU time; the kernel has one of the worker's threads.
            let known_us = match kind {
                Kind::Native => text.trim().parse().unwrap(),
                Kind::Wasm => computed_us(victim.instance) - before,
            };
            let cpu_us = receipt["usage"]["cpu_us"].as_u64().unwrap();
            println!("{kind:?}: computed for {known_us} us, the receipt says {cpu_us}");
            assert!(
                cpu_us.abs_diff(known_us) <= known_us / 5 + 10_000,
                "{kind:?}: {known_us} {receipt}"
            );
        }
        for touched in [8 * MIB, 64 * MIB] {
            let (_, receipt) = victim.succeeds(&format!("touch {touched}"));
            let peak = receipt["usage"]["memory_peak_bytes"].as_u64().unwrap();
            println!("{kind:?}: touched {touched} bytes, the receipt says {peak}");
            assert!(
                peak.abs_diff(touched) <= 8 * MIB,
                "{kind:?}: {touched} {receipt}"
            );
        }
        // The peak is this invocation's, not the largest so far.
        let (_, receipt) = victim.succeeds("print little");
        assert!(
            receipt["usage"]["memory_peak_bytes"].as_u64().unwrap() < 16 * MIB,
            "{receipt}"
        );
        victim.recovers();
    }
}

/// What all processes in sandboxes have computed so far. Only one of them is busy where a test is alone.
fn computed_us(instance: &Instance) -> u64 {
    let inside = instance.sandboxed();
    inside
        .iter()
        .map(|process| world::computed_us(process.pid))
        .sum()
}
