// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every function that ships, on its real input, through the commands and routes that users have.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::http::Answer;
use crate::instance::{HEARTH, Home, Instance, assert_nothing_left};
use crate::package::{bundled, functions, read};
use crate::wait::{SOON, until};
use crate::{turn, world};

/// What a function's folder says about how to call it.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) input: Vec<u8>,
    pub(crate) expected: Vec<u8>,
}

impl Example {
    pub(crate) fn of(name: &str) -> Self {
        let data = functions().join(name).join("testdata");
        let path = fs::read_to_string(data.join("path"));
        Self {
            name: name.to_owned(),
            path: path.map_or_else(|_| format!("/invoke/{name}"), |path| path.trim().to_owned()),
            input: read(&only(&data, "input")),
            expected: read(&only(&data, "expected")),
        }
    }

    pub(crate) fn all() -> Vec<Self> {
        bundled().iter().map(|name| Self::of(name)).collect()
    }

    pub(crate) fn call(&self, instance: &Instance) -> Answer {
        instance.call(
            "POST",
            &self.path,
            &[("content-type", "text/plain")],
            &self.input,
        )
    }
}

fn only(folder: &std::path::Path, stem: &str) -> PathBuf {
    let files = fs::read_dir(folder)
        .expect("testdata")
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut found = files.filter(|path| path.file_stem().is_some_and(|own| own == stem));
    found
        .next()
        .unwrap_or_else(|| panic!("no {stem}.* in {}", folder.display()))
}

/// The shared instance with every bundled function deployed by `hearth deploy`.
pub(crate) fn deployed() -> &'static Instance {
    static DEPLOYED: Once = Once::new();
    let instance = Instance::of_all();
    DEPLOYED.call_once(|| {
        for name in bundled() {
            let folder = functions().join(&name);
            let output = instance.cli(&["deploy", &folder.to_string_lossy()]);
            assert!(
                output.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    });
    instance
}

#[test]
fn every_bundled_function_answers_its_real_input_byte_for_byte_first_cold_and_then_warm() {
    let _turn = turn::take!(alone);
    let instance = deployed();
    for example in Example::all() {
        let first = example.call(instance).expect(200);
        assert!(
            first.body == example.expected,
            "{}: {}",
            example.name,
            first.text()
        );
        let start = first.header("hearth-start").unwrap();
        assert!(
            ["bound", "created", "warm"].contains(&start),
            "{}: {start}",
            example.name
        );

        // The answer comes before the sandbox is clean again, the receipt after.
        instance.receipt(first.invocation());
        let second = example.call(instance).expect(200);
        assert!(
            second.body == example.expected,
            "{}: {}",
            example.name,
            second.text()
        );
        assert_eq!(
            second.header("hearth-start"),
            Some("warm"),
            "{}",
            example.name
        );
    }
    instance.assert_clean();
}

#[test]
fn the_first_call_of_a_revision_finds_no_warm_sandbox() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for (name, module) in [
        ("first-native", None),
        ("first-wasm", Some("tests/bench/echo.wasm")),
    ] {
        instance.deploy(&match module {
            None => crate::package::Package::script(name, "cat", ""),
            Some(path) => crate::package::Package::wasm(name, path, ""),
        });
        let first = instance.invoke(name, b"x").expect(200);
        let start = first.header("hearth-start").unwrap();
        assert!(["bound", "created"].contains(&start), "{name}: {start}");
        instance.receipt(first.invocation());
        assert_eq!(
            instance.invoke(name, b"x").header("hearth-start"),
            Some("warm"),
            "{name}"
        );
        instance.remove(name);
    }
}

#[test]
fn a_thumbnail_is_a_valid_jpeg_that_is_smaller_in_bytes_and_pixels() {
    let _turn = turn::take!(shared);
    let example = Example::of("thumbnail");
    let answer = example.call(deployed()).expect(200);
    assert_eq!(answer.header("content-type"), Some("image/jpeg"));
    let (before, after) = (jpeg_size(&example.input), jpeg_size(&answer.body));
    assert!(answer.body.len() < example.input.len());
    assert!(
        after.0 <= 256 && after.1 <= 256 && after.0 < before.0,
        "{before:?} to {after:?}"
    );
}

/// Width and height from the frame header (ITU T.81, B.2.2); panics where the segments do not fit together.
fn jpeg_size(jpeg: &[u8]) -> (u16, u16) {
    assert!(jpeg.starts_with(&[0xFF, 0xD8]) && jpeg.ends_with(&[0xFF, 0xD9]));
    let number = |at: usize| u16::from_be_bytes([jpeg[at], jpeg[at + 1]]);
    let mut at = 2;
    loop {
        assert_eq!(jpeg[at], 0xFF, "a marker at {at}");
        if [0xC0, 0xC1, 0xC2].contains(&jpeg[at + 1]) {
            return (number(at + 7), number(at + 5));
        }
        at += 2 + usize::from(number(at + 2));
    }
}

