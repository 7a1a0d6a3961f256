// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The invariants of the design that no compiler checks: who may depend on what, where unsafe code lives, and what every
//! file, rule and metric must carry.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail the test that calls them"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that the privileged process is linked with. A new name here is a new author that root trusts.
const JAIL_TREE: [&str; 42] = [
    "aho-corasick",
    "bitflags",
    "block-buffer",
    "cfg-if",
    "cgroups-rs",
    "cobs",
    "const-oid",
    "cpufeatures",
    "crypto-common",
    "digest",
    "enumflags2",
    "enumflags2_derive",
    "hearth-jail",
    "hearth-protocol",
    "hybrid-array",
    "itoa",
    "landlock",
    "libc",
    "log",
    "memchr",
    "memoffset",
    "nix",
    "object",
    "postcard",
    "proc-macro2",
    "quote",
    "regex",
    "regex-automata",
    "regex-syntax",
    "seccompiler",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "sha2",
    "syn",
    "syscalls",
    "thiserror",
    "thiserror-impl",
    "typenum",
    "unicode-ident",
    "zmij",
];

/// Who depends on whom, among the crates of this workspace.
const DIRECTIONS: [(&str, &[&str]); 6] = [
    (
        "hearth",
        &["hearth-gateway", "hearth-jail", "hearth-protocol"],
    ),
    ("hearth-gateway", &["hearth-pool", "hearth-protocol"]),
    ("hearth-pool", &["hearth-protocol"]),
    ("hearth-jail", &["hearth-protocol"]),
    // The worker puts its own seccomp filter on, with the jail's compiler.
    ("hearth-wasm", &["hearth-jail", "hearth-protocol"]),
    ("hearth-protocol", &[]),
];

/// Libraries that one part of the code owns, by the name they have in code.
const OWNERS: [(&str, &[&str]); 5] = [
    ("wasmtime", &["sandbox/wasm/"]),
    ("seccompiler", &["sandbox/jail/"]),
    ("cgroups_rs", &["sandbox/jail/"]),
    ("prometheus", &["services/gateway/"]),
    // The benchmark has a bare axum echo to compare with.
    ("axum", &["services/gateway/", "services/hearth/benches/"]),
];

/// Where unsafe code may be: the jail's system calls, and mapping our own compiled code.
const UNSAFE_PLACES: [&str; 3] = [
    "sandbox/jail/src/sys.rs",
    "sandbox/jail/src/sys/",
    "sandbox/wasm/src/sys.rs",
];

/// What unsafe code begins with.
const UNSAFE_FORMS: [&str; 5] = [
    "unsafe {",
    "unsafe fn ",
    "unsafe impl ",
    "unsafe extern ",
    "#[unsafe(",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned()
}

/// Every Rust file below these folders, with its path from the root.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let root = root();
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            let inner = entries.map(|entry| entry.unwrap().path());
            waiting.extend(inner.filter(|path| !path.ends_with("target")));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(20 < found.len(), "the sources were not found");
    found.sort();
    found
}

fn all_sources() -> Vec<(String, String)> {
    sources(&["services", "sandbox", "functions"])
}

/// This file names what it looks for.
fn is_this_file(name: &str) -> bool {
    name.ends_with("tests/architecture.rs")
}

/// Lines of code: without comments, and without the text of string literals that stands alone on a line.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.starts_with("//") && !line.starts_with('"'))
}

/// The packages in a crate's normal dependency tree.
fn tree_of(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--locked", "--offline", "--package", package])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_jail_is_linked_with_the_named_packages_only() {
    let allowed: BTreeSet<String> = JAIL_TREE.map(str::to_owned).into();
    let found = tree_of("hearth-jail");
    let new: Vec<&String> = found.difference(&allowed).collect();
    assert!(new.is_empty(), "not in JAIL_TREE: {new:?}");
    let gone: Vec<&String> = allowed.difference(&found).collect();
    assert!(gone.is_empty(), "no longer needed in JAIL_TREE: {gone:?}");
}

#[test]
fn dependencies_point_one_way() {
    for (package, allowed) in DIRECTIONS {
        let text = manifest_of(package);
        let table: toml::Table = text.parse().unwrap();
        let dependencies = table.get("dependencies").and_then(toml::Value::as_table);
        for (name, _) in dependencies.into_iter().flatten() {
            let ours = DIRECTIONS.iter().any(|(package, _)| package == name);
            assert!(
                !ours || allowed.contains(&name.as_str()),
                "{package} must not depend on {name}"
            );
        }
    }
}

