// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a module can attempt that a process has no need of: its memory, host calls that ask for much, descriptors that
//! nobody gave it, and its last words. The worker's own tests (`sandbox/wasm/tests`) go deeper; here it is deployed and called.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::http::Connection;
use crate::package::Kind;
use crate::turn;
use crate::victim::{NARROW, Victim};
use crate::wait::{SOON, until};
use crate::world;

const MIB: u64 = 1 << 20;

/// The memory limit of [`NARROW`], in pages of a module.
const PAGES_MAX: u64 = 64 * MIB / 65_536;

/// What a worker may keep of the largest thing that a module made its host allocate (threats.md, W-07).
const WORKER_GROWTH_MAX: u64 = 32 * MIB;

/// Of preview 1: no such descriptor, not a socket, not supported, no capability for it, and invalid.
const REFUSALS: [&str; 6] = ["8", "57", "58", "76", "28", "54"];

#[test]
fn memory_that_is_only_grown_ends_at_the_limit() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("grown", Kind::Wasm, NARROW, |victim| {
        for _ in 0..3 {
            let (text, _) = victim.succeeds("reserve");
            let granted: Value = serde_json::from_str(&text).unwrap();
            let pages = granted.as_object().unwrap().iter();
            let pages: u64 = pages
                .map(|(pages, times)| pages.parse::<u64>().unwrap() * times.as_u64().unwrap())
                .sum();
            // All of it but what the module began with.
            assert!((PAGES_MAX / 2..PAGES_MAX).contains(&pages), "{granted}");
        }
        victim.fails("memory", 502, "function_killed");
        victim.fails("recurse", 502, "function_failed");
    });
}

/// Resident memory of all wasm workers.
fn workers_bytes(victim: &Victim) -> u64 {
    let inside = victim.instance.sandboxed();
    inside
        .iter()
        .map(|process| world::resident_bytes(process.pid))
        .sum()
}

#[test]
fn host_calls_that_ask_for_much_are_refused_or_cost_the_host_little() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("asking", Kind::Wasm, NARROW, |victim| {
        for mode in ["subscribe-much", "draw-much", "write-much"] {
            // The first time fills what lasts.
            victim.attack(mode);
            victim.behaves();
            let before = workers_bytes(victim);
            for _ in 0..5 {
                let answer = victim.attack(mode);
                let receipt = victim.receipt(&answer);
                let outcome = receipt["outcome"].as_str().unwrap();
                let ends = ["ok", "function_failed", "function_timed_out"];
                assert!(ends.contains(&outcome), "{mode}: {receipt}");
            }
            victim.behaves();
            until("the worker is no larger", SOON, || {
                let after = workers_bytes(victim);
                if after < before + WORKER_GROWTH_MAX {
                    Ok(())
                } else {
                    Err(format!("{mode}: {before} bytes, then {after}"))
                }
            });
        }
    });
}

/// Demands that every call of an attack was refused. The keys are `call: errno`.
fn all_refused_but(victim: &Victim, mode: &str, allowed: &[&str]) {
    let counts = victim.attack(mode).expect(200).json();
    let counts = counts.as_object().unwrap();
    assert!(!counts.is_empty());
    for answer in counts.keys() {
        let (_, errno) = answer.rsplit_once(": ").unwrap();
        let known = REFUSALS.contains(&errno) || allowed.contains(&answer.as_str());
        assert!(known, "{mode}: {answer}: {counts:?}");
    }
}

#[test]
fn no_descriptor_is_to_be_had_and_none_leads_to_who_takes_the_answer() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("descriptors", Kind::Wasm, NARROW, |victim| {
        for _ in 0..3 {
            all_refused_but(victim, "kernel-objects", &[]);
            all_refused_but(victim, "result-channel", &[]);
            let seen = victim.attack("whoami").expect(200).json();
            assert_eq!(seen["fds"], serde_json::json!([0, 1, 2]), "{seen}");
            assert_eq!(seen["preopens"], serde_json::json!([]), "{seen}");
            for (path, result) in seen["opens"].as_object().unwrap() {
                assert_ne!(result, "ok", "{path}");
            }
            let text = seen.to_string();
            for word in ["HEARTH_", "PATH", "/trees/", "hearth-e2e"] {
                assert!(!text.contains(word), "{word}: {text}");
            }
        }
    });
}

#[test]
fn a_module_cannot_flush_the_hosts_disks() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("flushing", Kind::Wasm, NARROW, |victim| {
        all_refused_but(victim, "sync-loop 10000", &[]);
    });
}

#[test]
fn what_a_module_held_is_not_in_its_last_words_and_no_core_is_written() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("last-words", Kind::Wasm, NARROW, |victim| {
        for mode in ["secret-trap", "trap", "panic"] {
            let (problem, receipt) = victim.fails(mode, 502, "function_failed");
            assert_eq!(problem["evidence"]["cause"]["cause"], "trap", "{problem}");
            for text in [problem.to_string(), receipt.to_string()] {
                assert!(!text.contains("held-secret"), "{text}");
                assert!(text.len() < 64 << 10, "{} bytes", text.len());
            }
        }
        super::resources::no_core_is_anywhere();
    });
}

#[test]
fn callers_that_go_away_leave_nothing_of_their_calls() {
    let _turn = turn::take!(alone);
    /// For each of the two sandboxes.
    const CALLS: usize = 30;
    Victim::fresh_and_reused("left-alone", Kind::Wasm, NARROW, |victim| {
        let path = format!("/invoke/{}", victim.name);
        for _ in 0..CALLS {
            let mut connection = Connection::open(victim.instance.address).unwrap();
            connection
                .send("POST", &path, &[], b"flood-stdout\n")
                .unwrap();
            let (status, headers) = connection.head().unwrap();
            assert_eq!(status, 200);
            let header = |name: &str| {
                let found = headers.iter().find(|(own, _)| own == name);
                found
                    .unwrap_or_else(|| panic!("{name}: {headers:?}"))
                    .1
                    .clone()
            };
            victim.made(Some(&header("hearth-start")), "a caller that goes away");
            drop(connection);
            let receipt = victim.instance.receipt(&header("hearth-invocation"));
            let outcome = receipt["outcome"].as_str().unwrap();
            // It writes as fast as it can, and may be at its limit before anybody sees the end of the connection.
            let ends = ["cancelled", "response_too_large"];
            assert!(ends.contains(&outcome), "{receipt}");
        }
    });
}

#[test]
fn no_two_instances_are_given_the_same_random_bytes() {
    let _turn = turn::take!(alone);
    let mut seen = BTreeSet::new();
    let seen = std::sync::Mutex::new(&mut seen);
    Victim::fresh_and_reused("drawing", Kind::Wasm, NARROW, |victim| {
        for _ in 0..20 {
            let (text, _) = victim.succeeds("draw");
            assert_eq!(text.trim().len(), 64, "{text}");
            assert_ne!(text.trim(), "0".repeat(64));
            assert!(seen.lock().unwrap().insert(text.clone()), "{text} again");
        }
    });
}

#[test]
fn a_module_that_waits_or_computes_beyond_its_time_leaves_its_worker_to_nobody() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("waiting", Kind::Wasm, NARROW, |victim| {
        for mode in ["spin", "sleep"] {
            let (_, receipt) = victim.fails(mode, 504, "function_timed_out");
            let run_us = receipt["phases"]["run_us"].as_u64().unwrap();
            let run = Duration::from_micros(run_us);
            let limit = Duration::from_secs(1);
            assert!(limit <= run && run < limit * 3 / 2, "{mode}: {receipt}");
            victim.behaves();
        }
    });
}
