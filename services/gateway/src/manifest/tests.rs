// SPDX-License-Identifier: Apache-2.0 OR MIT
use super::*;

const SMALLEST: &str = "name = \"a\"\nentry = \"run\"\n";

fn places(text: &str) -> Vec<String> {
    parse(text)
        .unwrap_err()
        .0
        .into_iter()
        .map(|problem| problem.at)
        .collect()
}

#[test]
fn the_smallest_manifest_has_the_documented_defaults() {
    let manifest = parse(SMALLEST).unwrap();
    assert_eq!(manifest.content_type, "application/octet-stream");
    assert_eq!(manifest.limits.memory_bytes, 128 << 20);
    assert_eq!(manifest.limits.cpu_millis, 1000);
    assert_eq!(manifest.limits.timeout, Duration::from_secs(3));
    assert_eq!(
        (
            manifest.instances_max,
            manifest.warm_min,
            manifest.inflight_max
        ),
        (16, 0, None)
    );
}

#[test]
fn every_key_of_the_design_is_read() {
    let text = r#"
        name = "thumbnail"
        entry = "bin/thumbnail"
        contract = "stdio"
        base = "minimal"
        content_type = "image/jpeg"
        build = "cargo build --release"
        [limits]
        memory = "64MiB"
        cpu = 0.5
        pids = 8
        timeout = "1500ms"
        init_timeout = "5s"
        scratch = "1MiB"
        request = "1MiB"
        response = "2MiB"
        log = "4KiB"
        [scaling]
        max_instances = 4
        max_inflight = 1
        min_warm = 2
        idle_timeout = "30s"
        [env]
        GREETING = "hello"
        [sandbox]
        seccomp = "default"
        network = "none"
        egress = []
        writable_root = true
    "#;
    let manifest = parse(text).unwrap();
    assert_eq!(manifest.limits.cpu_millis, 500);
    assert_eq!(manifest.limits.timeout, Duration::from_millis(1500));
    assert_eq!(manifest.idle_timeout, Duration::from_secs(30));
    assert_eq!(manifest.env, [("GREETING".to_owned(), "hello".to_owned())]);
    assert_eq!(manifest.base.unwrap().as_str(), "minimal");
    assert_eq!(manifest.root, Root::Writable);
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let text = r#"
        name = "Not OK"
        entry = "../run"
        color = "red"
        contract = "lambda"
        [limits]
        memory = 5
        timeout = "3 weeks"
        pids = 0
        cpu = "two"
        disk = "1MiB"
        [scaling]
        max_instances = 1
        min_warm = 2
        [env]
        "9x" = "y"
        [secrets]
        TOKEN = "t"
        [sandbox]
        network = "egress"
        seccomp = "none"
        writable_root = "yes"
        egress = ["a:1"]
    "#;
    let mut at = places(text);
    at.sort();
    let expected = [
        "color",
        "contract",
        "entry",
        "env.9x",
        "limits.cpu",
        "limits.disk",
        "limits.memory",
        "limits.pids",
        "limits.timeout",
        "name",
        "sandbox.egress",
        "sandbox.network",
        "sandbox.seccomp",
        "sandbox.writable_root",
        "scaling.min_warm",
        "secrets",
    ];
    assert_eq!(at, expected);
}

#[test]
fn what_this_version_lacks_is_said_to_be_unsupported_not_wrong() {
    for line in ["contract = \"http\"", "[sandbox]\nnetwork = \"egress\""] {
        let problems = parse(&format!("{SMALLEST}{line}")).unwrap_err();
        assert!(
            problems.0[0].problem.contains("not supported yet"),
            "{problems}"
        );
    }
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    assert_eq!(places("name = \"a\"\nentry ="), ["line 2"]);
    assert_eq!(places(&"#".repeat(TEXT_BYTES_MAX + 1)), [FILE_NAME]);
}

#[test]
fn missing_keys_and_reserved_names_are_refused() {
    assert_eq!(places(""), ["name", "entry"]);
    assert_eq!(places("name = \"hearth-x\"\nentry = \"a\""), ["name"]);
}

#[test]
fn limits_outside_their_range_are_refused() {
    for line in [
        "memory = \"1KiB\"",
        "cpu = 0.0",
        "cpu = nan",
        "cpu = -1",
        "pids = -1",
        "timeout = \"1h\"",
        "request = \"1GiB\"",
    ] {
        assert_eq!(
            places(&format!("{SMALLEST}[limits]\n{line}")).len(),
            1,
            "{line}"
        );
    }
}

#[test]
fn a_profile_that_its_contract_cannot_use_is_refused_and_the_others_are_taken() {
    let with = |profile| format!("{SMALLEST}[sandbox]\nseccomp = \"{profile}\"");
    let profile = |name| parse(&with(name)).map(|manifest| manifest.seccomp);
    assert_eq!(profile("strict"), Ok(Some(Seccomp::Tier(Tier::Strict))));
    assert_eq!(profile("default"), Ok(Some(Seccomp::Tier(Tier::Default))));
    assert_eq!(profile("learned"), Ok(Some(Seccomp::Learned)));
    assert_eq!(places(&with("network")), ["sandbox.seccomp"]);
    assert_eq!(places(&with("resident")), ["sandbox.seccomp"]);
}
