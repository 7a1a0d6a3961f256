// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth learn`: every native function that ships, from what it does to a profile that lets it do no more; and who may
//! not be learned, and how it ends.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bundled::{Example, deployed};
use crate::http::{Answer, Connection};
use crate::instance::{Home, Instance, log_tail};
use crate::package::{Kind, Package, functions, newest_output, read};
use crate::turn;
use crate::victim::TIGHT;
use crate::wait::{SOON, until, until_true};

/// memfd_create(2), by its number here: `default` allows it, and no function that ships makes it.
const MEMFD_CREATE: u32 = if cfg!(target_arch = "x86_64") {
    319
} else {
    279
};

const LEARNED: &str = "[sandbox]\nseccomp = \"learned\"";

/// What an observation without an end of its own lasts in these tests: longer than a busy machine takes to begin it and
/// to call the function once.
const OBSERVED: Duration = Duration::from_secs(5);

fn learn(instance: &Instance, arguments: &[&str]) -> Output {
    instance.cli(&[&["learn"], arguments].concat())
}

/// The lesson that a command printed.
fn lesson(output: &Output) -> Value {
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{text}{errors}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"))
}

/// The names of the calls of a lesson's profile.
fn calls(lesson: &Value) -> Vec<&str> {
    let calls = lesson["profile"]["calls"].as_array();
    let calls = calls.unwrap_or_else(|| panic!("{lesson}"));
    calls
        .iter()
        .filter_map(|call| call["name"].as_str())
        .collect()
}

/// The names in a receipt's list of refused calls.
fn refused(receipt: &Value) -> Vec<&str> {
    let first = receipt["violations"]["first"].as_array();
    first
        .into_iter()
        .flatten()
        .filter_map(|call| call["name"].as_str())
        .collect()
}

/// A function that ships as a folder of its own under another name, as its author has it after a build.
fn copied(example: &Example, name: &str, to: &Path) {
    let from = functions().join(&example.name);
    let manifest = String::from_utf8(read(&from.join("function.toml"))).unwrap();
    let kept = manifest.lines().filter(|line| !line.starts_with("build"));
    let own = format!("name = \"{name}\"");
    let lines: Vec<&str> = kept
        .map(|line| {
            if line.starts_with("name") {
                own.as_str()
            } else {
                line
            }
        })
        .collect();
    fs::create_dir_all(to).unwrap();
    fs::write(to.join("function.toml"), lines.join("\n") + "\n").unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let entry = manifest["entry"].as_str().unwrap();
    let file = from.join(entry);
    let file = if file.is_file() {
        file
    } else {
        newest_output(entry)
    };
    fs::write(to.join(entry), read(&file)).unwrap();
    fs::write(to.join("event"), &example.input).unwrap();
}

#[test]
fn every_bundled_native_function_is_learned_replayed_and_enforced_and_an_intruder_in_it_is_named() {
    let _turn = turn::take!(shared);
    let instance = deployed();
    let home = tempfile::tempdir().unwrap();
    let mut learned = 0;
    for example in Example::all() {
        let known = instance.manage("GET", &format!("/v1/functions/{}", example.name), b"");
        if known.json()["kind"] == "wasm" {
            continue;
        }
        let name = format!("learned-{}", example.name);
        let folder = home.path().join(&name);
        copied(&example, &name, &folder);
        let (folder, event) = (folder.to_string_lossy(), folder.join("event"));
        let event = event.to_string_lossy();
        assert!(instance.cli(&["deploy", &folder]).status.success());
        let below = example.path.strip_prefix(&format!("/fn/{}", example.name));
        let mut arguments = vec![name.as_str(), "--event", &event, "--json"];
        arguments.extend(["--into", &folder, "--enforce"]);
        arguments.extend(below.into_iter().flat_map(|below| ["--path", below]));
        let lesson = lesson(&learn(instance, &arguments));
        holds_and_is_small(&lesson);
        let path = match below {
            Some(below) => format!("/fn/{name}{below}"),
            None => format!("/invoke/{name}"),
        };
        let headers = [("content-type", "text/plain")];
        let answer = instance.call("POST", &path, &headers, &example.input);
        let answer = answer.expect(200);
        assert!(answer.body == example.expected, "{name}: {}", answer.text());
        let receipt = instance.receipt(answer.invocation());
        assert_eq!(receipt["violations"], Value::Null, "{name}: {receipt}");
        let now = instance.manage("GET", &format!("/v1/functions/{name}"), b"");
        assert_eq!(now.json()["seccomp"], "learned");
        intruder_is_named(instance, &name, &lesson);
        instance.remove(&name).expect(204);
        learned += 1;
    }
    assert!(4 <= learned, "{learned}");
}

