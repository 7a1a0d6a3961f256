// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the walls cost a warm call: the same init and the same program in sandboxes with every wall, with each one left
//! out alone, and with as few as possible. Never shipped; as root:
//!
//! `cargo run --release -p hearth-jail --example price_of_walls -- [--rounds N] [--runs N] [--program FILE]`
//!
//! A round takes each sandbox in turn, and calls it and one with every wall alternately, so that whatever else the machine
//! does falls on both; all run on one core. Of a round the median call counts, compared is within such a pair, and the
//! median of the rounds is printed; the first line holds every wall against every wall, and shows how exact that is. Without
//! `--program`, a static executable that is the tests' probe copies stdin to stdout.
//!
//! `price_of_walls spawner NAME …` is the spawner of one of them, as `lone_spawner`; the tests use it, too.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it measures, or ends saying where"
)]

#[path = "../lone_spawner/config.rs"]
mod config;
mod variants;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/sandbox/world.rs"]
mod world;

use std::{error::Error, fs, io::stdin, os::fd::AsFd, time::Instant};

use hearth_protocol::{
    init::ExitStatus,
    spawner::{CreatedFd, Event, SkeletonSpec},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use world::{Sandbox, World};

/// About a minute.
const ROUNDS: usize = 60;
const RUNS_PER_ROUND: u32 = 50;

/// What is sent and must come back.
const BODY: &[u8] = b"price";

struct Wanted {
    rounds: usize,
    runs: u32,
    program: Vec<u8>,
}

/// A sandbox that is called.
struct Called {
    name: String,
    world: World,
    sandbox: Sandbox,
    calls: u32,
}

/// Microseconds per call: as the caller waits, and as the sandbox's cgroup counts.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

/// A choice of walls, and in each round what a call cost with every wall and with these.
struct Choice {
    called: Called,
    rounds: Vec<(Cost, Cost)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name, rest @ ..] = arguments.as_slice()
        && role == "spawner"
    {
        let run = variants::spawner(name).ok_or("there is no such choice of walls")?;
        let gateway = stdin().as_fd().try_clone_to_owned()?;
        run(&config::read(rest)?, gateway)?;
        return Ok(());
    }
    let wanted = read(&arguments)?;
    let core = *hearth_jail::host::cores()?
        .last()
        .ok_or("there is no core")?;
    let begin = |name| Called::begin(name, &wanted.program, core);
    let mut every = begin(variants::EVERY.to_owned());
    let choice = |name| Choice {
        called: begin(name),
        rounds: Vec::new(),
    };
    let mut choices: Vec<_> = variants::names().map(choice).collect();
    // After the spawners, which would inherit it.
    let mut set = CpuSet::new();
    set.set(core.into())?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    for _ in 0..wanted.rounds {
        for choice in &mut choices {
            choice.round(&mut every, wanted.runs);
        }
    }
    report(&choices, &wanted);
    every.world.close();
    for choice in choices {
        choice.called.world.close();
    }
    Ok(())
}

fn read(arguments: &[String]) -> Result<Wanted, Box<dyn Error>> {
    let mut wanted = Wanted {
        rounds: ROUNDS,
        runs: RUNS_PER_ROUND,
        program: Vec::new(),
    };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or("each flag has a value")?;
        match flag.as_str() {
            "--rounds" => wanted.rounds = value.parse()?,
            "--runs" => wanted.runs = value.parse()?,
            "--program" => wanted.program = fs::read(value)?,
            _ => return Err(format!("there is no flag {flag}").into()),
        }
    }
    if wanted.rounds == 0 || wanted.runs == 0 {
        return Err("at least one run is needed".into());
    }
    if wanted.program.is_empty() {
        wanted.program.clone_from(&world::programs().probe);
    }
    Ok(wanted)
}

impl Called {
    fn begin(name: String, program: &[u8], core: u16) -> Self {
        let mut world = World::with_walls(&name);
        let spec = SkeletonSpec {
            core: Some(core),
            ..world::per_call("static")
        };
        let sandbox = world
            .try_create(spec)
            .unwrap_or_else(|event| panic!("{name}: {event:?}"));
        let tree = world.store("echo", program);
        let bound = world.try_bind(sandbox.id, tree, world::limits());
        assert!(matches!(bound, Event::Bound { .. }), "{name}: {bound:?}");
        sandbox.bind_init("/function/echo", &[]);
        let mut called = Self {
            name,
            world,
            sandbox,
            calls: 0,
        };
        // The first call pays for the pages of the program.
        called.call();
        called
    }

