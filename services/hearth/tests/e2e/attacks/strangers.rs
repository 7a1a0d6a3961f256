// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Programs that others wrote to break kernels, inside a sandbox: stress-ng and trinity, where they are installed. A few
//! seconds of each; two minutes with `HEARTH_E2E_LONG=1`. That they really worked in there says their own summary.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::instance::Instance;
use crate::load::is_long_run;
use crate::package::{Kind, Package, read};
use crate::turn;
use crate::victim::{NARROW, Victim};

/// Of stress-ng, those that are known to be unkind (threats.md, section 5), for a few seconds each.
const STRESSORS: [&str; 19] = [
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

/// Its class for the operating system, one after the other, and for how many seconds each.
const CLASS: &str = "--class os --sequential 1 --timeout 1";

/// With every call of stress-ng.
const ALWAYS: &str = "--temp-path /tmp --metrics-brief";

/// What stress-ng may take beyond its own time limit before it is told to end, in seconds.
const LATE_SECONDS: u64 = 10;

/// How many stressors must have done something by their own count, in the short and in the long form. Some are not for this
/// kernel, and what the filter refuses altogether does nothing.
const STRESSORS_MIN: [u64; 2] = [1, 60];

/// Of trinity: native calls only, since the first by the door of 32-bit programs ends it; without the descriptors of perf,
/// which it would try to open thousands of times before it begins, and of sockets, at which it crashes where most families
/// are missing.
const TRINITY: &str = "-q -l off -a64 --disable-fds=perf --disable-fds=sockets -C 8 -N 100000000";

/// What a profile answers by ending the function, by the names that trinity has for it.
const DEADLY: [&str; 14] = [
    "acct",
    "delete_module",
    "finit_module",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_load",
    "kexec_file_load",
    "open_by_handle_at",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "swapoff",
    "swapon",
];

/// How many calls trinity must have made by its own count, in the short and in the long form.
const CALLS_MIN: [u64; 2] = [200, 10_000];

const LIMITS: &str = "base = \"minimal\"\n[limits]\nmemory = \"256MiB\"\npids = 128\ntimeout = \"200s\"\nscratch = \"32MiB\"\nresponse = \"6MiB\"\n[scaling]\nmax_instances = 1";

/// How an invocation of such a program may end: by itself, well or not, or by a limit. Never by the platform's fault.
const ENDS: [&str; 5] = [
    "ok",
    "function_failed",
    "function_killed",
    "function_timed_out",
    "response_too_large",
];

/// A program of the host, to be told to end after the seconds of the first word of its input, the rest of which are its
/// options; what it says is the answer, however it ends. None where it is not installed.
fn package(name: &str, program: &str) -> Option<Package> {
    let script = "read -r seconds options; ld=$(echo /function/lib/ld-linux*); cd /tmp || exit\n\
        # shellcheck disable=SC2086\n\
        timeout -s INT -k 5 \"$seconds\" \"$ld\" --library-path /function/lib /function/program $options 2>&1\n\
        echo \"ended with $?\"";
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

/// How many stressors did something, by stress-ng's table: a name and the number of its operations.
fn stressors(said: &str) -> u64 {
    let rows = said
        .lines()
        .filter_map(|line| line.strip_prefix("stress-ng: metrc: "));
    let operations = rows.filter_map(|row| row.split_whitespace().nth(2)?.parse::<u64>().ok());
    operations
        .filter(|operations| 0 < *operations)
        .count()
        .try_into()
        .unwrap()
}

/// How many calls trinity made: `Ran 1234 syscalls. Successes: …`, its last word.
fn calls(said: &str) -> u64 {
    let counts = said.lines().filter_map(|line| {
        let (_, rest) = line.split_once("Ran ")?;
        rest.split_once(" syscalls")?.0.parse::<u64>().ok()
    });
    counts.max().unwrap_or(0)
}

/// What a program is made to do, and by what it shows that it did.
struct Stranger<'a> {
    program: &'a str,
    /// Seconds, and options.
    calls: Vec<(u64, String)>,
    count: fn(&str) -> u64,
    what: &'a str,
    count_min: u64,
}

/// Calls the program with each of the options; says how the calls ended and what was done, which must be enough.
fn let_loose(instance: &Instance, name: &str, stranger: &Stranger<'_>) {
    let began = Instant::now();
    let mut ended = std::collections::BTreeMap::new();
    let mut done = 0;
    for (seconds, options) in &stranger.calls {
        let body = format!("{seconds} {options}\n");
        let answer = instance.try_call("POST", &format!("/invoke/{name}"), &[], body.as_bytes());
        // One whose answer passed its limit while it was being sent has its connection broken.
        let Ok(answer) = answer else {
            *ended.entry("broken off".to_owned()).or_insert(0) += 1;
            continue;
        };
        let receipt = instance.receipt(answer.invocation());
        let outcome = receipt["outcome"].as_str().unwrap().to_owned();
        assert!(ENDS.contains(&outcome.as_str()), "{options}: {receipt}");
        let did = (stranger.count)(&answer.text());
        let by = receipt["violations"]["first"]
            .as_array()
            .and_then(|calls| calls.last())
            .map_or("", |call| call["name"].as_str().unwrap_or_default());
        println!(
            "{name} {options}: {outcome}, {did} {}; the last call told of was {by:?}",
            stranger.what
        );
        *ended.entry(outcome).or_insert(0) += 1;
        done += did;
    }
    let took = began.elapsed().as_secs();
    println!(
        "{name}: {took} s, {done} {}, ended {ended:?}",
        stranger.what
    );
    assert!(stranger.count_min <= done, "{name}: only {done}");
}

fn withstands(stranger: &Stranger<'_>) {
    let program = Path::new(stranger.program);
    let name = program.file_name().unwrap().to_str().unwrap();
    let Some(package) = package(name, stranger.program) else {
        let line =
            format!("\nSKIPPED: {name} in a sandbox: it is not installed (Debian: {name})\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    };
    let instance = Instance::of_all();
    instance.deploy(&package);
    let victim = Victim::new(&format!("beside-{name}"), Kind::Native, NARROW);
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| let_loose(instance, name, stranger));
        while !attack.is_finished() {
            victim.behaves();
        }
        attack.join().unwrap();
    });
    victim.recovers();
    instance.remove(name);
    instance.assert_clean();
}

