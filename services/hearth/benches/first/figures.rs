// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What was measured: collected, reduced to p50 and p99, printed as a table and written as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{Subject, server};

/// Calls of one subject in one situation.
#[derive(Debug)]
pub(crate) struct Row {
    subject: &'static str,
    call: &'static str,
    spacing: Option<Duration>,
    samples: Vec<Duration>,
    starts: BTreeMap<String, usize>,
}

impl Row {
    pub(crate) fn new(
        subject: &'static str,
        call: &'static str,
        spacing: Option<Duration>,
    ) -> Self {
        Self {
            subject,
            call,
            spacing,
            samples: Vec::new(),
            starts: BTreeMap::new(),
        }
    }

    /// Times one call, which gives where its sandbox came from.
    pub(crate) fn time(&mut self, call: impl FnOnce() -> Result<Option<String>>) -> Result<()> {
        let began = Instant::now();
        let start = call()?;
        self.samples.push(began.elapsed());
        if let Some(start) = start {
            *self.starts.entry(start).or_default() += 1;
        }
        Ok(())
    }

    /// In microseconds; the samples are sorted.
    fn quantile_us(&self, quantile: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index between 0 and the number of samples, a few thousand"
        )]
        let index = (self.samples.len() as f64 * quantile) as usize;
        let last = self.samples.len().saturating_sub(1);
        self.samples
            .get(index.min(last))
            .map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e6)
    }

    fn is_of(&self, subject: Subject, call: &str, spacing: Option<Duration>) -> bool {
        self.subject == subject.name() && self.call == call && self.spacing == spacing
    }

    fn spacing_text(&self) -> String {
        self.spacing.map_or_else(
            || "–".to_owned(),
            |spacing| format!("{} ms", spacing.as_millis()),
        )
    }

    fn starts_text(&self) -> String {
        let texts: Vec<String> = self
            .starts
            .iter()
            .map(|(start, count)| format!("{start} {count}"))
            .collect();
        texts.join(", ")
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    rows: Vec<Row>,
    gaps: Vec<&'static str>,
}

impl Figures {
    /// Adds calls to the row of the same subject and situation.
    pub(crate) fn push(&mut self, more: Row) {
        let same = self.rows.iter_mut().find(|row| {
            row.subject == more.subject && row.call == more.call && row.spacing == more.spacing
        });
        match same {
            Some(row) => {
                row.samples.extend(more.samples);
                for (start, count) in more.starts {
                    *row.starts.entry(start).or_default() += count;
                }
            }
            None => self.rows.push(more),
        }
    }

    /// Says loudly what could not be measured.
    pub(crate) fn gap(&mut self, gap: &'static str) {
        self.gaps.push(gap);
    }

    /// Prints the table and writes the JSON beside the build.
    pub(crate) fn report(mut self) -> Result<()> {
        for row in &mut self.rows {
            row.samples.sort_unstable();
        }
        let file = server::target_dir()?.join("bench/first.json");
        fs::write(&file, serde_json::to_vec_pretty(&self.as_json())?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let mut out = std::io::stdout().lock();
        write!(out, "{}", self.as_table())?;
        for gap in &self.gaps {
            writeln!(out, "NOT MEASURED: {gap}")?;
        }
        writeln!(out, "\nas JSON: {}", file.display())?;
        Ok(())
    }

    /// How many times the peer's p50 a row's p50 is; the peer was called at the same spacing, or 250 ms for first calls.
    fn ratio(&self, row: &Row, peer: Subject) -> Option<f64> {
        let spacing = row.spacing.or(Some(Duration::from_millis(250)));
        let peer = self
            .rows
            .iter()
            .find(|candidate| candidate.is_of(peer, "warm", spacing))?;
        Some(row.quantile_us(0.5) / peer.quantile_us(0.5))
    }

    fn as_table(&self) -> String {
        let mut table = String::from(
            "| subject | call | spacing | calls | p50 µs | p99 µs | ÷ posix_spawn | ÷ bare axum | Hearth-Start |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
        );
        for row in &self.rows {
            let ratio = |peer| {
                self.ratio(row, peer)
                    .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            table += &format!(
                "| {} | {} | {} | {} | {:.0} | {:.0} | {} | {} | {} |\n",
                row.subject,
                row.call,
                row.spacing_text(),
                row.samples.len(),
                row.quantile_us(0.5),
                row.quantile_us(0.99),
                ratio(Subject::Spawn),
                ratio(Subject::Axum),
                row.starts_text(),
            );
        }
        table
    }

    fn as_json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "subject": row.subject,
                    "call": row.call,
                    "spacing_ms": row.spacing.map(|spacing| spacing.as_millis()),
                    "calls": row.samples.len(),
                    "p50_us": row.quantile_us(0.5),
                    "p99_us": row.quantile_us(0.99),
                    "times_posix_spawn": self.ratio(row, Subject::Spawn),
                    "times_axum": self.ratio(row, Subject::Axum),
                    "starts": row.starts,
                })
            })
            .collect();
        json!({ "rows": rows, "not_measured": self.gaps })
    }
}

/// The one line on standard error when the benchmark cannot go on.
pub(crate) fn complain(problem: &str) {
    // Where standard error is closed there is nobody to tell.
    let _unheard = writeln!(std::io::stderr(), "{problem}");
}
