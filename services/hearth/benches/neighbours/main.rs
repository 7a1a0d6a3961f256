// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a neighbour notices of each attack on a resource: the 99th percentile of its answers, undisturbed and during the
//! attack, one right after the other; and how long after its deadline a storm of processes is gone from the host.
//!
//! ```sh
//! cargo bench -p hearth --bench neighbours [-- [--short] [--check] [ATTACK…]]
//! ```
//!
//! `--short` is a second of everything, to see that it runs; `--check` fails where a target is missed; an ATTACK is a part of
//! its name in the table.
//!
//! The neighbour calls at a steady pace, and each call counts from when it was due: a server that answers nobody for a while
//! cannot hide that by being asked less.
#![expect(clippy::print_stdout, reason = "the report is what a benchmark is for")]

#[path = "../../tests/e2e/home.rs"]
mod home;
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../../tests/e2e/http.rs"]
mod http;
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../../tests/e2e/instance.rs"]
mod instance;
#[path = "../../tests/e2e/launch.rs"]
mod launch;
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../../tests/e2e/package.rs"]
mod package;
#[path = "../../tests/e2e/tenant.rs"]
mod tenant;
#[path = "../../tests/e2e/wait.rs"]
mod wait;
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../../tests/e2e/world.rs"]
mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crate::http::Connection;
use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::wait::{SOON, until_true};

/// What an attack is called, and the mode of the hostile program that makes it.
const ATTACKS: [(&str, &str); 12] = [
    ("undisturbed twice", ""),
    ("computing on eight threads", "spin-threads 8"),
    ("memory beyond the limit", "memory"),
    ("memory in a memfd", "memfd-fill"),
    ("fork bomb", "forkbomb 1000 stay"),
    ("chain of execs", "exec-chain 10000"),
    ("pipes and sockets", "pipes"),
    ("kernel objects", "kernel-objects"),
    ("names that do not exist", "names 100000"),
    ("scratch and its inodes", "scratch-inodes"),
    ("output without end", "flood-both"),
    ("reading more than fits into memory", READING),
];

/// A neighbour's p99 during an attack, in multiples of the one right before it, and the time after the deadline in which
/// the storm is gone: what `--check` demands.
const TIMES_MAX: f64 = 2.0;
const GONE_MAX: Duration = Duration::from_millis(200);

/// The one attack that needs a file: larger than the memory of whoever reads it over and over.
const READING: &str = "read-over /function/data";
const DATA_BYTES: u64 = 48 << 20;

const LIMITS: &str =
    "[limits]\nmemory = \"64MiB\"\npids = 64\ntimeout = \"1s\"\n[scaling]\nmax_instances = 2";

const READER: &str = "[limits]\nmemory = \"32MiB\"\ntimeout = \"1s\"\n[scaling]\nmax_instances = 2";

/// The storm's processes, with room for init and the main one.
const STORM: &str =
    "[limits]\nmemory = \"256MiB\"\npids = 303\ntimeout = \"1s\"\n[scaling]\nmax_instances = 1";
const STORM_TIMEOUT: Duration = Duration::from_secs(1);
const STORM_PROCESSES: usize = 300;

/// Between two calls of the neighbour: slow enough for a server on two cores, and 1,000 calls in [`LONG`].
const PACE: Duration = Duration::from_millis(10);

/// How long each attack, and each time without one, is.
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(1);

/// Between two looks at the host's processes.
const LOOK: Duration = Duration::from_millis(2);

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: neighbours: needs root");
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (flags, wanted): (Vec<&str>, Vec<&str>) = arguments
        .iter()
        .map(String::as_str)
        .partition(|argument| argument.starts_with("--"));
    let (length, storms) = if flags.contains(&"--short") {
        (SHORT, 1)
    } else {
        (LONG, 5)
    };
    let instance = Instance::start(&[]);
    deploy_all(&instance);
    println!("| attack | p50 alone | p99 alone | p50 | p99 | p99 × |");
    println!("| --- | --: | --: | --: | --: | --: |");
    let mut missed = Vec::new();
    for (name, mode) in ATTACKS {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part)) {
            let times = attack(&instance, name, mode, length);
            if TIMES_MAX < times {
                missed.push(format!("{name}: {times:.2} times"));
            }
        }
    }
    if wanted.is_empty() {
        missed.extend(storms_of(&instance, storms));
    }
    instance.stop();
    for miss in &missed {
        println!("MISSED: {miss}");
    }
    if flags.contains(&"--check") && !missed.is_empty() {
        std::process::exit(1);
    }
}

