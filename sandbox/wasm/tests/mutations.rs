// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Modules that are damaged, made up, or made to be costly, through the compiler's own door in this process: it answers
//! each, and never with a word that is not about the module. That its jail stops what takes too long is Hearth's own test.
//! Not in `it`: these keep every core busy, and there time limits are tested.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot do what it needs has failed"
)]

use std::path::Path;

use arbitrary::{Arbitrary as _, Unstructured};
use hearth_wasm::compile::{CompileError, compile};
use wasm_smith::Config;

fn bundled(path: &str) -> Vec<u8> {
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions");
    std::fs::read(functions.join(path)).unwrap()
}

/// Whether it was compiled; a panic where the compiler says that it is itself at fault.
fn is_compiled(module: &[u8], what: &str) -> bool {
    match compile(module) {
        Ok(artifact) => !artifact.is_empty(),
        Err(CompileError::Module(problems)) => {
            assert!(!problems.is_empty(), "{what}");
            false
        }
        Err(error @ CompileError::Engine(_)) => panic!("{what}: {error}"),
    }
}

/// The ids of sections without which the rest may be a whole module: names and the like, and data.
const CUSTOM: u8 = 0;
const DATA: u8 = 11;

#[test]
fn a_module_that_is_cut_anywhere_is_refused_unless_what_is_left_is_a_module() {
    let module = bundled("crc/crc.wasm");
    assert!(is_compiled(&module, "whole"));
    for length in 0..module.len() {
        if is_compiled(&module[..length], "cut") {
            assert!([CUSTOM, DATA].contains(&module[length]), "cut at {length}");
        }
    }
}

#[test]
fn a_module_with_any_bit_flipped_is_refused_or_compiled() {
    let module = bundled("crc/crc.wasm");
    let mut compiled = 0;
    for at in 0..module.len() {
        let mut flipped = module.clone();
        flipped[at] ^= 1 << (at % 8);
        compiled += usize::from(is_compiled(&flipped, &format!("byte {at}")));
    }
    assert!(0 < compiled && compiled < module.len(), "{compiled}");
}

#[test]
fn a_larger_module_cut_and_damaged_here_and_there_is_refused_or_compiled() {
    let module = bundled("sha256-wasm/sha256-wasm.wasm");
    for at in (0..module.len()).step_by(module.len() / 6) {
        is_compiled(&module[..at], &format!("cut at {at}"));
        let mut damaged = module.clone();
        let end = damaged.len().min(at + 16);
        damaged[at..end].fill(0xff);
        is_compiled(&damaged, &format!("damaged at {at}"));
    }
}

#[test]
fn valid_modules_that_nobody_wrote_are_refused_or_compiled() {
    let mut state = 1_u64;
    for number in 0..40 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(state >> 56).unwrap()
        })
        .take(4096)
        .collect();
        let mut choices = Unstructured::new(&bytes);
        // Everything that there is, most of which is not offered.
        let config = Config {
            export_everything: true,
            max_memory32_bytes: 1 << 32,
            ..Config::arbitrary(&mut choices).unwrap()
        };
        let module = wasm_smith::Module::new(config, &mut choices).unwrap();
        is_compiled(&module.to_bytes(), &format!("module {number}"));
    }
}

#[test]
fn a_module_with_more_of_anything_than_there_may_be_is_refused() {
    let start = r#"(func (export "_start"))"#;
    let memory = r#"(memory (export "memory") 1)"#;
    for (what, body) in [
        ("memory", r#"(memory (export "memory") 65537)"#.to_owned()),
        ("elements", format!("{memory} (table 100001 funcref)")),
        (
            "more elements",
            format!("{memory} (table 4294967295 funcref)"),
        ),
        (
            "tables",
            format!("{memory} {}", "(table 1 funcref)".repeat(5)),
        ),
        ("memories", format!("{memory} (memory 1)")),
    ] {
        let module = wat::parse_str(format!("(module {body} {start})")).unwrap();
        assert!(!is_compiled(&module, what), "{what}");
    }
}
