// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What happens when a process is killed while work is under way, and what an ended instance leaves: nothing.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::home::reachable;
use crate::http::{Answer, Connection};
use crate::instance::{HEARTH, Home, Instance, assert_nothing_left, serve_command};
use crate::package::{Kind, Package};
use crate::wait::{SOON, until, until_true};
use crate::{turn, world};

/// What a call may take that has to wait for a process to be replaced.
const REPLACED_MAX: Duration = Duration::from_secs(8);

/// A user without any privilege.
const NOBODY: u32 = 65_534;

/// Runs for as long as a test needs it to.
const PATIENT: &str = "[limits]\ntimeout = \"60s\"";

fn both(instance: &Instance) -> [(&'static str, Kind); 2] {
    let functions = [("victim-native", Kind::Native), ("victim-wasm", Kind::Wasm)];
    for (name, kind) in functions {
        instance.deploy(&Package::hostile(name, kind, PATIENT));
        still_serves(instance, name);
    }
    functions
}

fn still_serves(instance: &Instance, name: &str) {
    let began = Instant::now();
    let answer = instance.invoke(name, b"print fine\n").expect(200);
    assert_eq!(answer.text(), "fine\n");
    assert!(
        began.elapsed() < REPLACED_MAX,
        "{name}: {:?}",
        began.elapsed()
    );
}

fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn is_gone(pid: i32) -> bool {
    world::process(pid).is_none_or(|process| process.state == 'Z')
}

/// The outside pids of a running native function and of its init.
fn running_native(instance: &Instance) -> (i32, i32) {
    until("the function runs", SOON, || {
        let inside = instance.sandboxed();
        let function = inside.iter().find(|process| process.name == "hostile");
        function
            .map(|process| (process.pid, process.parent))
            .ok_or("no process of it")
    })
}

/// Waits until both kinds run.
fn both_run(instance: &Instance) {
    running_native(instance);
    until_true("both run", SOON, || {
        instance.metric("hearth_invocations_inflight", &[]) == 2.0
    });
}

type Calls<'scope> = Vec<std::thread::ScopedJoinHandle<'scope, std::io::Result<Answer>>>;

/// Starts an invocation of each kind that runs until something ends it.
fn begin<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    instance: &'scope Instance,
    functions: [(&'static str, Kind); 2],
) -> Calls<'scope> {
    let call = |name: &'static str| {
        scope.spawn(move || instance.try_call("POST", &format!("/invoke/{name}"), &[], b"sleep\n"))
    };
    let calls = functions.map(|(name, _)| call(name)).into_iter().collect();
    both_run(instance);
    calls
}

#[test]
fn a_killed_function_is_reported_with_its_signal_and_a_killed_init_as_a_lost_sandbox() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    both(instance);
    let during = |name: &'static str, victim: &dyn Fn() -> i32| {
        std::thread::scope(|scope| {
            let call = scope.spawn(move || instance.invoke(name, b"sleep\n"));
            kill_hard(victim());
            call.join().unwrap()
        })
    };
    let answer = during("victim-native", &|| running_native(instance).0);
    let problem = answer.problem(502, "function_killed");
    assert_eq!(
        problem["evidence"]["cause"],
        serde_json::json!({"cause": "signal", "signal": 9})
    );
    still_serves(instance, "victim-native");

    let answer = during("victim-native", &|| running_native(instance).1);
    answer.problem(502, "sandbox_lost");
    assert_eq!(
        instance.receipt(answer.invocation())["outcome"],
        "sandbox_lost"
    );
    still_serves(instance, "victim-native");

    instance.assert_clean();
}

#[test]
fn a_killed_wasm_worker_loses_what_it_ran_and_the_next_call_gets_another() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&["--shards", "1"]);
    let name = "victim-wasm";
    instance.deploy(&Package::hostile(name, Kind::Wasm, PATIENT));
    still_serves(&instance, name);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| instance.invoke(name, b"sleep\n")))
            .collect();
        until_true("both run", SOON, || {
            instance.metric("hearth_invocations_inflight", &[]) == 2.0
        });
        kill_hard(bound_worker(&instance));
        for call in calls {
            let answer = call.join().unwrap();
            answer.problem(502, "sandbox_lost");
            assert_eq!(
                instance.receipt(answer.invocation())["outcome"],
                "sandbox_lost"
            );
        }
    });
    still_serves(&instance, name);
    instance.assert_clean();
    instance.stop();
}

/// The outside pid of the one worker that has mapped a module.
fn bound_worker(instance: &Instance) -> i32 {
    let inside = instance.sandboxed();
    let bound = inside.iter().find(|process| {
        let maps =
            std::fs::read_to_string(format!("/proc/{}/maps", process.pid)).unwrap_or_default();
        maps.contains("module.cwasm")
    });
    bound
        .unwrap_or_else(|| panic!("no bound worker in {inside:?}"))
        .pid
}

