// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where std is part of the program, it brings what the C library needs for unwinding. Here nothing does.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for argument in ["-lgcc_eh", "-lgcc"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
