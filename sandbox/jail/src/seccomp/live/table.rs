// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every rule on the running kernel, with what it allows and with each bit of that changed. The calls are made, and none
//! happens: below the profile lies a filter that answers every call of this test with an errno of its own, which is what
//! a call gets that the profile allows.

use std::collections::BTreeMap;

use nix::sys::{signal::Signal, wait::WaitStatus};

use crate::{
    seccomp::{
        Profile,
        arch::Arch,
        assembler::assemble,
        policy,
        profile::{CallPolicy, Condition, Policy, Verdict, Width},
        reference::calls,
    },
    sys::probe::{Call, MARK, errnos},
};

/// What an allowed call answers here: no profile says this.
const ALLOWED: u16 = 133;

/// Answers every call that carries the mark.
fn marker(numbers: impl Iterator<Item = u32>) -> Policy {
    let marked = CallPolicy {
        allowed: vec![vec![Condition {
            argument: 5,
            width: Width::Bits64,
            mask: u64::MAX,
            values: vec![MARK],
        }]],
        then: Verdict::Errno(ALLOWED),
        otherwise: Verdict::Allow,
    };
    Policy {
        calls: numbers.map(|number| (number, marked.clone())).collect(),
        unnamed: Verdict::Allow,
    }
}

#[test]
fn every_rule_is_kept_by_the_kernel_with_every_argument_it_looks_at() {
    for profile in Profile::ALL {
        let policy = policy(profile, Arch::NATIVE).unwrap();
        let marker = assemble(&marker(policy.calls.keys().copied()), Arch::NATIVE).unwrap();
        let filter = assemble(&policy, Arch::NATIVE).unwrap();
        let mut expected: BTreeMap<Verdict, Vec<Call>> = BTreeMap::new();
        for (number, call) in &policy.calls {
            for call in calls(Arch::NATIVE, *number, call) {
                let [a, b, c, d, e, _] = call.arguments;
                let arguments = [a, b, c, d, e, MARK];
                let verdict = policy.answer(*number, &arguments);
                let made = (*number, [a, b, c, d, e]);
                expected.entry(verdict).or_default().push(made);
            }
        }
        for (verdict, calls) in expected {
            if verdict == Verdict::Kill {
                for call in &calls {
                    let (status, answers) = errnos(&[&marker, &filter], &[*call]);
                    let killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _));
                    assert!(killed && answers.is_empty(), "{profile}: {call:x?}");
                }
                continue;
            }
            let errno = match verdict {
                Verdict::Allow => ALLOWED,
                Verdict::Errno(errno) => errno,
                // Asked for by a filter below, which is not there.
                Verdict::Ask | Verdict::Defer | Verdict::Kill => continue,
            };
            let (_, answers) = errnos(&[&marker, &filter], &calls);
            assert_eq!(answers.len(), calls.len(), "{profile} {verdict:?}");
            for (call, answer) in calls.iter().zip(answers) {
                assert_eq!(answer, i32::from(errno), "{profile}: {call:x?}");
            }
        }
    }
}