#[test]
fn when_the_spawner_is_killed_running_invocations_are_lost_and_later_ones_work() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&[]);
    let functions = both(&instance);
    instance.assert_clean();
    for _ in 0..2 {
        let (gateway, spawner) = (instance.gateway(), instance.spawner());
        let sandboxed = std::thread::scope(|scope| {
            let calls = begin(scope, &instance, functions);
            let sandboxed = instance.sandboxed();
            kill_hard(spawner);
            for call in calls {
                call.join().unwrap().unwrap().problem(502, "sandbox_lost");
            }
            sandboxed
        });
        for (name, _) in functions {
            still_serves(&instance, name);
        }
        assert_eq!(instance.gateway(), gateway, "the gateway goes on");
        assert_ne!(instance.spawner(), spawner);
        for process in sandboxed {
            until_true("every old sandbox is dead", SOON, || is_gone(process.pid));
        }
        instance.get("/readyz").expect(200);
        instance.assert_clean();
    }
    instance.stop();
}

#[test]
fn when_the_gateway_is_killed_new_connections_wait_for_the_next_one_and_every_sandbox_is_replaced()
{
    let _turn = turn::take!(shared);
    let mut instance = Instance::start(&[]);
    let functions = both(&instance);
    for _ in 0..2 {
        instance.forget_quiet();
        let gateway = instance.gateway();
        let sandboxed = std::thread::scope(|scope| {
            let calls = begin(scope, &instance, functions);
            let sandboxed = instance.sandboxed();
            kill_hard(gateway);
            for call in calls {
                // Their connection died with the process that had it; nothing pretends to be an answer.
                assert!(call.join().unwrap().is_err());
            }
            sandboxed
        });
        // At once: the listening socket is still there, and what comes in waits.
        for (name, _) in functions {
            still_serves(&instance, name);
        }
        assert_ne!(instance.gateway(), gateway);
        for process in sandboxed {
            until_true("every old sandbox is dead", SOON, || is_gone(process.pid));
        }
        instance.assert_clean();
    }
    instance.stop();
}

#[test]
fn when_the_monitor_is_killed_everything_ends_and_the_next_start_finds_the_functions_and_no_remains()
 {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let instance = Instance::start_in(&home, &[]);
    let functions = both(&instance);
    let children = world::descendants(instance.monitor());
    assert!(4 < children.len(), "{children:?}");
    std::thread::scope(|scope| {
        let calls = begin(scope, &instance, functions);
        let children = world::descendants(instance.monitor());
        kill_hard(instance.monitor());
        for call in calls {
            assert!(call.join().unwrap().is_err());
        }
        for child in children {
            until_true("every child and sandbox is dead", SOON, || {
                is_gone(child.pid)
            });
        }
    });
    instance.wait();
    drop(instance);

    let instance = Instance::start_in(&home, &[]);
    for (name, _) in functions {
        still_serves(&instance, name);
    }
    instance.assert_clean();
    instance.stop();
}

#[test]
fn a_termination_lets_running_invocations_finish_takes_no_new_ones_and_ends_well() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&[]);
    let functions = both(&instance);
    std::thread::scope(|scope| {
        let calls = functions.map(|(name, _)| {
            let instance = &instance;
            scope.spawn(move || instance.invoke(name, b"sleep 1500\n"))
        });
        both_run(&instance);
        // A kept connection, that is idle when the termination comes.
        let mut kept = Connection::open(instance.address).unwrap();
        kept.call("GET", "/healthz", &[], b"").unwrap().expect(200);
        let began = Instant::now();
        instance.signal(Signal::SIGTERM);
        until_true("a new call is refused", SOON, || {
            match kept.call("POST", "/invoke/victim-native", &[], b"print new\n") {
                Ok(answer) => match answer.status {
                    503 => {
                        answer.problem(503, "draining");
                        true
                    }
                    // Sent before the gateway had heard of it.
                    status => {
                        assert_eq!(status, 200);
                        false
                    }
                },
                // Closed because it was idle.
                Err(_) => true,
            }
        });
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        for call in calls {
            assert_eq!(call.join().unwrap().expect(200).text(), "slept\n");
        }
        let status = instance.wait();
        assert!(status.success(), "{status}");
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{:?}",
            began.elapsed()
        );
    });
    assert!(
        Connection::open(instance.address).is_err(),
        "nobody listens any more"
    );
    assert_nothing_left(&instance.home);
}

