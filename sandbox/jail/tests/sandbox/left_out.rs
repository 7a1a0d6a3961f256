// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sandboxes with a wall left out, by the test-only executable that can do that.

use std::{fs, process::Command};

use hearth_jail::walls::{MARKER, Wall};

use crate::world::{example, is_root};

fn holds_marker(name: &str) -> bool {
    let image = fs::read(example(name)).unwrap();
    image
        .windows(MARKER.len())
        .any(|window| window == MARKER.as_bytes())
}

/// `services/hearth/tests/architecture.rs` looks for the same text in `hearth`; here it is shown that one can look.
#[test]
fn an_executable_that_can_leave_walls_out_holds_the_marker_and_no_other_does() {
    assert!(holds_marker("price_of_walls"));
    assert!(!holds_marker("lone_spawner"));
}

#[test]
fn the_price_of_every_wall_is_measured() {
    if !is_root() {
        return;
    }
    let output = Command::new(example("price_of_walls"))
        .args(["--rounds", "1", "--runs", "3"])
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    for wall in Wall::ALL {
        let name = format!("{wall:?} ");
        assert!(table.lines().any(|line| line.starts_with(&name)), "{name}");
    }
    assert!(table.lines().any(|line| line.starts_with("none ")));
}
