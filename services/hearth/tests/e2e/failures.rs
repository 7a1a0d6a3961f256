// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Functions that fail by themselves: exit codes, traps, signals, and attacks that achieve nothing.

use crate::package::Kind;
use crate::turn;
use crate::victim::{TIGHT, Victim, limits_hit};

#[test]
fn every_way_of_failing_has_its_own_evidence() {
    let _turn = turn::take!(alone);
    Victim::of_both_kinds("failing", TIGHT, |victim| {
        for code in [1, 3, 255] {
            let (problem, receipt) = victim.fails(&format!("exit {code}"), 502, "function_failed");
            assert_eq!(
                problem["evidence"]["cause"],
                serde_json::json!({"cause": "exit_code", "code": code})
            );
            assert_eq!(limits_hit(&receipt), Vec::<&str>::new());
        }
        let (problem, _) = victim.fails("no-such-mode", 502, "function_failed");
        let tail = problem["evidence"]["stderr_tail"].as_array().unwrap();
        assert!(
            tail.last()
                .unwrap()
                .as_str()
                .unwrap()
                .contains("no mode no-such-mode"),
            "{problem}"
        );
        // What was written before the failure is not the answer.
        let (problem, _) = victim.fails("output-then-exit 1000 7", 502, "function_failed");
        assert_eq!(problem["evidence"]["cause"]["code"], 7);
        assert_eq!(victim.attack("no-output").expect(200).text(), "");
    });
}

#[test]
fn a_trap_names_its_place_in_the_module() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("trapping", Kind::Wasm, TIGHT, |victim| {
        for (mode, word) in [
            ("trap", "unreachable"),
            ("panic", "unreachable"),
            ("recurse", "wasm trap"),
        ] {
            let (problem, _) = victim.fails(mode, 502, "function_failed");
            let cause = &problem["evidence"]["cause"];
            assert_eq!(cause["cause"], "trap", "{mode}: {problem}");
            let text = cause["text"].as_str().unwrap();
            assert!(
                text.contains(word) && text.contains("wasm backtrace"),
                "{mode}: {text}"
            );
            victim.behaves();
        }
    });
}

#[test]
fn a_function_that_dies_of_a_signal_is_reported_with_it() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("signalled", Kind::Native, TIGHT, |victim| {
        for (mode, signal) in [
            ("segfault", 11),
            ("trap", 6),
            ("signal 9", 9),
            ("signal 15", 15),
            ("recurse", 6),
        ] {
            let (problem, _) = victim.fails(mode, 502, "function_killed");
            let cause = serde_json::json!({"cause": "signal", "signal": signal});
            assert_eq!(problem["evidence"]["cause"], cause, "{mode}");
            victim.behaves();
        }
    });
}

#[test]
fn attacks_on_init_and_on_everything_at_once_change_nothing() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("unruly", Kind::Native, TIGHT, |victim| {
        for mode in [
            "kill-all",
            "kill-init",
            "exec-chain 200",
            "zombies 10",
            "fds",
            "nasty-log",
        ] {
            victim.succeeds(mode);
            victim.behaves();
        }
    });
}
