// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the compiler takes, and what it says about the rest.

use crate::gateway::compile;
use crate::guests;

const EX_DATAERR: Option<i32> = Some(65);

/// Compiles what must be refused as the module's fault, and gives the problems.
fn refused(module: &[u8]) -> Vec<String> {
    let output = compile(module);
    assert_eq!(output.status.code(), EX_DATAERR);
    assert!(output.stdout.is_empty());
    let problems = String::from_utf8(output.stderr).unwrap();
    assert!(!problems.is_empty());
    problems.lines().map(str::to_owned).collect()
}

fn refused_text(text: &str) -> Vec<String> {
    refused(&wat::parse_str(text).unwrap())
}

#[test]
fn the_same_module_gives_the_same_artifact() {
    let first = compile(&guests::echo());
    assert!(first.status.success());
    assert_eq!(first.stdout, compile(&guests::echo()).stdout);
}

#[test]
fn what_is_no_module_is_refused_with_its_kind() {
    for (input, word) in [
        (b"".as_slice(), "empty"),
        (b"#!/bin/sh\n", "not a wasm binary"),
        (b"(module)", "not a wasm binary"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x01\0\0\0", "_start"),
    ] {
        let problems = refused(input);
        assert!(problems[0].contains(word), "{problems:?}");
    }
}

#[test]
fn a_module_that_is_too_long_is_refused_before_it_is_parsed() {
    let mut module = guests::empty();
    module.resize(
        usize::try_from(hearth_wasm::compile::MODULE_BYTES_MAX).unwrap() + 1,
        0,
    );
    let problems = refused(&module);
    assert!(
        problems[0].contains("more than 67108864 bytes"),
        "{problems:?}"
    );
}

#[test]
fn compiled_code_is_refused() {
    let artifact = compile(&guests::empty()).stdout;
    let problems = refused(&artifact);
    assert!(problems[0].contains("compiled code"), "{problems:?}");
}

#[test]
fn every_truncation_and_bit_flip_is_refused_or_compiled_but_never_crashes() {
    let module = guests::trap();
    for length in (0..module.len()).step_by(7) {
        refused(&module[..length]);
    }
    for place in (0..module.len()).step_by(11) {
        let mut flipped = module.clone();
        flipped[place] ^= 1 << (place % 8);
        let code = compile(&flipped).status.code();
        assert!(
            code == Some(0) || code == EX_DATAERR,
            "byte {place}: {code:?}"
        );
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let problems = refused_text(
        r#"(module
             (import "env" "host" (func))
             (import "wasi_snapshot_preview1" "no_such" (func)))"#,
    );
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems[0].contains("env::host"));
    assert!(problems[1].contains("no_such"));
    assert!(problems[2].contains("_start"));
    assert!(problems[3].contains("memory"));
}

#[test]
fn an_import_of_the_wrong_type_is_refused() {
    let problems = refused_text(
        r#"(module
             (import "wasi_snapshot_preview1" "proc_exit" (func (param i64)))
             (memory (export "memory") 1)
             (func (export "_start")))"#,
    );
    assert!(problems[0].contains("proc_exit"), "{problems:?}");
}

#[test]
fn an_entry_with_parameters_is_refused() {
    let problems = refused_text(
        r#"(module (memory (export "memory") 1) (func (export "_start") (param i32)))"#,
    );
    assert!(problems[0].contains("parameters"), "{problems:?}");
}

#[test]
fn proposals_outside_the_list_are_refused() {
    for body in [
        r"(memory (export \22memory\22) 1 1 shared)".replace("\\22", "\""),
        "(memory (export \"memory\") i64 1)".to_owned(),
        "(memory (export \"memory\") 1) (memory 1)".to_owned(),
        "(memory (export \"memory\") 1) (tag)".to_owned(),
        "(memory (export \"memory\") 1) (type (struct))".to_owned(),
        "(memory (export \"memory\") 1) (func $f (return_call $f))".to_owned(),
    ] {
        refused_text(&format!("(module {body} (func (export \"_start\")))"));
    }
}

#[test]
fn a_name_with_control_characters_stays_on_one_line() {
    let problems = refused_text(
        r#"(module
             (import "a\nb\1b[31m" "c" (func))
             (memory (export "memory") 1)
             (func (export "_start")))"#,
    );
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(!problems[0].contains('\u{1b}'));
}
