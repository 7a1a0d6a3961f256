// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Modules that are dear to compile, one for each way that compilers were slowed down or filled up in the past, and code
//! that somebody else has compiled. Each is taken or refused as a bad module, within the compiler's limits.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::deploys::{COMPILE_ANSWER_MAX, leb, section};
use crate::instance::Instance;
use crate::invariants::Before;
use crate::package::Package;
use crate::turn;

/// The longest function body that the parser takes, in bytes (wasmparser's `MAX_WASM_FUNCTION_SIZE`), less its frame.
const BODY_BYTES: usize = 7_600_000;

/// The most targets of one `br_table` (wasmparser's `MAX_WASM_BR_TABLE_SIZE`), less one.
const TARGETS: usize = 65_519;

/// A module with these types, functions (by type and body) and data.
fn module(types: usize, functions: &[(usize, usize, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    let vector = |count: usize, items: &[u8]| {
        let mut bytes = Vec::new();
        leb(count, &mut bytes);
        bytes.extend_from_slice(items);
        bytes
    };
    section(1, &vector(types, &[0x60, 0, 0].repeat(types)), &mut module);
    let count: usize = functions.iter().map(|(times, _, _)| times).sum();
    let mut indices = Vec::new();
    let mut bodies = Vec::new();
    for (times, index, body) in functions {
        let (mut one_index, mut one_body) = (Vec::new(), Vec::new());
        leb(*index, &mut one_index);
        leb(body.len(), &mut one_body);
        one_body.extend_from_slice(body);
        indices.extend(one_index.repeat(*times));
        bodies.extend(one_body.repeat(*times));
    }
    section(3, &vector(count, &indices), &mut module);
    section(5, &[1, 0, 0x90, 0x06], &mut module); // 784 pages: 49 MiB
    section(7, b"\x02\x06memory\x02\0\x06_start\0\0", &mut module);
    section(10, &vector(count, &bodies), &mut module);
    if !data.is_empty() {
        let mut segment = vec![1, 0, 0x41, 0, 0x0B];
        leb(data.len(), &mut segment);
        segment.extend_from_slice(data);
        section(11, &segment, &mut module);
    }
    module
}

/// A body with this many variables of type i64.
fn body(variables: usize, code: &[u8]) -> Vec<u8> {
    let mut body = vec![1];
    leb(variables, &mut body);
    body.push(0x7E);
    body.extend_from_slice(code);
    body.push(0x0B);
    body
}

fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let one = |body: &[u8]| module(1, &[(1, 0, body)], b"");
    // i64.const 1, local.get 0, i64.add, local.set 0
    let long = body(1, &[0x42, 1, 0x20, 0, 0x7C, 0x21, 0].repeat(BODY_BYTES / 7));
    // block, local.get 0, local.set 1, …, end
    let nested = [
        [0x02, 0x40, 0x20, 0, 0x21, 1].repeat(15_000),
        [0x0B].repeat(15_000),
    ]
    .concat();
    let mut table = vec![0x20, 0, 0xA7, 0x0E];
    leb(TARGETS, &mut table);
    table.extend([0].repeat(TARGETS + 1));
    let tables = [[0x02, 0x40].as_slice(), &table, &[0x0B]].concat();
    let mut last_variable = vec![0x42, 1, 0x21];
    leb(9_999, &mut last_variable);
    vec![
        ("one-long-function", one(&long)),
        ("nested-blocks", one(&body(2, &nested))),
        (
            "empty-functions",
            module(1, &[(990_000, 0, &[0, 0x0B])], b""),
        ),
        ("types", module(990_000, &[(1, 0, &[0, 0x0B])], b"")),
        ("branch-tables", one(&body(1, &tables.repeat(100)))),
        (
            "variables",
            module(1, &[(10_000, 0, &body(10_000, &last_variable))], b""),
        ),
        ("data", module(1, &[(1, 0, &[0, 0x0B])], &vec![7; 49 << 20])),
    ]
}

#[test]
fn every_kind_of_dear_module_is_taken_or_refused_within_the_compilers_limits() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    let before = Before::of(instance);
    let bombs = bombs();
    let deploy = |(name, module): &(&'static str, Vec<u8>)| {
        let began = Instant::now();
        let answer = instance.try_deploy(&Package::new(name, "main.wasm", module, ""));
        let took = began.elapsed();
        let told = if answer.status == 201 {
            "deployed".to_owned()
        } else {
            let problem = answer.problem(400, "bad_module");
            problem["evidence"]["problems"][0].to_string()
        };
        println!("{name}: {} bytes, {told}, after {took:?}", module.len());
        assert!(took < COMPILE_ANSWER_MAX, "{name}: {took:?}");
        if answer.status == 201 {
            instance.invoke(name, b"").expect(200);
            instance.remove(name);
        }
    };
    // Two compilers at once, as many as there may be.
    for pair in bombs.chunks(2) {
        std::thread::scope(|scope| {
            for bomb in pair {
                scope.spawn(|| deploy(bomb));
            }
        });
    }
    before.assert_world_clean(instance);
}

/// Every file of this name below a directory, but for what is being taken away meanwhile, as another test's function.
fn find(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            find(&path, name, found);
        } else if path.file_name().is_some_and(|own| own == name) {
            found.push(path);
        }
    }
}

#[test]
fn code_that_is_already_compiled_never_becomes_a_wasm_function() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.deploy(&Package::wasm("compiled-here", "crc/crc.wasm", ""));
    let mut artifacts = Vec::new();
    find(
        &instance.home.data().join("trees"),
        "module.cwasm",
        &mut artifacts,
    );
    let artifact = artifacts
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .expect("it was compiled just now");
    for entry in ["main.wasm", "main.cwasm", "module.cwasm"] {
        let answer = instance.try_deploy(&Package::new("precompiled", entry, &artifact, ""));
        let code = answer.json()["code"].as_str().map(str::to_owned);
        assert_eq!(answer.status, 400, "{entry}: {}", answer.text());
        assert!(
            ["bad_module", "bad_manifest"]
                .map(Some)
                .contains(&code.as_deref()),
            "{entry}: {code:?}"
        );
    }
}

#[test]
fn a_component_is_refused_before_any_of_it_is_parsed() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    // Components in components, a thousand deep, each a section of the one around it.
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..1000 {
        let mut outer = b"\0asm\x0d\0\x01\0".to_vec();
        section(4, &component, &mut outer);
        component = outer;
    }
    let package = Package::new("component", "main.wasm", &component, "");
    let answer = instance.try_deploy(&package);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("component"), "{}", answer.text());
}
