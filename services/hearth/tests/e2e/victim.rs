// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hostile program, deployed with tight limits, and what must hold after each of its attacks.

use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::http::Answer;
use crate::instance::Instance;
use crate::invariants::Before;
use crate::package::{Kind, Package};

/// The limits of most tests: small, so that each is soon reached. One sandbox: the next call meets what the last one left.
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
max_instances = 1
max_inflight = 1";

/// How many invocations must succeed after an attack.
const AFTERWARDS: usize = 20;

/// As [`TIGHT`], with the usual limits of what goes in and out.
pub(crate) const NARROW: &str = "\
[limits]
memory = \"64MiB\"
pids = 16
timeout = \"1s\"
scratch = \"4MiB\"
[scaling]
max_instances = 1
max_inflight = 1";

/// In which sandbox the first attack runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// One that nothing has run in.
    Fresh,
    /// One that has served calls.
    Reused,
}

impl Sandbox {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Reused => "reused",
        }
    }
}

/// A deployed hostile program.
pub(crate) struct Victim {
    pub(crate) instance: &'static Instance,
    pub(crate) name: String,
    kind: Kind,
    /// What the next attack must find.
    sandbox: Mutex<Option<Sandbox>>,
    /// What `find-marker` says where nothing was left.
    pristine: Value,
    before: Before,
}

impl Victim {
    pub(crate) fn new(test: &str, kind: Kind, manifest: &str) -> Self {
        let instance = Instance::of_all();
        let name = format!("{test}-{}", kind.as_str());
        instance.deploy(&Package::hostile(&name, kind, manifest));
        let pristine = look(instance, &name);
        Self {
            instance,
            name,
            kind,
            sandbox: Mutex::new(None),
            pristine,
            before: Before::of(instance),
        }
    }

    /// As [`Self::fresh_and_reused`], natively and as a module.
    pub(crate) fn of_both_kinds(test: &str, manifest: &str, attack: impl Fn(&Self)) {
        for kind in Kind::BOTH {
            Self::fresh_and_reused(test, kind, manifest, &attack);
        }
    }

    /// Runs `attack` on a victim with one sandbox, twice: when it has just been bound, and when it has served calls.
    pub(crate) fn fresh_and_reused(test: &str, kind: Kind, manifest: &str, attack: impl Fn(&Self)) {
        Self::with_files(test, kind, manifest, &[], attack);
    }

    /// As [`Self::fresh_and_reused`], with more files beside the program.
    pub(crate) fn with_files(
        test: &str,
        kind: Kind,
        manifest: &str,
        files: &[(&str, &[u8])],
        attack: impl Fn(&Self),
    ) {
        let package = |name: &str| {
            let package = Package::hostile(name, kind, manifest);
            let add = |package: Package, (path, content): &(&str, &[u8])| {
                package.with_file(path, 0o644, content)
            };
            files.iter().fold(package, add)
        };
        let instance = Instance::of_all();
        let name = format!("{test}-{}", kind.as_str());
        for sandbox in [Sandbox::Fresh, Sandbox::Reused] {
            instance.deploy(&package(&name));
            let pristine = look(instance, &name);
            if sandbox == Sandbox::Fresh {
                // Another revision begins without any sandbox.
                instance.deploy(&package(&name).with_file("revision", 0o644, b"another"));
            }
            let victim = Self {
                instance,
                name: name.clone(),
                kind,
                sandbox: Mutex::new(Some(sandbox)),
                pristine,
                before: Before::of(instance),
            };
            attack(&victim);
            assert_eq!(victim.expected(), None, "no attack");
            victim.recovers();
        }
    }

    fn expected(&self) -> Option<Sandbox> {
        let mut sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        sandbox.take()
    }

    /// One invocation in this mode.
    pub(crate) fn attack(&self, mode: &str) -> Answer {
        let answer = self.call(mode);
        self.made(answer.header("hearth-start"), mode);
        answer
    }

    /// An attack was made, in the sandbox that its `Hearth-Start` says: the first one must be in the one that it is about.
    pub(crate) fn made(&self, start: Option<&str>, what: &str) {
        let sandbox = made(self.kind, start, what);
        if let Some(expected) = self.expected() {
            assert_eq!(sandbox, expected, "{what}");
        }
    }

    fn call(&self, mode: &str) -> Answer {
        let input = format!("{mode}\n");
        self.instance.invoke(&self.name, input.as_bytes())
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
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
        let answer = self.call("print all is well").expect(200);
        assert_eq!(answer.text(), "all is well\n", "{}", self.name);
    }

    /// The next invocations are as if nothing had happened (I8), find nothing of it, and nothing is left on the host (I1 to
    /// I7).
    pub(crate) fn recovers(&self) {
        for _ in 0..AFTERWARDS {
            self.behaves();
        }
        let found = wherever(self.call("find-marker").expect(200).json());
        assert_eq!(found, self.pristine, "{}", self.name);
        self.before.assert_world_clean(self.instance);
    }
}

/// Says that an attack was made, for `.ci/attacks`, which compares it with what the list calls covered. Those that are not
/// made through a [`Victim`] say so themselves.
pub(crate) fn made(kind: Kind, start: Option<&str>, what: &str) -> Sandbox {
    let sandbox = match start {
        Some("warm") => Sandbox::Reused,
        Some("bound" | "created") => Sandbox::Fresh,
        other => panic!("{what} was not invoked: {other:?}"),
    };
    println!("MADE: {} {}: {what}", kind.as_str(), sandbox.as_str());
    sandbox
}

/// What a pristine function sees.
fn look(instance: &Instance, name: &str) -> Value {
    let call = |mode: &str| instance.invoke(name, mode.as_bytes()).expect(200);
    assert_eq!(call("print ready\n").text(), "ready\n", "{name}");
    wherever(call("find-marker\n").json())
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