/// A row of docs/seccomp.md.
fn holds_and_is_small(lesson: &Value) {
    let (size, tier) = (&lesson["size"], &lesson["tier_size"]);
    println!(
        "| `{}` | {} | {} of {} | {} of {} | {} |",
        lesson["function"].as_str().unwrap(),
        calls(lesson).len(),
        size["calls"],
        tier["calls"],
        size["instructions"],
        tier["instructions"],
        lesson["replay"]["holds"],
    );
    assert_eq!(lesson["replay"]["holds"], true, "{lesson:#}");
    for event in lesson["replay"]["events"].as_array().unwrap() {
        assert_eq!(event["outcome"], "ok", "{lesson:#}");
        assert_eq!(event["same_output"], true, "{lesson:#}");
    }
    assert!(size["calls"].as_u64() < tier["calls"].as_u64(), "{lesson}");
    assert!(
        size["instructions"].as_u64() < tier["instructions"].as_u64(),
        "{lesson}"
    );
}

/// The function's profile with a program in the function's place that does what an attacker wants.
fn intruder_is_named(instance: &Instance, name: &str, lesson: &Value) {
    let profile = lesson["profile"].to_string();
    let package = Package::hostile(name, Kind::Native, &format!("{LEARNED}\n{TIGHT}"));
    instance.deploy(&package.with_file("seccomp.json", 0o644, profile.as_bytes()));
    let attack = format!("syscall {MEMFD_CREATE} 0 0\n");
    let answer = instance.invoke(name, attack.as_bytes());
    let receipt = instance.receipt(answer.invocation());
    assert!(
        refused(&receipt).contains(&"memfd_create"),
        "{name}: {receipt}"
    );
    assert_eq!(receipt["violations"]["profile"], "learned", "{receipt}");
}

#[test]
fn what_a_learned_function_never_did_is_refused_and_named_everywhere() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let name = "learned-hostile";
    instance.deploy(&Package::hostile(name, Kind::Native, TIGHT));
    let path = format!("/v1/functions/{name}/learn?sizes=13,12");
    let lesson = instance.manage("POST", &path, b"print honest\nprint again\n");
    let lesson = lesson.expect(200).json();
    assert_eq!(lesson["replay"]["events"].as_array().map(Vec::len), Some(2));
    holds_and_is_small(&lesson);
    let manifest = format!("{LEARNED}\n{TIGHT}");
    let profile = lesson["profile"].to_string();
    let package = Package::hostile(name, Kind::Native, &manifest);
    instance.deploy(&package.with_file("seccomp.json", 0o644, profile.as_bytes()));
    let call = |mode: &str| {
        let answer = instance.invoke(name, format!("{mode}\n").as_bytes());
        let receipt = instance.receipt(answer.invocation());
        (answer, receipt)
    };
    let counted = |class| {
        let labels = [("function", name), ("kind", "native"), ("class", class)];
        instance.metric("hearth_seccomp_violations_total", &labels)
    };
    let (answer, receipt) = call("print honest");
    assert_eq!(answer.expect(200).text(), "honest\n");
    assert_eq!(receipt["violations"], Value::Null, "{receipt}");
    let (answer, receipt) = call(&format!("syscall {MEMFD_CREATE} 0 0"));
    assert!(answer.expect(200).text().contains("EPERM"), "{receipt}");
    // The attack itself has preparations that were never seen.
    assert!(refused(&receipt).contains(&"memfd_create"), "{receipt}");
    assert_eq!(receipt["violations"]["profile"], "learned", "{receipt}");
    let eperm = receipt["violations"]["count"].as_f64().unwrap();
    assert_eq!((counted("eperm"), counted("kill")), (eperm, 0.0));
    let (answer, receipt) = call("escape-kill reboot");
    let problem = answer.problem(502, "function_killed");
    assert_eq!(problem["evidence"]["cause"]["profile"], "learned");
    assert!(refused(&receipt).contains(&"reboot"), "{receipt}");
    assert_eq!(counted("kill"), 1.0);
    until_true("the log names the call", SOON, || {
        log_tail(&instance.home).contains("memfd_create(")
    });
    // On a busy machine init may not stop in time to be looked at; that sandbox is destroyed, and another one is made.
    let report = until("a report", SOON, || {
        let path = format!("/v1/functions/{name}/isolation");
        let answer = instance.manage("GET", &path, b"");
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(answer.text())
        }
    });
    assert_eq!(report["filters"][0]["profile"], "learned", "{report:#}");
    assert_ne!(report["level"], "broken", "{report:#}");
    let (answer, _) = call("print honest");
    assert_eq!(answer.expect(200).text(), "honest\n");
}

