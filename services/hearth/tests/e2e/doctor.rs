// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `hearth doctor` says is what a start would meet.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::home::{Home, reachable};
use crate::instance::HEARTH;
use crate::turn;

const NOBODY: u32 = 65_534;

fn output_of(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn findings(output: &Output) -> (Value, Vec<Value>) {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().clone();
    (report, findings)
}

fn verdict_of(findings: &[Value], subject: &str) -> String {
    let found = findings.iter().find(|each| each["subject"] == subject);
    found.unwrap()["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn as_root_on_a_whole_host_every_wall_is_given() {
    let _turn = turn::take!(shared);
    let mut command = Command::new(HEARTH);
    command.args(["doctor", "--json"]);
    let output = output_of(command);
    let (report, findings) = findings(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["level"], "full");
    for name in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"] {
        assert_eq!(verdict_of(&findings, &format!("{name} namespace")), "given");
    }
    assert_eq!(verdict_of(&findings, "CAP_SYS_TIME"), "given");
}

#[test]
fn what_is_missing_is_named_with_its_remedy_and_a_start_is_refused_for_the_same() {
    let _turn = turn::take!(shared);
    let without = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([
            "--bounding-set",
            "-sys_time",
            "--inh-caps",
            "-sys_time",
            HEARTH,
        ]);
        command.args(arguments);
        output_of(command)
    };
    let output = without(&["doctor", "--json"]);
    let (report, findings) = findings(&output);
    assert_eq!(output.status.code(), Some(5), "{report}");
    assert_eq!(report["level"], "refused");
    assert_eq!(verdict_of(&findings, "CAP_SYS_TIME"), "missing");
    assert_eq!(verdict_of(&findings, "CAP_SYS_ADMIN"), "given");

    let text = String::from_utf8(without(&["doctor"]).stdout).unwrap();
    assert!(text.contains("--cap-add SYS_TIME"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 140),
        "{text}"
    );

    let home = Home::new();
    let data = home.data();
    let start = without(&["serve", "--data-dir", data.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    assert_eq!(start.status.code(), Some(5), "{said}");
    assert!(said.contains("CAP_SYS_TIME"), "{said}");
    assert!(!data.exists());
}

#[test]
fn a_check_refuses_the_same_limit_of_open_files_as_a_start() {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let serve = |flags: &[&str]| {
        // Who may raise the limit has no problem.
        let script = "ulimit -n 1024 && exec setpriv --bounding-set -sys_resource --inh-caps -sys_resource \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", HEARTH, "serve"]);
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(home.data()).args(flags);
        output_of(command)
    };
    for flags in [&[][..], &["--check"]] {
        let output = serve(flags);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{flags:?}: {said}");
        assert!(said.contains("the limit of open files is 1024"), "{said}");
        assert!(said.contains("--max-sandboxes"), "{said}");
    }
    let output = serve(&[
        "--check",
        "--max-connections",
        "64",
        "--max-sandboxes",
        "16",
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(!home.data().exists());
}

#[test]
fn an_ordinary_user_to_whom_nothing_was_given_learns_what_is_missing() {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let program = reachable(home.path());
    let mut command = Command::new(program);
    command.arg("doctor").uid(NOBODY).gid(NOBODY);
    let output = output_of(command);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("sudo"), "{text}");
    assert!(text.contains("isolation level: refused"), "{text}");
    // Why not even rootless: on v1 and hybrid hosts, and on v2 hosts.
    let reasons = [
        "only root can divide v1 hierarchies",
        "delegated to this user",
    ];
    assert!(reasons.iter().any(|why| text.contains(why)), "{text}");
}

/// One example of `docs/doctor.md`: the block after the line that says how it was made.
fn example(command: &str) -> String {
    let page = include_str!("../../../../docs/doctor.md");
    let start = format!("$ {command}\n");
    let (_, rest) = page.split_once(&start).unwrap();
    rest.split("```").next().unwrap().to_owned()
}

/// What was looked at, but for settings, which differ from kernel to kernel.
fn subjects(text: &str) -> Vec<String> {
    let header = text.lines().find(|line| line.contains("AREA")).unwrap();
    let [area, what, found] = ["AREA", "WHAT", "FOUND"].map(|title| header.find(title).unwrap());
    let rows = text.lines().take_while(|line| !line.is_empty());
    let cell = |line: &str, from: usize, to: usize| {
        let end = to.min(line.len());
        line.get(from..end).unwrap_or_default().trim().to_owned()
    };
    let looked_at = rows.filter(|line| {
        let area = cell(line, area, what);
        let setting = area == "settings" || cell(line, what, found).contains('.');
        !setting && area != "AREA"
    });
    looked_at.map(|line| cell(line, what, found)).collect()
}

#[test]
fn the_page_about_doctor_shows_what_it_says_to_root_and_to_an_ordinary_user() {
    let _turn = turn::take!(shared);
    let mut root = Command::new(HEARTH);
    root.arg("doctor");
    let home = Home::new();
    let mut nobody = Command::new(reachable(home.path()));
    nobody.arg("doctor").uid(NOBODY).gid(NOBODY);
    for (command, run) in [("sudo hearth doctor", root), ("hearth doctor", nobody)] {
        let said = String::from_utf8(output_of(run).stdout).unwrap();
        let shown = example(command);
        assert_eq!(subjects(&shown), subjects(&said), "{said}");
        let level = |text: &str| {
            let mut lines = text.lines();
            lines
                .find(|line| line.starts_with("isolation level:"))
                .map(str::to_owned)
        };
        assert!(level(&said).is_some(), "{said}");
        assert_eq!(level(&shown), level(&said));
    }
}
