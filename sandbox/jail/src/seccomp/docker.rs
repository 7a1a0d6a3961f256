// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The profiles held against Docker's published default profile: nothing is allowed here that it denies, but what
//! `profiles/docker-default.json` lists with a reason.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::arch::Arch;
use super::profile::{Policy, Verdict};
use super::reference::calls;
use super::{Profile, policy};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Docker {
    #[serde(rename = "about")]
    _about: String,
    source: String,
    commit: String,
    beyond: Vec<Beyond>,
    /// Allowed where all comparisons of any one of the lists hold.
    conditions: BTreeMap<String, Vec<Vec<Comparison>>>,
    allowed: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Beyond {
    call: String,
    reason: String,
}

/// As libseccomp compares: all 64 bits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparison {
    arg: usize,
    op: String,
    value: u64,
    #[serde(default)]
    value_two: u64,
}

impl Comparison {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        let argument = arguments[self.arg];
        match self.op.as_str() {
            "lt" => argument < self.value,
            "eq" => argument == self.value,
            "gt" => self.value < argument,
            "masked_eq" => argument & self.value == self.value_two,
            other => panic!("comparison {other}"),
        }
    }
}

impl Docker {
    fn allows(&self, call: &str, arguments: &[u64; 6]) -> bool {
        let any = |lists: &Vec<Vec<Comparison>>| {
            let all = |list: &Vec<Comparison>| list.iter().all(|one| one.holds(arguments));
            lists.iter().any(all)
        };
        self.allowed.contains(call) || self.conditions.get(call).is_some_and(any)
    }
}

fn docker() -> Docker {
    serde_json::from_str(include_str!("../../profiles/docker-default.json")).unwrap()
}

/// Calls that `policy` allows with arguments for which Docker's does not.
fn beyond(docker: &Docker, arch: Arch, policy: &Policy) -> BTreeSet<String> {
    let mut beyond = BTreeSet::new();
    for (number, call) in &policy.calls {
        let name = arch.call_name(*number).unwrap();
        // The kernel's own tables do not agree on this one's name.
        let name = if name == "fstatat" {
            "newfstatat"
        } else {
            name
        };
        let allowed = calls(arch, *number, call)
            .into_iter()
            .filter(|call| policy.answer(call.number, &call.arguments) == Verdict::Allow);
        for call in allowed {
            // Bits that the kernel does not look at are not what is compared here.
            let arguments = call.arguments.map(|argument| argument & 0xffff_ffff);
            if !docker.allows(name, &arguments) {
                beyond.insert(name.to_owned());
            }
        }
    }
    beyond
}

#[test]
fn nothing_is_allowed_that_docker_denies_but_what_is_listed_with_a_reason() {
    let docker = docker();
    assert!(docker.source.contains("Apache-2.0"));
    assert_eq!(docker.commit.len(), 40);
    let mut found = BTreeSet::new();
    for profile in Profile::ALL {
        // An overlay allows what the filter below it allows.
        if profile == Profile::Alone {
            continue;
        }
        for arch in [Arch::X86_64, Arch::Aarch64] {
            found.extend(beyond(&docker, arch, &policy(profile, arch).unwrap()));
        }
    }
    let listed: BTreeSet<String> = docker.beyond.iter().map(|one| one.call.clone()).collect();
    assert_eq!(found, listed);
    assert!(docker.beyond.iter().all(|one| 20 <= one.reason.len()));
}

#[test]
fn the_comparison_would_see_a_call_and_an_argument_too_many() {
    let docker = docker();
    let arch = Arch::NATIVE;
    let mut wide = policy(Profile::Default, arch).unwrap();
    for name in ["bpf", "clone"] {
        let number = arch.number(name).unwrap();
        let call = wide.calls.get_mut(&number).unwrap();
        call.allowed = vec![Vec::new()];
    }
    let found = beyond(&docker, arch, &wide);
    for name in ["bpf", "clone"] {
        assert!(found.contains(name), "{name}");
    }
}
