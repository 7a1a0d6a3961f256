// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hostile program, deployed with tight limits, and what must hold after each of its attacks.

use serde_json::Value;

use crate::http::Answer;
use crate::instance::Instance;
use crate::invariants::Before;
use crate::package::{Kind, Package};

/// The limits of most tests: small, so that each is soon reached.
pub(crate) const TIGHT: &str = "\
[limits]
memory = \"64MiB\"
pids = 16
timeout = \"1s\"
scratch = \"4MiB\"
request = \"64KiB\"
response = \"256KiB\"
log = \"32KiB\"
[scaling]
max_instances = 4";

/// How many invocations must succeed after an attack.
const AFTERWARDS: usize = 20;

/// A deployed hostile program.
pub(crate) struct Victim {
    pub(crate) instance: &'static Instance,
    pub(crate) name: String,
    /// What `find-marker` says where nothing was left.
    pristine: Value,
    before: Before,
}

impl Victim {
    pub(crate) fn new(test: &str, kind: Kind, manifest: &str) -> Self {
        let instance = Instance::of_all();
        let name = format!("{test}-{}", kind.as_str());
        instance.deploy(&Package::hostile(&name, kind, manifest));
        let call = |mode: &str| instance.invoke(&name, format!("{mode}\n").as_bytes());
        assert_eq!(call("print ready").expect(200).text(), "ready\n", "{name}");
        let pristine = wherever(call("find-marker").expect(200).json());
        let before = Before::of(instance);
        Self {
            instance,
            name,
            pristine,
            before,
        }
    }

    /// One invocation in this mode.
    pub(crate) fn attack(&self, mode: &str) -> Answer {
        self.instance
            .invoke(&self.name, format!("{mode}\n").as_bytes())
    }

    pub(crate) fn receipt(&self, answer: &Answer) -> Value {
        self.instance.receipt(answer.invocation())
    }

    /// A failure: status, code, the receipt's outcome, and the problem document.
    pub(crate) fn fails(&self, mode: &str, status: u16, code: &str) -> (Value, Value) {
        let answer = self.attack(mode);
        let problem = answer.problem(status, code);
        let receipt = self.receipt(&answer);
        assert_eq!(receipt["outcome"], code, "{mode}: {receipt}");
        assert_eq!(problem["evidence"]["outcome"], code, "{mode}: {problem}");
        assert_eq!(problem["invocation"], answer.invocation(), "{mode}");
        (problem, receipt)
    }

    /// A success, in spite of the limits that were hit.
    pub(crate) fn succeeds(&self, mode: &str) -> (String, Value) {
        let answer = self.attack(mode).expect(200);
        let receipt = self.receipt(&answer);
        assert_eq!(receipt["outcome"], "ok", "{mode}: {receipt}");
        (answer.text(), receipt)
    }

    pub(crate) fn behaves(&self) {
        assert_eq!(
            self.attack("print all is well").expect(200).text(),
            "all is well\n",
            "{}",
            self.name
        );
    }

    /// The next invocations are as if nothing had happened (I8), find nothing of it, and nothing is left on the host (I1 to
    /// I7).
    pub(crate) fn recovers(&self) {
        for _ in 0..AFTERWARDS {
            self.behaves();
        }
        let found = wherever(self.attack("find-marker").expect(200).json());
        assert_eq!(found, self.pristine, "{}", self.name);
        self.before.assert_world_clean(self.instance);
    }
}

/// What was found, without the core that it was found on: each shard's sandboxes have their own.
fn wherever(mut found: Value) -> Value {
    let cores = found["state"]
        .as_object_mut()
        .and_then(|state| state.remove("cores"));
    // A wasm program has no such state.
    let one = cores.is_none_or(|cores| cores.as_u64().is_some_and(u64::is_power_of_two));
    assert!(one, "{found}");
    found
}

/// The receipt's list.
pub(crate) fn limits_hit(receipt: &Value) -> Vec<&str> {
    let hit = receipt["limits_hit"]
        .as_array()
        .unwrap_or_else(|| panic!("{receipt}"));
    hit.iter().filter_map(Value::as_str).collect()
}
