// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The spawner: the one process with privileges and children. It serves one gateway over one socket, believes nothing
//! that the gateway says, and never waits for a sandbox.
//!
//! ```text
//! gateway socket ─▶ serve ─▶ create · bind · renew · inspect · destroy · upload ─▶ outbox ─▶ gateway socket
//! setup sockets ──▶ create (maps, up)             pidfds, OOM eventfds ──▶ destroy ─▶ Gone
//! once a second ──▶ audit (one sandbox at a glance) ─▶ Breached, destroy
//! listeners ──▶ violations ─▶ the call fails, or of an observed sandbox is counted (observe)
//! ```
//!
//! One thread, no async: every step is tens of microseconds, and whatever takes longer (a sandbox that builds its
//! walls, a process that dies, a tree on its way to the disk) is waited for in the one epoll(7). Of what is asked for at
//! the same time, skeletons are made last: whoever binds one is waiting for it.
//!
//! It ends when its gateway's socket closes, or on SIGTERM (which the monitor's death sends): every sandbox is
//! destroyed first. When it is killed itself, every sandbox dies with it by PDEATHSIG, and the next start sweeps.

mod audit;
mod bind;
mod build;
mod commit;
mod create;
mod destroy;
mod events;
mod filters;
mod groundwork;
mod limits;
mod link;
mod observe;
mod requests;
mod table;
mod upload;
mod violations;

use std::{
    collections::VecDeque,
    ffi::CString,
    fs,
    io::Write as _,
    os::fd::{AsFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hearth_protocol::spawner::{Event, Host};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        stat::Mode,
    },
    unistd::getppid,
};

use crate::{
    bases::{self, BaseError},
    cgroup::{CgroupError, Cgroups},
    ground::Ground,
    instance::IdBlock,
    landlock,
    lsm::AppArmor,
    mounts::Home,
    namespace::HostNetwork,
    rlimit,
    seccomp::{self, SeccompError},
    sys::program::Strings,
    trees::Store,
    walls::{self, Every, Walls},
};
use audit::Audit;
use build::Build;
use commit::Commits;
use create::Create;
use events::Poller;
use filters::Filters;
use groundwork::Groundwork;
use link::Link;
use observe::Observations;
use table::Table;
use violations::Muted;

/// What the spawner is started with; all of it comes from the monitor.
#[derive(Debug, Clone)]
pub struct SpawnerConfig {
    /// The data directory, with `trees` and `bases` in it.
    pub data_dir: PathBuf,
    /// The instance's id: part of every cgroup's name.
    pub instance: String,
    /// The ids that sandboxes get theirs from; already checked to be unused by others.
    pub ids: IdBlock,
    /// The image of `hearth-init`: root's, mode 0111, run by nobody else.
    pub init_image: PathBuf,
    /// The image of the resident program, as `init_image`.
    pub resident_image: PathBuf,
    /// Its arguments after the program's name.
    pub resident_args: Vec<String>,
    /// The most sandboxes at once.
    pub sandboxes_max: u32,
    /// The cores that a skeleton may be pinned to.
    pub cores: Vec<u16>,
    /// The monitor's process id: where another process is the parent by now, the monitor is dead.
    pub monitor: u32,
}

/// Why the spawner ended in good order, with no sandbox left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The gateway closed its socket, or broke the protocol.
    GatewayGone,
    /// SIGTERM: the monitor's wish, or its death.
    Stopped,
}

