// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs every target for some seconds on mutations of its seeds: `hearth-fuzz SECONDS`. Another number of seconds does
//! not change the order of inputs, only how far they go. Exit code 1 where one fails; its input is then printed in
//! hexadecimal, and belongs into the target's seeds once the fault is mended.

use std::{
    io::{self, Write as _},
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use hearth_fuzz::{TARGETS, Target, mutate::Mutator};

/// What one input may take, on a machine whose cores are busy: readers are bounded by what they read.
const INPUT_TIME_MAX: Duration = Duration::from_secs(2);

fn main() -> io::Result<ExitCode> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(seconds) = seconds else {
        writeln!(io::stderr(), "usage: hearth-fuzz SECONDS, for each target")?;
        return Ok(ExitCode::from(2));
    };
    let mut failed = 0;
    for target in TARGETS {
        let seeds = seeds(target.name)?;
        match run(target, &seeds, Duration::from_secs(seconds)) {
            Ok(inputs) => writeln!(io::stdout(), "ok     {}: {inputs} inputs", target.name)?,
            Err((problem, input)) => {
                failed += 1;
                let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(io::stdout(), "FAILED {}: {problem}: {hex}", target.name)?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(0 < failed)))
}

fn seeds(name: &str) -> io::Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    // The directory's order differs from one machine to the next.
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(std::fs::read).collect::<io::Result<_>>()?;
    if seeds.is_empty() {
        return Err(io::Error::other(format!(
            "{} has no seeds",
            folder.display()
        )));
    }
    Ok(seeds)
}

/// How many inputs it took, or the first that it failed on.
fn run(
    target: Target,
    seeds: &[Vec<u8>],
    duration: Duration,
) -> Result<u64, (&'static str, Vec<u8>)> {
    let until = Instant::now() + duration;
    let mut mutator = Mutator::new(1);
    let mut inputs = 0;
    // The seeds themselves first.
    let mut unchanged = seeds.iter();
    while Instant::now() < until {
        let input = match unchanged.next() {
            Some(seed) => seed.clone(),
            None => mutator.next(seeds),
        };
        let began = Instant::now();
        if catch_unwind(|| (target.run)(&input)).is_err() {
            return Err(("it panicked", input));
        }
        if INPUT_TIME_MAX < began.elapsed() {
            return Err(("it took too long", input));
        }
        inputs += 1;
    }
    Ok(inputs)
}
