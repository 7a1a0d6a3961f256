// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tables, and the JSON beside them, which has every round.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::echoes;
use crate::figures::{Call, Figures, LatencyRow, median, ratio};
use crate::options::Length;
use crate::phases::PHASES;
use crate::subjects::Subject;
use crate::targets::{ELSEWHERE, Target, Wanted};

/// Prints everything and writes `target/bench/speed.json`, or `speed-short.json` for what nobody is to quote.
pub(crate) fn write(
    figures: &Figures,
    targets: &[Target],
    machine: &Value,
    length: Length,
) -> Result<()> {
    let name = match length {
        Length::Full => "bench/speed.json",
        Length::Short => "bench/speed-short.json",
    };
    let file = echoes::target_dir()?.join(name);
    fs::write(
        &file,
        serde_json::to_vec_pretty(&as_json(figures, targets, machine))?,
    )
    .with_context(|| format!("cannot write {}", file.display()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "machine: {machine}\n")?;
    latency_table(figures, &mut out)?;
    phase_table(figures, &mut out)?;
    throughput_table(figures, &mut out)?;
    memory_table(figures, &mut out)?;
    for (skeletons, seconds) in &figures.makings {
        writeln!(
            out,
            "{skeletons} skeletons made in {seconds:.1} s while being called"
        )?;
    }
    for gap in &figures.gaps {
        writeln!(out, "NOT MEASURED: {gap}")?;
    }
    if !figures.makings.is_empty() || !figures.gaps.is_empty() {
        writeln!(out)?;
    }
    target_table(targets, &mut out)?;
    writeln!(out, "\nas JSON, with every round: {}", file.display())?;
    Ok(())
}

fn latency_table(figures: &Figures, out: &mut impl Write) -> Result<()> {
    if figures.latencies.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "| subject | call | spacing | calls | p50 µs | rounds' p50 | p99 µs | ÷ posix_spawn, glibc | Hearth-Start |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )?;
    for row in &figures.latencies {
        let spawn = times_spawn(figures, row);
        let starts = row.starts().into_iter();
        let starts: Vec<String> = starts
            .map(|(start, count)| format!("{start} {count}"))
            .collect();
        writeln!(
            out,
            "| {} | {} | {} ms | {} | {:.0} | {} | {:.0} | {} | {} |",
            row.subject.name(),
            row.call.name(),
            row.spacing.as_millis(),
            row.count(),
            median(&row.p50s()),
            spread(&row.p50s()),
            row.p99(),
            spawn.map_or_else(|| "–".to_owned(), |times| format!("{times:.2}")),
            starts.join(", "),
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn phase_table(figures: &Figures, out: &mut impl Write) -> Result<()> {
    let rows = figures.latencies.iter();
    let rows: Vec<_> = rows.filter_map(|row| Some((row, row.phases()?))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "| subject | call | spacing | {} |\n| --- | --- | ---: |{}",
        PHASES.join(" | "),
        " ---: |".repeat(PHASES.len())
    )?;
    for (row, phases) in rows {
        let mean = |phase| {
            let mean = phases.mean_us(phase);
            mean.map_or_else(|| "–".to_owned(), |mean| format!("{mean:.0}"))
        };
        writeln!(
            out,
            "| {} | {} | {} ms | {} |",
            row.subject.name(),
            row.call.name(),
            row.spacing.as_millis(),
            PHASES.map(mean).join(" | "),
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn times_spawn(figures: &Figures, row: &LatencyRow) -> Option<f64> {
    let spawn = figures.latency(Subject::SpawnGlibc, Call::Warm, row.spacing)?;
    Some(ratio(&row.p50s(), &spawn.p50s()))
}

fn throughput_table(figures: &Figures, out: &mut impl Write) -> Result<()> {
    if figures.throughputs.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "| subject | connections | calls/s | rounds' calls/s | p50 µs | p99 µs | CPU µs/call | faults/call: server, sandboxes | RSS KiB: server, largest in a sandbox |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )?;
    for row in &figures.throughputs {
        let last = row.rounds.last().context("a row has a round")?;
        writeln!(
            out,
            "| {} | {} | {:.0} | {} | {:.0} | {:.0} | {:.1} | {:.2}, {:.2} | {}, {} |",
            row.subject.name(),
            row.connections,
            row.median(|block| block.rate),
            spread(&row.all(|block| block.rate)),
            row.median(|block| block.p50),
            row.median(|block| block.p99),
            row.median(|block| block.cpu),
            row.median(|block| block.server_faults),
            row.median(|block| block.sandbox_faults),
            last.server_rss_kib,
            last.sandbox_rss_kib,
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn memory_table(figures: &Figures, out: &mut impl Write) -> Result<()> {
    if figures.memories.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "| idle sandboxes | how many | KiB each, all in | parts' KiB each | RSS KiB: gateway, largest in a sandbox |\n\
         | --- | ---: | ---: | ---: | ---: |"
    )?;
    for (subject, memory) in &figures.memories {
        writeln!(
            out,
            "| {} | {} | {:.0} | {} | {}, {} |",
            subject.name(),
            memory.sandboxes,
            memory.kib_each,
            spread(&memory.parts_kib_each),
            memory.gateway_rss_kib,
            memory.sandbox_rss_kib,
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn target_table(targets: &[Target], out: &mut impl Write) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "| target | value | wanted | verdict |\n| --- | ---: | ---: | --- |"
    )?;
    for target in targets {
        let value = target.value.map_or_else(
            || "–".to_owned(),
            |value| format!("{} {}", digits(value), target.unit),
        );
        let wanted = match target.wanted {
            Wanted::AtMost(limit) => format!("≤ {}", digits(limit)),
            Wanted::AtLeast(limit) => format!("≥ {}", digits(limit)),
        };
        writeln!(
            out,
            "| {} | {value} | {wanted} {} | {} |",
            target.what,
            target.unit,
            target.verdict().name()
        )?;
    }
    for (what, measured_by) in ELSEWHERE {
        writeln!(out, "| {what} | | | measured by {measured_by} |")?;
    }
    Ok(())
}

/// Ratios and shares need two digits after the point, microseconds and KiB none.
fn digits(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

fn spread(values: &[f64]) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{min:.0}–{max:.0}")
}

fn as_json(figures: &Figures, targets: &[Target], machine: &Value) -> Value {
    let latencies = figures.latencies.iter();
    let latencies = latencies.map(|row| latency_json(figures, row));
    let throughputs = figures.throughputs.iter().map(|row| {
        let rounds = row.rounds.iter().map(|block| {
            json!({
                "calls_per_second": block.rate,
                "p50_us": block.p50,
                "p99_us": block.p99,
                "cpu_us_per_call": block.cpu,
                "server_minor_faults_per_call": block.server_faults,
                "sandbox_minor_faults_per_call": block.sandbox_faults,
                "server_rss_kib": block.server_rss_kib,
                "sandbox_rss_kib": block.sandbox_rss_kib,
            })
        });
        json!({
            "subject": row.subject.name(),
            "connections": row.connections,
            "calls_per_second": row.median(|block| block.rate),
            "p50_us": row.median(|block| block.p50),
            "p99_us": row.median(|block| block.p99),
            "cpu_us_per_call": row.median(|block| block.cpu),
            "rounds": rounds.collect::<Vec<_>>(),
        })
    });
    let memories = figures.memories.iter().map(|(subject, memory)| {
        json!({
            "subject": subject.name(),
            "sandboxes": memory.sandboxes,
            "kib_each": memory.kib_each,
            "parts_kib_each": memory.parts_kib_each,
            "gateway_rss_kib": memory.gateway_rss_kib,
            "sandbox_rss_kib": memory.sandbox_rss_kib,
        })
    });
    let targets = targets.iter().map(|target| {
        let (at_least, at_most) = match target.wanted {
            Wanted::AtMost(limit) => (None, Some(limit)),
            Wanted::AtLeast(limit) => (Some(limit), None),
        };
        json!({
            "what": target.what,
            "value": target.value,
            "at_least": at_least,
            "at_most": at_most,
            "unit": target.unit,
            "verdict": target.verdict().name(),
        })
    });
    json!({
        "machine": machine,
        "latency": latencies.collect::<Vec<_>>(),
        "throughput": throughputs.collect::<Vec<_>>(),
        "memory": memories.collect::<Vec<_>>(),
        "skeletons_made_and_seconds": figures.makings,
        "not_measured": figures.gaps,
        "targets": targets.collect::<Vec<_>>(),
    })
}

fn latency_json(figures: &Figures, row: &LatencyRow) -> Value {
    json!({
        "subject": row.subject.name(),
        "call": row.call.name(),
        "spacing_ms": row.spacing.as_millis(),
        "calls": row.count(),
        "p50_us": median(&row.p50s()),
        "p99_us": row.p99(),
        "times_posix_spawn": times_spawn(figures, row),
        "starts": row.starts(),
        "phases_mean_us": row.phases().map(|phases| {
            PHASES.map(|phase| (phase, phases.mean_us(phase))).into_iter().collect::<BTreeMap<_, _>>()
        }),
        "rounds_p50_us": row.p50s(),
        "rounds_p99_us": row.p99s(),
    })
}