fn manifest_of(package: &str) -> String {
    let name = package.strip_prefix("hearth-").unwrap_or(package);
    let folders = ["services", "sandbox"].map(|folder| root().join(folder).join(name));
    let found = folders.into_iter().find(|folder| folder.is_dir()).unwrap();
    fs::read_to_string(found.join("Cargo.toml")).unwrap()
}

#[test]
fn no_async_code_and_no_wasm_is_linked_into_the_jail() {
    let tree = tree_of("hearth-jail");
    for name in [
        "tokio",
        "futures",
        "hyper",
        "axum",
        "wasmtime",
        "async-trait",
        "zbus",
    ] {
        assert!(!tree.contains(name), "{name}");
    }
}

#[test]
fn the_gateway_and_the_pool_are_linked_without_jail_and_wasmtime() {
    for package in ["hearth-gateway", "hearth-pool"] {
        let tree = tree_of(package);
        for name in [
            "hearth-jail",
            "hearth-wasm",
            "wasmtime",
            "seccompiler",
            "cgroups-rs",
        ] {
            assert!(!tree.contains(name), "{package} is linked with {name}");
        }
    }
    let pool = tree_of("hearth-pool");
    for name in ["hyper", "axum", "http"] {
        assert!(!pool.contains(name), "the pool is linked with {name}");
    }
}

#[test]
fn the_serving_wasm_worker_is_linked_without_a_compiler() {
    let tree = tree_of("hearth-wasm");
    for name in [
        "cranelift-codegen",
        "wasmtime-internal-cranelift",
        "winch-codegen",
    ] {
        assert!(!tree.contains(name), "{name}");
    }
}

#[test]
fn each_library_is_used_by_its_owner_only() {
    for (file, text) in all_sources() {
        for (library, owners) in OWNERS {
            let path = format!("{library}::");
            let used = code_lines(&text).any(|line| line.contains(&path));
            let owned = owners.iter().any(|owner| file.starts_with(owner));
            assert!(
                !used || owned || is_this_file(&file),
                "{file} uses {library}"
            );
        }
    }
}

/// Only what instantiates `run_without` can leave a wall out, and whatever does carries the marker: a test of the jail
/// finds it in the test-only executable.
#[test]
fn hearth_cannot_leave_a_wall_out() {
    let image = fs::read(env!("CARGO_BIN_EXE_hearth")).unwrap();
    let holds = |text: &[u8]| image.windows(text.len()).any(|window| window == text);
    assert!(!holds(hearth_jail::walls::MARKER.as_bytes()));
    // What it does hold can be found: the name of its spawner's last step.
    assert!(holds(b"execute init"));
    for (file, text) in all_sources() {
        let named = code_lines(&text).any(|line| {
            line.contains("run_without")
                || line.contains("Walls for")
                || line.contains("const LEFT_OUT")
        });
        let may = [
            "src/walls.rs",
            "src/spawner.rs",
            "examples/price_of_walls/variants.rs",
        ];
        let may = may
            .iter()
            .any(|place| file == format!("sandbox/jail/{place}"));
        assert!(
            !named || may || is_this_file(&file),
            "{file} leaves walls out"
        );
    }
}

#[test]
fn unsafe_code_has_two_addresses() {
    // Functions are programs that Hearth runs: hostile ones are unsafe by trade.
    for (file, text) in sources(&["services", "sandbox"]) {
        let exempt = UNSAFE_PLACES.iter().any(|place| file.starts_with(place));
        if exempt || is_this_file(&file) {
            continue;
        }
        let found =
            code_lines(&text).find(|line| UNSAFE_FORMS.iter().any(|form| line.contains(form)));
        assert_eq!(found, None, "{file}");
    }
}

#[test]
fn every_file_says_its_licence_first() {
    for (file, text) in all_sources() {
        assert!(
            text.starts_with("// SPDX-License-Identifier: Apache-2.0 OR MIT\n"),
            "{file}"
        );
    }
}

#[test]
fn no_test_is_switched_off_and_none_sleeps() {
    for (file, text) in sources(&["services", "sandbox"]) {
        // A benchmark's spacing is what it measures.
        if is_this_file(&file) || file.contains("/benches/") {
            continue;
        }
        for line in code_lines(&text) {
            assert!(!line.contains("#[ignore"), "{file}: {line}");
            assert!(!line.contains("thread::sleep("), "{file}: {line}");
        }
    }
}

