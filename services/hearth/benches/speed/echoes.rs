// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The echoes that every subject runs, and where the benchmark keeps things.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One of the programs of `functions/tests/bench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// A static executable with the C library's start-up: what a small C program costs.
    Glibc,
    /// A static executable that makes three system calls and has no C library: Hearth's own share shows best.
    Nolibc,
    /// A WASI preview 1 command.
    Wasm,
}

impl Echo {
    /// The kind in Hearth's metrics.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Glibc | Self::Nolibc => "native",
            Self::Wasm => "wasm",
        }
    }
}

/// Where they are, each alone in its folder: bubblewrap shows the whole folder to the program.
#[derive(Debug)]
pub(crate) struct Echoes {
    glibc: PathBuf,
    nolibc: PathBuf,
    wasm: PathBuf,
}

impl Echoes {
    /// Builds the native ones and copies them to `place`.
    pub(crate) fn build(place: &Path) -> Result<Self> {
        let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--locked"])
            .args(["-p", "echo-glibc", "-p", "echo-nolibc"])
            .current_dir(&functions)
            // Settings of the build that runs this benchmark are not the functions'.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_BUILD_TARGET")
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "building the echoes ended with {status}");
        let built = functions
            .join("target")
            .join(format!("{}-unknown-linux-gnu", env::consts::ARCH))
            .join("release");
        let copy = |name: &str| -> Result<PathBuf> {
            let folder = place.join(name);
            fs::create_dir(&folder)?;
            let program = folder.join("echo");
            fs::copy(built.join(name), &program)
                .with_context(|| format!("cannot copy {name} from {}", built.display()))?;
            Ok(program)
        };
        Ok(Self {
            glibc: copy("echo-glibc")?,
            nolibc: copy("echo-nolibc")?,
            wasm: functions.join("tests/bench/echo.wasm"),
        })
    }

    pub(crate) fn path(&self, echo: Echo) -> &Path {
        match echo {
            Echo::Glibc => &self.glibc,
            Echo::Nolibc => &self.nolibc,
            Echo::Wasm => &self.wasm,
        }
    }
}

/// The target directory, where this benchmark was built as `<target>/<profile>/deps/speed-…`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let executable = env::current_exe()?;
    let target = executable
        .ancestors()
        .nth(3)
        .context("the benchmark is in no target directory")?;
    fs::create_dir_all(target.join("bench"))?;
    Ok(target.to_owned())
}
