// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The list of attacks that Hearth must withstand (`attacks/*.toml`) is whole and true: no attack is without a test or a
//! stated exception, and every named test exists and runs.
//!
//! A test is named `package::target::module::function`, the target being a file in the package's `tests/`, `lib`, or
//! the package's executable.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail the test that calls them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// How many attacks of each kind there are: resources, processes, kernel, files, uploads, wasm, HTTP, and the places
/// where data could persist.
const ATTACKS: [(&str, usize); 8] = [
    ("R", 21),
    ("P", 12),
    ("N", 30),
    ("S", 6),
    ("U", 7),
    ("W", 16),
    ("H", 10),
    ("D", 27),
];

/// Why an attack may be without a test: it needs what neither the hosts nor this version have.
const EXCEPTIONS: [&str; 2] = [
    "kernel feature absent on host and v2 guest: ",
    "contract not there yet: ",
];

/// Where a package lives, and its executable.
const PACKAGES: [(&str, &str); 6] = [
    ("hearth", "services/hearth"),
    ("hearth-gateway", "services/gateway"),
    ("hearth-jail", "sandbox/jail"),
    ("hearth-pool", "sandbox/pool"),
    ("hearth-protocol", "sandbox/protocol"),
    ("hearth-wasm", "sandbox/wasm"),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    attack: Vec<Attack>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    id: String,
    /// What the attacker does.
    attack: String,
    /// What must happen then.
    outcome: String,
    #[serde(default)]
    tests: Vec<String>,
    exception: Option<String>,
}

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap().to_owned()
}

fn attacks() -> Vec<Attack> {
    let directory = root().join("services/hearth/tests/attacks");
    let mut attacks = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let file: File =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        attacks.extend(file.attack);
    }
    attacks
}

#[test]
fn every_attack_is_in_the_list_once() {
    let expected: BTreeSet<String> = ATTACKS
        .iter()
        .flat_map(|(kind, count)| (1..=*count).map(move |number| format!("{kind}-{number:02}")))
        .collect();
    let attacks = attacks();
    let listed: BTreeSet<String> = attacks.iter().map(|attack| attack.id.clone()).collect();
    assert_eq!(listed, expected);
    assert_eq!(attacks.len(), expected.len(), "one is there twice");
}

#[test]
fn every_attack_has_a_test_or_an_exception_that_names_what_is_missing() {
    for attack in attacks() {
        let id = &attack.id;
        assert!(
            !attack.attack.is_empty() && !attack.outcome.is_empty(),
            "{id}"
        );
        match &attack.exception {
            None => assert!(!attack.tests.is_empty(), "{id} has no test"),
            Some(why) => {
                let named = EXCEPTIONS.iter().any(|reason| {
                    why.strip_prefix(reason)
                        .is_some_and(|what| !what.is_empty())
                });
                assert!(named, "{id}: {why} is no reason");
                assert!(
                    attack.tests.is_empty(),
                    "{id} has a test, so it is no exception"
                );
            }
        }
    }
}

/// The files in which a module of a target may be, the more likely first, and the target's root.
fn files_of(package: &str, target: &str, modules: &[&str]) -> Vec<PathBuf> {
    let directory = PACKAGES.iter().find(|(name, _)| *name == package);
    let (_, directory) = directory.unwrap_or_else(|| panic!("no package {package}"));
    let directory = root().join(directory);
    let own_sources = target == "lib" || target == package;
    let base = if own_sources {
        directory.join("src")
    } else {
        directory.join("tests").join(target)
    };
    let mut files = Vec::new();
    // A module `tests` at the end may be in its parent's file.
    for depth in (1..=modules.len()).rev() {
        let path: PathBuf = modules[..depth].iter().collect();
        files.push(base.join(path).with_extension("rs"));
    }
    if !own_sources && modules.is_empty() {
        files.push(directory.join("tests").join(target).with_extension("rs"));
    }
    files
}

/// Whether a file has a test of this name: an attribute that makes it one right before it, and none that switches it off.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let heads = [format!("fn {name}("), format!("async fn {name}(")];
    // A long name may be alone on its line.
    let is_head = |line: &str| heads.iter().any(|head| line.starts_with(head.as_str()));
    let Some(at) = lines.iter().position(|line| is_head(line)) else {
        return false;
    };
    let attributes = lines[..at].iter().rev().take_while(|line| {
        line.starts_with("#[") || line.starts_with("//") || line.ends_with(")]")
    });
    let attributes: Vec<&&str> = attributes.collect();
    attributes
        .iter()
        .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
        && !attributes.iter().any(|line| line.contains("ignore"))
}

#[test]
fn every_test_that_is_named_exists_and_runs() {
    let mut seen = BTreeMap::new();
    for attack in attacks() {
        let own: BTreeSet<&String> = attack.tests.iter().collect();
        assert_eq!(
            own.len(),
            attack.tests.len(),
            "{} names one twice",
            attack.id
        );
        for test in &attack.tests {
            let parts: Vec<&str> = test.split("::").collect();
            let [package, target, modules @ .., name] = parts.as_slice() else {
                panic!("{}: {test} is no name of a test", attack.id);
            };
            let exists = *seen.entry(test.clone()).or_insert_with(|| {
                let files = files_of(package, target, modules);
                let texts = files
                    .iter()
                    .filter_map(|file| fs::read_to_string(file).ok());
                texts.into_iter().any(|text| has_test(&text, name))
            });
            assert!(exists, "{}: there is no test {test}", attack.id);
        }
    }
    assert!(
        100 < seen.len(),
        "only {} tests were looked for",
        seen.len()
    );
}

#[test]
fn what_is_not_promised_is_said() {
    let page = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let (_, promised_not) = page.split_once("## What none of them stops").unwrap();
    for subject in ["The kernel", "covert channels", "caches"] {
        assert!(promised_not.contains(subject), "{subject}");
    }
}
