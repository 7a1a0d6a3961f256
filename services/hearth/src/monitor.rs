// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth serve`: prepares the data directory, listens, and keeps a gateway and a spawner alive.
//!
//! This process is root and stays small: one thread, and nothing that a stranger sent is ever parsed in it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hearth_jail::instance::{self, DataDir};
use hearth_jail::{bases, host, rootless, trees};
use hearth_protocol::{NameProblem, SmallName, TreeId};
use nix::errno::Errno;
use tracing::info;

use crate::config::Config;
use crate::exit::{Code, Failure};
use crate::images::{self, ImageError};
use crate::roles::{GatewayStart, SpawnerStart};
use crate::{serve, terminal};

mod children;
mod files;
mod key;
mod listen;
mod restart;
pub(crate) mod signals;
mod slot;
mod supervisor;

pub(crate) use files::FilesError;
pub(crate) use key::KeyError;
pub(crate) use listen::ListenError;
pub(crate) use supervisor::READY;

use children::Children;
use supervisor::Supervisor;

/// What is printed, with the URL, once connections are taken.
pub(crate) const LISTENING: &str = "listening on ";

/// The bases that every instance has.
const BASES: [&str; 2] = ["static", "minimal"];

/// Why `hearth serve` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// The host or the user lacks something.
    #[error(transparent)]
    Host(#[from] host::Refusal),
    /// The user namespace of an ordinary user.
    #[error(transparent)]
    Rootless(#[from] rootless::RootlessError),
    /// The data directory or the host ids.
    #[error(transparent)]
    Instance(#[from] instance::InstanceError),
    /// A folder above the data directory is closed to the gateway's user, which reaches its state through it.
    #[error("the gateway's user, which is nobody else's, cannot pass through {}", path.display())]
    ClosedParent { path: PathBuf },
    /// The embedded programs.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The compiler.
    #[error("cannot store the compiler")]
    Compiler(#[source] trees::TreeError),
    /// What native functions see as their root.
    #[error(transparent)]
    Base(#[from] bases::BaseError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameProblem),
    /// Too few open files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The management key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Signals cannot be read.
    #[error("cannot handle signals")]
    Signals(#[source] nix::Error),
    /// Waiting failed.
    #[error("cannot wait for the children")]
    Poll(#[source] nix::Error),
    /// A child died again and again.
    #[error("the {role} ended too often; its log lines above say why")]
    GaveUp { role: &'static str },
}

impl MonitorError {
    /// With the exit code and what to do about it.
    pub(crate) fn into_failure(self) -> Failure {
        match &self {
            Self::Host(refusal) => {
                let mut text = "this host does not give every wall".to_owned();
                for missing in &refusal.missing {
                    text.push_str(&format!("\n  - {}: {}", missing.subject, missing.found));
                    if let Some(fix) = &missing.fix {
                        text.push_str(&format!("\n    fix: {fix}"));
                    }
                }
                if rootless::is_needed() {
                    return Failure::of(Code::NotAllowed, text).with_fix(serve::as_root());
                }
                Failure::of(Code::CannotStart, text)
            }
            Self::Listen(error) if error.source == Errno::EADDRINUSE => {
                Failure::new(Code::CannotStart, &self)
                    .with_fix("stop what listens there, or choose another address with --listen")
            }
            Self::Files(FilesError::TooLow { .. }) => Failure::new(Code::CannotStart, &self).with_fix(
                "raise it (ulimit -Hn, LimitNOFILE=, docker --ulimit nofile=), or lower --max-connections or --max-sandboxes",
            ),
            Self::ClosedParent { .. } => Failure::new(Code::CannotStart, &self)
                .with_fix("let others pass through it (chmod o+x), or choose another --data-dir"),
            Self::GaveUp { .. } => Failure::new(Code::Failed, &self),
            _ => Failure::new(Code::CannotStart, &self),
        }
    }
}

/// Refuses a host that cannot give every wall of the level that is asked for, or too few open files for the settings. The
/// limit of open files is raised from then on, which is how one learns that it can be.
pub(crate) fn check_host(config: &Config) -> Result<(), MonitorError> {
    host::check(config.least_level)?;
    files::raise(config)?;
    Ok(())
}

/// Whether any user can pass through every folder above `data_dir`. Asked here, once and with a reason: else the gateway
/// would only fail to open its database, again and again.
fn check_parents(data_dir: &Path) -> Result<(), MonitorError> {
    // A path that cannot be resolved or looked at is refused where it is used, with what went wrong.
    let resolved = data_dir
        .canonicalize()
        .unwrap_or_else(|_| data_dir.to_owned());
    for path in resolved.ancestors().skip(1) {
        let mode = path
            .metadata()
            .map_or(0o001, |metadata| metadata.permissions().mode());
        if mode & 0o001 == 0 {
            return Err(MonitorError::ClosedParent {
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

/// Serves until it is told to stop, on a host that was checked. Returns with no process, cgroup or mount left.
pub(crate) fn run(config: &Config) -> Result<(), MonitorError> {
    // Before anything that can be interrupted half-way: a start ends in order or not at all.
    let signals = signals::block().map_err(MonitorError::Signals)?;
    let data_dir = DataDir::open(&config.data_dir)?;
    check_parents(data_dir.path())?;
    let rootless = rootless::is_needed();
    if rootless {
        // After the data directory was looked at: who owns the directories above it cannot be seen from inside.
        rootless::enter()?;
    }
    let ids = data_dir.claim_ids()?;
    // Before listening: what a killed run left would count against this one's limits.
    let swept = data_dir.sweep()?;
    if swept != instance::Swept::default() {
        info!(?swept, "removed what an earlier run left");
    }
    let images = images::install(data_dir.path())?;
    let compiler_tree = store_compiler(&data_dir)?;
    for name in BASES {
        ensure_base(&data_dir, name)?;
    }
    let management_key = key::ensure(data_dir.path())?;
    let listeners = listen::bind_all(config.listen, config.shards)?;
    let address = listeners.first().and_then(|one| one.local_addr().ok());
    let cores = cores(config.shards);
    let children = Children {
        gateway: GatewayStart {
            parent: std::process::id(),
            id: ids.block.gateway(),
            state_dir: data_dir.state(),
            management_key,
            compiler_tree,
            cores: cores.clone(),
            allowed_hosts: config.allowed_hosts.clone(),
            connections_max: config.connections_max,
            sandboxes_max: config.sandboxes_max,
            skeletons: config.skeletons,
            queue_len_max: config.queue_len_max,
            queue_wait_max: config.queue_wait_max,
            drain_max: config.drain_max,
            log: config.log.clone(),
        },
        spawner: SpawnerStart {
            parent: std::process::id(),
            data_dir: data_dir.path().to_owned(),
            instance: data_dir.instance().to_owned(),
            first_id: ids.block.first,
            id_count: ids.block.count,
            init: images.init,
            wasm_worker: images.wasm_worker,
            cores: cores.iter().flatten().copied().collect(),
            sandboxes_max: config.sandboxes_max,
            log: config.log.clone(),
        },
        listeners,
        data_dir,
    };
    terminal::line(&format!(
        "{LISTENING}http://{}",
        address.unwrap_or(config.listen)
    ));
    let result = Supervisor::new(&children, signals).run();
    // The lock is still held: nobody else's can be meant.
    children.sweep()?;
    if rootless {
        children.take_back()?;
    }
    result
}

/// The compiler is run as an ordinary function; its tree is found by content.
fn store_compiler(data_dir: &DataDir) -> Result<TreeId, MonitorError> {
    let mut store = trees::Store::new(data_dir.trees());
    let file = trees::NewFile {
        path: images::WASM_COMPILER_FILE,
        executable: true,
        content: images::WASM_COMPILER,
    };
    store.install(&[file]).map_err(MonitorError::Compiler)
}

fn ensure_base(data_dir: &DataDir, name: &str) -> Result<(), MonitorError> {
    let mut progress = |line: &str| info!(base = name, "{line}");
    let name = SmallName::new(name)?;
    bases::ensure(&data_dir.bases(), &name, &mut progress)?;
    Ok(())
}

/// Each shard on a core of its own, where there are as many; else none is pinned.
fn cores(shards: u16) -> Vec<Option<u16>> {
    let shards = usize::from(shards);
    let allowed = host::cores().unwrap_or_default();
    if allowed.len() < shards {
        return vec![None; shards];
    }
    allowed.into_iter().take(shards).map(Some).collect()
}
