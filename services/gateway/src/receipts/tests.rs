// SPDX-License-Identifier: Apache-2.0 OR MIT
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth_pool::{Kind, LogLine, Phases};
use hearth_protocol::{SmallName, TreeId};

use super::{share::SUCCESSES_MAX, *};

const ROOMY: ReceiptLimits = ReceiptLimits {
    number_max: 100_000,
    bytes_max: 1 << 30,
    age_max: Duration::from_secs(3600),
};

/// A success, with one line of log or none.
pub(crate) fn receipt(function: &str, line: Option<&str>) -> Receipt {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let log_line = |text: &str| LogLine {
        at_ms: 1,
        text: text.to_owned(),
        cut: false,
    };
    Receipt {
        invocation: InvocationId::new(),
        function: SmallName::new(function).unwrap(),
        revision: TreeId::new("0".repeat(64)).unwrap(),
        kind: Kind::Native,
        received_ms: u64::try_from(now.as_millis()).unwrap(),
        start: None,
        phases: Phases::default(),
        outcome: Outcome::Ok,
        usage: None,
        limits_hit: Vec::new(),
        residue: None,
        violations: None,
        request_bytes: 0,
        response_bytes: 0,
        log: line.map(log_line).into_iter().collect(),
        log_dropped_bytes: 0,
    }
}

fn logs_of(function: &str) -> LogQuery {
    LogQuery {
        function: SmallName::new(function).unwrap(),
        invocation: None,
        invocations_max: 100,
    }
}

/// Gives them all to a new `Receipts` and waits until its thread has written what stays.
fn written(store: &Arc<Store>, metrics: &Arc<Metrics>, receipts: &[Receipt]) {
    let (all, thread) = Receipts::start(Arc::clone(store), ROOMY, Arc::clone(metrics)).unwrap();
    for receipt in receipts {
        all.add(receipt.clone());
    }
    drop(all);
    thread.join().unwrap();
}

fn parts() -> (tempfile::TempDir, Arc<Store>, Arc<Metrics>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    (dir, store, Arc::new(Metrics::register(1).unwrap()))
}

#[tokio::test]
async fn a_receipt_and_its_log_are_found_at_once_and_after_the_end_the_same() {
    let (_dir, store, metrics) = parts();
    let one = receipt("a", Some("hello"));
    let (before, thread) =
        Receipts::start(Arc::clone(&store), ROOMY, Arc::clone(&metrics)).unwrap();
    before.add(one.clone());
    let at_once = before.find(one.invocation).await.unwrap().unwrap();
    let log = before.logged(logs_of("a")).await.unwrap();
    drop(before);
    thread.join().unwrap();

    let (after, _thread) = Receipts::start(store, ROOMY, metrics).unwrap();
    assert_eq!(after.find(one.invocation).await.unwrap().unwrap(), at_once);
    assert_eq!(after.logged(logs_of("a")).await.unwrap(), log);
    assert_eq!(log, [Arc::new(one)]);
}

#[test]
fn of_many_successes_a_share_is_kept_and_every_failure_and_the_rest_is_counted() {
    let (_dir, store, metrics) = parts();
    let mut all = Vec::new();
    for _ in 0..2 * SUCCESSES_MAX {
        all.push(receipt("a", None));
        all.push(Receipt {
            outcome: Outcome::SandboxLost,
            ..receipt("a", None)
        });
    }
    let began = Instant::now();
    written(&store, &metrics, &all);
    let kept = |outcome: &Outcome| {
        let wanted = all.iter().filter(|receipt| receipt.outcome == *outcome);
        wanted
            .filter(|receipt| store.receipt(receipt.invocation).unwrap().is_some())
            .count()
    };
    assert_eq!(kept(&Outcome::SandboxLost), 2 * SUCCESSES_MAX as usize);
    let successes = kept(&Outcome::Ok);
    // On a machine that is busy beyond measure the calls above take more than one period.
    let periods = 1 + usize::try_from(began.elapsed().as_secs()).unwrap();
    let share = SUCCESSES_MAX as usize;
    assert!(
        (share..=share * periods).contains(&successes),
        "{successes}"
    );
    assert_eq!(
        metrics.receipts_thinned(),
        u64::from(2 * SUCCESSES_MAX) - successes as u64
    );
}

#[tokio::test]
async fn logs_in_memory_and_on_disk_come_as_one_list_oldest_first_and_bounded() {
    let (_dir, store, metrics) = parts();
    written(
        &store,
        &metrics,
        &[receipt("a", Some("1")), receipt("b", Some("x"))],
    );
    let (all, _thread) = Receipts::start(store, ROOMY, metrics).unwrap();
    all.add(receipt("a", Some("2")));
    all.add(receipt("a", Some("3")));
    let texts = async |wanted: LogQuery| -> Vec<String> {
        let found = all.logged(wanted).await.unwrap();
        found
            .iter()
            .map(|receipt| receipt.log[0].text.clone())
            .collect()
    };
    assert_eq!(texts(logs_of("a")).await, ["1", "2", "3"]);
    let few = LogQuery {
        invocations_max: 2,
        ..logs_of("a")
    };
    assert_eq!(texts(few).await, ["2", "3"]);
}
