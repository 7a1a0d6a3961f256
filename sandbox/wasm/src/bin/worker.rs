// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The wasm worker. No arguments; control socket at fd 3; exit code 0 when the gateway closes it, else 1.

use std::error::Error as _;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Err(error) = hearth_wasm::worker::run() else {
        return ExitCode::SUCCESS;
    };
    let mut line = format!("hearth-wasm-worker: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        line += &format!(": {cause}");
        source = cause.source();
    }
    // In a sandbox stderr is /dev/null; this is for whoever runs the worker by hand.
    _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::FAILURE
}