/// A call of stress-ng that ends by itself.
fn for_seconds(seconds: u64, stressor: &str) -> (u64, String) {
    let options = format!("{stressor} --timeout {seconds} {ALWAYS}");
    (seconds + LATE_SECONDS, options)
}

#[test]
fn two_minutes_of_stress_ng_leave_the_world_as_it_was() {
    let _turn = turn::take!(alone);
    let calls = if is_long_run() {
        let unkind = STRESSORS.iter().map(|stressor| for_seconds(3, stressor));
        let class = (150, format!("{CLASS} {ALWAYS}"));
        [class].into_iter().chain(unkind).collect()
    } else {
        let some = STRESSORS.iter().take(4);
        some.map(|stressor| for_seconds(1, stressor)).collect()
    };
    withstands(&Stranger {
        program: "/usr/bin/stress-ng",
        calls,
        count: stressors,
        what: "stressors",
        count_min: STRESSORS_MIN[usize::from(is_long_run())],
    });
}

#[test]
fn two_minutes_of_trinity_leave_the_world_as_it_was() {
    let _turn = turn::take!(alone);
    // One whole, which soon makes a call that ends it, and one without those calls, for as long as it is let.
    let deadly: Vec<String> = DEADLY.iter().map(|call| format!("-x {call}")).collect();
    let spared = format!("{TRINITY} {}", deadly.join(" "));
    let (seconds, times) = if is_long_run() { (40, 3) } else { (5, 1) };
    let whole = (seconds, TRINITY.to_owned());
    let calls = std::iter::repeat_n((seconds, spared), times).chain([whole]);
    withstands(&Stranger {
        program: "/usr/bin/trinity",
        calls: calls.collect(),
        count: self::calls,
        what: "calls",
        count_min: CALLS_MIN[usize::from(is_long_run())],
    });
}
