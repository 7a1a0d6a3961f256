// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A real `hearth serve` on a port that the kernel picks, with its data in the benchmark's temporary directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::echoes::{self, Echo, Echoes};
use crate::http::Connection;
use crate::pause;

/// The first start copies the base from the host's packages.
const READY_SECONDS_MAX: u64 = 120;

/// Until as many sandboxes are in a state as are waited for.
const STATE_MAX: Duration = Duration::from_secs(120);
const STATE_RETRY: Duration = Duration::from_millis(20);

/// Hearth, ended when dropped.
#[derive(Debug)]
pub(crate) struct Hearth {
    child: Child,
    address: SocketAddr,
    place: PathBuf,
    /// Makes every deploy a new revision.
    revision: usize,
}

impl Hearth {
    /// With its data in `place`, which may have an earlier one's, and settings beside the defaults.
    pub(crate) fn start(place: &Path, settings: &[&str]) -> Result<Self> {
        fs::create_dir_all(place)?;
        let log = echoes::target_dir()?.join("bench/hearth.log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(place.join("data"))
            .args(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()
            .context("cannot start hearth")?;
        let output = child.stdout.take().context("hearth has no output")?;
        let (sender, lines) = mpsc::channel();
        // It reads to the end, long after the address is known: else Hearth would block on a full pipe.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody listens any more once Hearth is ready.
                let _unheard = sender.send(line);
            }
        });
        let mut server = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            place: place.to_owned(),
            revision: 0,
        };
        server.address = ready_address(&lines)
            .with_context(|| format!("hearth did not get ready; see {}", log.display()))?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Deploys an echo under this name as a revision that nobody has called.
    pub(crate) fn deploy(&mut self, name: &str, echo: Echo, echoes: &Echoes) -> Result<()> {
        self.revision += 1;
        let function = self.place.join("function");
        fs::create_dir_all(&function)?;
        let entry = match echo {
            Echo::Glibc | Echo::Nolibc => "echo",
            Echo::Wasm => "echo.wasm",
        };
        fs::copy(echoes.path(echo), function.join(entry))?;
        let revision = self.revision;
        let manifest = format!(
            "name = \"{name}\"\nentry = \"{entry}\"\ncontract = \"stdio\"\n[env]\nREVISION = \"{revision}\"\n"
        );
        fs::write(function.join("function.toml"), manifest)?;
        let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .arg("deploy")
            .arg(&function)
            .args(["--url", &format!("http://{}", self.address)])
            .env(
                "HEARTH_KEY",
                fs::read_to_string(self.place.join("data/key"))?.trim(),
            )
            .output()
            .context("cannot run hearth deploy")?;
        ensure!(
            output.status.success(),
            "hearth deploy ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// How many sandboxes of a kind are in a state, by the metrics.
    pub(crate) fn sandboxes(&self, kind: &str, state: &str) -> Result<usize> {
        let metrics = Connection::open(self.address)?.text("/metrics")?;
        let key = format!("hearth_sandboxes{{kind=\"{kind}\",state=\"{state}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&key));
        Ok(line.context("the metric is not there")?.parse()?)
    }

    /// Waits until at least so many sandboxes of a kind are in a state.
    pub(crate) fn wait_for(&self, kind: &str, state: &str, wanted: usize) -> Result<()> {
        let deadline = Instant::now() + STATE_MAX;
        loop {
            let count = self.sandboxes(kind, state)?;
            if wanted <= count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{count} instead of {wanted} {kind} sandboxes are {state} after {} s",
                STATE_MAX.as_secs()
            );
            pause(STATE_RETRY);
        }
    }
}

impl Drop for Hearth {
    fn drop(&mut self) {
        let asked = i32::try_from(self.child.id())
            .is_ok_and(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok());
        // Where it could not be asked it has ended already.
        let _ended = if asked {
            self.child.wait().map(drop)
        } else {
            Ok(())
        };
    }
}

/// Reads on until the line that says READY; the address is on it or on one before.
fn ready_address(lines: &Receiver<String>) -> Result<SocketAddr> {
    let mut address = None;
    loop {
        let line = lines
            .recv_timeout(Duration::from_secs(READY_SECONDS_MAX))
            .context("it said nothing more")?;
        if let Some((_, rest)) = line.split_once("http://") {
            let end = rest
                .find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.' && symbol != ':')
                .unwrap_or(rest.len());
            address = address.or(rest[..end].parse().ok());
        }
        if line.contains("READY") {
            return address.context("it said READY without an address");
        }
    }
}