    fn call(&mut self) {
        self.calls += 1;
        let outcome = self.sandbox.run(self.calls, BODY);
        let echoed = outcome.status == ExitStatus::Exited(0) && outcome.stdout.as_bytes() == BODY;
        assert!(echoed, "{}: {outcome:?}", self.name);
    }

    /// Microseconds that one call takes.
    fn timed(&mut self) -> f64 {
        let begun = Instant::now();
        self.call();
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// CPU time of init and its children so far: v1 in nanoseconds, v2 among others in microseconds.
    fn cpu_us(&self) -> f64 {
        let text = self.sandbox.cgroup_file(CreatedFd::CpuUsage as usize);
        let v1 = text.trim().parse::<f64>().map(|ns| ns / 1000.0);
        let usage = |line: &str| line.strip_prefix("usage_usec ")?.parse().ok();
        v1.ok()
            .or_else(|| text.lines().find_map(usage))
            .unwrap_or(0.0)
    }
}

impl Choice {
    /// Call by call in turn, so that whatever the machine does meanwhile it does to both; who is first changes each time.
    /// Of the calls the median counts: one that was interrupted says nothing about walls.
    fn round(&mut self, every: &mut Called, runs: u32) {
        let cpu_before = (every.cpu_us(), self.called.cpu_us());
        let mut walls = (Vec::new(), Vec::new());
        for run in 0..runs {
            if run.is_multiple_of(2) {
                walls.0.push(every.timed());
                walls.1.push(self.called.timed());
            } else {
                walls.1.push(self.called.timed());
                walls.0.push(every.timed());
            }
        }
        let cost = |called: &Called, walls, cpu_before| Cost {
            wall: median(walls),
            cpu: (called.cpu_us() - cpu_before) / f64::from(runs),
        };
        let pair = (
            cost(every, walls.0, cpu_before.0),
            cost(&self.called, walls.1, cpu_before.1),
        );
        self.rounds.push(pair);
    }

    /// The median of what a function makes of each round.
    fn median(&self, of: impl Fn(Cost, Cost) -> f64) -> f64 {
        median(self.rounds.iter().map(|pair| of(pair.0, pair.1)).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn report(choices: &[Choice], wanted: &Wanted) {
    let Wanted { rounds, runs, .. } = wanted;
    println!(
        "{rounds} rounds of {runs} calls; cost of a call with every wall, without one, and the difference"
    );
    println!(
        "{:<18} {:>8} {:>8} {:>7} {:>8} {:>8} {:>7}",
        "left out", "every us", "us", "share", "CPU us", "CPU us", "share"
    );
    let mut lines = Vec::new();
    for choice in choices {
        let name = label(&choice.called.name);
        let (every, these) = (
            choice.median(|every, _| every.wall),
            choice.median(|_, these| these.wall),
        );
        // Of the calls per second without it, what goes with it.
        let share = choice.median(|every, these| 1.0 - these.wall / every.wall);
        let cpu = (
            choice.median(|every, _| every.cpu),
            choice.median(|_, these| these.cpu),
        );
        let cpu_share = choice.median(|every, these| 1.0 - these.cpu / every.cpu);
        print!(
            "{name:<18} {every:>8.1} {these:>8.1} {:>6.1}%",
            share * 100.0
        );
        // Outside its cgroup nobody counts it.
        if 0.0 < cpu.1 {
            println!(" {:>8.1} {:>8.1} {:>6.1}%", cpu.0, cpu.1, cpu_share * 100.0);
        } else {
            println!();
        }
        lines.push(serde_json::json!({
            "left_out": name, "every_us": every, "us": these, "share": share,
            "every_cpu_us": cpu.0, "cpu_us": cpu.1,
        }));
    }
    println!(
        "{}",
        serde_json::json!({ "rounds": rounds, "runs": runs, "choices": lines })
    );
}

/// What is left out, in words.
fn label(choice: &str) -> &str {
    match choice {
        variants::EVERY => "(nothing)",
        variants::NONE_COUNTED => "(all but three)",
        variants::NONE => "(all but two)",
        wall => wall,
    }
}
