// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is to be reached, and whether it was. A figure that is missing is never a pass.

use std::time::Duration;

use crate::SPACINGS;
use crate::background;
use crate::figures::{Call, Figures, LatencyRow, Memory, median, ratio};
use crate::options::{Options, Section};
use crate::subjects::Subject;

/// No minor faults per call, but for the odd one of a page of statistics or a grown buffer.
const FAULTS_MAX: f64 = 0.01;

/// What others may use of all processor time, if the figures are to be believed. What the kernel cleans up after sandboxes counts
/// as others'.
const FOREIGN_PERCENT_MAX: f64 = 10.0;

/// Connections at which throughput is compared.
const CONNECTIONS: usize = 64;

/// One line of the table of targets.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) what: String,
    /// Nothing where it was not measured.
    pub(crate) value: Option<f64>,
    pub(crate) wanted: Wanted,
    pub(crate) unit: &'static str,
}

/// What a value has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
}

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotMeasured => "NOT MEASURED",
        }
    }
}

impl Target {
    pub(crate) fn verdict(&self) -> Verdict {
        let is_met = match (self.value, self.wanted) {
            (None, _) => return Verdict::NotMeasured,
            (Some(value), Wanted::AtMost(limit)) => value <= limit,
            (Some(value), Wanted::AtLeast(limit)) => limit <= value,
        };
        if is_met {
            Verdict::Met
        } else {
            Verdict::Missed
        }
    }
}

/// What other executables measure, each with how to run it.
pub(crate) const ELSEWHERE: [(&str, &str); 3] = [
    (
        "hop between gateway and worker ≤ 15 µs on one core",
        "taskset -c 1 cargo bench -p hearth-wasm",
    ),
    (
        "wasm instance creation, call and drop ≤ 15 µs",
        "taskset -c 1 cargo bench -p hearth-wasm",
    ),
    (
        "price of all walls, warm ≤ 5 % of throughput",
        "cargo run --release -p hearth-jail --example price_of_walls",
    ),
];

/// The targets of the sections that ran.
pub(crate) fn of(figures: &Figures, options: &Options, foreign_share: f64) -> Vec<Target> {
    let mut targets = vec![Target {
        what: "a quiet machine: processor time of others, of all".to_owned(),
        value: Some(foreign_share * 100.0),
        wanted: Wanted::AtMost(FOREIGN_PERCENT_MAX),
        unit: "%",
    }];
    if options.wants(Section::Latency) {
        targets.extend(warm(figures));
    }
    if options.wants(Section::First) {
        targets.extend(first(figures));
        // The peers are measured with the warm calls.
        if options.wants(Section::Latency) {
            targets.extend(first_beside_peers(figures));
        }
    }
    if options.wants(Section::Throughput) {
        targets.extend(throughput(figures));
    }
    if options.wants(Section::Memory) {
        targets.extend(memory(figures));
    }
    if options.wants(Section::Background) {
        targets.extend(background(figures));
    }
    targets
}

fn warm(figures: &Figures) -> Vec<Target> {
    let pairs = [
        (Subject::NativeGlibc, Subject::SpawnGlibc, 2.0),
        (Subject::NativeNolibc, Subject::SpawnNolibc, 2.5),
    ];
    let mut targets = Vec::new();
    for (subject, peer, limit) in pairs {
        for spacing in SPACINGS {
            let rows = figures
                .latency(subject, Call::Warm, spacing)
                .zip(figures.latency(peer, Call::Warm, spacing));
            targets.push(Target {
                what: format!(
                    "{}, warm, {}: p50 ÷ {}",
                    subject.name(),
                    text(spacing),
                    peer.name()
                ),
                value: rows.map(|(ours, peers)| ratio(&ours.p50s(), &peers.p50s())),
                wanted: Wanted::AtMost(limit),
                unit: "×",
            });
        }
    }
    let rows = figures
        .latency(Subject::Wasm, Call::Warm, Duration::ZERO)
        .zip(figures.latency(Subject::Axum, Call::Warm, Duration::ZERO));
    targets.push(Target {
        what: "hearth wasm, warm, 0 ms: p50 above the bare echo".to_owned(),
        value: rows.map(|(ours, bare)| difference(ours, bare)),
        wanted: Wanted::AtMost(60.0),
        unit: "µs",
    });
    targets
}

