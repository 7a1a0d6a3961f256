// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System calls that a profile refuses by name: in the answer, the receipt, the log and the metrics.

use serde_json::{Value, json};

use crate::instance::{Instance, log_tail};
use crate::package::{Kind, Package};
use crate::turn;
use crate::victim::{TIGHT, Victim};

const METRIC: &str = "hearth_seccomp_violations_total";

/// bpf(2), by its number here.
const BPF: u32 = if cfg!(target_arch = "x86_64") {
    321
} else {
    280
};

/// The names in a receipt's list of refused calls.
fn names(receipt: &Value) -> Vec<&str> {
    let first = receipt["violations"]["first"].as_array();
    let first = first.unwrap_or_else(|| panic!("{receipt}"));
    first
        .iter()
        .filter_map(|call| call["name"].as_str())
        .collect()
}

#[test]
fn a_refused_call_is_named_in_its_own_receipt_the_log_and_the_metric_and_in_no_other() {
    let _turn = turn::take!(alone);
    let victim = Victim::new("refused", Kind::Native, TIGHT);
    let labels = |class| {
        [
            ("function", victim.name.as_str()),
            ("kind", "native"),
            ("class", class),
        ]
    };
    let counted = |class| victim.instance.metric(METRIC, &labels(class));
    // Looking for markers is not all honest.
    let before = counted("eperm");
    let (text, receipt) = victim.succeeds(&format!("syscall {BPF} 1 2 3"));
    assert!(text.contains("EPERM"), "{text}");
    assert_eq!(names(&receipt), ["bpf"]);
    let violations = &receipt["violations"];
    assert_eq!(violations["count"], 1, "{receipt}");
    assert_eq!(violations["profile"], "default", "{receipt}");
    let call = &violations["first"][0];
    assert_eq!(call["number"], BPF, "{receipt}");
    assert_eq!(
        call["arguments"],
        json!(["0x1", "0x2", "0x3", "0x0", "0x0", "0x0"])
    );
    let (_, next) = victim.succeeds("print honest");
    assert_eq!(next["violations"], Value::Null, "{next}");
    assert_eq!((counted("eperm"), counted("kill")), (before + 1.0, 0.0));
    let (problem, receipt) = victim.fails("escape-kill reboot", 502, "function_killed");
    assert_eq!(
        problem["evidence"]["cause"]["call"]["name"], "reboot",
        "{problem}"
    );
    let said = problem["detail"].as_str().or(problem["title"].as_str());
    assert!(
        said.is_some_and(|said| said.contains("reboot(")),
        "{problem}"
    );
    assert_eq!(names(&receipt), ["reboot"]);
    assert_eq!((counted("eperm"), counted("kill")), (before + 1.0, 1.0));
    let log = log_tail(&victim.instance.home);
    assert!(
        log.contains("bpf(0x1, 0x2, 0x3") && log.contains("reboot("),
        "{log}"
    );
    victim.recovers();
}

#[test]
fn a_strict_function_runs_and_what_it_may_not_start_is_named() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let manifest = format!("[sandbox]\nseccomp = \"strict\"\n{TIGHT}");
    instance.deploy(&Package::hostile("strict", Kind::Native, &manifest));
    let call = |mode: &str| {
        let answer = instance
            .invoke("strict", format!("{mode}\n").as_bytes())
            .expect(200);
        (answer.text(), instance.receipt(answer.invocation()))
    };
    assert_eq!(call("print ready").0, "ready\n");
    // clone(2) as fork(2) does it.
    let number = if cfg!(target_arch = "x86_64") {
        56
    } else {
        220
    };
    let (text, receipt) = call(&format!("syscall {number} 17"));
    assert!(text.contains("EPERM"), "{text}");
    assert_eq!(names(&receipt), ["clone"]);
    assert_eq!(receipt["violations"]["profile"], "strict", "{receipt}");
    assert_eq!(call("print again").0, "again\n");
}

#[test]
fn a_profile_that_does_not_fit_is_refused_at_deploy() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for (kind, profile, place) in [
        (Kind::Native, "network", "needs a contract"),
        (Kind::Native, "resident", "must be"),
        (Kind::Wasm, "strict", "native functions"),
    ] {
        let rest = format!("[sandbox]\nseccomp = \"{profile}\"");
        let answer = instance.try_deploy(&Package::hostile("unfit", kind, &rest));
        let problem = answer.problem(400, "bad_manifest");
        let text = problem.to_string();
        assert!(
            text.contains("sandbox.seccomp") && text.contains(place),
            "{text}"
        );
    }
}
