// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How fast Hearth is: beside what the same echo costs without walls, with the walls of others, and without a function.
//!
//! ```text
//! cargo bench -p hearth --bench speed [-- --short] [-- --check] [-- --only NAME,…] [-- --rounds N]
//! ```
//!
//! Rounds interleave all subjects, so that a busy moment of the machine meets all of them. Servers run in processes of their
//! own; the callers and what they start share the cores with them, each at a place that is the same for every server.

mod background;
mod bare;
mod echoes;
mod figures;
mod first;
mod http;
mod latency;
mod load;
mod memory;
mod options;
mod peers;
mod phases;
mod placement;
mod report;
mod server;
mod subjects;
mod targets;
mod throughput;
mod usage;
mod watchdog;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use echoes::Echoes;
use figures::Figures;
use first::First;
use options::{Length, Options, Section, Verdicts};
use subjects::World;
use targets::Verdict;
use usage::Quiet;

/// Small enough for one packet: the benchmark is about starting and handing over, not about copying.
pub(crate) const PAYLOAD: &[u8] =
    b"the sixty-four bytes of every call in the benchmark: hello there";

/// Between calls.
pub(crate) const SPACINGS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(250),
];

/// Of the memory section; more would be so small that what happens beside them shows.
const PARTS_MAX: usize = 5;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let outcome = if arguments.peek().map(String::as_str) == Some(bare::AXUM_ROLE) {
        bare::serve_axum().map(|()| ExitCode::SUCCESS)
    } else {
        Options::parse(arguments).and_then(|options| bench(&options))
    };
    outcome.unwrap_or_else(|problem| {
        complain(&format!("speed: {problem:#}"));
        ExitCode::FAILURE
    })
}

fn bench(options: &Options) -> Result<ExitCode> {
    let began = Instant::now();
    let quiet = Quiet::begin()?;
    let place = tempfile::Builder::new()
        .prefix("hearth-bench-")
        // The gateway, an ordinary user, must reach its state in there.
        .permissions(Permissions::from_mode(0o711))
        .tempdir()
        .context("cannot make a temporary directory")?;
    let echoes = Echoes::build(place.path())?;
    let mut figures = Figures::default();
    let measured = measure(options, place.path(), &echoes, &mut figures);
    let foreign_share = quiet.foreign_share()?;
    let targets = match (options.length, options.verdicts) {
        // Its few calls say nothing about times.
        (Length::Short, Verdicts::Shown) => Vec::new(),
        _ => targets::of(&figures, options, foreign_share),
    };
    let machine = machine(options, foreign_share, began.elapsed());
    report::write(&figures, &targets, &machine, options.length)?;
    // After the report: what was measured until then is not lost.
    measured?;
    let all_met = targets
        .iter()
        .all(|target| target.verdict() == Verdict::Met);
    Ok(match options.verdicts {
        Verdicts::Checked if !all_met => ExitCode::FAILURE,
        Verdicts::Checked | Verdicts::Shown => ExitCode::SUCCESS,
    })
}

fn measure(options: &Options, place: &Path, echoes: &Echoes, figures: &mut Figures) -> Result<()> {
    interleaved(options, place, echoes, figures)?;
    if options.wants(Section::Memory) {
        progress("memory");
        let parts = options.rounds.min(PARTS_MAX);
        memory::measure(place, echoes, options.length, parts, figures).context("memory")?;
    }
    if options.wants(Section::Background) {
        progress("background");
        background::measure(place, echoes, options.length, options.rounds, figures)
            .context("background")?;
    }
    Ok(())
}

/// The sections whose subjects take turns.
fn interleaved(
    options: &Options,
    place: &Path,
    echoes: &Echoes,
    figures: &mut Figures,
) -> Result<()> {
    let wants = |section| options.wants(section);
    let mut first = if wants(Section::First) {
        Some(First::start(place)?)
    } else {
        None
    };
    let world = if wants(Section::Latency) || wants(Section::Throughput) {
        Some(World::start(place, echoes, figures)?)
    } else {
        None
    };
    if first.is_none() && world.is_none() {
        return Ok(());
    }
    for round in 1..=options.rounds {
        progress(&format!("round {round} of {}", options.rounds));
        if let Some(first) = &mut first {
            first.round(echoes, options.length, figures)?;
        }
        let Some(world) = &world else {
            continue;
        };
        if wants(Section::Latency) {
            latency::round(world, options.length, figures)?;
        }
        if wants(Section::Throughput) {
            throughput::round(world, options.length, figures)?;
        }
    }
    Ok(())
}

/// What the figures are from.
fn machine(options: &Options, foreign_share: f64, took: Duration) -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let length = match options.length {
        Length::Full => "full",
        Length::Short => "short",
    };
    json!({
        "cpu": model,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": kernel.trim(),
        "cpu_share_of_others": (foreign_share * 1000.0).round() / 1000.0,
        "length": length,
        "rounds": options.rounds,
        "seconds": took.as_secs(),
    })
}

fn progress(what: &str) {
    complain(what);
}

/// A line on standard error.
fn complain(line: &str) {
    // Where standard error is closed there is nobody to tell.
    let _unheard = writeln!(std::io::stderr(), "{line}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "the spacing between calls is part of what is measured, and nothing else runs on this thread"
)]
pub(crate) fn pause(spacing: Duration) {
    if Duration::ZERO < spacing {
        std::thread::sleep(spacing);
    }
}
