// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Programs that run the same echo without Hearth: started, given the bytes, read to the end and waited for, once per call.
//!
//! | peer | walls |
//! | --- | --- |
//! | `posix_spawn` | none: what the standard library's `Command` does with a plain executable |
//! | `bwrap --unshare-all` | namespaces of every kind it knows, nothing of the host but the program's folder |
//! | `crun run`, `runc run` | a container by the tool's own default specification |
//! | `wasmtime run` | WebAssembly's; the module compiled on every call, or ahead |

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::PAYLOAD;

/// Where wasmtime is, if it is not in PATH.
const WASMTIME_VARIABLE: &str = "HEARTH_BENCH_WASMTIME";

/// wasmtime would keep what it compiled the first time.
const RUN_WITHOUT_CACHE: [&str; 3] = ["run", "-C", "cache=n"];

/// The unified hierarchy of a host that has both versions of cgroups.
const HYBRID_V2_TREE: &str = "/sys/fs/cgroup/unified";

/// A program and how to call it.
#[derive(Debug)]
pub(crate) struct Program {
    executable: PathBuf,
    arguments: Vec<OsString>,
    view: View,
}

/// What the program sees of the host's mounts.
#[derive(Debug, Clone, Copy)]
enum View {
    Host,
    /// crun refuses to run where it sees both versions of cgroups. Its walls do not need either.
    WithoutV2Tree,
}

impl Program {
    /// The executable itself.
    pub(crate) fn plain(executable: &Path) -> Self {
        Self::new(executable, [])
    }

    fn new<const N: usize>(executable: &Path, arguments: [OsString; N]) -> Self {
        Self {
            executable: executable.to_owned(),
            arguments: arguments.into(),
            view: View::Host,
        }
    }

    /// bubblewrap around an executable that is alone in its folder.
    pub(crate) fn bubblewrap(executable: &Path) -> Result<Self> {
        let tool = find("bwrap", "bubblewrap")?;
        let folder = executable.parent().context("the program is in no folder")?;
        let file = executable.file_name().context("the program has no name")?;
        let mut program = Self::new(
            &tool,
            ["--unshare-all", "--die-with-parent", "--ro-bind"].map(OsString::from),
        );
        program
            .arguments
            .extend([folder.into(), "/function".into()]);
        program.arguments.extend(
            ["--proc", "/proc", "--dev", "/dev", "--chdir", "/function"].map(OsString::from),
        );
        program
            .arguments
            .push(Path::new("/function").join(file).into());
        program.tried()
    }

    /// crun around the executable.
    pub(crate) fn crun(executable: &Path, place: &Path) -> Result<Self> {
        let tool = find("crun", "crun")?;
        let bundle = bundle(&tool, executable, &place.join("crun"))?;
        let mut program = Self::new(
            &tool,
            [
                "--cgroup-manager=disabled".into(),
                "--root".into(),
                place.join("crun-state").into(),
            ],
        );
        program
            .arguments
            .extend(["run".into(), "--bundle".into(), bundle.into()]);
        program.arguments.push(container_name());
        if Path::new(HYBRID_V2_TREE).exists() {
            program.view = View::WithoutV2Tree;
        }
        program.tried()
    }

    /// runc around the executable.
    pub(crate) fn runc(executable: &Path, place: &Path) -> Result<Self> {
        let tool = find("runc", "runc")?;
        let bundle = bundle(&tool, executable, &place.join("runc"))?;
        let mut program = Self::new(&tool, ["--root".into(), place.join("runc-state").into()]);
        program
            .arguments
            .extend(["run".into(), "--bundle".into(), bundle.into()]);
        program.arguments.push(container_name());
        program.tried()
    }

    /// wasmtime, which compiles the module first.
    pub(crate) fn wasmtime(module: &Path) -> Result<Self> {
        let tool = find_wasmtime()?;
        let mut program = Self::new(&tool, RUN_WITHOUT_CACHE.map(OsString::from));
        program.arguments.push(module.into());
        program.tried()
    }

    /// wasmtime, with the module compiled now.
    pub(crate) fn wasmtime_precompiled(module: &Path, place: &Path) -> Result<Self> {
        let tool = find_wasmtime()?;
        let compiled = place.join("echo.cwasm");
        let status = Command::new(&tool)
            .arg("compile")
            .arg(module)
            .arg("-o")
            .arg(&compiled)
            .status()?;
        ensure!(status.success(), "wasmtime compile ended with {status}");
        let mut program = Self::new(&tool, RUN_WITHOUT_CACHE.map(OsString::from));
        program
            .arguments
            .extend(["--allow-precompiled".into(), compiled.into()]);
        program.tried()
    }

    /// Gives itself where one call succeeds: a peer that does not run here is a gap, not the end of the benchmark.
    fn tried(self) -> Result<Self> {
        self.in_its_view(|| self.call())??;
        Ok(self)
    }

    /// Runs `calls` where the program sees what it has to see.
    pub(crate) fn in_its_view<T: Send>(&self, calls: impl FnOnce() -> T + Send) -> Result<T> {
        match self.view {
            View::Host => Ok(calls()),
            View::WithoutV2Tree => std::thread::scope(|scope| {
                // A mount namespace of this thread's own; what it starts inherits it, and it ends with both.
                let thread = scope.spawn(|| hide_v2_tree().map(|()| calls()));
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }),
        }
    }

    /// One call.
    pub(crate) fn call(&self) -> Result<()> {
        let mut child = Command::new(&self.executable)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.executable.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(PAYLOAD)?;
        }
        let mut output = Vec::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_end(&mut output)?;
        }
        let status = child.wait()?;
        ensure!(
            status.success() && output == PAYLOAD,
            "{} ended with {status}",
            self.executable.display()
        );
        Ok(())
    }
}

fn hide_v2_tree() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    umount2(HYBRID_V2_TREE, MntFlags::MNT_DETACH).context("cannot hide the v2 tree from crun")
}

/// A bundle as `spec` of the tool writes it, but without a terminal, and with the executable as its only file.
fn bundle(tool: &Path, executable: &Path, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder.join("rootfs"))?;
    fs::copy(executable, folder.join("rootfs/echo"))?;
    let status = Command::new(tool)
        .arg("spec")
        .current_dir(folder)
        .status()?;
    ensure!(
        status.success(),
        "{} spec ended with {status}",
        tool.display()
    );
    let file = folder.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/echo"]);
    fs::write(&file, serde_json::to_vec(&spec)?)?;
    Ok(folder.to_owned())
}

/// Of no other benchmark that runs at the same time.
fn container_name() -> OsString {
    format!("hearth-bench-{}", std::process::id()).into()
}

fn find_wasmtime() -> Result<PathBuf> {
    find_by(WASMTIME_VARIABLE, "wasmtime").with_context(|| {
        format!(
            "wasmtime is neither in PATH nor named by {WASMTIME_VARIABLE} (see .ci/bench-peers)"
        )
    })
}

fn find(tool: &str, package: &str) -> Result<PathBuf> {
    in_path(tool).with_context(|| format!("{tool} is not installed (Debian: {package})"))
}

/// The file that a variable names, else the one in PATH.
pub(crate) fn find_by(variable: &str, tool: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .or_else(|| in_path(tool))
}

fn in_path(tool: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders)
        .map(|folder| folder.join(tool))
        .find(|path| path.is_file())
}
