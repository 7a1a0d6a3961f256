// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What two tenants share of the files that both see: nothing that can be noticed, and no path of the host.

use std::{
    fs::File,
    io::{BufRead, BufReader},
};

use crate::world::{Sandbox, World, is_root, level, limits};

/// Lines of a call that goes on until its stdin ends.
fn lines_until_held(sandbox: &Sandbox) -> (File, Vec<String>) {
    let (to_function, from_function) = sandbox.start(1);
    let mut lines = Vec::new();
    for line in BufReader::new(from_function).lines() {
        let line = line.unwrap();
        if line == "held" {
            return (to_function, lines);
        }
        lines.push(line);
    }
    panic!("it ended before it held its locks: {lines:?}");
}

#[test]
fn a_lock_on_a_shared_file_is_not_seen_by_another_sandbox() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    // The root directory is the base's, the program is of the same stored tree in both.
    for place in ["/", "/var", "/function", "/function/probe"] {
        let mut held = Vec::new();
        for _ in 0..2 {
            let sandbox = world.probe(&["lock", place], limits());
            let (stdin, lines) = lines_until_held(&sandbox);
            // The last one shows that a lock held in the same sandbox is in the way.
            let free = [
                "flock: ALLOWED",
                "getlk: ALLOWED",
                "others: none",
                "setlk: ALLOWED",
                "again: EAGAIN",
            ];
            assert_eq!(lines, free, "{place}");
            held.push((sandbox, stdin));
        }
    }
    world.close();
}

#[test]
fn the_mount_table_inside_names_no_path_of_the_host() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let data = world.data_dir.path().to_str().unwrap().to_owned();
    let tree = world.store("probe", &crate::world::programs().probe);
    for table in ["mountinfo", "mounts", "mountstats"] {
        let sandbox = world.probe(&["cat", &format!("/proc/self/{table}")], limits());
        let text = sandbox.run(1, b"").stdout;
        assert!(
            text.contains(" /function ") || text.contains(" /function\n"),
            "{text}"
        );
        for part in [
            data.as_str(),
            tree.as_str(),
            "trees",
            "bases",
            "/dev/vd",
            "/dev/sd",
        ] {
            assert!(!text.contains(part), "{part} in {table}:\n{text}");
        }
        // The root of each mount is that of its file system, not a path in one of the host's.
        // Without root the five devices are mounted one by one.
        let device = |line: &str| level() == "rootless" && line.contains(" /dev/");
        let lines = text.lines().filter(|line| !device(line));
        for line in lines.filter(|_| table == "mountinfo") {
            assert_eq!(line.split(' ').nth(3), Some("/"), "{line}");
        }
    }
    world.close();
}
