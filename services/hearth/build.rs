// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Builds the three programs that run inside sandboxes and copies them to where `src/images.rs` embeds them from.
//!
//! They are separate static executables, because inside a sandbox never runs a file that the host runs (a write into the
//! page cache of a shared file would reach the host), and because each is a fraction of this executable's size.
//! A plain `cargo build` must make all of them, so this script calls cargo again. The inner build has a target directory of
//! its own: the outer cargo holds the lock of the outer one.

#[path = "../../sandbox/jail/init_target.rs"]
mod init_target;

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// One embedded program.
struct Image {
    package: &'static str,
    binary: &'static str,
    features: &'static [&'static str],
}

/// The one that is linked with musl where that can be had.
const INIT: &str = "hearth-init";

const IMAGES: [Image; 3] = [
    Image {
        package: "hearth-jail",
        binary: INIT,
        features: &[],
    },
    // Without a compiler: the process that holds tenants' instances cannot turn bytes into code.
    Image {
        package: "hearth-wasm",
        binary: "hearth-wasm-worker",
        features: &[],
    },
    Image {
        package: "hearth-wasm",
        binary: "hearth-wasm-compiler",
        features: &["compile"],
    },
];

/// Static, and at a fixed address: an empty root has no loader, and relocating at every exec costs page faults.
const RUSTFLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// What the images are made of, relative to the workspace.
const SOURCES: [&str; 9] = [
    "Cargo.lock",
    "sandbox/protocol/src",
    "sandbox/protocol/Cargo.toml",
    "sandbox/jail/src",
    "sandbox/jail/profiles",
    "sandbox/jail/Cargo.toml",
    "sandbox/jail/init_target.rs",
    "sandbox/wasm/src",
    "sandbox/wasm/Cargo.toml",
];

/// Settings of the outer build that would change the inner one: flags and wrappers (`cargo clippy` sets one), the
/// target and profile chosen by the user, and what cargo tells build scripts.
const CLEARED: [&str; 9] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "CARGO_BUILD_BUILD_DIR",
    "TARGET",
    "PROFILE",
    "OPT_LEVEL",
    "DEBUG",
];
const CLEARED_PREFIXES: [&str; 5] = [
    "CARGO_CFG_",
    "CARGO_FEATURE_",
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_PROFILE_",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            drop(writeln!(std::io::stderr(), "{problem}"));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?;
    let workspace = Path::new(&manifest_dir)
        .ancestors()
        .nth(2)
        .ok_or("the crate is not in services/ of a workspace")?;
    let arch = env::var_os("CARGO_CFG_TARGET_ARCH").ok_or("CARGO_CFG_TARGET_ARCH is not set")?;
    let arch = arch.to_string_lossy();
    let rustc = env::var_os("RUSTC").ok_or("RUSTC is not set")?;
    let init_triple = init_target::init_target(&rustc, &arch);
    let other_triple = format!("{arch}-unknown-linux-gnu");
    let images_dir = target_dir(&out_dir)?.join("images");

    for source in SOURCES {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    println!("cargo:rerun-if-changed=build.rs");

    for image in &IMAGES {
        let triple = match image.binary {
            INIT => &init_triple,
            _ => &other_triple,
        };
        build_image(image, workspace, &images_dir, triple)?;
        let built = images_dir.join(triple).join("release").join(image.binary);
        let embedded = out_dir.join(image.binary);
        std::fs::copy(&built, &embedded)
            .map_err(|problem| format!("cannot copy {}: {problem}", built.display()))?;
    }
    Ok(())
}

/// The outer target directory: cargo marks it with CACHEDIR.TAG.
fn target_dir(out_dir: &Path) -> Result<&Path, String> {
    out_dir
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .or_else(|| out_dir.ancestors().nth(4))
        .ok_or_else(|| format!("{} is in no target directory", out_dir.display()))
}

fn build_image(
    image: &Image,
    workspace: &Path,
    images_dir: &Path,
    triple: &str,
) -> Result<(), String> {
    let cargo = env::var_os("CARGO").ok_or("CARGO is not set")?;
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cleared = CLEARED.contains(&text.as_ref())
            || CLEARED_PREFIXES
                .iter()
                .any(|prefix| text.starts_with(prefix));
        if cleared {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(workspace)
        .env("RUSTFLAGS", RUSTFLAGS)
        // Symbols double the size of what every start verifies and every sandbox maps.
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .args(["build", "--release", "--locked"])
        .args(["--package", image.package, "--bin", image.binary])
        .args(["--target", triple])
        .arg("--target-dir")
        .arg(images_dir);
    if !image.features.is_empty() {
        command.args(["--features", &image.features.join(",")]);
    }
    let output = command
        .output()
        .map_err(|problem| format!("cannot run cargo: {problem}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "building {} for sandboxes failed ({}):\n{}",
        image.binary,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}
