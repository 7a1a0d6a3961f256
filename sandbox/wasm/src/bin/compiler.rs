// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The jailed compiler. No arguments; module on stdin, artifact on stdout, problems on stderr, one a line. Exit codes as
//! in sysexits.h: 0; 65 where the module is at fault; 70 where the compiler is; 74 where stdin or stdout failed.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use hearth_wasm::compile::{CompileError, MODULE_BYTES_MAX, compile};

const EX_DATAERR: u8 = 65;
const EX_SOFTWARE: u8 = 70;
const EX_IOERR: u8 = 74;

fn main() -> ExitCode {
    let mut module = Vec::new();
    // One byte more than allowed tells a module that is too long.
    if let Err(error) = io::stdin()
        .take(MODULE_BYTES_MAX + 1)
        .read_to_end(&mut module)
    {
        return fail(EX_IOERR, &[format!("cannot read the module: {error}")]);
    }
    match compile(&module) {
        Ok(artifact) => match io::stdout().write_all(&artifact) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EX_IOERR, &[format!("cannot write the artifact: {error}")]),
        },
        Err(CompileError::Module(problems)) => fail(EX_DATAERR, &problems),
        Err(error @ CompileError::Engine(_)) => fail(EX_SOFTWARE, &[error.to_string()]),
    }
}

fn fail(code: u8, problems: &[String]) -> ExitCode {
    for problem in problems {
        // Where stderr is closed too, the exit code is all there is.
        _ = writeln!(io::stderr(), "{problem}");
    }
    ExitCode::from(code)
}
