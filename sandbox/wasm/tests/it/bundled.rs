// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Modules that real toolchains made: the bundled functions, on their real inputs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_protocol::worker::Ending;

use crate::gateway::{Worker, roomy};

const AMPLE: Duration = Duration::from_secs(60);

fn gives(function: &str, input: &str, expected: &str) {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../functions")
        .join(function);
    let read = |file: PathBuf| {
        std::fs::read(&file)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()))
    };
    let testdata = folder.join("testdata");
    let worker = Worker::bound(&read(folder.join(format!("{function}.wasm"))), roomy());
    // Twice: the second instance begins in the slot that the first one left.
    for _ in 0..2 {
        let finished = worker.invoke(&read(testdata.join(input)), AMPLE);
        assert_eq!(finished.ending, Ending::Exited(0));
        assert!(finished.stdout == read(testdata.join(expected)));
    }
}

#[test]
fn rust_with_a_large_parser_runs() {
    gives("markdown", "input.md", "expected.html");
}

#[test]
fn rust_that_computes_runs() {
    gives("sha256-wasm", "input.jpg", "expected.txt");
}

#[test]
fn c_runs() {
    gives("crc", "input.txt", "expected.txt");
}
