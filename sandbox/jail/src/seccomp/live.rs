// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The filters on the running kernel: real programs work under `default`, and what is refused is refused as it says.
//!
//! A filter belongs to a thread and what it starts, so each test puts one on a thread of its own. Single calls are made
//! by perl, whose `syscall` takes a number: a call of the kill class must not hit the test itself.

pub(super) mod proofs;
mod table;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Filter, Profile, Program, compile, install};
use crate::sys;

const PERL: &str = "/usr/bin/perl";

fn under<T: Send>(profile: Profile, test: impl FnOnce() -> T + Send) -> T {
    let program = compile(profile).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            install(&program).unwrap();
            test()
        });
        thread.join().unwrap()
    })
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// Makes one call in a process of its own; arguments are perl expressions.
fn call(name: &str, arguments: &str) -> Output {
    let number: syscalls::Sysno = name.parse().unwrap();
    let script = format!("$! = 0; syscall({}, {arguments}); print $!+0", number.id());
    run(PERL, &["-e", &script])
}

fn is_skipped() -> bool {
    let skipped = !Path::new(PERL).exists();
    if skipped {
        println!("SKIPPED: {PERL} is missing, no single calls can be made");
    }
    skipped
}

#[test]
fn ordinary_programs_run_under_default() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap();
    let script = format!(
        "cd {at} && printf 'b\\na\\nb\\n' | sort | uniq -c | awk '{{print $2 $1}}' | tr '\\n' ' ' \
         && mkfifo f && (echo through >f &) && cat f \
         && touch t && cp -p t u && ln -s t l && ln t h && mv u v && chmod 700 v && truncate -s 9 v \
         && find . -type f | wc -l | tr -d ' ' && rm -rf ./* && timeout 5 sleep 0.01 && nice -n 1 true && echo end"
    );
    let output = under(Profile::Default, || run("/bin/sh", &["-euc", &script]));
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(text, "a1 b2 through\n3\nend\n", "{errors}");
    let python = "import subprocess, threading, socket, tempfile, multiprocessing, asyncio, os\n\
        t = threading.Thread(target=lambda: None); t.start(); t.join()\n\
        a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'\n\
        p = multiprocessing.Process(target=os.getpid); p.start(); p.join(); assert p.exitcode == 0\n\
        assert asyncio.run(asyncio.sleep(0.01, 'x')) == 'x'\n\
        tempfile.TemporaryFile().write(b'x')\n\
        print(subprocess.check_output(['echo', 'ok']).decode(), end='')\n";
    if !Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: /usr/bin/python3 is missing");
        return;
    }
    let output = under(Profile::Default, || {
        run("/usr/bin/python3", &["-c", python])
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{errors}");
}

#[test]
fn refused_calls_answer_the_errno_that_programs_expect() {
    if is_skipped() {
        return;
    }
    let cases = [
        ("unshare", "0x10000000", Errno::EPERM),
        ("clone", "0x10000011, 0, 0, 0, 0", Errno::EPERM),
        ("clone3", "0, 0", Errno::ENOSYS),
        ("mount", "0, 0, 0, 0, 0", Errno::EPERM),
        ("ptrace", "0, 0, 0, 0", Errno::EPERM),
        ("keyctl", "0, 0, 0", Errno::EPERM),
        ("bpf", "0, 0, 0", Errno::EPERM),
        ("setuid", "0", Errno::EPERM),
        ("splice", "0, 0, 0, 0, 0, 0", Errno::EPERM),
        ("io_uring_setup", "1, 0", Errno::ENOSYS),
        ("inotify_init1", "0", Errno::ENOSYS),
        ("openat2", "0, 0, 0, 0", Errno::ENOSYS),
        ("sync", "0", Errno::ENOSYS),
        ("shmget", "0, 4096, 0x380", Errno::ENOSYS),
        // AF_INET, AF_NETLINK, AF_ALG, AF_VSOCK.
        ("socket", "2, 1, 0", Errno::EAFNOSUPPORT),
        ("socket", "16, 3, 0", Errno::EAFNOSUPPORT),
        ("socket", "38, 5, 0", Errno::EAFNOSUPPORT),
        ("socket", "40, 1, 0", Errno::EAFNOSUPPORT),
        // TIOCSTI, plain and with high bits set.
        ("ioctl", "0, 0x5412, 0", Errno::ENOTTY),
        ("ioctl", "0, 0x100005412, 0", Errno::ENOTTY),
        // On process 1.
        ("prlimit64", "1, 7, 0, 0", Errno::EPERM),
        ("sched_setaffinity", "1, 8, 0", Errno::EPERM),
        ("sched_setscheduler", "1, 0, 0", Errno::EPERM),
        ("sched_setscheduler", "0, 1, 0", Errno::EPERM),
        // Of user 0, and of the own process group.
        ("setpriority", "2, 0, 19", Errno::EPERM),
        ("setpriority", "1, 0, 19", Errno::EPERM),
        ("ioprio_set", "1, 1, 0", Errno::EPERM),
        // A block device.
        ("mknodat", "-100, 0, 0x6000, 0", Errno::EPERM),
        // ADDR_NO_RANDOMIZE.
        ("personality", "0x0040000", Errno::ENOSYS),
        // F_NOTIFY and F_SETLEASE.
        ("fcntl", "0, 1026, 0", Errno::EINVAL),
        ("fcntl", "0, 1024, 0", Errno::EINVAL),
        // A listener that would answer in the kernel's stead.
        ("seccomp", "1, 8, 0", Errno::EPERM),
        // PR_SET_SECCOMP.
        ("prctl", "22, 2, 0", Errno::EINVAL),
    ];
    let answers: Vec<Output> = under(Profile::Default, || {
        cases
            .iter()
            .map(|(name, arguments, _)| call(name, arguments))
            .collect()
    });
    for ((name, arguments, expected), output) in cases.iter().zip(answers) {
        let errno = String::from_utf8_lossy(&output.stdout)
            .parse()
            .map(Errno::from_raw);
        assert_eq!(errno, Ok(*expected), "{name}({arguments}) {output:?}");
    }
}

#[test]
fn calls_that_only_an_attacker_makes_end_the_process() {
    if is_skipped() {
        return;
    }
    for name in [
        "acct",
        "reboot",
        "init_module",
        "swapon",
        "open_by_handle_at",
        "kexec_load",
    ] {
        let output = under(Profile::Default, || call(name, "0, 0, 0, 0"));
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{name}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn x32_numbers_look_like_an_older_kernel() {
    if is_skipped() {
        return;
    }
    // getpid as x32.
    let script = "$! = 0; syscall(0x40000000 + 39); print $!+0";
    let output = under(Profile::Default, || run(PERL, &["-e", script]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "38");
}

#[test]
fn no_profile_but_those_that_start_programs_can_start_one() {
    for (profile, can) in [
        // By init's own way only, which is not the one that is tried here.
        (Profile::Strict, false),
        (Profile::Default, true),
        (Profile::Network, true),
        (Profile::Resident, true),
        (Profile::Wasm, false),
        (Profile::Gateway, false),
    ] {
        let started = under(profile, || Command::new("/bin/true").status().is_ok());
        assert_eq!(started, can, "{profile}");
    }
}

#[test]
fn a_tighter_filter_can_be_added_once_and_the_last_one_is_final() {
    let wasm = compile(Profile::Wasm).unwrap();
    let outcomes: BTreeMap<&str, bool> = under(Profile::Resident, || {
        let first = install(&wasm).is_ok();
        let second = install(&wasm).is_ok();
        let opened = std::fs::File::open("/dev/null").is_ok();
        BTreeMap::from([("first", first), ("second", second), ("open", opened)])
    });
    let expected = [("first", true), ("second", false), ("open", false)];
    assert_eq!(outcomes, BTreeMap::from(expected));
}

/// What a listener may add to the making of a skeleton.
const LISTENER_MAX: Duration = Duration::from_micros(50);

#[test]
fn a_listener_adds_little_to_the_installation_of_a_filter() {
    let filter = Filter::of(hearth_protocol::profile::Profile::Default).unwrap();
    let fastest = |install: fn(&Program)| {
        let once = || {
            thread::scope(|scope| {
                let timed = scope.spawn(|| {
                    let begun = Instant::now();
                    install(filter.program());
                    begun.elapsed()
                });
                timed.join().unwrap()
            })
        };
        (0..100).map(|_| once()).min().unwrap()
    };
    let alone = fastest(|program| install(program).unwrap());
    let listening = fastest(|program| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        drop(sys::seccomp::install_listening(program.instructions()).unwrap());
    });
    println!("a filter alone {alone:?}, with a listener {listening:?}");
    assert!(listening < alone + LISTENER_MAX, "{alone:?} {listening:?}");
}
