// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The two children of the monitor: each takes its link, hears what it is told, and becomes what it is.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use hearth_gateway::{EdgeTimeouts, GatewayConfig, GatewayLimits};
use hearth_jail::gateway_jail;
use hearth_jail::instance::IdBlock;
use hearth_jail::spawner::{self, SpawnerConfig};
use hearth_protocol::TreeId;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::args::RoleName;
use crate::config::Logging;
use crate::exit::{Code, Failure};
use crate::link;
use crate::logging;
use crate::monitor::signals;
use crate::serve::die_with;

/// What the gateway is told, beside the fds: the spawner's socket, then the listeners.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct GatewayStart {
    /// The monitor.
    pub(crate) parent: u32,
    /// Its user and group id.
    pub(crate) id: u32,
    pub(crate) state_dir: PathBuf,
    pub(crate) management_key: String,
    pub(crate) compiler_tree: TreeId,
    /// The core of each shard.
    pub(crate) cores: Vec<Option<u16>>,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) connections_max: u32,
    pub(crate) sandboxes_max: u32,
    pub(crate) skeletons: u32,
    pub(crate) queue_len_max: u32,
    pub(crate) queue_wait_max: Duration,
    pub(crate) drain_max: Duration,
    pub(crate) log: Logging,
}

impl std::fmt::Debug for GatewayStart {
    /// Without the management key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayStart")
            .field("parent", &self.parent)
            .field("id", &self.id)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

/// What the spawner is told, beside the fd of the gateway's socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SpawnerStart {
    /// The monitor.
    pub(crate) parent: u32,
    pub(crate) data_dir: PathBuf,
    pub(crate) instance: String,
    /// The block of host ids.
    pub(crate) first_id: u32,
    pub(crate) id_count: u32,
    /// The images.
    pub(crate) init: PathBuf,
    pub(crate) wasm_worker: PathBuf,
    /// The cores that the gateway's shards run on.
    pub(crate) cores: Vec<u16>,
    pub(crate) sandboxes_max: u32,
    pub(crate) log: Logging,
}

/// Becomes one of the monitor's children.
pub(crate) fn play(role: RoleName) -> Result<(), Failure> {
    signals::unblock_all().map_err(|error| Failure::new(Code::CannotStart, &error))?;
    let link = take_link().map_err(|error| {
        let text = format!("cannot take the monitor's socket: {error}");
        Failure::of(Code::CannotStart, text)
    })?;
    match role {
        RoleName::Gateway => {
            let (start, fds): (GatewayStart, _) = told(&link)?;
            logging::start(&start.log);
            logged(gateway(start, fds, link))
        }
        RoleName::Spawner => {
            let (start, fds): (SpawnerStart, _) = told(&link)?;
            logging::start(&start.log);
            logged(spawner(start, fds))
        }
    }
}

/// From where there is a log, failures go there, in its form.
fn logged(result: Result<(), Failure>) -> Result<(), Failure> {
    result.map_err(|failure| {
        tracing::error!("{}", failure.text());
        failure.already_told()
    })
}

/// The link is stdin; nothing that reads stdin by mistake shall read from it.
fn take_link() -> std::io::Result<OwnedFd> {
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing)?;
    Ok(link)
}

fn gateway(start: GatewayStart, fds: Vec<OwnedFd>, link: OwnedFd) -> Result<(), Failure> {
    // Again in the jail, because losing the privilege clears it; here for the time until then.
    die_with(start.parent, Signal::SIGKILL)?;
    let mut fds = fds.into_iter();
    let spawner = fds.next().ok_or_else(misled)?;
    let config = GatewayConfig {
        listeners: fds.map(TcpListener::from).collect(),
        cores: start.cores,
        monitor: link,
        spawner,
        state_dir: start.state_dir.clone(),
        management_key: start.management_key,
        compiler_tree: start.compiler_tree,
        allowed_hosts: start.allowed_hosts,
        limits: GatewayLimits {
            connections_max: start.connections_max,
            sandboxes_max: start.sandboxes_max,
            skeletons_per_shard: start.skeletons,
            queue_len_max: start.queue_len_max,
            queue_wait_max: start.queue_wait_max,
            drain_max: start.drain_max,
            ..GatewayLimits::default()
        },
        timeouts: EdgeTimeouts::default(),
    };
    // From here on this process has no privilege; only now it reads from a stranger.
    gateway_jail::enter(start.id, start.id, &start.state_dir, start.parent)
        .map_err(|error| Failure::new(Code::CannotStart, &error))?;
    hearth_gateway::serve(config).map_err(|error| Failure::new(Code::CannotStart, &error))
}

fn spawner(start: SpawnerStart, fds: Vec<OwnedFd>) -> Result<(), Failure> {
    let gateway = fds.into_iter().next().ok_or_else(misled)?;
    let config = SpawnerConfig {
        data_dir: start.data_dir,
        instance: start.instance,
        ids: IdBlock {
            first: start.first_id,
            count: start.id_count,
        },
        init_image: start.init,
        resident_image: start.wasm_worker,
        resident_args: Vec::new(),
        sandboxes_max: start.sandboxes_max,
        cores: start.cores,
        monitor: start.parent,
    };
    let ended = spawner::run(&config, gateway);
    ended
        .map(|why| tracing::debug!(?why, "the spawner is done"))
        .map_err(|error| Failure::new(Code::CannotStart, &error))
}

fn told<M: serde::de::DeserializeOwned>(link: &OwnedFd) -> Result<(M, Vec<OwnedFd>), Failure> {
    link::receive(link).map_err(|error| {
        Failure::new(Code::CannotStart, &error)
            .with_fix("this is a part of `hearth serve`; start that instead")
    })
}

fn misled() -> Failure {
    Failure::of(Code::CannotStart, "the monitor sent too few sockets")
}
