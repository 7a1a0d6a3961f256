// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every metric of the gateway: fields of one struct, made by one `register`, and one [`Metrics::observe`] per
//! invocation. Labels come from closed sets; a function beyond a configured number shares the label `other`, because
//! each label costs the scraper memory for ever.

mod series;

use std::sync::{Mutex, PoisonError};

use hearth_pool::{Kind, LimitHit, Outcome, Receipt};
use hearth_protocol::spawner::{Level, ViolationClass};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

use series::Sorts;

/// From a warm wasm call (tens of microseconds) to the longest time limit's order: "which share of calls was below X?"
/// for every X of the speed goals.
const SECONDS_BUCKETS: [f64; 20] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 900.0,
];

/// Every metric of the gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    sorts: Mutex<Sorts>,

    invocations: IntCounterVec,
    duration: HistogramVec,
    phase: HistogramVec,
    queue_wait: HistogramVec,
    throttled: IntCounterVec,
    timeouts: IntCounterVec,
    oom_kills: IntCounterVec,
    limits_hit: IntCounterVec,
    seccomp_violations: IntCounterVec,
    cpu_seconds: prometheus::CounterVec,
    log_dropped_bytes: IntCounterVec,
    inflight: IntGauge,
    sandboxes: IntGaugeVec,
    isolation_level: IntGaugeVec,
    connections: IntGauge,
    body_bytes: IntGauge,
    request_errors: IntCounterVec,
    deploys: IntCounterVec,
    functions_deployed: IntGauge,
    receipts_dropped: IntCounter,
    receipts_thinned: IntCounter,
}

/// What is read at the moment of a scrape.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) inflight: usize,
    pub(crate) connections: usize,
    pub(crate) body_bytes: usize,
    pub(crate) functions: usize,
    /// Kind, state, number.
    pub(crate) sandboxes: Vec<(Kind, &'static str, u64)>,
}

/// How a deploy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeployResult {
    Deployed,
    Unchanged,
    Refused,
}

