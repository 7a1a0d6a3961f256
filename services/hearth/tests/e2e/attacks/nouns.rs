// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One test for each place in which a call could leave something, natively and as a module, in a sandbox that has just been
//! bound and in one that has served calls: neither the next call in the same sandbox nor another function may find it.
//! `leave-marker` and `find-marker` of the hostile program know the places.

use std::sync::OnceLock;

use serde_json::Value;

use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::turn;
use crate::victim::{Sandbox, made};

/// One sandbox each, so that a call meets what the last one left. Its own core is the sandbox's, whichever it is.
const ONE: &str = "[limits]\ntimeout = \"10s\"\n[scaling]\nmax_instances = 1\nmax_inflight = 1";

/// Where a marker is left, and by what it is found.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// It can be left there, and must not be found.
    Left(&'static str),
    /// It cannot even be left.
    Refused(&'static str),
    /// It changes a value that every process has (the second), which must be the usual one again.
    State(&'static str, &'static str),
}
use Place::{Left, Refused, State};

/// What was seen: by a call in a pristine sandbox; what the call said that left its markers; by the next one; and by
/// another function before and after.
struct Seen {
    kind: Kind,
    sandbox: Sandbox,
    pristine: Value,
    left: Value,
    next: Value,
    other_before: Value,
    other_after: Value,
}

/// Left and looked for once in all: each noun has its own look at the same answers.
fn seen(kind: Kind) -> &'static [Seen; 2] {
    static SEEN: [OnceLock<[Seen; 2]>; 2] = [OnceLock::new(), OnceLock::new()];
    SEEN[usize::from(kind == Kind::Wasm)]
        .get_or_init(|| [Sandbox::Fresh, Sandbox::Reused].map(|sandbox| leave_in(kind, sandbox)))
}

fn leave_in(kind: Kind, sandbox: Sandbox) -> Seen {
    let instance = Instance::of_all();
    let [name, other] = ["nouns", "nouns-other"]
        .map(|name| format!("{name}-{}-{}", kind.as_str(), sandbox.as_str()));
    for name in [&name, &other] {
        instance.deploy(&Package::hostile(name, kind, ONE));
    }
    let call = |name: &str, mode: &str| instance.invoke(name, mode.as_bytes()).expect(200);
    let pristine = call(&name, "find-marker\n").json();
    let other_before = call(&other, "find-marker\n").json();
    if sandbox == Sandbox::Fresh {
        // Another revision begins without any sandbox.
        let next = Package::hostile(&name, kind, ONE);
        instance.deploy(&next.with_file("revision", 0o644, b"another"));
    }
    let left = call(&name, "leave-marker\n");
    let warm = left.header("hearth-start") == Some("warm");
    assert_eq!(warm, sandbox == Sandbox::Reused, "{name}");
    let next = call(&name, "find-marker\n");
    assert_eq!(
        next.header("hearth-start"),
        Some("warm"),
        "the same sandbox"
    );
    let other_after = call(&other, "find-marker\n").json();
    for name in [&name, &other] {
        instance.remove(name);
    }
    Seen {
        kind,
        sandbox,
        pristine,
        left: left.json(),
        next: next.json(),
        other_before,
        other_after,
    }
}

/// Of native functions, and of modules, which may have no such place at all.
fn is_not_found(native: &[Place], wasm: &[Place]) {
    for (kind, places) in [(Kind::Native, native), (Kind::Wasm, wasm)] {
        if places.is_empty() {
            continue;
        }
        for seen in seen(kind) {
            for place in places {
                seen.has_nothing_at(*place);
            }
            let start = match seen.sandbox {
                Sandbox::Fresh => "bound",
                Sandbox::Reused => "warm",
            };
            made(seen.kind, Some(start), "leave-marker");
        }
    }
}

impl Seen {
    fn has_nothing_at(&self, place: Place) {
        let at = format!("{:?} {:?}", self.kind, self.sandbox);
        match place {
            Left(name) | Refused(name) => {
                let finders = [
                    (&self.next, "the next call"),
                    (&self.other_after, "another function"),
                ];
                for (found, finder) in finders {
                    assert_eq!(found[name], "absent", "{at}, {finder}: {name}");
                }
                let was_left = self.left[name] == "left";
                let could = matches!(place, Left(_));
                assert_eq!(was_left, could, "{at}, {name}: {}", self.left[name]);
            }
            State(change, value) => {
                assert_eq!(self.left[change], "left", "{at}: {change}");
                let before = &self.pristine["state"][value];
                assert!(!before.is_null(), "{at}, {value}: {}", self.pristine);
                let next = &self.next["state"][value];
                if value == "cores" && self.sandbox == Sandbox::Fresh {
                    // The pristine one was another sandbox, perhaps another shard's. One core is not what was set.
                    assert!(
                        next.as_u64().is_some_and(u64::is_power_of_two),
                        "{at}: {next}"
                    );
                } else {
                    assert_eq!(next, before, "{at}: {value}");
                }
                let [after, before] = [&self.other_after, &self.other_before];
                assert_eq!(
                    after["state"][value], before["state"][value],
                    "{at}: {value}"
                );
            }
        }
    }
}

