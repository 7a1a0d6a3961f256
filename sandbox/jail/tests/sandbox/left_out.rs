// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sandboxes with a wall left out, by the test-only executable that can do that.

use std::{collections::BTreeMap, fs, io::Read, ops::Range, process::Command};

use hearth_jail::walls::{MARKER, Wall};
use hearth_protocol::{isolation::IsolationReport, spawner::CreatedFd};

use crate::world::{World, example, is_root, level, limits};

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
    assert!(table.lines().any(|line| line.starts_with("(all but two) ")));
}

/// From here on Landlock knows the right to ask a device by ioctl(2).
const LANDLOCK_ABI_IOCTL: u32 = 5;

/// What is seen of one choice of walls: by a function inside, and by the kernel's files outside.
struct Seen {
    /// The probe's `about` and `terminal`, by name.
    inside: BTreeMap<String, String>,
    /// The names in `/var`.
    var: Vec<String>,
    /// Of the sandbox while a function runs, and how many processes its cgroup counts then.
    report: IsolationReport,
    processes_counted: u32,
    /// The host's ids that its instance owns.
    ids: Range<u32>,
}

fn look(choice: &str) -> Seen {
    let mut world = World::with_walls(choice);
    let sandbox = world.probe(&["pause"], limits());
    let (_to_function, mut from_function) = sandbox.start(1);
    from_function.read_exact(&mut [0; 7]).unwrap();
    let report = world.inspect(sandbox.id);
    let counted = sandbox.cgroup_file(CreatedFd::PidsCurrent as usize);
    let mut run = |arguments: &[&str]| {
        let sandbox = world.probe(arguments, limits());
        let (to_function, mut from_function) = sandbox.start(1);
        drop(to_function);
        let mut text = String::new();
        from_function.read_to_string(&mut text).unwrap();
        text
    };
    let inside = run(&["about"]) + &run(&["terminal"]);
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    let seen = Seen {
        inside: inside.lines().filter_map(pair).collect(),
        var: run(&["list", "/var"]).lines().map(str::to_owned).collect(),
        report,
        processes_counted: counted.trim().parse().unwrap(),
        ids: world.ids(),
    };
    world.close();
    seen
}

impl Seen {
    fn is_apart(&self, namespace: &str) -> bool {
        let pair = &self.report.namespaces[namespace];
        pair.sandbox != pair.host
    }

    fn says(&self, name: &str, value: &str) -> bool {
        self.inside.get(name).is_some_and(|said| said == value)
    }

    fn reads(&self, wall: &str) -> bool {
        let mut readings = self.report.walls.iter();
        readings.any(|reading| reading.wall == wall && reading.holds)
    }

    /// Whether a wall can be seen to stand, whatever the others do.
    fn stands(&self, wall: Wall) -> bool {
        match wall {
            Wall::PidNamespace => self.is_apart("pid"),
            Wall::NetworkNamespace => self.is_apart("net"),
            Wall::IpcNamespace => self.is_apart("ipc"),
            Wall::UtsNamespace => self.is_apart("uts") && self.says("host", "sandbox"),
            Wall::TimeNamespace => self.is_apart("time"),
            Wall::CgroupNamespace => self.is_apart("cgroup"),
            Wall::UserNamespace => self.is_apart("user"),
            Wall::Credentials => {
                let mut ids = self
                    .report
                    .processes
                    .iter()
                    .flat_map(|process| process.uids);
                ids.all(|id| self.ids.contains(&id))
            }
            Wall::Capabilities => self.says("CapBnd", "0000000000000000"),
            Wall::Root => self.var == ["tmp"],
            Wall::MountFlags => {
                let root = self.report.mounts.iter().find(|mount| mount.at == "/");
                let options = root.map_or("", |mount| &mount.options);
                ["ro", "nosuid", "nodev"]
                    .iter()
                    .all(|wanted| options.split(',').any(|option| option == *wanted))
            }
            Wall::Cgroup => 1 < self.processes_counted,
            Wall::CgroupLimits => self.reads("cgroup"),
            Wall::Rlimits => self.reads("rlimits"),
            // Nothing else is behind no other wall: a device may be read, but not asked for a terminal's settings. The
            // filter lets isatty(3) ask, and a device that is none answers ENOTTY.
            Wall::Landlock => self.says("terminal", "EACCES"),
            Wall::Seccomp => self.says("Seccomp", "2"),
        }
    }
}

#[test]
fn each_wall_is_missed_when_it_is_left_out_and_all_others_hold_without_it() {
    if !is_root() {
        return;
    }
    let whole = look("every");
    assert_eq!(whole.report.level, level());
    let mut walls = Wall::ALL.to_vec();
    if whole.report.landlock_abi < LANDLOCK_ABI_IOCTL {
        println!("SKIPPED: this kernel's Landlock refuses nothing that another wall allows");
        walls.retain(|wall| *wall != Wall::Landlock);
    }
    let standing = |seen: &Seen| {
        let standing = walls.iter().copied().filter(|wall| seen.stands(*wall));
        standing.collect::<Vec<_>>()
    };
    assert_eq!(standing(&whole), walls);
    for left_out in &walls {
        let seen = look(&format!("{left_out:?}"));
        let mut others = walls.clone();
        others.retain(|wall| wall != left_out);
        assert_eq!(standing(&seen), others, "without {left_out:?}");
    }
}