#[test]
fn a_learned_profile_belongs_to_its_revision_and_comes_back_with_it() {
    let _turn = turn::take!(shared);
    let home = Home::new();
    let instance = Instance::start_in(&home, &[]);
    let script = |rest: &str| Package::script("lasting", "cat; echo done", rest);
    instance.deploy(&script(""));
    let lesson = instance.manage("POST", "/v1/functions/lasting/learn", b"x");
    let profile = lesson.expect(200).json()["profile"].to_string();
    let learned = script(LEARNED).with_file("seccomp.json", 0o644, profile.as_bytes());
    instance.deploy(&learned);
    // Learned again, it is learned under what it has: the part of a part.
    let again = instance.manage("POST", "/v1/functions/lasting/learn", b"y");
    let again = again.expect(200).json();
    assert_eq!(again["learned_under"], "learned");
    assert_eq!(again["replay"]["holds"], true, "{again:#}");
    instance.stop();
    let instance = Instance::start_in(&home, &[]);
    let known = instance.manage("GET", "/v1/functions/lasting", b"").json();
    assert_eq!(known["seccomp"], "learned");
    let answer = instance.invoke("lasting", b"z").expect(200);
    assert_eq!(answer.text(), "zdone\n");
    let receipt = instance.receipt(answer.invocation());
    assert_eq!(receipt["violations"], Value::Null, "{receipt}");
    instance.stop();
}

#[test]
fn a_profile_that_is_no_part_of_its_tier_is_refused_at_deploy_with_every_reason() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let script = || Package::script("unlearned", "cat", LEARNED);
    let said = |answer: Answer| answer.problem(400, "bad_manifest").to_string();
    let missing = said(instance.try_deploy(&script()));
    assert!(missing.contains("no file seccomp.json"), "{missing}");
    let with = |profile: Value| {
        let text = profile.to_string();
        let package = script().with_file("seccomp.json", 0o644, text.as_bytes());
        said(instance.try_deploy(&package))
    };
    let arch = std::env::consts::ARCH;
    let of = |calls: &[&str]| {
        let calls: Vec<Value> = calls.iter().map(|name| json!({ "name": name })).collect();
        json!({"about": "", "profile": "default", "arch": arch, "calls": calls})
    };
    let wider = with(of(&["read", "bpf", "nonsense"]));
    for word in [
        "\\\"bpf\\\" is not allowed",
        "\\\"nonsense\\\" is no system call",
    ] {
        assert!(wider.contains(word), "{word}: {wider}");
    }
    let mut foreign = of(&["read"]);
    foreign["arch"] = "pdp11".into();
    assert!(with(foreign).contains("learned on"));
    assert!(with(json!({"calls": []})).contains("cannot be read"));
}

#[test]
fn who_cannot_be_learned_is_told_why() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.deploy(&Package::wasm("unlearnable", "tests/bench/echo.wasm", ""));
    let answer = instance.manage("POST", "/v1/functions/unlearnable/learn", b"x");
    let problem = answer.problem(400, "bad_request");
    assert!(problem.to_string().contains("fixed profile"), "{problem}");
    instance.deploy(&Package::script("uncalled", "cat", ""));
    for (path, status, code) in [
        ("/v1/functions/uncalled/learn?for_ms=1", 400, "bad_request"),
        ("/v1/functions/uncalled/learn?sizes=9", 400, "bad_request"),
        ("/v1/functions/nobody/learn", 404, "unknown_function"),
    ] {
        let body: &[u8] = if path.contains("for_ms") { b"" } else { b"x" };
        instance.manage("POST", path, body).problem(status, code);
    }
    let answer = instance.call("POST", "/v1/functions/uncalled/learn", &[], b"x");
    answer.problem(401, "unauthorized");
    let nothing = learn(instance, &["uncalled"]);
    assert_eq!(nothing.status.code(), Some(2));
    let output = instance.invoke("uncalled", b"as before").expect(200);
    assert_eq!(output.text(), "as before");
}

#[test]
fn what_else_calls_a_function_is_learned_from_and_a_client_that_goes_away_ends_it() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let name = "overheard";
    instance.deploy(&Package::script(name, "cat; mkdir /tmp/made", ""));
    let path = format!("/v1/functions/{name}/learn");
    let forever = format!("{path}?for_ms=3600000");
    let observed = format!("{path}?for_ms={}", OBSERVED.as_millis());
    let bearer = format!("Bearer {}", instance.key());
    let headers = [("authorization", bearer.as_str())];
    let is_observed = || {
        let known = instance.manage("GET", &format!("/v1/functions/{name}"), b"");
        known.json()["observed"] == true
    };
    let begin = |path: &str| {
        let mut connection = Connection::open(instance.address).unwrap();
        connection.send("POST", path, &headers, b"").unwrap();
        until_true("it is observed", SOON, is_observed);
        connection
    };
    let first = begin(&forever);
    instance
        .manage("POST", &path, b"x")
        .problem(409, "conflict");
    drop(first);
    until_true("it is observed no more", SOON, || !is_observed());
    let mut connection = begin(&observed);
    let answer = instance.invoke(name, b"overheard").expect(200);
    assert_eq!(answer.text(), "overheard");
    let lesson = connection.answer().unwrap().expect(200).json();
    assert!(
        calls(&lesson).iter().any(|name| name.starts_with("mkdir")),
        "{lesson:#}"
    );
    assert_eq!(lesson["replay"]["holds"], true, "{lesson:#}");
    let answer = instance.invoke(name, b"as before").expect(200);
    assert_eq!(answer.text(), "as before");
}
