// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The list of attacks that Hearth must withstand (`attacks/*.toml`) is whole and true: no attack is without a test or a
//! stated exception, and every named test exists and runs.
//!
//! A test is named `package::target::module::function`, the target being a file in the package's `tests/`, `lib`, or
//! the package's executable. `covered` says which kinds of function make the attack in which kind of sandbox, and
//! `uncovered` why the others do not; that what is covered is really made says each test while it runs, and `.ci/attacks`
//! compares.
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

/// Every kind of function in every kind of sandbox: one that nothing has run in, and one that has served calls.
const COMBINATIONS: [&str; 4] = ["native fresh", "native reused", "wasm fresh", "wasm reused"];

/// Between these lines the page has the table.
const TABLE: [&str; 2] = ["<!-- attacks: begin -->", "<!-- attacks: end -->"];

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
    /// Those of [`COMBINATIONS`] that are made.
    #[serde(default)]
    covered: Vec<String>,
    /// Why others are not: by combination, by kind (`wasm`), or for `all`.
    #[serde(default)]
    uncovered: BTreeMap<String, String>,
    exception: Option<String>,
}

impl Attack {
    /// What the table says of one kind: in which sandboxes, and why not in the others.
    fn coverage(&self, kind: &str) -> String {
        let combinations = || COMBINATIONS.iter().filter(|one| one.starts_with(kind));
        let covered: Vec<&str> = combinations()
            .filter(|one| self.covered.iter().any(|covered| covered == *one))
            .map(|one| &one[kind.len() + 1..])
            .collect();
        let keys = ["all", kind].into_iter().chain(combinations().copied());
        let reasons = keys.filter_map(|key| self.uncovered.get(key).map(String::as_str));
        let covered = (!covered.is_empty()).then(|| covered.join(", "));
        let parts: Vec<&str> = covered.as_deref().into_iter().chain(reasons).collect();
        parts.join("; ")
    }

    /// Its line of the table, but for the result, which a run gives.
    fn row(&self) -> String {
        let tests: Vec<String> = self.tests.iter().map(|test| format!("`{test}`")).collect();
        let shown = self.exception.clone().unwrap_or(tests.join("<br>"));
        let [native, wasm] = ["native", "wasm"].map(|kind| self.coverage(kind));
        format!(
            "| {} | {} | {} | {native} | {wasm} | {shown} |",
            self.id, self.attack, self.outcome
        )
    }
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

#[test]
fn every_combination_of_function_and_sandbox_is_covered_or_has_a_reason() {
    for attack in attacks() {
        let id = &attack.id;
        for covered in &attack.covered {
            assert!(COMBINATIONS.contains(&covered.as_str()), "{id}: {covered}");
        }
        let mut known = vec!["all", "native", "wasm"];
        known.extend(COMBINATIONS);
        for (key, reason) in &attack.uncovered {
            assert!(known.contains(&key.as_str()), "{id}: {key}");
            assert!(!reason.is_empty(), "{id}: {key} has no reason");
        }
        for combination in COMBINATIONS {
            let (kind, _) = combination.split_once(' ').unwrap();
            let reasons = ["all", kind, combination]
                .into_iter()
                .filter(|key| attack.uncovered.contains_key(*key))
                .count();
            let covered = attack.covered.iter().filter(|one| *one == combination);
            let said = covered.count() + reasons;
            // An attack that is an exception is made by nobody.
            let expected = usize::from(attack.exception.is_none());
            assert_eq!(said, expected, "{id}: {combination}");
        }
    }
}

#[test]
fn the_page_shows_exactly_this_list() {
    let page = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let (_, rest) = page.split_once(TABLE[0]).unwrap();
    let (table, _) = rest.split_once(TABLE[1]).unwrap();
    let shown: BTreeSet<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    // A line of the table is an attack's own, with a result behind it.
    let shown: BTreeSet<String> = shown
        .iter()
        .filter(|line| !line.starts_with("| id |") && !line.starts_with("| --- |"))
        .map(|line| line.trim_end_matches('|').trim_end())
        .map(|line| line.rsplit_once(" | ").map_or(line, |(row, _)| row))
        .map(|row| format!("{row} |"))
        .collect();
    let listed: BTreeSet<String> = attacks().iter().map(Attack::row).collect();
    let (gone, missing): (Vec<_>, Vec<_>) = (
        shown.difference(&listed).collect(),
        listed.difference(&shown).collect(),
    );
    assert!(
        gone.is_empty() && missing.is_empty(),
        "the table is old: sudo .ci/attacks --write\nonly in the page: {gone:#?}\nonly in the list: {missing:#?}"
    );
}

/// Which part of a file is a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The file, without the module `tests` that may be at its end.
    Own,
    /// That module.
    Tests,
}

/// The files in which a module of a target may be.
fn files_of(package: &str, target: &str, modules: &[&str]) -> Vec<(PathBuf, Part)> {
    let directory = PACKAGES.iter().find(|(name, _)| *name == package);
    let (_, directory) = directory.unwrap_or_else(|| panic!("no package {package}"));
    let directory = root().join(directory);
    let base = if target == "lib" || target == package {
        directory.join("src")
    } else {
        directory.join("tests").join(target)
    };
    let file = |modules: &[&str]| {
        base.join(modules.iter().collect::<PathBuf>())
            .with_extension("rs")
    };
    let mut files = vec![(file(modules), Part::Own)];
    if let ["tests"] | [.., "tests"] = modules {
        files.push((file(&modules[..modules.len() - 1]), Part::Tests));
    }
    files
}

/// Whether a part of a file has a test of this name: an attribute that makes it one right before it, and none that
/// switches it off.
fn has_test(text: &str, part: Part, name: &str) -> bool {
    let (own, tests) = text.split_once("\nmod tests {").unwrap_or((text, ""));
    let text = if part == Part::Own { own } else { tests };
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
    let (mut seen, mut wrong) = (BTreeMap::new(), Vec::new());
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
                let mut texts = files
                    .iter()
                    .filter_map(|(file, part)| Some((fs::read_to_string(file).ok()?, *part)));
                texts.any(|(text, part)| has_test(&text, part, name))
            });
            if !exists {
                wrong.push(format!("{}: there is no test {test}", attack.id));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
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
