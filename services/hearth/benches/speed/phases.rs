// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where a call's time goes, by Hearth's own account: what the receipts' phases came to over a row of calls.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::http::Connection;

/// In the order of a call's life. `bind` is a part of `acquire`, and `start` of `run`; `reset` is after the answer.
pub(crate) const PHASES: [&str; 8] = [
    "parse", "queue", "acquire", "bind", "start", "run", "reply", "reset",
];

const METRIC: &str = "hearth_invocation_phase_seconds";

/// Seconds and calls by phase, since the server's start or in between.
#[derive(Debug, Default, Clone)]
pub(crate) struct Phases(BTreeMap<&'static str, (f64, f64)>);

impl Phases {
    /// What the server at the other end has counted so far, of every kind of function.
    pub(crate) fn read(connection: &mut Connection) -> Result<Self> {
        let metrics = connection.text("/metrics")?;
        let mut phases = Self::default();
        for phase in PHASES {
            let sum = |what: &str| sum(&metrics, what, phase);
            phases.0.insert(phase, (sum("sum")?, sum("count")?));
        }
        Ok(phases)
    }

    /// What came since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let of = |phase: &'static str| {
            let (seconds, calls) = self.totals(phase);
            let (seconds_before, calls_before) = before.totals(phase);
            (phase, (seconds - seconds_before, calls - calls_before))
        };
        Self(PHASES.into_iter().map(of).collect())
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for phase in PHASES {
            let (seconds, calls) = other.totals(phase);
            let totals = self.0.entry(phase).or_default();
            totals.0 += seconds;
            totals.1 += calls;
        }
    }

    /// Microseconds of a phase, the mean over the calls; none where no call had it.
    pub(crate) fn mean_us(&self, phase: &'static str) -> Option<f64> {
        let (seconds, calls) = self.totals(phase);
        (0.0 < calls).then(|| seconds * 1e6 / calls)
    }

    fn totals(&self, phase: &'static str) -> (f64, f64) {
        self.0.get(phase).copied().unwrap_or_default()
    }
}

/// Over all kinds.
fn sum(metrics: &str, what: &str, phase: &str) -> Result<f64> {
    let name = format!("{METRIC}_{what}{{");
    let label = format!("phase=\"{phase}\"");
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with(&name) && line.contains(&label));
    let values = lines.map(|line| {
        let value = line.rsplit(' ').next().unwrap_or_default();
        value.parse::<f64>().context("a metric is no number")
    });
    values.sum()
}