impl Metrics {
    /// Makes and registers all of them.
    ///
    /// # Errors
    /// A name or label that Prometheus does not allow, or a name twice: a mistake in this file.
    #[expect(
        clippy::too_many_lines,
        reason = "one line per metric, made longer by their help texts"
    )]
    pub(crate) fn register(functions_max: u32) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let build_info = gauges(
            r,
            "hearth_build_info",
            "Always 1; the label is Hearth's version.",
            &["version"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(Self {
            sorts: Mutex::new(Sorts::new(functions_max as usize)),
            invocations: counters(
                r,
                "hearth_invocations_total",
                "Invocations that ended, by outcome and by where their sandbox came from.",
                &["function", "kind", "outcome", "start"],
            )?,
            duration: seconds(
                r,
                "hearth_invocation_duration_seconds",
                "From the request having been read to the function's last byte.",
                &["function", "kind", "start"],
            )?,
            phase: seconds(
                r,
                "hearth_invocation_phase_seconds",
                "Where an invocation's time went: queue, acquire, run, reset (after the answer).",
                &["kind", "phase"],
            )?,
            queue_wait: seconds(
                r,
                "hearth_queue_wait_seconds",
                "Waiting for a sandbox of the function to be free.",
                &["function"],
            )?,
            throttled: counters(
                r,
                "hearth_throttled_total",
                "Invocations that were refused because too many were waiting, by the limit that refused them.",
                &["function", "reason"],
            )?,
            timeouts: counters(
                r,
                "hearth_timeouts_total",
                "Invocations that reached their function's time limit.",
                &["function", "kind"],
            )?,
            oom_kills: counters(
                r,
                "hearth_oom_kills_total",
                "Invocations that ran out of memory.",
                &["function", "kind"],
            )?,
            limits_hit: counters(
                r,
                "hearth_limits_hit_total",
                "Limits that invocations reached, whether or not it failed them.",
                &["function", "reason"],
            )?,
            seccomp_violations: counters(
                r,
                "hearth_seccomp_violations_total",
                "System calls that functions made and their profile refuses by name, by what they got.",
                &["function", "kind", "class"],
            )?,
            cpu_seconds: register_in(
                r,
                prometheus::CounterVec::new(
                    Opts::new(
                        "hearth_function_cpu_seconds_total",
                        "CPU time that functions used.",
                    ),
                    &["function", "kind"],
                ),
            )?,
            log_dropped_bytes: counters(
                r,
                "hearth_log_dropped_bytes_total",
                "Bytes of functions' logs beyond their limit.",
                &["function"],
            )?,
            inflight: gauge(
                r,
                "hearth_invocations_inflight",
                "Invocations that wait or run.",
            )?,
            sandboxes: gauges(
                r,
                "hearth_sandboxes",
                "Sandboxes by state.",
                &["kind", "state"],
            )?,
            isolation_level: gauges(
                r,
                "hearth_isolation_level",
                "1 for the level of isolation that this host gives, by name.",
                &["level"],
            )?,
            connections: gauge(r, "hearth_connections", "Open client connections.")?,
            body_bytes: gauge(
                r,
                "hearth_body_bytes",
                "Bytes of request bodies and archives held in memory.",
            )?,
            request_errors: counters(
                r,
                "hearth_request_errors_total",
                "Requests that were answered with an error, by its code.",
                &["code"],
            )?,
            deploys: counters(
                r,
                "hearth_deploys_total",
                "Deploys by how they ended.",
                &["result"],
            )?,
            functions_deployed: gauge(r, "hearth_functions", "Functions that are deployed.")?,
            receipts_dropped: register_in(
                r,
                IntCounter::new(
                    "hearth_receipts_dropped_total",
                    "Receipts that were not kept because the writer was behind.",
                ),
            )?,
            receipts_thinned: register_in(
                r,
                IntCounter::new(
                    "hearth_receipts_thinned_total",
                    "Receipts of successes that were kept in memory only: their function had many at that moment.",
                ),
            )?,
            registry,
        })
    }

    /// The only place where an invocation is counted; called exactly once for each, whatever happened.
    pub(crate) fn observe(&self, receipt: &Receipt) {
        let series = {
            let mut sorts = self.sorts.lock().unwrap_or_else(PoisonError::into_inner);
            sorts.series(receipt, self)
        };
        let (function, kind) = (series.function.as_str(), receipt.kind.as_str());
        series.invocations.inc();
        let phases = receipt.phases;
        let total_us = phases.queue_us + phases.acquire_us + phases.run_us;
        series.duration.observe(in_seconds(total_us));
        series.queue_wait.observe(in_seconds(phases.queue_us));
        if receipt.start.is_some() {
            for (histogram, (_, micros)) in series.phases.iter().zip(phases.named()) {
                histogram.observe(in_seconds(micros));
            }
        }
        if let Some(usage) = receipt.usage {
            series.cpu_seconds.inc_by(in_seconds(usage.cpu_us));
        }
        match &receipt.outcome {
            Outcome::Throttled { limit, .. } => {
                let reason = match limit {
                    hearth_pool::ThrottleLimit::QueueLength => "queue_length",
                    hearth_pool::ThrottleLimit::QueueWait => "queue_wait",
                };
                self.throttled.with_label_values(&[function, reason]).inc();
            }
            Outcome::FunctionKilled {
                cause: hearth_pool::KillCause::Oom { .. },
                ..
            } => {
                self.oom_kills.with_label_values(&[function, kind]).inc();
            }
            Outcome::FunctionTimedOut { .. } => {
                self.timeouts.with_label_values(&[function, kind]).inc();
            }
            _ => {}
        }
        if let Some(violations) = &receipt.violations {
            for class in ViolationClass::ALL {
                self.seccomp_violations
                    .with_label_values(&[function, kind, class.as_str()])
                    .inc_by(violations.by_class(class));
            }
        }
        for limit in &receipt.limits_hit {
            self.limits_hit
                .with_label_values(&[function, limit_name(*limit)])
                .inc();
        }
        if 0 < receipt.log_dropped_bytes {
            self.log_dropped_bytes
                .with_label_values(&[function])
                .inc_by(receipt.log_dropped_bytes);
        }
    }

    /// What the spawner says that this host gives.
    pub(crate) fn isolation(&self, level: Level) {
        self.isolation_level.reset();
        let level = match level {
            Level::Full => "full",
            Level::Rootless => "rootless",
        };
        self.isolation_level.with_label_values(&[level]).set(1);
    }

    /// A request that was answered with an error of this code.
    pub(crate) fn answered_with_error(&self, code: &'static str) {
        self.request_errors.with_label_values(&[code]).inc();
    }

    pub(crate) fn deployed(&self, result: DeployResult) {
        let result = match result {
            DeployResult::Deployed => "deployed",
            DeployResult::Unchanged => "unchanged",
            DeployResult::Refused => "refused",
        };
        self.deploys.with_label_values(&[result]).inc();
    }

    pub(crate) fn receipt_dropped(&self) {
        self.receipts_dropped.inc();
    }

    pub(crate) fn receipt_thinned(&self) {
        self.receipts_thinned.inc();
    }

    #[cfg(test)]
    pub(crate) fn receipts_thinned(&self) -> u64 {
        self.receipts_thinned.get()
    }

    /// The Prometheus text format.
    pub(crate) fn render(&self, live: &Live) -> Result<String, prometheus::Error> {
        self.inflight.set(gauge_value(live.inflight));
        self.connections.set(gauge_value(live.connections));
        self.body_bytes.set(gauge_value(live.body_bytes));
        self.functions_deployed.set(gauge_value(live.functions));
        for (kind, state, number) in &live.sandboxes {
            let number = i64::try_from(*number).unwrap_or(i64::MAX);
            self.sandboxes
                .with_label_values(&[kind.as_str(), state])
                .set(number);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn register_in<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = made?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register_in(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register_in(registry, IntGauge::new(name, help))
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    register_in(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn seconds(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new(name, help).buckets(SECONDS_BUCKETS.to_vec());
    register_in(registry, HistogramVec::new(options, labels))
}

fn limit_name(limit: LimitHit) -> &'static str {
    match limit {
        LimitHit::Memory => "memory",
        LimitHit::Cpu => "cpu",
        LimitHit::Pids => "pids",
        LimitHit::Timeout => "timeout",
        LimitHit::Scratch => "scratch",
        LimitHit::Response => "response",
        LimitHit::Log => "log",
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 microseconds are 285 years"
)]
fn in_seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn gauge_value(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