fn deploy_all(instance: &Instance) {
    for (name, limits) in [
        ("neighbour", LIMITS),
        ("attacker", LIMITS),
        ("reader", READER),
        ("storm", STORM),
    ] {
        let package = Package::hostile(name, Kind::Native, limits);
        instance.deploy(&match name {
            "reader" => package.with_file("data", 0o644, &data()),
            _ => package,
        });
        instance.invoke(name, b"print ready\n").expect(200);
    }
}

/// One row of the table, and by how much the attack multiplied the neighbour's p99.
fn attack(instance: &Instance, name: &str, mode: &str, length: Duration) -> f64 {
    let alone = Latencies::of(instance, length);
    let during = attacked(instance, mode, length);
    let times = during.ms(99) / alone.ms(99);
    println!(
        "| {name} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {times:.2} |",
        alone.ms(50),
        alone.ms(99),
        during.ms(50),
        during.ms(99)
    );
    times
}

/// Storms one after the other; what the slowest missed.
fn storms_of(instance: &Instance, count: usize) -> Option<String> {
    let slowest = (0..count).map(|_| storm(instance)).max()?;
    println!(
        "\n{STORM_PROCESSES} stopped, deaf and daemonised processes were gone {slowest:?} after their deadline \
         (the slowest of {count})"
    );
    (GONE_MAX < slowest).then(|| format!("the storm: {slowest:?}"))
}

/// No two pages alike.
fn data() -> Vec<u8> {
    (0..DATA_BYTES / 8).flat_map(u64::to_le_bytes).collect()
}

/// The neighbour's answers, sorted.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(instance: &Instance, length: Duration) -> Self {
        let mut connection = Connection::open(instance.address).expect("it listens");
        let mut took = Vec::new();
        let began = Instant::now();
        let mut due = began;
        while due < began + length {
            while Instant::now() < due {
                park_timeout(due.saturating_duration_since(Instant::now()));
            }
            let answer = connection.call("POST", "/invoke/neighbour", &[], b"print x\n");
            answer.expect("an answer").expect(200);
            took.push(due.elapsed());
            due += PACE;
        }
        took.sort_unstable();
        Self(took)
    }

    fn ms(&self, percentile: usize) -> f64 {
        let index = (self.0.len() * percentile / 100).min(self.0.len() - 1);
        self.0[index].as_secs_f64() * 1000.0
    }
}

/// The same while two callers make the attack over and over.
fn attacked(instance: &Instance, mode: &str, length: Duration) -> Latencies {
    if mode.is_empty() {
        return Latencies::of(instance, length);
    }
    let attacker = if mode == READING {
        "reader"
    } else {
        "attacker"
    };
    let path = format!("/invoke/{attacker}");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let body = format!("{mode}\n");
                    // Whatever comes of it; one that was answered in part has its connection broken.
                    drop(instance.try_call("POST", &path, &[], body.as_bytes()));
                }
            });
        }
        let seen = Latencies::of(instance, length);
        over.store(true, Ordering::Relaxed);
        seen
    })
}

/// How long after their deadline the processes of a storm were gone.
fn storm(instance: &Instance) -> Duration {
    let id = instance.home.instance();
    let count = || world::in_cgroups_of(&id).len();
    until_true("nothing else runs", SOON, || count() < STORM_PROCESSES / 3);
    std::thread::scope(|scope| {
        let began = Instant::now();
        let attack = scope.spawn(|| instance.invoke("storm", b"storm 300\n"));
        until_true("the storm is there", SOON, || STORM_PROCESSES < count());
        while STORM_PROCESSES / 3 < count() {
            park_timeout(LOOK);
        }
        let took = began.elapsed().saturating_sub(STORM_TIMEOUT);
        attack
            .join()
            .expect("it ends")
            .problem(504, "function_timed_out");
        took
    })
}
