// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SHA-256 of stdin, printed as lower-case hex and a line feed. One source for two functions: `sha256` is this program
//! built for the host, `sha256-wasm` is it built for WASI preview 1.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use sha2::{Digest as _, Sha256};

/// Read at a time: the capacity of a pipe, so that one read(2) empties it.
const READ_BYTES_MAX: usize = 64 * 1024;

fn main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sha256: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Never holds more of the input than one buffer: the memory limit does not bound what can be hashed.
fn answer() -> io::Result<()> {
    let mut hasher = Sha256::new();
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; READ_BYTES_MAX];
    loop {
        let count = stdin.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let mut line = String::with_capacity(65);
    for byte in hasher.finalize() {
        // Writing to a String cannot fail.
        write!(line, "{byte:02x}").map_err(io::Error::other)?;
    }
    line.push('\n');
    io::stdout().lock().write_all(line.as_bytes())
}
