// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What fails without a rule: for each name in a profile's `shown_by` a program that runs under the profile, and does not
//! run under the profile without that rule.

use std::{ffi::CString, path::Path};

use nix::{sched::sched_getaffinity, unistd::Pid};

use crate::{
    rlimit,
    seccomp::{
        Profile, Program,
        arch::Arch,
        policy,
        profile::{Policy, without_rule},
        program,
    },
    sys::{
        self,
        program::{Executable, Launch, Launcher, Strings},
    },
};

/// A program and its arguments, run in an empty directory.
pub(in crate::seccomp) struct Proof {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
}

const fn python(name: &'static str, script: &'static [&'static str; 2]) -> Proof {
    Proof {
        name,
        program: "/usr/bin/python3",
        arguments: script,
    }
}

const fn perl(name: &'static str, script: &'static [&'static str; 2]) -> Proof {
    Proof {
        name,
        program: "/usr/bin/perl",
        arguments: script,
    }
}

const fn sh(name: &'static str, script: &'static [&'static str; 2]) -> Proof {
    Proof {
        name,
        program: "/bin/sh",
        arguments: script,
    }
}

const PROOFS: &[Proof] = &[
    Proof {
        name: "true",
        program: "/bin/true",
        arguments: &[],
    },
    python(
        "python-file",
        &[
            "-c",
            "import os; f = open('f', 'wb'); f.write(b'x'); f.flush(); os.fsync(f.fileno()); f.truncate(0)",
        ],
    ),
    python(
        "python-fcntl",
        &[
            "-c",
            "import fcntl; f = open('f', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); assert 0 <= fcntl.fcntl(f, fcntl.F_GETFL)",
        ],
    ),
    python(
        "python-nonblocking",
        &[
            "-c",
            "import os; a, b = os.pipe(); os.set_blocking(a, False); import fcntl, termios; fcntl.ioctl(a, termios.FIONREAD, b'0000')",
        ],
    ),
    python(
        "python-thread",
        &[
            "-c",
            "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        ],
    ),
    python(
        "python-signal",
        &[
            "-c",
            "import os, signal; seen = []; signal.signal(signal.SIGUSR1, lambda *_: seen.append(1)); os.kill(os.getpid(), signal.SIGUSR1); assert seen",
        ],
    ),
    python(
        "python-identity",
        &[
            "-c",
            "import os; assert 0 < os.getppid(); os.getgroups(); assert os.uname().sysname == 'Linux'; os.times()",
        ],
    ),
    python(
        "python-affinity",
        &[
            "-c",
            "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))",
        ],
    ),
    python(
        "python-scheduler",
        &[
            "-c",
            "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
        ],
    ),
    perl(
        "perl-name",
        &[
            "-e",
            "$0 = 'renamed'; open(F, '<', '/proc/self/comm'); exit(<F> eq \"renamed\\n\" ? 0 : 1)",
        ],
    ),
    perl(
        "perl-personality",
        &["-e", "exit(syscall(135, 0xffffffff) == -1 ? 1 : 0)"],
    ),
    // A null filter is EFAULT where the call is made.
    perl(
        "perl-seccomp",
        &[
            "-e",
            "$! = 0; syscall(317, 1, 0, 0); exit($!{EFAULT} ? 0 : 1)",
        ],
    ),
    python(
        "python-sleep",
        &[
            "-c",
            "import time, os; time.sleep(0.001); assert os.getrandom(4)",
        ],
    ),
    python(
        "python-asyncio",
        &[
            "-c",
            "import asyncio; assert asyncio.run(asyncio.sleep(0.001, 'x')) == 'x'",
        ],
    ),
    python(
        "python-epoll",
        &["-c", "import select; select.epoll().poll(0)"],
    ),
    python(
        "python-socketpair",
        &[
            "-c",
            "import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'; b.shutdown(socket.SHUT_WR); assert a.recv(1) == b''",
        ],
    ),
    sh("sh-pipeline", &["-euc", "test \"$(echo a | cat)\" = a"]),
    python(
        "python-session",
        &[
            "-c",
            "import os\npid = os.fork()\nif pid == 0: os.setsid(); os._exit(0)\nassert os.waitid(os.P_PID, pid, os.WEXITED).si_status == 0",
        ],
    ),
    perl(
        "perl-fork",
        &[
            "-e",
            "my $p = syscall(57); exit(1) if $p == -1; exit(0) if $p == 0; waitpid($p, 0); exit($? ? 1 : 0)",
        ],
    ),
    python(
        "python-pidfd",
        &[
            "-c",
            "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getpid()), 0)",
        ],
    ),
    python(
        "python-copyfile",
        &[
            "-c",
            "import os; f = open('f', 'wb+'); f.write(b'x'); f.flush(); g = open('g', 'wb'); assert os.sendfile(g.fileno(), f.fileno(), 0, 1) == 1",
        ],
    ),
    python(
        "python-flock",
        &[
            "-c",
            "import fcntl, tempfile; fcntl.flock(tempfile.TemporaryFile(dir='.'), fcntl.LOCK_EX)",
        ],
    ),
    python("python-xattr", &["-c", "import os; os.listxattr('.')"]),
    perl(
        "perl-unlink",
        &["-e", "open(F, '>', 'f') or die; unlink('f') or die"],
    ),
    sh("mkfifo", &["-euc", "exec mkfifo f"]),
    perl(
        "perl-mknod",
        &[
            "-e",
            "my $f = \"f\"; exit(syscall(133, $f, 0x11a4, 0) == 0 ? 0 : 1)",
        ],
    ),
    python("python-memfd", &["-c", "import os; os.memfd_create('x')"]),
    Proof {
        name: "nice",
        program: "/usr/bin/nice",
        arguments: &["-n", "1", "/bin/true"],
    },
    Proof {
        name: "ionice",
        program: "/usr/bin/ionice",
        arguments: &["-c", "3", "/bin/true"],
    },
    python(
        "python-unix",
        &[
            "-c",
            "import socket; s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen(1); c = socket.socket(socket.AF_UNIX); c.connect('s'); s.accept()",
        ],
    ),
    python(
        "python-inet",
        &[
            "-c",
            "import socket\nfor t in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n  for f in (socket.AF_INET, socket.AF_INET6): socket.socket(f, t)\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        ],
    ),
];

/// The proof of this name.
pub(in crate::seccomp) fn command(name: &str) -> Option<&'static Proof> {
    PROOFS.iter().find(|proof| proof.name == name)
}

/// The profiles for native programs: each rule of these is proven by running something.
const PROVEN: [Profile; 4] = [
    Profile::Strict,
    Profile::Alone,
    Profile::Default,
    Profile::Network,
];

impl Proof {
    /// Starts it as init does: under the filter, and under the overlay where there is one.
    fn succeeds(&self, filter: &Program, overlay: Option<&Program>) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_str().unwrap();
        let script = "cd \"$0\" && exec \"$@\"";
        let argv = ["/bin/sh", "-c", script, at, self.program];
        let argv = argv.into_iter().chain(self.arguments.iter().copied());
        let argv = argv.map(|text| CString::new(text).unwrap()).collect();
        let path = [
            c"PATH=/usr/bin:/bin".to_owned(),
            c"PYTHONDONTWRITEBYTECODE=1".to_owned(),
        ];
        let output = std::fs::File::create(directory.path().join("output")).unwrap();
        let output = nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10)).unwrap();
        let output = sys::fds::placed(output);
        let launch = Launch {
            executable: Executable::Path(c"/bin/sh"),
            argv: &Strings::new(argv),
            env: &Strings::new(path.to_vec()),
            stdio: &[output, output, output],
            keep: None,
            cores: &sched_getaffinity(Pid::from_raw(0)).unwrap(),
            rlimits: &rlimit::LIMITS,
            overlay: overlay.map(Program::instructions),
        };
        sys::probe::runs(filter.instructions(), &mut Launcher::new(), &launch)
    }
}

/// What a function of this profile runs under.
fn filters(profile: Profile) -> (Policy, Option<Policy>) {
    let policy = |profile| policy(profile, Arch::NATIVE).unwrap();
    match profile {
        Profile::Strict => (policy(Profile::Strict), Some(policy(Profile::Alone))),
        Profile::Alone => (policy(Profile::Strict), Some(policy(Profile::Alone))),
        other => (policy(other), None),
    }
}

fn proof_of(name: &str) -> &'static Proof {
    command(name).unwrap_or_else(|| panic!("{name} is not a proof"))
}