#[test]
fn the_answer_says_which_invocation_it_was_and_where_the_time_went() {
    let _turn = turn::take!(shared);
    let instance = deployed();
    let answer = Example::of("sha256").call(instance).expect(200);
    let timing = answer.header("server-timing").unwrap();
    let phases: Vec<(&str, f64)> = timing
        .split(", ")
        .map(|phase| {
            phase
                .split_once(";dur=")
                .map(|(name, ms)| (name, ms.parse().unwrap()))
                .unwrap()
        })
        .collect();
    let names: Vec<&str> = phases.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["queue", "acquire", "run"], "{timing}");
    assert!(0.0 < phases[2].1 && phases[2].1 < 3000.0, "{timing}");

    let receipt = instance.receipt(answer.invocation());
    let run_ms = receipt["phases"]["run_us"].as_f64().unwrap() / 1000.0;
    assert!((run_ms - phases[2].1).abs() < 0.01, "{run_ms} and {timing}");
}

#[test]
fn a_receipt_has_the_facts_of_its_invocation() {
    let _turn = turn::take!(shared);
    let instance = deployed();
    for (name, kind, source) in [
        ("sha256", "native", "cgroup"),
        ("sha256-wasm", "wasm", "worker"),
    ] {
        let example = Example::of(name);
        let answer = example.call(instance).expect(200);
        let receipt = instance.receipt(answer.invocation());
        assert_eq!(receipt["invocation"], answer.invocation());
        assert_eq!(receipt["function"], name);
        assert_eq!(receipt["kind"], kind);
        assert_eq!(receipt["outcome"], "ok", "{receipt}");
        assert_eq!(receipt["start"], answer.header("hearth-start").unwrap());
        assert_eq!(receipt["request_bytes"], example.input.len());
        assert_eq!(receipt["response_bytes"], example.expected.len());
        assert_eq!(receipt["limits_hit"], Value::Array(Vec::new()));
        assert_eq!(receipt["usage"]["source"], source, "{receipt}");
        assert!(
            0 < receipt["usage"]["cpu_us"].as_u64().unwrap(),
            "{receipt}"
        );
        assert!(
            0 < receipt["usage"]["memory_peak_bytes"].as_u64().unwrap(),
            "{receipt}"
        );
        if kind == "native" {
            assert_eq!(receipt["residue"]["none"], true, "{receipt}");
            assert_eq!(receipt["residue"]["processes_left"], 1, "{receipt}");
        }
        let revision = receipt["revision"].as_str().unwrap();
        let described = instance
            .manage("GET", &format!("/v1/functions/{name}"), b"")
            .expect(200)
            .json();
        assert_eq!(described["revision"], revision, "{described}");
    }
}

#[test]
fn functions_are_listed_described_and_removed() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let package = crate::package::Package::script("listed", "echo here", "");
    let deployed = instance.deploy(&package);
    let described = instance
        .manage("GET", "/v1/functions/listed", b"")
        .expect(200)
        .json();
    assert_eq!(described["name"], "listed", "{described}");
    assert_eq!(described["revision"], deployed["revision"], "{described}");

    let names = || {
        let listed = instance
            .manage("GET", "/v1/functions", b"")
            .expect(200)
            .json();
        let functions = listed["functions"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| panic!("{listed}"));
        functions
            .iter()
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(names().contains(&"listed".to_owned()));
    assert_eq!(instance.invoke("listed", b"").expect(200).text(), "here\n");

    let removed = instance.remove("listed").status;
    assert!([200, 204].contains(&removed), "{removed}");
    instance
        .invoke("listed", b"")
        .problem(404, "unknown_function");
    instance
        .manage("GET", "/v1/functions/listed", b"")
        .problem(404, "unknown_function");
    assert!(!names().contains(&"listed".to_owned()));
    instance.remove("listed").problem(404, "unknown_function");
}

#[test]
fn deploying_the_same_content_again_is_the_same_revision() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let one = crate::package::Package::script("again", "echo 1", "");
    let first = instance.try_deploy(&one).expect(201).json();
    assert_eq!(
        instance.try_deploy(&one).expect(200).json()["revision"],
        first["revision"]
    );
    let other = crate::package::Package::script("again", "echo 2", "");
    assert_ne!(instance.deploy(&other)["revision"], first["revision"]);
    assert_eq!(instance.invoke("again", b"").text(), "2\n");
    instance.deploy(&one);
    assert_eq!(instance.invoke("again", b"").text(), "1\n");
}

