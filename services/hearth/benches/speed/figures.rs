// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What was measured, round by round, and what it comes to.
//!
//! A p50, a rate or a cost is the median over the rounds; a ratio is the median of the ratios within each round, so that what
//! disturbs a round disturbs both sides; a p99 of spaced calls is over the calls of all rounds, because one round has
//! too few of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::load::Outcome;
use crate::phases::Phases;
use crate::subjects::Subject;
use crate::usage::Usage;

/// What kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Not the first.
    Warm,
    /// The same with the caller on another core than what answers it.
    WarmOtherCore,
    /// The first, with a ready skeleton.
    Bound,
    /// The first, without one.
    Created,
    /// While skeletons are made.
    During,
    /// When they are made.
    After,
}

impl Call {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::WarmOtherCore => "warm, other core",
            Self::Bound => "first, bound",
            Self::Created => "first, created",
            Self::During => "skeletons being made",
            Self::After => "undisturbed",
        }
    }
}

/// Calls of one subject in one round.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    micros: Vec<f64>,
    starts: BTreeMap<String, usize>,
    /// Of Hearth's functions.
    pub(crate) phases: Option<Phases>,
}

impl Calls {
    /// Times one call, which gives where its sandbox came from.
    pub(crate) fn time(&mut self, call: impl FnOnce() -> Result<Option<String>>) -> Result<()> {
        let began = Instant::now();
        let start = call()?;
        self.micros.push(micros(began.elapsed()));
        if let Some(start) = start {
            *self.starts.entry(start).or_default() += 1;
        }
        Ok(())
    }

    pub(crate) fn count(&self) -> usize {
        self.micros.len()
    }

    pub(crate) fn p50(&self) -> f64 {
        quantile(&self.micros, 0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        quantile(&self.micros, 0.99)
    }
}

/// Calls of one subject in one situation.
#[derive(Debug)]
pub(crate) struct LatencyRow {
    pub(crate) subject: Subject,
    pub(crate) call: Call,
    pub(crate) spacing: Duration,
    pub(crate) rounds: Vec<Calls>,
}

impl LatencyRow {
    pub(crate) fn p50s(&self) -> Vec<f64> {
        self.rounds.iter().map(Calls::p50).collect()
    }

    pub(crate) fn p99s(&self) -> Vec<f64> {
        self.rounds.iter().map(Calls::p99).collect()
    }

    /// Over the calls of all rounds.
    pub(crate) fn p99(&self) -> f64 {
        let rounds = self.rounds.iter();
        let all: Vec<f64> = rounds.flat_map(|round| round.micros.clone()).collect();
        quantile(&all, 0.99)
    }

    pub(crate) fn count(&self) -> usize {
        self.rounds.iter().map(Calls::count).sum()
    }

    /// What the phases of all rounds came to, where the server has any.
    pub(crate) fn phases(&self) -> Option<Phases> {
        let rounds = self.rounds.iter().filter_map(|round| round.phases.as_ref());
        rounds.fold(None, |sum, round| {
            let mut sum: Phases = sum.unwrap_or_default();
            sum.add(round);
            Some(sum)
        })
    }

    /// Where the sandboxes came from, by `Hearth-Start`.
    pub(crate) fn starts(&self) -> BTreeMap<&str, usize> {
        let mut sums = BTreeMap::new();
        for (start, count) in self.rounds.iter().flat_map(|round| &round.starts) {
            *sums.entry(start.as_str()).or_default() += count;
        }
        sums
    }
}

/// What one round of load came to.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Microseconds of processor time per call, of the server and all below it.
    pub(crate) cpu: f64,
    /// Minor page faults per call.
    pub(crate) server_faults: f64,
    pub(crate) sandbox_faults: f64,
    pub(crate) server_rss_kib: u64,
    pub(crate) sandbox_rss_kib: u64,
}

impl Block {
    #[expect(
        clippy::cast_precision_loss,
        reason = "calls are counted in hundred thousands"
    )]
    pub(crate) fn new(outcome: Outcome<Usage>) -> Self {
        let latencies: Vec<f64> = outcome.latencies.into_iter().map(micros).collect();
        let count = latencies.len() as f64;
        let (before, after) = (outcome.before, outcome.after);
        Self {
            rate: count / outcome.took.as_secs_f64(),
            p50: quantile(&latencies, 0.5),
            p99: quantile(&latencies, 0.99),
            cpu: (after.cpu_us - before.cpu_us) / count,
            server_faults: (after.server_faults - before.server_faults) / count,
            sandbox_faults: (after.sandbox_faults - before.sandbox_faults) / count,
            server_rss_kib: after.server_rss_kib,
            sandbox_rss_kib: after.sandbox_rss_kib,
        }
    }
}

