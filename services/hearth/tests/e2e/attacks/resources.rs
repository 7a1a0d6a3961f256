// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a function can use up in less obvious ways than `limits` has: address space, kernel memory, pages of files, names.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{all_refused, members};
use crate::http::Answer;
use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::victim::{NARROW, Victim, limits_hit, made};
use crate::wait::{SOON, until_true};
use crate::{turn, world};

const MIB: u64 = 1 << 20;

/// Time limit of [`NARROW`], and what the platform may add before the caller has the answer on a busy machine.
const ENDED_MAX: Duration = Duration::from_millis(1000 + 500);

/// How long a sandbox that was filled may keep its next call waiting.
const RECYCLED_MAX: Duration = Duration::from_secs(2);

/// The attack ends by itself, or by the memory limit; nothing else is right.
fn ends_well_or_by_memory(answer: &Answer, receipt: &Value) {
    match answer.status {
        200 => assert_eq!(receipt["outcome"], "ok", "{receipt}"),
        _ => {
            let problem = answer.problem(502, "function_killed");
            assert_eq!(problem["evidence"]["cause"]["cause"], "oom", "{problem}");
            assert_eq!(limits_hit(receipt), ["memory"], "{receipt}");
        }
    }
}

#[test]
fn address_space_that_is_only_reserved_costs_nobody_anything() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("reserve", Kind::Native, NARROW, |victim| {
        let (text, receipt) = victim.succeeds("reserve");
        for result in text.split_whitespace() {
            assert!(["ok", "ENOMEM"].contains(&result), "{text}");
        }
        let peak = receipt["usage"]["memory_peak_bytes"].as_u64().unwrap();
        assert!(peak < 16 * MIB, "{receipt}");
    });
}

#[test]
fn pages_of_a_memfd_count_as_memory_and_are_gone_before_the_next_call() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("memfd", Kind::Native, NARROW, |victim| {
        // More than half of the memory limit: a second one could not have it if the first one's were still charged.
        for _ in 0..3 {
            let (text, _) = victim.succeeds(&format!("memfd-fill {}", 40 * MIB));
            assert!(text.contains("\"count\":40"), "{text}");
        }
        let (problem, receipt) = victim.fails("memfd-fill", 502, "function_killed");
        assert_eq!(problem["evidence"]["cause"]["cause"], "oom", "{problem}");
        assert_eq!(limits_hit(&receipt), ["memory"]);
    });
}

#[test]
fn a_deleted_file_that_a_daemon_holds_is_given_back_with_the_daemon() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("deleted", Kind::Native, NARROW, |victim| {
        for _ in 0..3 {
            let (text, receipt) = victim.succeeds("deleted-file");
            // 4 MiB in blocks of 64 KiB, every time.
            assert!(text.contains("\"count\":64,\"error\":\"ENOSPC\""), "{text}");
            let residue = &receipt["residue"];
            assert!(
                0 < residue["processes_killed"].as_u64().unwrap(),
                "{receipt}"
            );
            assert_eq!(residue["none"], true, "{receipt}");
        }
    });
}

#[test]
fn full_pipes_and_sockets_are_bounded_and_a_neighbour_has_its_own() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("pipes", Kind::Native, NARROW, |victim| {
        let answer = victim.attack("pipes");
        ends_well_or_by_memory(&answer, &victim.receipt(&answer));
        let neighbour = during(victim, "pipes", "pipe-neighbour", "pipes");
        assert!(
            [200, 502].contains(&neighbour.status),
            "{}",
            neighbour.text()
        );
    });
}

#[test]
fn kernel_objects_are_charged_to_their_maker_and_a_neighbour_has_its_own() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("objects", Kind::Native, NARROW, |victim| {
        for mode in ["kernel-objects", "names 100000"] {
            let answer = victim.attack(mode);
            ends_well_or_by_memory(&answer, &victim.receipt(&answer));
        }
        // While one has as many of each as it can get, another gets as many: none is counted for both.
        let alone = victim.attack("kernel-objects").text();
        let neighbour = during(
            victim,
            "kernel-objects",
            "object-neighbour",
            "kernel-objects",
        );
        assert_eq!(neighbour.expect(200).text(), alone);
    });
}

