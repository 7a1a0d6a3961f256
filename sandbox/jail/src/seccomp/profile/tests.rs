// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the files promise to their reader.

use std::path::Path;

use super::file::{FILES, RawProfile, number_of, parse};
use super::*;
use crate::seccomp::live::proofs;

/// A reason that says less than this says nothing, in bytes.
const REASON_LEN_MIN: usize = 8;

/// The policy of `file` without the rule at `index` of the file itself, and what is to fail then.
pub(in crate::seccomp) fn without_rule(file: &str, index: usize) -> Option<(Policy, String)> {
    let raw = parse(file).unwrap();
    let rule = raw.rules.get(index)?;
    let mut policy = load(file, Arch::NATIVE).unwrap();
    for call in &rule.calls {
        // Where the rule replaces an included one, that one is not to step in.
        if let Some(number) = Arch::NATIVE.number(call) {
            policy.calls.remove(&number);
        }
    }
    Some((policy, rule.shown_by.clone().unwrap_or_default()))
}

#[test]
fn every_rule_has_a_reason() {
    for (file, text) in FILES {
        let profile: serde_json::Value = serde_json::from_str(text).unwrap();
        for list in ["rules", "left_out"] {
            for rule in profile[list].as_array().unwrap() {
                let reason = rule["reason"].as_str().unwrap_or_default();
                assert!(REASON_LEN_MIN <= reason.len(), "{file}: {rule}");
            }
        }
    }
}

#[test]
fn every_rule_that_allows_names_what_fails_without_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (file, text) in FILES {
        let profile: serde_json::Value = serde_json::from_str(text).unwrap();
        for rule in profile["rules"].as_array().unwrap() {
            if rule.get("action").is_some() {
                continue;
            }
            let by = rule["shown_by"].as_str().unwrap_or_default();
            let known = proofs::command(by).is_some() || root.join(by).is_file();
            assert!(!by.is_empty() && known, "{file}: {rule}");
        }
    }
}

#[test]
fn a_rule_without_a_reason_is_not_read() {
    let rule = r#"{"about":"","include":[],"left_out":[],"rules":[{"calls":["read"]}]}"#;
    assert!(serde_json::from_str::<RawProfile>(rule).is_err());
}

#[test]
fn every_name_exists_on_the_architectures_it_is_given_for() {
    for (file, _) in FILES {
        for rule in &parse(file).unwrap().rules {
            for call in &rule.calls {
                let on_x86 = number_of(file, call, Arch::X86_64).is_ok();
                let on_arm = number_of(file, call, Arch::Aarch64).is_ok();
                let only_x86 = rule.arch.as_deref() == Some("x86_64");
                assert!(on_x86 && (on_arm || only_x86), "{file}: {call}");
            }
        }
    }
}

#[test]
fn a_profile_s_own_rule_replaces_the_included_one() {
    let number = number_of("default", "ioprio_set", Arch::NATIVE).unwrap();
    let allows = |file| load(file, Arch::NATIVE).unwrap().may_allow(number);
    assert!(allows("default") && allows("network"));
    assert!(!allows("strict") && !allows("wasm"));
}

#[test]
fn each_tier_allows_what_the_one_below_allows() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let tiers = ["strict", "default", "network"].map(|file| load(file, arch).unwrap());
        for pair in tiers.windows(2) {
            for number in pair[0].calls.keys() {
                let (lower, upper) = (pair[0].may_allow(*number), pair[1].may_allow(*number));
                assert!(!lower || upper, "{:?}", arch.call_name(*number));
            }
        }
    }
}

#[test]
fn asking_changes_what_is_refused_by_name_and_nothing_else() {
    for file in ["strict", "default", "network", "resident"] {
        let policy = load(file, Arch::NATIVE).unwrap();
        let asking = policy.asking();
        for number in 0..1024 {
            for arguments in [[0; 6], [u64::MAX; 6]] {
                let answer = policy.answer(number, &arguments);
                let expected = if is_told(answer) {
                    Verdict::Ask
                } else {
                    answer
                };
                assert_eq!(
                    asking.answer(number, &arguments),
                    expected,
                    "{file} {number}"
                );
            }
        }
    }
}

#[test]
fn the_worker_s_own_filter_leaves_to_the_resident_s_what_that_asks_about() {
    let resident = load("resident", Arch::NATIVE).unwrap();
    let wasm = load("wasm", Arch::NATIVE).unwrap().deferring_to(&resident);
    let answer = |name| wasm.answer(Arch::NATIVE.number(name).unwrap(), &[0; 6]);
    assert_eq!(answer("mount"), Verdict::Defer);
    assert_eq!(answer("reboot"), Verdict::Defer);
    // Allowed there in part, so not always asked about.
    assert_eq!(answer("clone"), Verdict::Errno(constants::EPERM));
    assert_eq!(answer("openat"), UNNAMED);
}