/// Load on one subject over so many connections.
#[derive(Debug)]
pub(crate) struct ThroughputRow {
    pub(crate) subject: Subject,
    pub(crate) connections: usize,
    pub(crate) rounds: Vec<Block>,
}

impl ThroughputRow {
    pub(crate) fn all(&self, of: impl Fn(&Block) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }

    pub(crate) fn median(&self, of: impl Fn(&Block) -> f64) -> f64 {
        median(&self.all(of))
    }
}

/// What idle sandboxes of one kind cost.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) sandboxes: usize,
    /// Over all of them.
    pub(crate) kib_each: f64,
    /// The same for each part of them.
    pub(crate) parts_kib_each: Vec<f64>,
    pub(crate) gateway_rss_kib: u64,
    pub(crate) sandbox_rss_kib: u64,
}

impl Memory {
    /// The larger of the whole and the median part: the first part may find memory that deploys have left to the kernel's
    /// allocators, which nobody else gets and which does not show as a drop.
    pub(crate) fn kib_judged(&self) -> f64 {
        self.kib_each.max(median(&self.parts_kib_each))
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) latencies: Vec<LatencyRow>,
    pub(crate) throughputs: Vec<ThroughputRow>,
    pub(crate) memories: Vec<(Subject, Memory)>,
    /// Skeletons made in the background, and the seconds it took.
    pub(crate) makings: Vec<(usize, f64)>,
    pub(crate) gaps: Vec<String>,
}

impl Figures {
    /// Adds a round to the row of the same subject and situation.
    pub(crate) fn add_calls(
        &mut self,
        subject: Subject,
        call: Call,
        spacing: Duration,
        calls: Calls,
    ) {
        let same = |row: &&mut LatencyRow| {
            row.subject == subject && row.call == call && row.spacing == spacing
        };
        match self.latencies.iter_mut().find(same) {
            Some(row) => row.rounds.push(calls),
            None => self.latencies.push(LatencyRow {
                subject,
                call,
                spacing,
                rounds: vec![calls],
            }),
        }
    }

    /// Adds a round to the row of the same subject and number of connections.
    pub(crate) fn add_block(&mut self, subject: Subject, connections: usize, block: Block) {
        let same =
            |row: &&mut ThroughputRow| row.subject == subject && row.connections == connections;
        match self.throughputs.iter_mut().find(same) {
            Some(row) => row.rounds.push(block),
            None => self.throughputs.push(ThroughputRow {
                subject,
                connections,
                rounds: vec![block],
            }),
        }
    }

    pub(crate) fn add_memory(&mut self, subject: Subject, memory: Memory) {
        self.memories.push((subject, memory));
    }

    pub(crate) fn add_making(&mut self, skeletons: usize, took: Duration) {
        self.makings.push((skeletons, took.as_secs_f64()));
    }

    /// Says loudly what could not be measured.
    pub(crate) fn gap(&mut self, subject: Subject, problem: &anyhow::Error) {
        self.gaps.push(format!("{}: {problem:#}", subject.name()));
    }

    pub(crate) fn latency(
        &self,
        subject: Subject,
        call: Call,
        spacing: Duration,
    ) -> Option<&LatencyRow> {
        self.latencies
            .iter()
            .find(|row| row.subject == subject && row.call == call && row.spacing == spacing)
    }

    pub(crate) fn throughput(
        &self,
        subject: Subject,
        connections: usize,
    ) -> Option<&ThroughputRow> {
        self.throughputs
            .iter()
            .find(|row| row.subject == subject && row.connections == connections)
    }

    pub(crate) fn memory(&self, subject: Subject) -> Option<&Memory> {
        let mut memories = self.memories.iter();
        memories
            .find(|(of, _)| *of == subject)
            .map(|(_, memory)| memory)
    }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The median of the ratios within each round.
pub(crate) fn ratio(above: &[f64], below: &[f64]) -> f64 {
    let rounds = above.iter().zip(below);
    let ratios: Vec<f64> = rounds.map(|(above, below)| above / below).collect();
    median(&ratios)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The smallest value that at least this share of all values does not exceed.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank between 0 and the number of values, which are far fewer than 2^53"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let index = rank.saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
