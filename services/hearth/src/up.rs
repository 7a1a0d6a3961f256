// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth up DIR`: serve, deploy every function folder in DIR, deploy again what changes, in the foreground.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::args::Up;
use crate::client::Client;
use crate::commands;
use crate::config::{Config, Environment};
use crate::exit::{Code, Failure};
use crate::folder::{Builder, Folder, MANIFEST};
use crate::instance::Instance;
use crate::monitor::READY;
use crate::monitor::signals::{self, Notice};
use crate::serve::{allow, make_room, quoted};
use crate::terminal;

mod watch;

use watch::Watch;

/// A folder is deployed again once nothing in it has changed for this long: editors and compilers write in several steps.
const QUIET: Duration = Duration::from_millis(300);

/// What `up` waits for.
#[derive(Debug)]
enum Happening {
    /// A function folder's files have changed.
    Changed(PathBuf),
    /// Ctrl-C or SIGTERM.
    Stop,
    /// The server ended by itself.
    ServerEnded,
}

/// Everything that deploying needs.
struct Deployer {
    builder: Builder,
    client: Client,
    watch: Watch,
    happenings: Receiver<Happening>,
}

/// Until it is told to stop.
pub(crate) fn up(arguments: &Up, environment: &Environment) -> Result<(), Failure> {
    let settings = &arguments.settings;
    let config = Config::load(&settings.flags, settings.config.as_deref(), environment)?;
    allow(config.least_level)?;
    make_room();
    let folders = function_folders(&arguments.dir)?;
    // Before the first child and the first thread, which inherit the mask.
    let signals = signals::block().map_err(|error| Failure::new(Code::CannotStart, &error))?;
    let instance = Instance::start(&settings.flags, settings.config.as_ref(), &config)?;
    let (sender, happenings) = channel();
    let watch = Watch::start(&arguments.dir, sender.clone())?;
    listen(signals, instance.pidfd()?, sender);
    let mut deployer = Deployer {
        builder: Builder::new(environment),
        client: instance.client()?,
        watch,
        happenings,
    };
    let result = deployer.run(&folders);
    instance.stop(&config);
    result
}

/// The direct children of `dir` that hold a manifest, by name.
fn function_folders(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir).map_err(|error| {
        Failure::of(
            Code::Usage,
            format!("cannot read {}: {error}", dir.display()),
        )
    })?;
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(MANIFEST).is_file())
        .collect();
    folders.sort();
    if folders.is_empty() {
        let text = format!("no folder in {} holds a {MANIFEST}", dir.display());
        return Err(Failure::of(Code::Usage, text));
    }
    Ok(folders)
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Deploy these again.
    Deploy(BTreeSet<PathBuf>),
    Stop,
}

impl Deployer {
    /// Deploys all, then what changes, until it is time to stop; a failure when none could be deployed.
    fn run(&mut self, folders: &[PathBuf]) -> Result<(), Failure> {
        let mut curls = Vec::new();
        for path in folders {
            match self.deploy(path) {
                Ok(folder) => curls.push(self.curl_line(&folder)),
                Err(failure) => terminal::note(&format!("{}: {}", path.display(), failure.text())),
            }
            if self.told_to_stop() {
                return Ok(());
            }
        }
        if curls.is_empty() {
            let text = "no function could be deployed; the reasons are above";
            return Err(Failure::of(Code::Failed, text));
        }
        terminal::line(READY);
        for line in curls {
            terminal::line(&line);
        }
        loop {
            match self.next()? {
                Next::Stop => return Ok(()),
                Next::Deploy(changed) => self.deploy_again(&changed),
            }
        }
    }

    fn deploy_again(&mut self, changed: &BTreeSet<PathBuf>) {
        for path in changed {
            if !path.join(MANIFEST).is_file() || !self.watch.has_changed(path) {
                continue;
            }
            if let Err(failure) = self.deploy(path) {
                let (path, text) = (path.display(), failure.text());
                terminal::note(&format!("{path}: {text}\n  what was deployed before stays"));
            }
        }
    }

    /// Builds, packs and sends one folder.
    fn deploy(&mut self, path: &Path) -> Result<Folder, Failure> {
        // Before it is read, so that an edit from now on is seen.
        self.watch.follow(path);
        let result = self.build_and_send(path);
        // What the build itself wrote into the folder is no change of the function.
        self.watch.settled(path);
        result
    }

    fn build_and_send(&self, path: &Path) -> Result<Folder, Failure> {
        let folder = commands::open(path)?;
        let name = &folder.manifest.name;
        if let Some(build) = &folder.manifest.build {
            terminal::note(&format!("{name}: {build}"));
        }
        let built = self.builder.build(&folder);
        let archive = built.and_then(|()| folder.pack(&self.builder));
        let archive = archive.map_err(|error| commands::folder_failure(&error))?;
        commands::send(&self.client, name, &archive)?;
        terminal::note(&format!("{name}: deployed"));
        Ok(folder)
    }

    /// Waits for something to happen, and then until nothing more does.
    fn next(&self) -> Result<Next, Failure> {
        let mut changed = BTreeSet::new();
        loop {
            let happening = if changed.is_empty() {
                let received = self.happenings.recv();
                received.map_err(|_closed| RecvTimeoutError::Disconnected)
            } else {
                self.happenings.recv_timeout(QUIET)
            };
            match happening {
                Ok(Happening::Changed(path)) => {
                    changed.insert(path);
                }
                Ok(Happening::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(Next::Stop),
                Ok(Happening::ServerEnded) => {
                    let text = "the server ended by itself; see above";
                    return Err(Failure::of(Code::Failed, text));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Next::Deploy(changed)),
            }
        }
    }

    /// Whether a signal or the server's end came meanwhile; changes that came are found again by their folder's state.
    fn told_to_stop(&self) -> bool {
        self.happenings
            .try_iter()
            .any(|happening| !matches!(happening, Happening::Changed(_)))
    }

    fn curl_line(&self, folder: &Folder) -> String {
        let (server, name) = (self.client.url(), &folder.manifest.name);
        let url = match folder.example_path() {
            Some(path) => format!("{server}{path}"),
            None => format!("{server}/invoke/{name}"),
        };
        let data = match folder.example_input() {
            Some(input) => format!("--data-binary {}", quoted(&format!("@{}", input.display()))),
            None => "-X POST".to_owned(),
        };
        format!("curl -sS {data} {}", quoted(&url))
    }
}

/// Turns signals and the server's end into happenings. In a thread of its own, because everything else comes by channel.
fn listen(signals: SignalFd, server: OwnedFd, happenings: Sender<Happening>) {
    std::thread::spawn(move || {
        loop {
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(server.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err_and(|error| error != Errno::EINTR) {
                return;
            }
            let server_ended = fds[1].any().unwrap_or(false);
            let stops = signals::pending(&signals).unwrap_or_default();
            let happening = match (server_ended, stops.contains(&Notice::Stop)) {
                (true, _) => Happening::ServerEnded,
                (false, true) => Happening::Stop,
                (false, false) => continue,
            };
            if happenings.send(happening).is_err() || server_ended {
                return;
            }
        }
    });
}
