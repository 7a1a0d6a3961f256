// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which C library init's image is linked with; included by whoever builds it: the build script of `hearth`, and the tests.
//!
//! musl's where the toolchain has it (`rustup target add x86_64-unknown-linux-musl`), else glibc's. Init is PID 1 of every
//! sandbox, so its start is a part of each: glibc's executes some forty CPUID instructions first, which a virtual machine
//! traps (0.3 ms on the reference machine), and reads its own memory map. Nothing else depends on the choice.

use std::{ffi::OsStr, fs, path::PathBuf, process::Command};

/// The target triple for `arch`, by what this compiler can link.
pub(crate) fn init_target(rustc: &OsStr, arch: &str) -> String {
    let musl = format!("{arch}-unknown-linux-musl");
    if has_standard_library(rustc, &musl) {
        musl
    } else {
        format!("{arch}-unknown-linux-gnu")
    }
}

/// The compiler names the directory whether or not it is there.
fn has_standard_library(rustc: &OsStr, triple: &str) -> bool {
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", triple])
        .output();
    let Ok(output) = output else { return false };
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("libstd-")
        })
    })
}
