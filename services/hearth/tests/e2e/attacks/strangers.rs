// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Programs that others wrote to break kernels, inside a sandbox: stress-ng and trinity, where they are installed. A few
//! seconds of each; two minutes with `HEARTH_E2E_LONG=1`.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::instance::Instance;
use crate::load::is_long_run;
use crate::package::{Kind, Package, read};
use crate::turn;
use crate::victim::{NARROW, Victim};

/// Of stress-ng: the class for the operating system, one after the other, and those that are known to be unkind.
const STRESSORS: [&str; 20] = [
    "--class os --sequential 1",
    "--fork 4",
    "--vm 2 --vm-bytes 1g",
    "--memfd 2",
    "--pipe 4",
    "--sockfd 2",
    "--dirdeep 1",
    "--dirmany 1",
    "--filename 1",
    "--key 2",
    "--ptrace 2",
    "--userfaultfd 1",
    "--unshare 2",
    "--zombie 2",
    "--sysinval 2",
    "--enosys 2",
    "--x86syscall 2",
    "--vforkmany 2",
    "--sigq 2",
    "--bad-altstack 2",
];

const LIMITS: &str = "base = \"minimal\"\n[limits]\nmemory = \"256MiB\"\npids = 128\ntimeout = \"20s\"\nscratch = \"32MiB\"\nresponse = \"6MiB\"\n[scaling]\nmax_instances = 1";

/// How an invocation of such a program may end: by itself, well or not, or by a limit. Never by the platform's fault.
const ENDS: [&str; 5] = [
    "ok",
    "function_failed",
    "function_killed",
    "function_timed_out",
    "response_too_large",
];

/// A program of the host that is started with the options that are its input; None where it is not installed.
fn package(name: &str, program: &str) -> Option<Package> {
    let script = "read -r options; ld=$(echo /function/lib/ld-linux*)\n\
        # shellcheck disable=SC2086\n\
        exec \"$ld\" --library-path /function/lib /function/program $options";
    carrying(Package::script(name, script, LIMITS), program)
}

/// With a program of the host and the libraries that it needs, to be started by its own loader.
pub(crate) fn carrying(package: Package, program: &str) -> Option<Package> {
    let output = Command::new("ldd").arg(program).output().ok()?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return None;
    }
    let mut package = package.with_file("program", 0o6755, &read(Path::new(program)));
    for word in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let file = Path::new(word).file_name()?.to_str()?;
        package = package.with_file(&format!("lib/{file}"), 0o755, &read(Path::new(word)));
    }
    Some(package)
}

/// Calls the program with each of the options in turn until the time is over; says how the calls ended.
fn let_loose(instance: &Instance, name: &str, options: &[&str], length: Duration) {
    let began = Instant::now();
    let mut ended = std::collections::BTreeMap::new();
    for options in options.iter().cycle() {
        if length <= began.elapsed() {
            break;
        }
        let left = length
            .saturating_sub(began.elapsed())
            .as_secs()
            .clamp(1, 15);
        let body = options.replace("SECONDS", &left.to_string()) + "\n";
        let answer = instance.try_call("POST", &format!("/invoke/{name}"), &[], body.as_bytes());
        // One whose answer passed its limit while it was being sent has its connection broken.
        let Ok(answer) = answer else {
            *ended.entry("broken off".to_owned()).or_insert(0) += 1;
            continue;
        };
        let receipt = instance.receipt(answer.invocation());
        let outcome = receipt["outcome"].as_str().unwrap().to_owned();
        assert!(ENDS.contains(&outcome.as_str()), "{options}: {receipt}");
        *ended.entry(outcome).or_insert(0) += 1;
    }
    println!("{name}: {ended:?}");
}

fn withstands(program: &str, options: &[&str], seconds_short: u64) {
    let name = Path::new(program).file_name().unwrap().to_str().unwrap();
    let Some(package) = package(name, program) else {
        let line =
            format!("\nSKIPPED: {name} in a sandbox: it is not installed (Debian: {name})\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    };
    let instance = Instance::of_all();
    instance.deploy(&package);
    let victim = Victim::new(&format!("beside-{name}"), Kind::Native, NARROW);
    let length = if is_long_run() { 120 } else { seconds_short };
    let length = Duration::from_secs(length);
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| let_loose(instance, name, options, length));
        while !attack.is_finished() {
            victim.behaves();
        }
        attack.join().unwrap();
    });
    victim.recovers();
    instance.remove(name);
    instance.assert_clean();
}

#[test]
fn two_minutes_of_stress_ng_leave_the_world_as_it_was() {
    let _turn = turn::take!(alone);
    let options =
        STRESSORS.map(|stressor| format!("{stressor} --temp-path /tmp --timeout SECONDS --quiet"));
    let options = options.each_ref().map(String::as_str);
    withstands("/usr/bin/stress-ng", &options, 6);
}

#[test]
fn two_minutes_of_trinity_leave_the_world_as_it_was() {
    let _turn = turn::take!(alone);
    withstands("/usr/bin/trinity", &["-q -l off -C 8 -N 1000000"], 6);
}