/// What another function answers to `theirs` while the victim holds what it took by `ours`.
fn during(victim: &Victim, ours: &str, neighbour: &str, theirs: &str) -> Answer {
    let instance = victim.instance;
    instance.deploy(&Package::hostile(neighbour, Kind::Native, NARROW));
    let call = |mode: &str| instance.invoke(neighbour, format!("{mode}\n").as_bytes());
    call("print ready").expect(200);
    let answer = std::thread::scope(|scope| {
        let attack = scope.spawn(|| victim.attack(ours));
        let answer = call(theirs);
        attack.join().unwrap();
        answer
    });
    instance.remove(neighbour);
    answer
}

#[test]
fn reading_more_than_fits_into_memory_is_its_readers_own_cost() {
    let _turn = turn::take!(alone);
    // 48 MiB that do not compress to the same page, in a sandbox of 32 MiB.
    let content: Vec<u8> = (0..48 * MIB / 8).flat_map(u64::to_le_bytes).collect();
    let manifest = "[limits]\nmemory = \"32MiB\"\ntimeout = \"2s\"\n[scaling]\nmax_instances = 1";
    let files: [(&str, &[u8]); 1] = [("data", &content)];
    Victim::with_files("thrash", Kind::Native, manifest, &files, |victim| {
        let instance = victim.instance;
        instance.deploy(&Package::hostile("beside-thrash", Kind::Native, NARROW));
        std::thread::scope(|scope| {
            let attack = scope.spawn(|| {
                let mode = "read-over /function/data";
                victim.fails(mode, 504, "function_timed_out")
            });
            let mut slowest = Duration::ZERO;
            while !attack.is_finished() {
                let began = Instant::now();
                instance.invoke("beside-thrash", b"print on\n").expect(200);
                slowest = slowest.max(began.elapsed());
            }
            attack.join().unwrap();
            println!("the neighbour's slowest answer took {slowest:?}");
            assert!(slowest < Duration::from_millis(500), "{slowest:?}");
        });
        instance.remove("beside-thrash");
    });
}

#[test]
fn memory_cannot_be_locked_nor_had_in_huge_pages() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("locked", Kind::Native, NARROW, |victim| {
        let attempts = victim.attack("lock-memory").expect(200).json();
        all_refused(
            &attempts,
            &["ENOSYS", "ENOMEM", "EPERM", "EAGAIN", "EINVAL"],
        );
    });
}

#[test]
fn a_sandbox_has_no_swap() {
    let _turn = turn::take!(alone);
    Victim::of_both_kinds("swapless", NARROW, |victim| {
        // What does not fit into memory goes nowhere else.
        let (problem, _) = victim.fails("memory", 502, "function_killed");
        assert_eq!(problem["evidence"]["cause"]["cause"], "oom", "{problem}");
        victim.behaves();
        let mut seen = 0;
        for (directory, sandboxes) in world::cgroups_of(&victim.instance.home.instance()) {
            seen += sandboxes
                .iter()
                .filter(|sandbox| is_swapless(&directory.join(sandbox)))
                .count();
        }
        assert!(0 < seen);
    });
}

/// Whether this is a cgroup that counts memory; then it may have no swap.
fn is_swapless(sandbox: &Path) -> bool {
    let read = |file: &str| std::fs::read_to_string(sandbox.join(file));
    let (memory, both) = (
        read("memory.limit_in_bytes"),
        read("memory.memsw.limit_in_bytes"),
    );
    if let (Ok(memory), Ok(both)) = (memory, both) {
        assert_eq!(memory, both, "memory, and memory with swap");
    } else if let Ok(swap) = read("memory.swap.max") {
        assert_eq!(swap.trim(), "0");
    } else if let Ok(swappiness) = read("memory.swappiness") {
        // A kernel that does not count swap (no swapaccount) can be told not to use it.
        assert_eq!(swappiness.trim(), "0");
    } else {
        return false;
    }
    true
}

