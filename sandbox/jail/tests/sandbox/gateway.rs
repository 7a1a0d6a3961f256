// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The gateway's own walls, by a stand-in that enters them and pushes.

use std::{fs, os::unix::fs::chown, process::Command};

use crate::world::{example, is_root};

/// Any id that owns nothing and that a user namespace has, too (`.ci/guest-rootless`).
const UID: u32 = 40_000;

#[test]
fn the_gateway_owns_its_state_directory_and_nothing_else() {
    if !is_root() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let (state, secret) = (
        temporary.path().join("state"),
        temporary.path().join("secret"),
    );
    fs::create_dir(&state).unwrap();
    chown(&state, Some(UID), Some(UID)).unwrap();
    // The temporary directory is root's alone: Landlock's rule is on the state directory, not on the way to it.
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(temporary.path(), open).unwrap();
    fs::write(&secret, "readable for everybody").unwrap();
    let output = Command::new(example("lone_gateway"))
        .arg(UID.to_string())
        .args([&state, &secret])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in [
        "write state: allowed",
        "read secret: permission denied",
        "write secret: permission denied",
        "read passwd: permission denied",
        "listen: unsupported",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Groups:\t ",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line:?} is not in\n{text}"
        );
    }
    let allowed: Vec<&str> = text
        .lines()
        .filter(|line| line.ends_with(": allowed"))
        .collect();
    assert_eq!(allowed, ["write state: allowed"], "{text}");
    let pushes = text
        .lines()
        .take_while(|line| !line.starts_with("Name:"))
        .count();
    assert_eq!(pushes, 22, "{text}");
    assert!(text.contains(&format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}")));
}
