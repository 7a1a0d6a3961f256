// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A real `hearth serve` on a port that the kernel picks, with its data in the benchmark's temporary directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{env, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Subject;

pub(crate) const NATIVE_PATH: &str = "/invoke/echo-native";
pub(crate) const WASM_PATH: &str = "/invoke/echo-wasm";

/// The first start copies the base from the host's packages.
const READY_SECONDS_MAX: u64 = 120;

/// The functions' workspace, which has the echoes.
fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions")
}

/// Builds the native echo, static and without a C library so that Hearth's own share shows best, and puts it into a folder
/// of its own: bubblewrap shows the whole folder to the program.
pub(crate) fn build_native_echo(place: &Path) -> Result<PathBuf> {
    const PACKAGE: &str = "echo-nolibc";
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "-p", PACKAGE])
        .current_dir(functions())
        // Settings of the build that runs this benchmark are not the functions'.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "building {PACKAGE} ended with {status}");
    let built = functions()
        .join("target")
        .join(format!("{}-unknown-linux-gnu", env::consts::ARCH))
        .join("release")
        .join(PACKAGE);
    let folder = place.join("native");
    fs::create_dir(&folder)?;
    let program = folder.join("echo");
    fs::copy(&built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(program)
}

/// Hearth, ended when dropped.
#[derive(Debug)]
pub(crate) struct Hearth {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
    function: PathBuf,
}

impl Hearth {
    pub(crate) fn start(place: &Path) -> Result<Self> {
        let data = place.join("data");
        let log = target_dir()?.join("bench/hearth.log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
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
            data,
            function: place.join("function"),
        };
        server.address = ready_address(&lines)
            .with_context(|| format!("hearth did not get ready; see {}", log.display()))?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Deploys a revision that differs from every other only in a variable.
    pub(crate) fn deploy(
        &self,
        subject: Subject,
        native_echo: &Path,
        revision: usize,
    ) -> Result<()> {
        let (path, built) = match subject {
            Subject::Native => (NATIVE_PATH, native_echo.to_owned()),
            Subject::Wasm => (WASM_PATH, functions().join("tests/bench/echo.wasm")),
            Subject::Spawn | Subject::Bubblewrap | Subject::Axum => bail!("not a function"),
        };
        let name = path.trim_start_matches("/invoke/");
        let entry = if subject == Subject::Wasm {
            "echo.wasm"
        } else {
            "echo"
        };
        fs::create_dir_all(&self.function)?;
        fs::copy(&built, self.function.join(entry))?;
        let manifest = format!(
            "name = \"{name}\"\nentry = \"{entry}\"\ncontract = \"stdio\"\n[env]\nREVISION = \"{revision}\"\n"
        );
        fs::write(self.function.join("function.toml"), manifest)?;
        let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .arg("deploy")
            .arg(&self.function)
            .args(["--url", &format!("http://{}", self.address)])
            .env(
                "HEARTH_KEY",
                fs::read_to_string(self.data.join("key"))?.trim(),
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

/// The target directory, where this benchmark was built as `<target>/<profile>/deps/first-…`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let executable = env::current_exe()?;
    let target = executable
        .ancestors()
        .nth(3)
        .context("the benchmark is in no target directory")?;
    fs::create_dir_all(target.join("bench"))?;
    Ok(target.to_owned())
}