#[test]
fn computing_on_every_thread_ends_at_the_time_limit_while_the_gateway_answers_others() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("spinning", Kind::Native, NARROW, |victim| {
        std::thread::scope(|scope| {
            let began = Instant::now();
            let attack = scope.spawn(|| {
                let (_, receipt) = victim.fails("spin-threads 8", 504, "function_timed_out");
                (Instant::now(), receipt)
            });
            let mut slowest = Duration::ZERO;
            while !attack.is_finished() {
                let began = Instant::now();
                victim.instance.get("/healthz").expect(200);
                slowest = slowest.max(began.elapsed());
            }
            let (ended, receipt) = attack.join().unwrap();
            let took = ended - began;
            assert!(took < ENDED_MAX, "{took:?}");
            assert!(slowest < Duration::from_millis(500), "{slowest:?}");
            // One core, whatever the number of threads.
            let cpu_us = receipt["usage"]["cpu_us"].as_u64().unwrap();
            assert!(cpu_us < 1_300_000, "{receipt}");
        });
    });
}

#[test]
fn a_group_that_stops_itself_ends_at_the_time_limit() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("stopped", Kind::Native, NARROW, |victim| {
        let began = Instant::now();
        victim.fails("stop-group", 504, "function_timed_out");
        assert!(began.elapsed() < ENDED_MAX, "{:?}", began.elapsed());
    });
}

#[test]
fn no_class_priority_or_limit_can_be_raised() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("scheduled", Kind::Native, NARROW, |victim| {
        let attempts = victim.attack("schedule").expect(200).json();
        all_refused(&attempts, &["EPERM", "EACCES"]);
        let attempts = victim.attack("raise-limits").expect(200).json();
        let limited: Vec<_> = members(&attempts)
            .into_iter()
            .filter(|(_, answer)| *answer != "unlimited")
            .collect();
        assert!(8 < limited.len(), "{attempts}");
        for (name, answer) in limited {
            assert!(["EPERM", "EINVAL"].contains(&answer), "{name}: {answer}");
        }
    });
}

#[test]
fn a_tree_made_to_be_hard_to_remove_holds_up_nobody() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("tree", Kind::Native, NARROW, |victim| {
        let (text, receipt) = victim.succeeds("scratch-deep");
        assert!(text.contains("\"error\":\"ENOSPC\""), "{text}");
        assert_eq!(limits_hit(&receipt), ["scratch"], "{receipt}");
        let attempts = victim.attack("scratch-sparse").expect(200).json();
        for (attempt, answer) in members(&attempts) {
            // A hole costs nothing until it is written; a larger file than the limit of file size is refused.
            let ways: &[&str] = match attempt {
                "sparse 8 GiB" => &["ok"],
                _ => &["EFBIG", "ENOSPC"],
            };
            assert!(ways.contains(&answer), "{attempt}: {answer}");
        }
        victim.succeeds("scratch-names");
        for _ in 0..2 {
            let began = Instant::now();
            victim.behaves();
            assert!(began.elapsed() < RECYCLED_MAX, "{:?}", began.elapsed());
        }
    });
}

#[test]
fn the_hosts_disks_cannot_be_flushed() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("flush", Kind::Native, NARROW, |victim| {
        let attempts = victim.attack("sync-loop 10000").expect(200).json();
        all_refused(&attempts, &["ENOSYS"]);
    });
}

#[test]
fn a_function_that_crashes_leaves_no_core_anywhere() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("crash", Kind::Native, NARROW, |victim| {
        let limits = victim.attack("whoami").expect(200).json()["limits"].to_string();
        assert!(
            limits.contains("Max core file size        1                    1 "),
            "{limits}"
        );
        for (mode, signal) in [("segfault", 11), ("trap", 6), ("signal 3", 3)] {
            let (problem, receipt) = victim.fails(mode, 502, "function_killed");
            assert_eq!(problem["evidence"]["cause"]["signal"], signal, "{problem}");
            assert_eq!(receipt["residue"], Value::Null, "destroyed: {receipt}");
        }
        no_core_is_anywhere();
    });
}

