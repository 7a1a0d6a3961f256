// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Functions as they are deployed: the ones that ship, the hostile ones, and ones made up by a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A function's folder as an archive holds it.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) name: String,
    manifest: String,
    files: Vec<(String, u32, Vec<u8>)>,
}

/// Native or wasm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Native,
    Wasm,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Native, Self::Wasm];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Wasm => "wasm",
        }
    }
}

impl Package {
    /// With a manifest of `name`, `entry` and what `rest` says.
    pub(crate) fn new(name: &str, entry: &str, content: &[u8], rest: &str) -> Self {
        let manifest = format!("name = \"{name}\"\nentry = \"{entry}\"\n{rest}\n");
        Self {
            name: name.to_owned(),
            manifest,
            files: vec![(entry.to_owned(), 0o755, content.to_vec())],
        }
    }

    /// A shell script on the base `minimal`.
    pub(crate) fn script(name: &str, script: &str, rest: &str) -> Self {
        Self::new(
            name,
            "run.sh",
            format!("#!/bin/sh\n{script}\n").as_bytes(),
            rest,
        )
    }

    /// The program that misbehaves as the first line of its input says.
    pub(crate) fn hostile(name: &str, kind: Kind, rest: &str) -> Self {
        match kind {
            Kind::Native => Self::new(name, "hostile", &read(&hostile_program()), rest),
            Kind::Wasm => Self::wasm(name, "tests/hostile/hostile.wasm", rest),
        }
    }

    /// A module from the functions folder.
    pub(crate) fn wasm(name: &str, path: &str, rest: &str) -> Self {
        Self::new(name, "main.wasm", &read(&functions().join(path)), rest)
    }

    /// With one more file.
    pub(crate) fn with_file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.files.push((path.to_owned(), mode, content.to_vec()));
        self
    }

    /// With another mode of the entry.
    pub(crate) fn with_mode(mut self, mode: u32) -> Self {
        self.files[0].1 = mode;
        self
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let manifest = (
            "function.toml".to_owned(),
            0o644,
            self.manifest.clone().into_bytes(),
        );
        tar([&manifest].into_iter().chain(&self.files))
    }
}

/// An archive of plain files.
pub(crate) fn tar<'a>(files: impl IntoIterator<Item = &'a (String, u32, Vec<u8>)>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, path, content.as_slice())
            .expect("written to memory");
    }
    archive.into_inner().expect("written to memory")
}

/// The folder of the functions that ship.
pub(crate) fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../functions")
        .canonicalize()
        .expect("functions/")
}

/// The names of the functions that ship: the direct children with a manifest.
pub(crate) fn bundled() -> Vec<String> {
    let children = fs::read_dir(functions())
        .expect("functions/")
        .filter_map(Result::ok);
    let with_manifest = children.filter(|child| child.path().join("function.toml").is_file());
    let mut names: Vec<String> = with_manifest
        .map(|child| child.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Built once per run of the tests, with the settings that the functions are built with.
fn hostile_program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        build(&["-p", "hostile"]);
        newest_output("hostile")
    });
    path.clone()
}

/// Builds in the functions' own workspace, with none of the settings of the build that runs these tests.
pub(crate) fn build(what: &[&str]) {
    let mut command = cargo();
    command.args(["build", "--release", "--locked"]).args(what);
    let output = command.output().expect("cargo can be executed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(functions()).stdin(Stdio::null());
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(variable);
    }
    command
}

pub(crate) fn newest_output(name: &str) -> PathBuf {
    let targets = fs::read_dir(functions().join("target"))
        .expect("target/")
        .filter_map(Result::ok);
    let files = targets.map(|target| target.path().join("release").join(name));
    let built = files.filter(|file| file.is_file());
    let newest = built.max_by_key(|file| file.metadata().and_then(|data| data.modified()).ok());
    newest.unwrap_or_else(|| panic!("{name} was not built"))
}
