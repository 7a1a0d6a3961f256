// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System calls that a function's profile refused by name: evidence, for the receipt and whoever reads it.

use std::time::Duration;

use hearth_protocol::spawner::{VIOLATIONS_TOLD_MAX, Violation, ViolationClass};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{Target, record::Record, sandbox::Sandbox};

/// How long the spawner's word on calls that are counted already may take. It was sent before the calls failed.
const TOLD_WAIT_MAX: Duration = Duration::from_millis(100);

/// How long to wait for the end of a sandbox that may have been ended for the last of many calls. One that lives on makes
/// its caller wait for so long: it made more calls than are told, and then killed itself by SIGKILL.
const END_WAIT_MAX: Duration = Duration::from_secs(1);

/// The refused calls of one invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violations {
    /// The profile that refused them.
    pub profile: String,
    /// How many there were.
    pub count: u64,
    /// The first ones.
    pub first: Vec<RefusedCall>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedCall {
    /// Its name; empty where its number has none.
    pub name: String,
    /// Its number, on this machine's architecture.
    pub number: u32,
    /// Its six arguments as they were in the registers, hexadecimal; pointers among them say nothing.
    pub arguments: Vec<String>,
    /// What it got.
    pub class: ViolationClass,
}

impl From<Violation> for RefusedCall {
    fn from(violation: Violation) -> Self {
        let Violation {
            name,
            number,
            arguments,
            class,
        } = violation;
        let arguments = arguments.iter().map(|argument| format!("{argument:#x}"));
        Self {
            name,
            number,
            arguments: arguments.collect(),
            class,
        }
    }
}

impl std::fmt::Display for RefusedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({})", self.name, self.arguments.join(", "))
    }
}

impl Violations {
    /// Of each class, how many: those beyond the first were not the end, or there would be none after them.
    #[must_use]
    pub fn by_class(&self, class: ViolationClass) -> u64 {
        let killed = self
            .first
            .iter()
            .filter(|call| call.class == ViolationClass::Kill);
        let killed = killed.count() as u64;
        match class {
            ViolationClass::Kill => killed,
            ViolationClass::Eperm => self.count.saturating_sub(killed),
        }
    }

    /// About how much memory it takes beside a receipt, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        const CALL_BYTES: usize = 512;
        self.first.len() * CALL_BYTES
    }
}

/// Notes what was refused in a sandbox that one invocation has at a time, once that has ended.
pub(crate) async fn note(sandbox: &Sandbox, target: &Target, record: &mut Record) {
    let count = counted(sandbox).await;
    if 0 < count {
        put(count, sandbox, target, record);
    }
}

/// As [`note`], where the last call may have been the sandbox's end: that one is told however many there were before it.
pub(crate) async fn note_last(sandbox: &Sandbox, target: &Target, record: &mut Record) {
    let count = counted(sandbox).await;
    if u64::from(VIOLATIONS_TOLD_MAX) < count {
        // It is told before the end is, so that it is there then.
        let _alive = timeout(END_WAIT_MAX, sandbox.death.seen()).await;
    }
    if 0 < count {
        put(count, sandbox, target, record);
    }
}

/// How many were refused, once the first of them are told.
async fn counted(sandbox: &Sandbox) -> u64 {
    let count = sandbox.gauges.violations();
    let told = usize::try_from(count.min(VIOLATIONS_TOLD_MAX.into())).unwrap_or(0);
    // Where the spawner is gone, it tells no more; the count stands.
    let _late = timeout(TOLD_WAIT_MAX, sandbox.death.violations_told(told)).await;
    count
}

/// Notes what was refused in a sandbox that several invocations share: whose call it was is not known, and the one that
/// ends first gets it.
pub(crate) fn note_shared(sandbox: &Sandbox, target: &Target, record: &mut Record) {
    if sandbox.death.has_violations() {
        // Read first: what is told while this goes on is counted for the next one.
        let count = sandbox.gauges.violations();
        put(count, sandbox, target, record);
    }
}

fn put(count: u64, sandbox: &Sandbox, target: &Target, record: &mut Record) {
    let first: Vec<RefusedCall> = sandbox
        .death
        .take_violations()
        .into_iter()
        .map(RefusedCall::from)
        .collect();
    let calls: Vec<String> = first.iter().map(ToString::to_string).collect();
    tracing::warn!(
        function = %target.function,
        invocation = %record.id,
        profile = target.profile().name(),
        count,
        calls = calls.join(" "),
        "a function made system calls that its profile refuses"
    );
    record.violations = Some(Violations {
        profile: target.profile().name().to_owned(),
        count: count.max(first.len() as u64),
        first,
    });
}