#[test]
fn slash_tmp_is_empty() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[Left("file in /tmp"), Left("file in /scratch/tmp")],
        &[Refused("file in /tmp"), Refused("file in /scratch/tmp")],
    );
}

#[test]
fn dev_shm_is_empty() {
    let _turn = turn::take!(shared);
    is_not_found(&[Left("file in /dev/shm")], &[Refused("file in /dev/shm")]);
}

#[test]
fn var_tmp_is_empty() {
    let _turn = turn::take!(shared);
    is_not_found(&[Left("file in /var/tmp")], &[Refused("file in /var/tmp")]);
}

#[test]
fn the_working_directory_is_as_it_was_deployed() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            Refused("file in ."),
            Refused("file in /function"),
            Refused("file in /"),
        ],
        &[
            Refused("file in ."),
            Refused("file in /function"),
            Refused("file in /"),
        ],
    );
}

#[test]
fn the_home_directory_is_empty() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[Left("file in the home directory")],
        &[Refused("file in the home directory")],
    );
}

#[test]
fn no_system_v_object_is_there() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            Refused("System V shared memory"),
            Refused("System V semaphore"),
            Refused("System V messages"),
        ],
        &[],
    );
}

#[test]
fn no_message_queue_is_there() {
    let _turn = turn::take!(shared);
    is_not_found(&[Refused("POSIX message queue")], &[]);
}

#[test]
fn no_abstract_socket_is_bound() {
    let _turn = turn::take!(shared);
    is_not_found(&[Left("abstract socket")], &[]);
}

#[test]
fn no_key_is_there() {
    let _turn = turn::take!(shared);
    is_not_found(&[Refused("key")], &[]);
}

#[test]
fn the_environment_is_the_manifests() {
    let _turn = turn::take!(shared);
    is_not_found(&[Left("environment")], &[Left("environment")]);
}

#[test]
fn the_umask_is_the_usual_one() {
    let _turn = turn::take!(shared);
    is_not_found(&[State("own umask", "umask")], &[]);
}

#[test]
fn the_resource_limits_are_the_usual_ones() {
    let _turn = turn::take!(shared);
    is_not_found(&[State("own limit", "limits")], &[]);
}

#[test]
fn no_timer_and_no_alarm_is_running() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[State("alarm", "alarm"), State("timer set", "timers")],
        &[],
    );
}

#[test]
fn no_signal_is_pending() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            State("pending signal", "ShdPnd"),
            State("pending signal", "SigPnd"),
        ],
        &[],
    );
}

#[test]
fn no_signal_is_blocked() {
    let _turn = turn::take!(shared);
    is_not_found(&[State("blocked signals", "SigBlk")], &[]);
}

#[test]
fn three_descriptors_are_open() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[State("descriptors", "descriptors")],
        &[State("descriptors", "descriptors")],
    );
}

#[test]
fn the_cores_are_the_usual_ones() {
    let _turn = turn::take!(shared);
    is_not_found(&[State("own cores", "cores")], &[]);
}

#[test]
fn name_dumpable_and_timer_slack_are_the_usual_ones() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            State("own name", "name"),
            State("own dumpable", "dumpable"),
            State("own timer slack", "timer slack"),
        ],
        &[],
    );
}

#[test]
fn session_and_process_group_are_the_usual_ones() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            State("own session", "leads a session"),
            State("own session", "leads a process group"),
        ],
        &[],
    );
}

#[test]
fn no_inotify_watch_is_there() {
    let _turn = turn::take!(shared);
    is_not_found(&[Refused("inotify watch")], &[]);
}

#[test]
fn no_other_process_is_there() {
    let _turn = turn::take!(shared);
    is_not_found(&[Left("process")], &[]);
}

#[test]
fn there_is_no_terminal() {
    let _turn = turn::take!(shared);
    is_not_found(&[Refused("terminal")], &[]);
}

#[test]
fn the_time_stamps_are_those_of_the_deploy_and_of_the_renewal() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            Refused("time stamp of the working directory"),
            Left("time stamp of scratch"),
        ],
        &[],
    );
}

#[test]
fn what_is_counted_by_uid_is_whole() {
    let _turn = turn::take!(shared);
    let places = [
        Refused("key"),
        Refused("inotify watch"),
        State("pipe pages", "pipe"),
    ];
    is_not_found(&places, &[]);
}

#[test]
fn the_tables_of_the_network_are_empty() {
    let _turn = turn::take!(shared);
    is_not_found(
        &[
            State("abstract socket", "/proc/net/unix"),
            State("abstract socket", "/proc/net/tcp"),
            State("abstract socket", "/proc/net/arp"),
        ],
        &[],
    );
}

#[test]
fn fresh_memory_reads_as_zero() {
    let _turn = turn::take!(shared);
    is_not_found(&[Left("memory")], &[Left("memory"), Left("global")]);
}