#[test]
fn what_a_function_writes_to_stderr_is_its_log_by_invocation() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let script = "read -r word; echo \"about $word\" >&2; printf '\\033[31mred\\n' >&2; echo done";
    instance.deploy(&crate::package::Package::script("chatty", script, ""));
    let answers = ["one", "two"].map(|word| instance.invoke("chatty", word.as_bytes()).expect(200));
    for (answer, word) in answers.iter().zip(["one", "two"]) {
        let receipt = instance.receipt(answer.invocation());
        let lines: Vec<&str> = receipt["log"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line["text"].as_str().unwrap())
            .collect();
        assert_eq!(lines, [format!("about {word}").as_str(), "\\u{1b}[31mred"]);

        let path = format!(
            "/v1/functions/chatty/logs?invocation={}",
            answer.invocation()
        );
        let logs = instance.manage("GET", &path, b"").expect(200);
        assert_eq!(logs.header("content-type"), Some("application/x-ndjson"));
        let text = logs.text();
        for line in text.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
        assert!(text.contains(&format!("about {word}")), "{text}");
    }
    let all = instance
        .manage("GET", "/v1/functions/chatty/logs", b"")
        .expect(200)
        .text();
    assert!(
        all.contains("about one") && all.contains("about two"),
        "{all}"
    );
}

#[test]
fn a_whole_http_request_reaches_a_function_and_its_answer_is_the_response() {
    let _turn = turn::take!(shared);
    let instance = deployed();
    let headers = [("content-type", "text/plain"), ("x-custom", "seen")];
    let answer = instance.call("PUT", "/fn/hello-cgi/a%20b/c?q=1&r=%20", &headers, b"12345");
    let text = answer.expect(200).text();
    for line in [
        "method: PUT",
        "path: /a b/c",
        "query: q=1&r=%20",
        "type: text/plain",
        "body: 5 bytes",
    ] {
        assert!(text.lines().any(|own| own == line), "{line} in {text}");
    }
    let teapot = instance.get("/fn/hello-cgi/status/418");
    assert_eq!(
        (teapot.status, teapot.header("x-hello")),
        (418, Some("Hello"))
    );
    assert!(teapot.header("hearth-invocation").is_some());
    assert!(
        instance
            .get("/fn/hello-cgi")
            .expect(200)
            .text()
            .contains("path: \n")
    );
    // Not called as CGI: it says so and fails.
    instance
        .invoke("hello-cgi", b"")
        .problem(502, "function_failed");
}

#[test]
fn the_commands_show_what_the_api_says() {
    let _turn = turn::take!(shared);
    let instance = deployed();
    let example = Example::of("markdown");
    let input = only(&functions().join("markdown/testdata"), "input");
    let invoked = instance.cli(&["invoke", "markdown", "--data", &input.to_string_lossy()]);
    assert!(
        invoked.status.success() && invoked.stdout == example.expected,
        "{invoked:?}"
    );

    let id = example.call(instance).invocation().to_owned();
    instance.receipt(&id);
    for (arguments, part) in [
        (vec!["ls"], "markdown"),
        (vec!["ls", "--json"], "\"markdown\""),
        (vec!["describe", "markdown"], "markdown"),
        (vec!["receipt", &id, "--json"], "\"ok\""),
        (vec!["receipt", &id], "ok"),
        (vec!["isolation", "markdown", "--json"], "\"full\""),
        (vec!["isolation", "markdown"], "full"),
        (vec!["logs", "markdown"], ""),
    ] {
        let output = instance.cli(&arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(part),
            "{arguments:?}: {output:?}"
        );
    }

    let failed = instance.cli(&["invoke", "no-such-function"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(
        failed.stdout.is_empty() && !failed.stderr.is_empty(),
        "{failed:?}"
    );
}

#[test]
fn run_is_one_shot_behind_the_same_walls_and_leaves_nothing() {
    let _turn = turn::take!(shared);
    let example = Example::of("crc");
    let folder = functions().join("crc");
    let input = only(&folder.join("testdata"), "input");
    let output = Command::new(HEARTH)
        .args([
            "run",
            &folder.to_string_lossy(),
            "--data",
            &input.to_string_lossy(),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stdout == example.expected,
        "{output:?}"
    );
}

#[test]
fn up_deploys_every_folder_says_ready_with_a_curl_line_for_each_and_ends_on_ctrl_c_without_a_trace()
{
    let _turn = turn::take!(shared);
    let home = Home::new();
    let mut child = Command::new(HEARTH)
        .args([
            "up",
            &functions().to_string_lossy(),
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(home.data())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = false;
    let mut missing = bundled();
    for line in BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
    {
        ready |= line.contains("READY");
        if line.contains("curl ") {
            missing.retain(|name| !line.contains(&format!("/{name}")));
        }
        if ready && missing.is_empty() {
            break;
        }
    }
    let pid = i32::try_from(child.id()).unwrap();
    assert!(
        ready && missing.is_empty(),
        "ready: {ready}, no curl line for {missing:?}"
    );
    assert!(world::process(pid).is_some(), "it stays in the foreground");
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let status = until("up has ended", SOON + Duration::from_secs(20), || {
        child.try_wait().unwrap().ok_or("it runs")
    });
    assert!(status.success(), "{status}");
    assert_nothing_left(&home);
}