fn first(figures: &Figures) -> Vec<Target> {
    let mut targets = Vec::new();
    for spacing in SPACINGS {
        let bound = figures.latency(Subject::NativeGlibc, Call::Bound, spacing);
        if Duration::ZERO < spacing {
            targets.push(Target {
                what: format!("native, first call, bound, {}: p50", text(spacing)),
                value: bound.map(p50),
                wanted: Wanted::AtMost(1500.0),
                unit: "µs",
            });
            targets.push(Target {
                what: format!("native, first call, bound, {}: p99", text(spacing)),
                value: bound.map(LatencyRow::p99),
                wanted: Wanted::AtMost(6000.0),
                unit: "µs",
            });
        }
        let created = figures.latency(Subject::NativeGlibc, Call::Created, spacing);
        targets.push(Target {
            what: format!("native, first call, created, {}: p50", text(spacing)),
            value: created.map(p50),
            wanted: Wanted::AtMost(5000.0),
            unit: "µs",
        });
    }
    targets
}

fn first_beside_peers(figures: &Figures) -> Vec<Target> {
    let peers = [
        (Subject::Bubblewrap, 3.0),
        (Subject::Crun, 5.0),
        (Subject::Runc, 15.0),
    ];
    let spaced = SPACINGS.into_iter().filter(|one| Duration::ZERO < *one);
    let mut targets = Vec::new();
    for spacing in spaced {
        let bound = figures.latency(Subject::NativeGlibc, Call::Bound, spacing);
        for (peer, limit) in peers {
            let rows = figures.latency(peer, Call::Warm, spacing).zip(bound);
            targets.push(Target {
                what: format!(
                    "{} ÷ native, first call, bound, {}: p50",
                    peer.name(),
                    text(spacing)
                ),
                value: rows.map(|(peers, ours)| ratio(&peers.p50s(), &ours.p50s())),
                wanted: Wanted::AtLeast(limit),
                unit: "×",
            });
        }
    }
    targets
}

fn throughput(figures: &Figures) -> Vec<Target> {
    let share = |above, below| {
        let above = figures.throughput(above, CONNECTIONS)?;
        let below = figures.throughput(below, CONNECTIONS)?;
        Some(ratio(
            &above.all(|block| block.rate),
            &below.all(|block| block.rate),
        ))
    };
    let wasm = figures.throughput(Subject::Wasm, 1);
    vec![
        Target {
            what: format!("native, {CONNECTIONS} connections: rate ÷ of-watchdog's"),
            value: share(Subject::NativeGlibc, Subject::Watchdog),
            wanted: Wanted::AtLeast(1.3),
            unit: "×",
        },
        Target {
            what: format!("wasm, {CONNECTIONS} connections: rate ÷ the bare echo's"),
            value: share(Subject::Wasm, Subject::Axum),
            wanted: Wanted::AtLeast(0.45),
            unit: "×",
        },
        Target {
            what: "wasm, 1 connection: minor faults per call in sandboxes".to_owned(),
            value: wasm.map(|row| row.median(|block| block.sandbox_faults)),
            wanted: Wanted::AtMost(FAULTS_MAX),
            unit: "",
        },
    ]
}

fn memory(figures: &Figures) -> Vec<Target> {
    let kinds = [
        (Subject::NativeGlibc, "idle native sandbox, all in", 1024.0),
        (Subject::Wasm, "idle wasm worker, all in", 6.0 * 1024.0),
    ];
    let targets = kinds.into_iter().map(|(subject, what, limit)| Target {
        what: what.to_owned(),
        value: figures.memory(subject).map(Memory::kib_judged),
        wanted: Wanted::AtMost(limit),
        unit: "KiB",
    });
    targets.collect()
}

fn background(figures: &Figures) -> Vec<Target> {
    let subjects = [Subject::NativeGlibc, Subject::Healthz];
    let targets = subjects.into_iter().map(|subject| {
        let of = |call| figures.latency(subject, call, background::SPACING);
        let rows = of(Call::During).zip(of(Call::After));
        Target {
            what: format!(
                "{}, 1,000 skeletons being made: p99 ÷ undisturbed",
                subject.name()
            ),
            value: rows.map(|(during, after)| ratio(&during.p99s(), &after.p99s())),
            wanted: Wanted::AtMost(2.0),
            unit: "×",
        }
    });
    targets.collect()
}

fn p50(row: &LatencyRow) -> f64 {
    median(&row.p50s())
}

/// The median of the differences within each round.
fn difference(above: &LatencyRow, below: &LatencyRow) -> f64 {
    let (above, below) = (above.p50s(), below.p50s());
    let rounds = above.iter().zip(&below);
    let differences: Vec<f64> = rounds.map(|(above, below)| above - below).collect();
    median(&differences)
}

fn text(spacing: Duration) -> String {
    format!("{} ms", spacing.as_millis())
}
