// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth run DIR`: one invocation behind the same walls, with an instance of its own that leaves nothing behind.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use hearth_jail::trees;
use tempfile::TempDir;

use crate::args::Run;
use crate::commands;
use crate::config::{Config, Environment, Flags};
use crate::exit::{Code, Failure};
use crate::folder::Builder;
use crate::instance::Instance;
use crate::serve::make_room;
use crate::terminal;

/// Builds, deploys to a temporary instance, invokes, and removes everything.
pub(crate) fn run(arguments: &Run, environment: &Environment) -> Result<(), Failure> {
    make_room();
    let builder = Builder::new(environment);
    let folder = commands::open(&arguments.dir)?;
    if !arguments.no_build {
        builder
            .build(&folder)
            .map_err(|error| commands::folder_failure(&error))?;
    }
    let archive = folder
        .pack(&builder)
        .map_err(|error| commands::folder_failure(&error))?;

    let home = Home::new()?;
    let mut flags = Flags::default();
    flags.set("listen", "127.0.0.1:0".to_owned());
    flags.set("data_dir", home.0.path().join("data").display().to_string());
    // One invocation needs one shard and few sandboxes.
    flags.set("shards", "1".to_owned());
    flags.set("max_sandboxes", "8".to_owned());
    let mut config = Config::load(&flags, None, environment)?;
    if environment.get("RUST_LOG").is_none() {
        "warn".clone_into(&mut config.log.filter);
    }
    let instance = Instance::start(&flags, None, &config)?;
    let client = instance.client()?;
    let name = &folder.manifest.name;
    let result = commands::send(&client, name, &archive)
        .and_then(|_| commands::call(&client, name, arguments.data.as_deref()));
    instance.stop(&config);
    result
}

/// A directory that the gateway's user can pass through; deleted with this value.
struct Home(TempDir);

impl Home {
    fn new() -> Result<Self, Failure> {
        let made = tempfile::Builder::new()
            .prefix("hearth-run-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir();
        made.map(Self).map_err(|error| {
            let text = format!("cannot make a temporary directory: {error}");
            Failure::of(Code::CannotStart, text)
        })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Its trees cannot be written, which holds up an ordinary user who owns them, and so the way that TempDir deletes.
        if let Err(error) = trees::delete_whole(self.0.path()) {
            let path = self.0.path().display();
            terminal::note(&format!("cannot delete {path}: {error}"));
        }
    }
}