/// Neither in the directory that the gateway, the spawner or this test run in, nor where cores are often put.
pub(super) fn no_core_is_anywhere() {
    for place in [".", "/", "/tmp", "/var/lib/systemd/coredump", "/var/crash"] {
        let entries = std::fs::read_dir(place).into_iter().flatten();
        let cores = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let cores: Vec<_> = cores
            .filter(|name| name == "core" || name.starts_with("core."))
            .collect();
        assert_eq!(cores, Vec::<String>::new(), "{place}");
    }
}

#[test]
fn arguments_and_variables_beyond_what_fits_are_refused_before_anything_runs() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("arguments", Kind::Native, NARROW, |victim| {
        let attempts = victim.attack("big-exec").expect(200).json();
        all_refused(&attempts, &["E2BIG"]);
    });
    let instance = Instance::of_all();
    let long = format!("[env]\nLONG = \"{}\"", "x".repeat(200 << 10));
    let many: String = (0..100_000)
        .map(|index| format!("V{index} = \"\"\n"))
        .collect();
    for (what, manifest) in [("long", long), ("many", format!("[env]\n{many}"))] {
        let answer = instance.try_deploy(&Package::hostile("environment", Kind::Native, &manifest));
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
    }
    instance.deploy(&Package::hostile("environment", Kind::Native, ""));
    let value = "x".repeat(4 << 10);
    let names: Vec<String> = (0..20).map(|index| format!("x-{index}")).collect();
    let headers: Vec<(&str, &str)> = names
        .iter()
        .map(|name| (name.as_str(), value.as_str()))
        .collect();
    let answer = instance.call("POST", "/fn/environment/", &headers, b"print x\n");
    answer.problem(431, "headers_too_large");
    instance.assert_clean();
}

/// Connections that wait at once for one sandbox.
const CROWD: usize = 1000;

#[test]
fn a_crowd_before_one_sandbox_is_refused_at_once_and_costs_the_gateway_nothing() {
    let _turn = turn::take!(alone);
    let instance = Instance::start(&["--queue-len", "64", "--queue-wait", "2s"]);
    let manifest = "[limits]\ntimeout = \"60s\"\n[scaling]\nmax_instances = 1\nmax_inflight = 1";
    for kind in Kind::BOTH {
        instance.deploy(&Package::hostile(kind.as_str(), kind, manifest));
        // The first time fills the room for receipts, the second is measured.
        crowd(&instance, kind);
        let before = world::resident_bytes(instance.gateway());
        let answers = crowd(&instance, kind);
        let refused = answers.iter().filter(|answer| answer.status == 429);
        for answer in refused.clone() {
            answer.problem(429, "throttled");
            let seconds = answer
                .header("retry-after")
                .and_then(|text| text.parse::<u32>().ok());
            assert!(seconds.is_some());
        }
        // Those that found a place in the queue are refused only once they have waited for long enough.
        assert!(CROWD - 64 <= refused.count());
        let grown = world::resident_bytes(instance.gateway()).saturating_sub(before);
        println!("{CROWD} calls at once: the gateway grew by {grown} bytes");
        assert!(grown < 16 * MIB, "{grown}");
    }
    instance.assert_clean();
    instance.stop();
}

/// What a crowd is answered that comes while the only sandbox is busy.
fn crowd(instance: &Instance, kind: Kind) -> Vec<Answer> {
    let name = kind.as_str();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke(name, b"sleep 3000\n"));
        until_true("the first one runs", SOON, || {
            instance.metric("hearth_invocations_inflight", &[]) == 1.0
        });
        let calls: Vec<_> = (0..CROWD)
            .map(|_| scope.spawn(|| instance.invoke(name, b"print x\n")))
            .collect();
        let answers = calls.into_iter().map(|call| call.join().unwrap()).collect();
        let held = running.join().unwrap().expect(200);
        made(kind, held.header("hearth-start"), "a crowd");
        answers
    })
}
