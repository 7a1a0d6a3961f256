// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PID 1 of every sandbox; see `hearth_jail::init`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Nobody reads what init could print: its stderr is /dev/null. The exit status tells the spawner enough.
    hearth_jail::init::run(std::env::args_os().skip(1))
        .map_or(ExitCode::from(EXIT_BROKEN), ExitCode::from)
}

/// Told apart from a resident program's own codes by being the highest.
const EXIT_BROKEN: u8 = 255;