/// Why the spawner could not start, or could not go on. Sandboxes of a spawner that goes down with an error die with it.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// A fork of a process with several threads copies locks that nobody will open.
    #[error("cannot run the spawner in a process with {count} threads")]
    Threads {
        /// How many there are.
        count: usize,
    },
    /// The monitor died before its death could be noticed.
    #[error("cannot run the spawner without its monitor")]
    Orphaned,
    /// A limit in the configuration cannot be kept.
    #[error("cannot keep {asked} sandboxes: the block of ids has {possible} pairs")]
    TooManySandboxes {
        /// From the configuration.
        asked: u32,
        /// What the ids give.
        possible: u32,
    },
    /// A path cannot be used.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A step of the start failed.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        source: Errno,
    },
    /// The cgroups cannot be had.
    #[error("cannot prepare cgroups")]
    Cgroup(#[from] CgroupError),
    /// The bases cannot be listed.
    #[error("cannot list the bases")]
    Bases(#[from] BaseError),
    /// A seccomp profile cannot be compiled.
    #[error("cannot compile a seccomp profile")]
    Seccomp(#[from] SeccompError),
}

fn at(step: &'static str) -> impl Fn(Errno) -> SpawnerError {
    move |source| SpawnerError::Step { step, source }
}

/// Serves one gateway. Returns with no sandbox left.
///
/// # Errors
/// [`SpawnerError`]; the caller must end the process then, which ends every sandbox.
pub fn run(config: &SpawnerConfig, gateway: OwnedFd) -> Result<Ended, SpawnerError> {
    run_building(config, gateway, Build::of::<Every>())
}

/// As [`run`], with walls left out, and says so on stderr. For test-only executables: what is compiled into an
/// executable that does not call this puts up every wall.
///
/// # Errors
/// As [`run`].
pub fn run_without<W: Walls>(
    config: &SpawnerConfig,
    gateway: OwnedFd,
) -> Result<Ended, SpawnerError> {
    let line = format!("{}: {:?}\n", walls::MARKER, W::LEFT_OUT);
    // Where stderr is gone, so is the reader.
    let _unread = std::io::stderr().write_all(line.as_bytes());
    run_building(config, gateway, Build::of::<W>())
}

fn run_building(
    config: &SpawnerConfig,
    gateway: OwnedFd,
    build: Build,
) -> Result<Ended, SpawnerError> {
    refuse_threads()?;
    end_with_monitor(config.monitor)?;
    rlimit::open_many_files()
        .map_err(|failure| at("raise the limit of open files")(failure.errno))?;
    let mut spawner = Spawner::new(config, gateway, build)?;
    let outcome = spawner.serve();
    // Without this the directories stay until the next start's sweep; sandboxes are gone or die with this process.
    spawner.parts.cgroups.remove();
    outcome
}

/// Everything that a sandbox is made from; fixed for the spawner's life.
struct Parts {
    ground: Ground,
    bases: PathBuf,
    home: Home,
    /// Where network namespaces can be made ahead.
    host_network: Option<HostNetwork>,
    cgroups: Cgroups,
    store: Store,
    cores: Vec<u16>,
    init_image: OwnedFd,
    resident_image: OwnedFd,
    /// Init's arguments for one process per call, and for a resident program.
    init_argv: Strings,
    resident_argv: Strings,
    /// As `init_argv`, with the overlay `alone` over each process.
    overlay_argv: Strings,
    filters: Filters,
    apparmor: AppArmor,
    build: Build,
}

/// The spawner between two events.
struct Spawner {
    parts: Parts,
    link: Link,
    poller: Poller,
    table: Table,
    signals: SignalFd,
    /// Skeletons that are asked for and not begun.
    creates: VecDeque<Create>,
    groundwork: Groundwork,
    commits: Commits,
    audit: Audit,
    observations: Observations,
    /// Sandboxes that ask too much to be heard at once.
    muted: Muted,
    /// Whether removed trees wait to be deleted.
    untidy: bool,
}

impl Spawner {
    fn new(config: &SpawnerConfig, gateway: OwnedFd, build: Build) -> Result<Self, SpawnerError> {
        let signals = take_signals()?;
        let parts = Parts::new(config, build)?;
        let poller = Poller::new(gateway.as_fd(), signals.as_fd()).map_err(at("make an epoll"))?;
        let table = Table::new(config.ids, config.sandboxes_max);
        let mut spawner = Self {
            parts,
            link: Link::new(gateway),
            poller,
            table,
            signals,
            creates: VecDeque::new(),
            groundwork: Groundwork::default(),
            commits: Commits::default(),
            audit: Audit::new(),
            observations: Observations::default(),
            muted: Muted::default(),
            untidy: true,
        };
        let hello = Event::Hello {
            host: spawner.host(config)?,
        };
        spawner.link.push(&hello, Vec::new());
        Ok(spawner)
    }

    fn host(&self, config: &SpawnerConfig) -> Result<Host, SpawnerError> {
        Ok(Host {
            level: self.parts.ground.level(),
            cgroup: self.parts.cgroups.layout(),
            memory_peak_resets: self.parts.cgroups.peak_resets(),
            landlock_abi: landlock::abi(),
            sandboxes_max: config.sandboxes_max,
            bases: bases::list(&self.parts.bases)?,
        })
    }
}

impl Parts {
    fn new(config: &SpawnerConfig, build: Build) -> Result<Self, SpawnerError> {
        let possible = config.ids.pairs();
        if possible < config.sandboxes_max {
            return Err(SpawnerError::TooManySandboxes {
                asked: config.sandboxes_max,
                possible,
            });
        }
        let ground = Ground::current().map_err(|failure| at("read the id map")(failure.errno))?;
        // Before any mount is touched: nothing that happens here is seen by the host, and all of it is gone when the
        // spawner and its sandboxes are. A sandbox's namespace is a copy of this one, so it begins private.
        unshare(CloneFlags::CLONE_NEWNS).map_err(at("unshare the mount namespace"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(at("make mounts private"))?;
        let home = Home::open().map_err(|failure| at("open the mount namespace")(failure.errno))?;
        let argument = |text: &str| {
            CString::new(text).map_err(|_nul| at("take an argument with a NUL byte")(Errno::EINVAL))
        };
        let mut resident = vec![
            argument("hearth-init")?,
            argument(crate::init::RESIDENT_MODE)?,
        ];
        for text in &config.resident_args {
            resident.push(argument(text)?);
        }
        Ok(Self {
            ground,
            bases: config.data_dir.join("bases"),
            home,
            host_network: HostNetwork::open()
                .map_err(|failure| at("open the network namespace")(failure.errno))?,
            cgroups: Cgroups::prepare(&config.instance)?,
            store: Store::new(config.data_dir.join("trees")),
            cores: config.cores.clone(),
            init_image: open_image(&config.init_image)?,
            resident_image: open_image(&config.resident_image)?,
            init_argv: Strings::new(vec![argument("hearth-init")?]),
            resident_argv: Strings::new(resident),
            overlay_argv: Strings::new(vec![
                argument("hearth-init")?,
                argument(crate::init::OVERLAY_MODE)?,
                argument(&seccomp::compile(seccomp::Profile::Alone)?.to_text())?,
            ]),
            filters: Filters::compile()?,
            apparmor: AppArmor::find(),
            build,
        })
    }
}

/// By descriptor, for the spawner's whole life: what is executed is the file that was there at the start.
fn open_image(path: &Path) -> Result<OwnedFd, SpawnerError> {
    open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
        Mode::empty(),
    )
    .map_err(|source| SpawnerError::Open {
        path: path.to_owned(),
        source,
    })
}

fn refuse_threads() -> Result<(), SpawnerError> {
    let tasks = fs::read_dir("/proc/self/task")
        .map_err(|error| at("count threads")(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    match tasks.count() {
        1 => Ok(()),
        count => Err(SpawnerError::Threads { count }),
    }
}

fn end_with_monitor(monitor: u32) -> Result<(), SpawnerError> {
    // SIGTERM, not SIGKILL: the sandboxes are to be removed in good order.
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(at("set the parent death signal"))?;
    // After it: a monitor that died before has sent nothing.
    let parent = u32::try_from(getppid().as_raw()).unwrap_or(0);
    if parent == monitor {
        Ok(())
    } else {
        Err(SpawnerError::Orphaned)
    }
}

/// SIGTERM is the monitor's. SIGINT and SIGHUP come from a terminal to the whole process group at once: the monitor
/// hears them, too, and decides when running invocations have had their time.
fn take_signals() -> Result<SignalFd, SpawnerError> {
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        blocked.add(signal);
    }
    blocked.thread_block().map_err(at("block signals"))?;
    let mut heard = SigSet::empty();
    heard.add(Signal::SIGTERM);
    SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(at("make a signalfd"))
}

/// For the states that must not go on: an exit without destructors, which by PDEATHSIG ends every sandbox.
pub(crate) fn die(what: &str, errno: Errno) -> ! {
    let line = format!("hearth spawner: {what}: {}\n", errno.desc());
    // Where stderr is gone, so is the reader.
    let _unread = std::io::stderr().write_all(line.as_bytes());
    crate::sys::clone::exit_now(EXIT_DIED)
}

const EXIT_DIED: i32 = 70;

/// A path for a system call; the paths here come from the configuration and from checked names, so they hold no NUL.
fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
