// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hostile program does what its modes promise: a test of a wall that uses a harmless program shows nothing. Only
//! modes that leave nothing behind run here, without walls.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

#[test]
fn the_mode_comes_from_the_command_line_a_variable_the_query_or_the_first_line_of_stdin() {
    assert_eq!(run(&["exit", "3"], &[], "").status.code(), Some(3));
    assert_eq!(
        run(&[], &[("MODE", "exit 4")], "exit 5\n").status.code(),
        Some(4)
    );
    assert_eq!(
        run(&[], &[("QUERY_STRING", "exit+6")], "").status.code(),
        Some(6)
    );
    assert_eq!(run(&[], &[], "exit 7\nthe rest").status.code(), Some(7));
    assert_eq!(run(&[], &[], "").status.code(), Some(64));
    assert_eq!(run(&["no-such-mode"], &[], "").status.code(), Some(64));
}

#[test]
fn what_follows_the_first_line_is_left_for_the_mode() {
    assert_eq!(
        run(&[], &[], "echo-rest\nStatus: 999\n\nbody").stdout,
        b"Status: 999\n\nbody"
    );
    assert_eq!(
        run(&[], &[], &format!("read-slow 1000 0\n{}", "x".repeat(2500))).stdout,
        b"read 2500\n"
    );
}

#[test]
fn on_fn_routes_a_header_block_comes_first() {
    let answer = run(
        &[],
        &[
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("QUERY_STRING", "print+hello"),
        ],
        "",
    );
    assert_eq!(
        answer.stdout,
        b"Content-Type: application/octet-stream\n\nhello\n"
    );
}

#[test]
fn burn_uses_the_cpu_time_that_it_is_told_and_says_how_much() {
    let microseconds: u64 = text(&run(&["burn", "50"], &[], ""))
        .trim()
        .parse()
        .expect("a number");
    assert!((50_000..60_000).contains(&microseconds), "{microseconds}");
}

#[test]
fn processes_can_end_by_signal_and_by_abort() {
    assert_eq!(run(&["signal", "9"], &[], "").status.signal(), Some(9));
    assert_eq!(run(&["segfault"], &[], "").status.signal(), Some(11));
    assert_eq!(run(&["trap"], &[], "").status.signal(), Some(6));
    assert_eq!(run(&["recurse"], &[], "").status.signal(), Some(6));
}

#[test]
fn floods_have_exactly_the_size_that_they_are_told() {
    assert_eq!(
        run(&["flood-stdout", "100001"], &[], "").stdout.len(),
        100_001
    );
    assert_eq!(
        run(&["flood-stderr", "100001"], &[], "").stderr.len(),
        100_001
    );
    let failed = run(&["output-then-exit", "70000", "9"], &[], "");
    assert_eq!(
        (failed.stdout.len(), failed.status.code()),
        (70_000, Some(9))
    );
    let log = run(&["long-log-line", "1048576"], &[], "").stderr;
    assert!(log.ends_with(b"after the long line 3\n") && log.len() > 1_048_576);
}

#[test]
fn whoami_is_json_and_sees_what_the_kernel_sees() {
    let report: serde_json::Value =
        serde_json::from_slice(&run(&["whoami"], &[("A", "\"\\\n")], "").stdout).expect("JSON");
    assert_eq!(report["environment"]["A"], "\"\\\n");
    assert_eq!(
        report["status"]["NoNewPrivs"].as_str().map(str::len),
        Some(1)
    );
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"] {
        let seen = std::fs::read_link(format!("/proc/self/ns/{namespace}")).expect("a namespace");
        assert_eq!(
            report["namespaces"][namespace],
            seen.to_str().expect("text")
        );
    }
    let fds = report["fds"].as_object().expect("an object");
    assert!(
        ["0", "1", "2"].iter().all(|fd| fds.contains_key(*fd)),
        "{fds:?}"
    );
}

/// As root's program outside a sandbox it must refuse what would change the machine.
#[test]
fn modes_that_harm_a_machine_without_walls_refuse_to_run_as_root() {
    let root: serde_json::Value =
        serde_json::from_slice(&run(&["whoami"], &[], "").stdout).expect("JSON");
    if root["euid"] != 0 {
        return; // an ordinary user's program cannot do that harm
    }
    for mode in [
        "escape",
        "escape-kill reboot",
        "leave-marker",
        "forkbomb",
        "kill-all",
        "kill-init",
        "syscall 39",
    ] {
        let answer = run(&[], &[("MODE", mode)], "");
        assert_eq!(answer.status.code(), Some(70), "{mode}: {answer:?}");
        assert!(
            String::from_utf8_lossy(&answer.stderr).contains("not as root"),
            "{mode}: {answer:?}"
        );
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn run(arguments: &[&str], variables: &[(&str, &str)], stdin: &str) -> Output {
    let mut child = Command::new(program())
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program that can be executed");
    // Less than a pipe holds; a program that has ended already takes nothing.
    drop(
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(stdin.as_bytes()),
    );
    child.wait_with_output().expect("its end")
}

/// Built once, as Hearth's own tests build it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("functions/");
        let output = Command::new(env!("CARGO"))
            .args([
                "build",
                "--release",
                "--locked",
                "-p",
                "hostile",
                "--message-format=json",
            ])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo");
        assert!(output.status.success());
        let messages = String::from_utf8(output.stdout).expect("text");
        let executable = messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        });
        executable.expect("cargo names the executable")
    })
}
