// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the command line asks for.

use anyhow::{Context, Result, bail, ensure};

pub(crate) const USAGE: &str = "\
cargo bench -p hearth --bench speed [-- OPTION…]
  --short        one round of everything, in under a minute: to see that it runs, not how fast
  --rounds N     rounds; five unless said otherwise, which is the least that gives figures to quote
  --only NAME,…  of: first, latency, throughput, memory, background
  --check        fail where a target is missed or could not be measured";

/// Five rounds are the fewest whose median two disturbed ones cannot move.
const ROUNDS: usize = 5;

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// First calls of revisions.
    First,
    /// Warm calls, spaced.
    Latency,
    /// Warm calls over many connections.
    Throughput,
    /// Idle sandboxes.
    Memory,
    /// Calls while skeletons are made.
    Background,
}

const SECTIONS: [(&str, Section); 5] = [
    ("first", Section::First),
    ("latency", Section::Latency),
    ("throughput", Section::Throughput),
    ("memory", Section::Memory),
    ("background", Section::Background),
];

/// How thoroughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Full,
    Short,
}

/// What to do about the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdicts {
    Shown,
    Checked,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) length: Length,
    pub(crate) rounds: usize,
    pub(crate) verdicts: Verdicts,
    only: Vec<Section>,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut length = Length::Full;
        let mut verdicts = Verdicts::Shown;
        let mut rounds = None;
        let mut only = Vec::new();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let next = arguments.next();
                next.with_context(|| format!("{argument} needs a value\n{USAGE}"))
            };
            match argument.as_str() {
                // cargo says so to every benchmark.
                "--bench" => {}
                "--short" => length = Length::Short,
                "--check" => verdicts = Verdicts::Checked,
                "--rounds" => rounds = Some(value()?.parse()?),
                "--only" => {
                    for name in value()?.split(',') {
                        let found = SECTIONS.iter().find(|(known, _)| *known == name);
                        let (_, section) = found
                            .with_context(|| format!("there is no section {name}\n{USAGE}"))?;
                        only.push(*section);
                    }
                }
                _ => bail!("unknown option {argument}\n{USAGE}"),
            }
        }
        let default = match length {
            Length::Full => ROUNDS,
            Length::Short => 1,
        };
        let rounds = rounds.unwrap_or(default);
        ensure!(0 < rounds, "at least one round");
        Ok(Self {
            length,
            rounds,
            verdicts,
            only,
        })
    }

    pub(crate) fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }
}
