// SPDX-License-Identifier: Apache-2.0 OR MIT
use std::collections::HashSet;

use hearth_pool::{
    InvocationId, KillCause, Phases, RefusedCall, Start, ThrottleLimit, Usage, UsageSource,
    Violations,
};
use hearth_protocol::{SmallName, TreeId};

use super::*;

fn receipt(function: &str, start: Option<Start>, outcome: Outcome) -> Receipt {
    Receipt {
        invocation: InvocationId::new(),
        function: SmallName::new(function).unwrap(),
        revision: TreeId::new("0".repeat(64)).unwrap(),
        kind: Kind::Native,
        received_ms: 0,
        start,
        phases: Phases {
            queue_us: 10,
            acquire_us: 0,
            run_us: 700,
            reset_us: 90,
            ..Phases::default()
        },
        outcome,
        usage: Some(Usage {
            cpu_us: 500,
            memory_peak_bytes: 1,
            source: UsageSource::Cgroup,
        }),
        limits_hit: vec![LimitHit::Log],
        residue: None,
        violations: None,
        request_bytes: 0,
        response_bytes: 0,
        log: Vec::new(),
        log_dropped_bytes: 5,
    }
}

fn idle() -> Live {
    Live {
        inflight: 0,
        connections: 0,
        body_bytes: 0,
        functions: 0,
        sandboxes: vec![(Kind::Wasm, "idle", 2)],
    }
}

/// One invocation of every sort, so that no metric is without a child.
fn used() -> Metrics {
    let metrics = Metrics::register(2).unwrap();
    let throttled = Outcome::Throttled {
        limit: ThrottleLimit::QueueLength,
        retry_after_s: 1,
    };
    let oom = Outcome::FunctionKilled {
        cause: KillCause::Oom {
            peak_bytes: 1,
            limit_bytes: 1,
        },
        stderr_tail: vec![],
    };
    metrics.observe(&receipt("a", Some(Start::Warm), Outcome::Ok));
    metrics.observe(&receipt("a", None, throttled));
    metrics.observe(&receipt("b", Some(Start::Bound), oom));
    metrics.observe(&receipt(
        "b",
        Some(Start::Bound),
        Outcome::FunctionTimedOut {
            limit_ms: 1,
            output_bytes: 0,
        },
    ));
    let call = |class| RefusedCall {
        name: "bpf".to_owned(),
        number: 321,
        arguments: vec![],
        class,
    };
    let violations = Violations {
        profile: "default".to_owned(),
        count: 12,
        first: vec![call(ViolationClass::Eperm), call(ViolationClass::Kill)],
    };
    metrics.observe(&Receipt {
        violations: Some(violations),
        ..receipt("b", Some(Start::Bound), Outcome::Ok)
    });
    metrics.answered_with_error("not_found");
    metrics.deployed(DeployResult::Deployed);
    metrics.receipt_dropped();
    metrics.isolation(Level::Full);
    metrics
}

#[test]
fn an_invocation_is_counted_by_function_kind_outcome_and_start() {
    let text = used().render(&idle()).unwrap();
    assert!(text.contains(
        "hearth_invocations_total{function=\"a\",kind=\"native\",outcome=\"ok\",start=\"warm\"} 1"
    ));
    assert!(text.contains("hearth_invocations_total{function=\"a\",kind=\"native\",outcome=\"throttled\",start=\"none\"} 1"));
    assert!(text.contains("hearth_oom_kills_total{function=\"b\",kind=\"native\"} 1"));
    let violations = |class| {
        format!(
            "hearth_seccomp_violations_total{{class=\"{class}\",function=\"b\",kind=\"native\"}}"
        )
    };
    assert!(
        text.contains(&format!("{} 11", violations("eperm"))),
        "{text}"
    );
    assert!(
        text.contains(&format!("{} 1\n", violations("kill"))),
        "{text}"
    );
    assert!(text.contains("hearth_sandboxes{kind=\"wasm\",state=\"idle\"} 2"));
}

#[test]
fn functions_beyond_the_configured_number_share_one_label() {
    let metrics = used();
    for name in ["c", "d", "a"] {
        metrics.observe(&receipt(name, Some(Start::Warm), Outcome::Ok));
    }
    let text = metrics.render(&idle()).unwrap();
    assert!(text.contains("function=\"other\",kind=\"native\",outcome=\"ok\",start=\"warm\"} 2"));
    assert!(text.contains("function=\"a\",kind=\"native\",outcome=\"ok\",start=\"warm\"} 2"));
    assert!(!text.contains("function=\"c\""));
}

#[test]
fn every_metric_is_in_docs_operations_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let page = std::fs::read_to_string(path).unwrap();
    let documented: HashSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `hearth_")?.split('`').next())
        .collect();
    let metrics = used();
    // Sets the gauges that have no child before the first scrape.
    metrics.render(&idle()).unwrap();
    let families = metrics.registry.gather();
    let names: HashSet<&str> = families
        .iter()
        .filter_map(|family| family.name().strip_prefix("hearth_"))
        .collect();
    assert_eq!(names, documented);
}

#[test]
fn names_and_help_follow_the_conventions() {
    for family in used().registry.gather() {
        assert!(
            family.name().starts_with("hearth_") && !family.help().is_empty(),
            "{}",
            family.name()
        );
        let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(
            counter,
            family.name().ends_with("_total"),
            "{}",
            family.name()
        );
    }
}
