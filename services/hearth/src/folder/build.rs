// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs a manifest's build command, as the user who typed the command: under sudo that is not root, or files of root would
//! be left in their folder and their build scripts would run with its power.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{Folder, FolderError, as_caller};
use crate::config::{Caller, Environment};
use crate::monitor::signals;

/// Who builds.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    caller: Option<Caller>,
    path: String,
}

/// The part of `cargo metadata` that is needed.
#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
}

impl Builder {
    /// For whoever runs this process.
    pub(crate) fn new(environment: &Environment) -> Self {
        Self {
            caller: environment.sudo_caller(),
            path: environment
                .get("PATH")
                .unwrap_or("/usr/bin:/bin")
                .to_owned(),
        }
    }

    /// Runs the manifest's build command in the folder, if it has one; its output is shown on stderr.
    pub(crate) fn build(&self, folder: &Folder) -> Result<(), FolderError> {
        let Some(text) = &folder.manifest.build else {
            return Ok(());
        };
        let mut command = self.command("sh", &folder.path);
        command
            .args(["-c", text])
            .stdin(Stdio::null())
            // Results are on stdout, progress is not one.
            .stdout(std::io::stderr());
        let failed = |source| FolderError::RunBuild {
            command: text.clone(),
            source,
        };
        let started = signals::unblocked(|| command.spawn());
        let mut child = started
            .map_err(std::io::Error::from)
            .and_then(|child| child)
            .map_err(failed)?;
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(FolderError::Build {
            command: text.clone(),
            status,
        })
    }

    /// The folder's cargo target directory, where it belongs to a cargo workspace.
    pub(super) fn target_dir(&self, folder: &Path) -> Option<PathBuf> {
        let mut command = self.command("cargo", folder);
        command
            .args([
                "metadata",
                "--no-deps",
                "--format-version",
                "1",
                "--offline",
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let output = command.output().ok()?;
        let metadata: Metadata = serde_json::from_slice(&output.stdout).ok()?;
        Some(metadata.target_directory)
    }

    fn command(&self, program: &str, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder);
        if let Some(caller) = &self.caller {
            as_caller(&mut command, caller, &self.path);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(build: &str) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let manifest = format!("name = \"a\"\nentry = \"a\"\nbuild = {build:?}\n");
        std::fs::write(dir.path().join(super::super::MANIFEST), manifest).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    fn builder() -> Builder {
        Builder::new(&Environment::default())
    }

    #[test]
    fn the_build_command_runs_in_the_folder() {
        let (dir, folder) = folder("echo built > a");
        builder().build(&folder).unwrap();
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"built\n");
    }

    #[test]
    fn a_build_that_fails_is_reported_with_its_command() {
        let (_dir, folder) = folder("exit 3");
        let error = builder().build(&folder).unwrap_err();
        assert!(error.to_string().contains("exit 3"), "{error}");
    }
}