#[test]
fn an_invocation_that_outlasts_the_drain_limit_does_not_hold_up_the_end() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&["--drain-timeout", "1s"]);
    let functions = both(&instance);
    std::thread::scope(|scope| {
        let calls = begin(scope, &instance, functions);
        let began = Instant::now();
        instance.signal(Signal::SIGTERM);
        instance.wait();
        assert!(
            began.elapsed() < Duration::from_secs(6),
            "{:?}",
            began.elapsed()
        );
        for call in calls {
            // An error or a problem document, never a success.
            assert!(
                call.join()
                    .unwrap()
                    .map_or(true, |answer| answer.status != 200)
            );
        }
    });
    assert_nothing_left(&instance.home);
}

#[test]
fn a_restart_brings_back_functions_key_and_receipts() {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let instance = Instance::start_in(&home, &[]);
    let functions = both(&instance);
    let revision = |instance: &Instance, name| {
        let described = instance
            .manage("GET", &format!("/v1/functions/{name}"), b"")
            .expect(200)
            .json();
        described["revision"].as_str().unwrap().to_owned()
    };
    let before = functions.map(|(name, _)| revision(&instance, name));
    let answer = instance
        .invoke("victim-native", b"print kept\n")
        .expect(200);
    let receipt = instance.receipt(answer.invocation());
    let key = instance.key().to_owned();
    instance.stop();

    let instance = Instance::start_in(&home, &[]);
    assert_eq!(instance.key(), key);
    assert_eq!(functions.map(|(name, _)| revision(&instance, name)), before);
    for (name, _) in functions {
        still_serves(&instance, name);
    }
    assert_eq!(instance.receipt(answer.invocation()), receipt);
    instance.stop();
}

#[test]
fn two_instances_side_by_side_do_not_disturb_each_other() {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let one = Instance::start_in(&home, &[]);
    let other = Instance::start(&[]);
    let functions = both(&one);
    both(&other);
    assert_ne!(one.address, other.address);
    assert_ne!(one.home.instance(), other.home.instance());
    one.manage("GET", "/v1/functions", b"").expect(200);
    let bearer = format!("Bearer {}", other.key());
    one.call("GET", "/v1/functions", &[("authorization", &bearer)], b"")
        .problem(403, "forbidden");

    std::thread::scope(|scope| {
        let other = &other;
        let calls =
            functions.map(|(name, _)| scope.spawn(move || other.invoke(name, b"sleep 6000\n")));
        both_run(other);
        // Killed, and swept by a next one, beside the running invocations of the other.
        kill_hard(one.monitor());
        one.wait();
        let next = Instance::start_in(&home, &[]);
        still_serves(&next, "victim-native");
        next.stop();
        for call in calls {
            assert_eq!(call.join().unwrap().expect(200).text(), "slept\n");
        }
    });
    other.assert_clean();
    other.stop();
}

#[test]
fn a_second_instance_on_the_same_data_directory_or_address_is_refused_and_told_why() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let mut command = serve_command(&instance.home, &[]);
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(
        text.contains("lock") && text.contains(&instance.monitor().to_string()),
        "{text}"
    );

    let home = Home::new();
    let address = instance.address.to_string();
    let mut command = Command::new(HEARTH);
    let data = home.data();
    let output = command
        .args(["serve", "--listen", &address, "--data-dir"])
        .arg(&data)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains(&address), "{text}");
    assert_nothing_left(&home);
    instance.get("/healthz").expect(200);
}

#[test]
fn a_data_directory_that_the_gateway_could_not_reach_is_refused_at_once() {
    let _turn = turn::take!(shared);
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
    let output = Command::new(HEARTH)
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(closed.path().join("data"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}");
    let path = closed.path().canonicalize().unwrap();
    assert!(text.contains(&path.display().to_string()), "{text}");
}

#[test]
fn an_idle_instance_that_is_ended_leaves_no_process_cgroup_mount_or_file() {
    let _turn = turn::take!(alone);
    let own = i32::try_from(std::process::id()).unwrap();
    let mounts = world::mount_count(own);
    let instance = Instance::start(&[]);
    let functions = both(&instance);
    for (name, _) in functions {
        still_serves(&instance, name);
    }
    assert_eq!(
        world::mount_count(own),
        mounts,
        "a sandbox's mounts are not the host's"
    );
    instance.stop();
    assert_eq!(world::mount_count(own), mounts);
}

#[test]
fn an_ordinary_user_is_told_the_very_command_that_works() {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let program = reachable(home.path());
    let output = Command::new(&program)
        .args(["serve", "--data-dir"])
        .arg(home.data())
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    let command = format!(
        "sudo {} serve --data-dir {}",
        program.display(),
        home.data().display()
    );
    assert!(text.contains(&command), "{command} in {text}");
    assert!(!home.data().exists());
}
