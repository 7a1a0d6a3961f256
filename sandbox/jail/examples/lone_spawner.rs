// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A spawner without a monitor, for the crate's tests: `lone_spawner DATA_DIR INSTANCE FIRST_ID INIT RESIDENT MAX`, with
//! the gateway's socket as stdin. Never shipped.

use std::{error::Error, io::stdin, os::fd::AsFd, path::PathBuf};

use hearth_jail::{
    host,
    instance::IdBlock,
    spawner::{SpawnerConfig, run},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, instance, first, init, resident, sandboxes_max] = arguments.as_slice() else {
        return Err("six arguments are needed".into());
    };
    let config = SpawnerConfig {
        data_dir: PathBuf::from(data_dir),
        instance: instance.clone(),
        ids: IdBlock {
            first: first.parse()?,
            count: 8192,
        },
        init_image: PathBuf::from(init),
        resident_image: PathBuf::from(resident),
        resident_args: vec!["resident-argument".to_owned()],
        sandboxes_max: sandboxes_max.parse()?,
        cores: host::cores()?,
        monitor: std::os::unix::process::parent_id(),
    };
    let gateway = stdin().as_fd().try_clone_to_owned()?;
    run(&config, gateway)?;
    Ok(())
}
