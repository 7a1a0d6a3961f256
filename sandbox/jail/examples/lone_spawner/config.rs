// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A spawner's configuration from `DATA_DIR INSTANCE FIRST_ID INIT RESIDENT MAX`, with the caller as its monitor.

use std::{error::Error, path::PathBuf};

use hearth_jail::{host, instance::IdBlock, spawner::SpawnerConfig};

pub(crate) fn read(arguments: &[String]) -> Result<SpawnerConfig, Box<dyn Error>> {
    let [data_dir, instance, first, init, resident, sandboxes_max] = arguments else {
        return Err("six arguments are needed".into());
    };
    Ok(SpawnerConfig {
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
    })
}