#[test]
fn each_rule_s_proof_runs_under_its_profile_and_not_without_the_rule() {
    let mut wrong = Vec::new();
    for profile in PROVEN {
        let (below, overlay) = filters(profile);
        let compiled = |policy: &Policy| program(policy).unwrap();
        let (filter, above) = (compiled(&below), overlay.as_ref().map(compiled));
        for index in 0.. {
            let Some((without, name)) = without_rule(profile.name(), index) else {
                break;
            };
            if name.is_empty() || !Path::new(proof_of(&name).program).exists() {
                continue;
            }
            let proof = proof_of(&name);
            if !proof.succeeds(&filter, above.as_ref()) {
                wrong.push(format!("{profile}: {name} does not run"));
            }
            // Without its rule an overlay lets everything pass: what it is missed by is another test.
            let without = compiled(&without);
            if profile != Profile::Alone && proof.succeeds(&without, above.as_ref()) {
                wrong.push(format!("{profile}: {name} runs without rule {index}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_strict_program_starts_no_other_by_whatever_flags() {
    let (strict, alone) = filters(Profile::Strict);
    let filter = program(&strict).unwrap();
    let alone = program(&alone.unwrap()).unwrap();
    // fork(2), a C library's fork, posix_spawn(3)'s clone, and the flags of init.
    let script =
        "$! = 0; for (@ARGV) { exit(1) if syscall(56, oct($_), 0, 0, 0, 0) != -1 } exit(0)";
    let launch = format!("{:#x}", sys::program::LAUNCH_FLAGS);
    let flags = ["0x11", "0x1200011", "0x4111", &launch];
    let proof = |flags: &[&'static str]| Proof {
        name: "clone",
        program: "/usr/bin/perl",
        arguments: [&["-e", script], flags].concat().leak(),
    };
    if !Path::new("/usr/bin/perl").exists() {
        println!("SKIPPED: /usr/bin/perl is missing");
        return;
    }
    let flags: Vec<&'static str> = flags.iter().map(|flag| &*flag.to_string().leak()).collect();
    assert!(proof(&flags).succeeds(&filter, Some(&alone)));
}