#[test]
fn every_seccomp_rule_has_a_reason() {
    let profiles = root().join("sandbox/jail/profiles");
    let mut rules = 0;
    for entry in fs::read_dir(profiles).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let profile: serde_json::Value = serde_json::from_str(&text).unwrap();
        let fields = profile.as_object().unwrap();
        let lists = fields.values().filter_map(serde_json::Value::as_array);
        for rule in lists.flatten().filter(|item| item.is_object()) {
            let reason = rule.get("reason").and_then(serde_json::Value::as_str);
            let said = reason.is_some_and(|reason| !reason.is_empty());
            assert!(said, "{}: {rule}", path.display());
            rules += 1;
        }
    }
    assert!(30 < rules, "only {rules} rules were found");
}

#[test]
fn every_metric_of_the_code_is_in_the_operations_page() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let mut named = BTreeSet::new();
    for (file, text) in sources(&["services/gateway/src", "sandbox/pool/src"]) {
        if file.contains("tests") {
            continue;
        }
        // Metric names are string literals of their own: "hearth_…".
        let literals = text.split('"').skip(1).step_by(2);
        let is_name = |text: &&str| {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            text.starts_with("hearth_") && text.bytes().all(allowed)
        };
        named.extend(literals.filter(is_name).map(str::to_owned));
    }
    assert!(10 < named.len(), "only {named:?} were found");
    for name in named {
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is not in docs/operations.md"
        );
    }
}

#[test]
fn every_setting_is_in_the_command_line_page() {
    let page = fs::read_to_string(root().join("docs/cli.md")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["serve", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let flags: BTreeSet<&str> = help
        .split_whitespace()
        .filter(|word| word.starts_with("--") && *word != "--help")
        .map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
        .map(|word| word.split(['[', '=']).next().unwrap_or(word))
        .collect();
    assert!(10 < flags.len(), "{flags:?}");
    for flag in flags {
        assert!(
            page.contains(&format!("`{flag}")),
            "{flag} is not in docs/cli.md"
        );
    }
}

/// Where the host's processes go into a sandbox's mount namespace.
const VISITORS: [&str; 1] = ["sandbox/jail/src/mounts.rs"];

/// Parts of paths under /proc that lead into a process's own file tree.
const WAYS_INTO_A_TREE: [&str; 4] = ["/root", "/cwd", "/exe", "/map_files"];

/// A function can put a link wherever it can write: what the host opens there could be anything of the host. Results
/// come through pipes and sockets instead; what is done in a sandbox's mount namespace is mounting, at two places
/// that no function can move.
#[test]
fn nothing_host_side_opens_a_path_in_a_tree_that_a_sandbox_can_write() {
    let host_side = sources(&[
        "services/hearth/src",
        "services/gateway/src",
        "sandbox/jail/src",
        "sandbox/pool/src",
    ]);
    let mut visits = 0;
    for (name, text) in &host_side {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("//"))
        {
            let ways = WAYS_INTO_A_TREE.iter();
            let into = line.contains("/proc/{") && ways.clone().any(|way| line.contains(way));
            assert!(!into, "{name}: {line}");
            // Into a network namespace: it holds no file.
            if line.contains("setns(") && line.contains("CloneFlags::CLONE_NEWNET)") {
                assert_eq!(name, "sandbox/jail/src/namespace.rs", "{line}");
            } else if line.contains("setns(") {
                visits += 1;
                assert!(VISITORS.contains(&name.as_str()), "{name}: {line}");
            }
        }
        if VISITORS.contains(&name.as_str()) {
            only_mounts(name, code);
        }
    }
    assert_eq!(visits, 2, "there and back");
}

/// The only file that is opened is the way back; the only places are the two mount points.
fn only_mounts(name: &str, code: &str) {
    let opening = [
        "open(",
        "read_to_string(",
        "fs::write(",
        "create(",
        "read_dir(",
    ];
    let opened: Vec<&str> = code_lines(code)
        .filter(|line| opening.iter().any(|call| line.contains(call)))
        .filter(|line| !line.starts_with("pub(crate) fn open("))
        .collect();
    assert_eq!(opened, ["File::open(\"/proc/self/ns/mnt\")"], "{name}");
    let places: BTreeSet<&str> = code
        .split("c\"/")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(
        places,
        BTreeSet::from(["function", "scratch/tmp"]),
        "{name}"
    );
}
