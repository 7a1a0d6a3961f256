// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The labelled metrics of every invocation, found once for each sort of invocation instead of once for each metric of
//! each invocation: every look-up by labels hashes them all under a lock that the shards share.

use std::{collections::HashMap, sync::Arc};

use hearth_pool::{Kind, OutcomeKind, Phases, Receipt, Start};
use prometheus::{Counter, Histogram, IntCounter};

use super::Metrics;

/// The label of functions beyond the configured number.
const OTHER: &str = "other";

/// The sorts of invocations that were seen, by function.
#[derive(Debug)]
pub(super) struct Sorts {
    functions_max: usize,
    by_function: HashMap<String, OfFunction>,
    /// Of functions beyond the configured number.
    others: OfFunction,
}

impl Sorts {
    pub(super) fn new(functions_max: usize) -> Self {
        Self {
            functions_max,
            by_function: HashMap::new(),
            others: OfFunction::new(OTHER),
        }
    }

    /// What every invocation of this sort is counted in.
    pub(super) fn series(&mut self, receipt: &Receipt, metrics: &Metrics) -> Arc<Series> {
        let function = receipt.function.as_str();
        let is_full = self.functions_max <= self.by_function.len();
        let known = match self.by_function.get_mut(function) {
            Some(known) => known,
            None if is_full => &mut self.others,
            None => self
                .by_function
                .entry(function.to_owned())
                .or_insert_with(|| OfFunction::new(function)),
        };
        known.series(Sort::of(receipt), metrics)
    }
}

#[derive(Debug)]
struct OfFunction {
    label: String,
    /// A handful: looked through, not hashed.
    seen: Vec<(Sort, Arc<Series>)>,
}

/// What an invocation's main labels come from, beside its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sort {
    kind: Kind,
    start: Option<Start>,
    outcome: OutcomeKind,
}

/// The metrics of one sort. Made with its first invocation, so that none is shown that never happened.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) function: String,
    pub(super) invocations: IntCounter,
    pub(super) duration: Histogram,
    pub(super) queue_wait: Histogram,
    /// In the order of [`Phases::named`].
    pub(super) phases: [Histogram; 8],
    pub(super) cpu_seconds: Counter,
}

impl OfFunction {
    fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            seen: Vec::new(),
        }
    }

    fn series(&mut self, sort: Sort, metrics: &Metrics) -> Arc<Series> {
        if let Some((_, series)) = self.seen.iter().find(|(seen, _)| *seen == sort) {
            return Arc::clone(series);
        }
        let series = Arc::new(Series::new(&self.label, sort, metrics));
        self.seen.push((sort, Arc::clone(&series)));
        series
    }
}

impl Sort {
    fn of(receipt: &Receipt) -> Self {
        Self {
            kind: receipt.kind,
            start: receipt.start,
            outcome: receipt.outcome.kind(),
        }
    }
}

impl Series {
    fn new(function: &str, sort: Sort, metrics: &Metrics) -> Self {
        let kind = sort.kind.as_str();
        let start = sort.start.map_or("none", Start::as_str);
        let outcome = sort.outcome.as_str();
        Self {
            function: function.to_owned(),
            invocations: metrics
                .invocations
                .with_label_values(&[function, kind, outcome, start]),
            duration: metrics.duration.with_label_values(&[function, kind, start]),
            queue_wait: metrics.queue_wait.with_label_values(&[function]),
            phases: Phases::default()
                .named()
                .map(|(phase, _)| metrics.phase.with_label_values(&[kind, phase])),
            cpu_seconds: metrics.cpu_seconds.with_label_values(&[function, kind]),
        }
    }
}
