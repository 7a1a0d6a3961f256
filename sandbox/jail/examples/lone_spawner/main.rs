// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A spawner without a monitor, for the crate's tests: `lone_spawner DATA_DIR INSTANCE FIRST_ID INIT RESIDENT MAX`, with
//! the gateway's socket as stdin. Never shipped.

mod config;

use std::{error::Error, io::stdin, os::fd::AsFd};

use hearth_jail::spawner::run;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let gateway = stdin().as_fd().try_clone_to_owned()?;
    run(&config::read(&arguments)?, gateway)?;
    Ok(())
}
